"""``scaling``: what a cached and a full step cost as tokens, depth, width and batch grow."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from bench.arguments import COMMITTED, add_common, opened
from cache_dit.cli.arguments import Command, UsageError, whole_number

if TYPE_CHECKING:
    import torch

RUNS, CALLS = 8, 500


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_common(parser, out=COMMITTED / "scaling.json")
    parser.add_argument("--device", default="cpu", help="where the models run (default %(default)s)")
    parser.add_argument(
        "--runs", type=whole_number(1, 1000), default=RUNS, help="runs of all steps at each size (default %(default)s)"
    )


def _run(arguments: argparse.Namespace) -> int:
    import logging

    from rich.console import Console

    from bench.findings import table
    from bench.gpu.clock import clock_for
    from bench.scaling.findings import findings_of
    from bench.scaling.measure import run
    from bench.scaling.points import points

    device = _device(arguments.device)
    logging.getLogger("cache_dit").setLevel(logging.ERROR)  # that nothing was skipped is the point of some rows
    runs, calls = (1, 50) if arguments.quick else (arguments.runs, CALLS)
    results = opened(arguments, "scaling", {"device": str(device), "runs": runs}, device=str(device))
    console = Console()

    def say(line: str) -> None:
        if not console.is_terminal:  # there is a progress bar
            console.print(line, highlight=False, markup=False)

    clock = clock_for(device, arguments.clock)
    run(points(quick=arguments.quick), results, runs=runs, calls=calls, device=device, clock=clock, say=say)
    findings = findings_of(results.rows)
    console.print(table(findings, f"{results.machine['device']}, {clock.name} time"))
    results.finish(findings)
    return 0


def _device(name: str) -> torch.device:
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device {name!r} is no device: pass cpu or cuda") from error
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and not torch.cuda.is_available()):
        raise UsageError(f"there is no {name} here that this bench can time: pass cpu, or cuda where there is one")
    return device


COMMAND = Command(
    name="scaling",
    help="cost of cached and full steps as tokens, depth, width and batch grow",
    add_arguments=_add_arguments,
    run=_run,
)
