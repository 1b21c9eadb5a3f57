"""How often the host waits for numbers of a device."""

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

from bench.findings import Finding, at_most

#: What the numbers are read for, by the module that reads them.
_PURPOSES = {"measure": "decisions", "history": "predictions", "calls": "timesteps", "lane": "checks"}
_APART = ("timesteps", "checks")


@contextlib.contextmanager
def counted() -> Iterator[Counter[str]]:
    """Count the reads made inside, by what they are for.

    All of the engine goes through ``read_back``. A decision is read from whatever device it was measured on, a
    prediction where a predictor needs inner products of snapshots. Timesteps are counted apart: on a processor they are
    there already, and on a device a static plan of known length does not read them. So is the check, once in a
    chain's life, whether its blocks write into their input.
    """
    count: Counter[str] = Counter()

    def counting(purpose: str, read: Callable[[Any], list[float]]) -> Callable[[Any], list[float]]:
        def read_and_count(values: Any) -> list[float]:
            count[purpose] += 1
            return read(values)

        return read_and_count

    with contextlib.ExitStack() as patches:
        for name, module in list(sys.modules.items()):
            read = vars(module).get("read_back") if name.startswith("cache_dit.caching.") else None
            if read is not None:
                last = name.rpartition(".")[2]
                patches.enter_context(mock.patch.object(module, "read_back", counting(_PURPOSES.get(last, last), read)))
        yield count


def reads_per_step(model: Callable[..., Any], inputs: Sequence[dict[str, Any]]) -> dict[str, list[int]]:
    """For each purpose, the reads of each step of one run."""
    steps = []
    for arguments in inputs:
        with counted() as count:
            model(**arguments)
        steps.append(count)
    purposes = dict.fromkeys((*_PURPOSES.values(), *(purpose for count in steps for purpose in count)))
    return {purpose: [count[purpose] for count in steps] for purpose in purposes}


def reads(name: str, model: Callable[..., Any], inputs: Sequence[dict[str, Any]], most: int | None) -> Finding:
    """The most reads that a step of a run waits for, without those that are counted apart."""
    found = reads_per_step(model, inputs)
    waits = [sum(step) for step in zip(*(row for purpose, row in found.items() if purpose not in _APART), strict=True)]
    return at_most(f"host reads in a step, {name}", max(waits), "reads", most, in_the_run=sum(waits), per_step=found)
