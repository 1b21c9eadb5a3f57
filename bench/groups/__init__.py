"""The groups of rows: each module measures one thing."""

from collections.abc import Callable

from bench.common import Size
from bench.findings import Finding
from bench.groups.batches import batches
from bench.groups.core import core
from bench.groups.demo import demo
from bench.groups.guidance import guidance
from bench.groups.memory import memory
from bench.groups.policies import policies
from bench.groups.predictors import predictors
from bench.groups.pruning import pruning
from bench.groups.python_time import python_time
from bench.groups.sums import sums

#: By the name that ``--only`` knows them by, in the order in which they run.
GROUPS: dict[str, Callable[[Size], list[Finding]]] = {
    "core": core,
    "memory": memory,
    "predictors": predictors,
    "sums": sums,
    "policies": policies,
    "pruning": pruning,
    "guidance": guidance,
    "batches": batches,
    "demo": demo,
    "python": python_time,
}
