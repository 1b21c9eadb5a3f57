"""``gpu``: what the cache costs and gives on a CUDA GPU, on models of the sizes that people run."""

from __future__ import annotations

import argparse

from bench.arguments import COMMITTED, add_common, opened
from cache_dit.cli.arguments import Command, whole_number


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_common(parser, out=COMMITTED / "gpu.json")
    parser.add_argument("--device", default="cuda", help="a CUDA device (default %(default)s)")
    parser.add_argument(
        "--minutes",
        type=whole_number(1, 1440),
        default=8,
        help="rows that would end later are left out (default %(default)s)",
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="PART", help="rows whose name has one of these, e.g. flux or peers"
    )


def _run(arguments: argparse.Namespace) -> int:
    import logging
    from dataclasses import asdict

    from rich.console import Console

    from bench.findings import table
    from bench.gpu import plan, stage
    from bench.gpu.findings import findings_of

    size = stage.QUICK if arguments.quick else stage.Size()
    place = stage.opened(arguments.device, size)
    logging.getLogger("cache_dit").setLevel(logging.ERROR)  # that nothing was skipped is the point of some rows
    console = Console()
    settings = {"device": str(place.device), "dtype": str(place.dtype).removeprefix("torch."), **asdict(size)}
    results = opened(arguments, "gpu", settings, device=str(place.device))

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    plan.run(place, results, arguments.minutes, only=arguments.only, say=say)
    findings = findings_of(results.rows)
    console.print(table(findings, f"{results.machine['device']}, {settings['dtype']}"))
    results.finish(findings)
    failed = [key for key, row in results.rows.items() if "error" in row]
    if failed:
        say(f"failed: {', '.join(failed)}; run again with more minutes to try these anew")
    return 1 if failed else 0


COMMAND = Command(
    name="gpu",
    help="cost and gain on a CUDA GPU: full-sized transformers with random weights",
    add_arguments=_add_arguments,
    run=_run,
)
