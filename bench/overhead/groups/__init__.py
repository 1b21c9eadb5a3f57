"""The groups of rows: each module measures one thing."""

from collections.abc import Callable

from bench.findings import Finding
from bench.overhead.common import Size
from bench.overhead.groups.batches import batches
from bench.overhead.groups.core import core
from bench.overhead.groups.demo import demo
from bench.overhead.groups.guidance import guidance
from bench.overhead.groups.memory import memory
from bench.overhead.groups.policies import policies
from bench.overhead.groups.predictors import predictors
from bench.overhead.groups.pruning import pruning
from bench.overhead.groups.python_time import python_time
from bench.overhead.groups.sums import sums

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
