"""How far a call walks inside the package: ``python -m tools.walk`` counts calls, files and changes of file.

A call is a ``sys.setprofile`` event "call" in one of the package's files: functions, comprehensions, and generators
each time they go on. The counts belong to one version of Python, as comprehensions are calls up to 3.11 alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import cache_dit

PACKAGE = Path(cache_dit.__file__).parent


@dataclass
class Walk:
    """The functions that were called, in order, as (file, function): files are relative to the package."""

    steps: list[tuple[str, str]] = field(default_factory=list)
    #: Calls of C functions from the package's own frames.
    c_calls: int = 0

    @property
    def calls(self) -> int:
        """How many calls there were."""
        return len(self.steps)

    @property
    def files(self) -> list[str]:
        """The files that were walked through, in the order of their first call."""
        return list(dict.fromkeys(file for file, _ in self.steps))

    @property
    def changes(self) -> int:
        """How many calls were in another file than the call before."""
        return sum(one[0] != other[0] for one, other in zip(self.steps, self.steps[1:], strict=False))

    def count(self, function: str) -> int:
        """How often functions of this name were called."""
        return sum(name == function for _, name in self.steps)

    def most_called(self) -> list[tuple[tuple[str, str], int]]:
        """The functions with how often they were called, the most frequent first."""
        return Counter(self.steps).most_common()

    def part(self, start: int, end: int | None = None) -> Walk:
        """Some of the calls."""
        return Walk(self.steps[start:end])


@dataclass
class BlockWalk:
    """One call of a block: where its calls begin and end in the walk, and whether the block itself ran."""

    start: int
    end: int = 0
    ran: bool = False


@dataclass
class StepWalk:
    """One call of a transformer, and those of its blocks in it."""

    walk: Walk = field(default_factory=Walk)
    blocks: list[BlockWalk] = field(default_factory=list)

    @property
    def skipped(self) -> list[BlockWalk]:
        """The blocks that did not run."""
        return [block for block in self.blocks if not block.ran]

    @property
    def before_blocks(self) -> Walk:
        """What happened before the first block was called."""
        return self.walk.part(0, self.blocks[0].start)

    @property
    def later_skipped_block(self) -> Walk:
        """The calls of a skipped block that is neither the first skipped one, which predicts, nor the last."""
        block = self.skipped[1]
        return self.walk.part(block.start, block.end)


@contextmanager
def profiled(function: Callable[[FrameType, str, Any], None]) -> Iterator[None]:
    """Let ``function`` see every event of this thread meanwhile."""
    before = sys.getprofile()
    sys.setprofile(function)
    try:
        yield
    finally:
        sys.setprofile(before)


_FILES: dict[str, str | None] = {}


def package_file(frame: FrameType) -> str | None:
    """The file of a frame, relative to the package; None for a frame of somebody else's."""
    name = frame.f_code.co_filename
    if name not in _FILES:
        path = Path(name)
        _FILES[name] = str(path.relative_to(PACKAGE)) if path.is_relative_to(PACKAGE) else None
    return _FILES[name]


def walk_of(function: Callable[[], Any]) -> Walk:
    """The walk of one call of ``function``."""
    walk = Walk()

    def see(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and (file := package_file(frame)) is not None:
            walk.steps.append((file, frame.f_code.co_name))
        elif event == "c_call" and package_file(frame) is not None:
            walk.c_calls += 1

    with profiled(see):
        function()
    return walk


def steps_of(function: Callable[[], Any], transformer: Any, blocks: list[Any]) -> list[StepWalk]:
    """The walk of each call of a transformer with a cache while ``function`` runs.

    Args:
        function: what calls the transformer, e.g. a pipeline.
        transformer: the transformer; its calls are told by the ``__call__`` of the class that the cache gave it.
        blocks: its blocks.
    """
    steps: list[StepWalk] = []
    numbers = {id(block) for block in blocks}
    step: list[tuple[FrameType, StepWalk]] = []  # the call under way, and
    block: list[tuple[FrameType, BlockWalk]] = []  # that of a block

    def enter(frame: FrameType, file: str | None) -> None:
        name = frame.f_code.co_name
        instance = frame.f_locals.get("self") if name in ("__call__", "forward") else None
        if file is not None and name == "__call__" and instance is transformer and not step:
            steps.append(StepWalk())
            step.append((frame, steps[-1]))
        if not step:
            return
        walk = step[0][1].walk
        if id(instance) in numbers and file is not None and not block:
            made = BlockWalk(walk.calls)
            step[0][1].blocks.append(made)
            block.append((frame, made))
        if id(instance) in numbers and name == "forward" and file is None:
            block[0][1].ran = True
        if file is not None:
            walk.steps.append((file, name))

    def see(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            enter(frame, package_file(frame))
        elif event == "return" and step and frame is step[0][0]:
            step.clear()
        elif event == "return" and block and frame is block[0][0]:
            block.pop()[1].end = step[0][1].walk.calls
        elif event == "c_call" and step and package_file(frame) is not None:
            step[0][1].walk.c_calls += 1

    with profiled(see):
        function()
    return steps


def measure(steps: int = 10) -> dict[str, dict[str, int]]:
    """The table: what a step, its parts and ``enable_cache`` walk on the demo FLUX, with threshold and Taylor 1."""
    from cache_dit.demo.pipeline import load_pipeline

    pipe = load_pipeline(progress=False)
    config = cache_dit.DBCacheConfig(residual_diff_threshold=0.24, Fn_compute_blocks=1)
    calibrator = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=1)

    enable_cache = cache_dit.enable_cache  # looked up here: the root's names are imported when they are asked for

    def enable() -> None:
        enable_cache(pipe, config, calibrator)

    def draw() -> None:
        pipe("glossy 3d emoji of cuba flag", num_inference_steps=steps, output_type="latent")

    enable()
    draw()  # what is imported late, or made once for each class, is no part of the walk
    blocks = [*pipe.transformer.transformer_blocks, *pipe.transformer.single_transformer_blocks]
    walks = steps_of(draw, pipe.transformer, blocks)
    cached = [step for step in walks if len(step.skipped) > 2]
    computed = [step for step in walks if not step.skipped]
    if not cached or not computed:
        raise SystemExit(f"of {len(walks)} calls of the transformer {len(cached)} were cached: expected some, not all")
    cache_dit.disable_cache(pipe)
    last = cached[-1]
    return {
        "a cached step": row(last.walk),
        "before its first block": row(last.before_blocks),
        "a later skipped block": row(last.later_skipped_block),
        "a computed step": row(computed[-1].walk),
        "enable_cache": row(walk_of(enable), "validate", "field_names"),
    }


def row(walk: Walk, *functions: str) -> dict[str, int]:
    """A walk in figures, and how often some functions were called."""
    figures = {"calls": walk.calls, "files": len(walk.files), "changes of file": walk.changes}
    return {**figures, **{function: walk.count(function) for function in functions}}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tools.walk", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print it as JSON, not as Markdown")
    as_json = parser.parse_args().json
    table = measure()
    if as_json:
        print(json.dumps(table, indent=1))
        return
    columns = list(dict.fromkeys(name for figures in table.values() for name in figures))
    print(f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|", sep="\n")
    for name, figures in table.items():
        print(f"| {name} | {' | '.join(str(figures.get(column, '')) for column in columns)} |")


if __name__ == "__main__":
    main()
