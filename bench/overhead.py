"""What the cache costs: time when nothing is cached, time of a cached step, live state, and waits for a device.

    python -m bench.overhead                        # all groups, half an hour; saves bench/results/overhead.json
    python -m bench.overhead --only core policies   # some; saves nothing unless --json says where
    python -m bench.overhead --quick                # seconds, a small model: shows that it works, says nothing

The model is a random FLUX transformer of middle size. What is compared runs in turn, step by step and in random order,
on copies of the model that share their weights, so that a machine that slows down does so for all.
"""

import argparse
import dataclasses
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from bench.common import CLOCKS, QUICK, Size
from bench.findings import Finding, save, table
from bench.groups import GROUPS
from cache_dit.platforms.machine import describe_machine

RESULTS = Path(__file__).parent / "results" / "overhead.json"


@torch.inference_mode()
def measure(size: Size, groups: Sequence[str]) -> tuple[list[Finding], dict[str, float]]:
    """The findings of some groups, and how many seconds each group took."""
    findings: list[Finding] = []
    seconds: dict[str, float] = {}
    for group in groups:
        start = time.perf_counter()
        for finding in GROUPS[group](size):
            findings.append(dataclasses.replace(finding, group=group))
        seconds[group] = time.perf_counter() - start
    return findings, seconds


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What the cache costs on this machine.")
    parser.add_argument(
        "--only", nargs="+", choices=tuple(GROUPS), metavar="GROUP", help=f"some of {', '.join(GROUPS)}"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a small model, to see that it works; saves nothing by itself"
    )
    parser.add_argument("--runs", type=int, help=f"runs of all steps (default {Size.runs})")
    parser.add_argument("--threads", type=int, default=2, help="processor threads (default %(default)s)")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help=f"where to save (default {RESULTS.name} in bench/results)"
    )
    parser.add_argument(
        "--clock", choices=CLOCKS, default=Size.clock, help="what to measure (default %(default)s time)"
    )
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    logging.getLogger("cache_dit").setLevel(logging.ERROR)  # that nothing was skipped is the point here
    size = QUICK if given.quick else Size()
    size = dataclasses.replace(size, clock=given.clock, runs=given.runs or size.runs)
    machine = describe_machine()
    groups = [group for group in GROUPS if given.only is None or group in given.only]
    findings, seconds = measure(size, groups)
    console = Console()
    console.print(str(machine), highlight=False)
    tokens = f"{size.image_tokens} image and {size.text_tokens} text tokens"
    model = f"FLUX, hidden {size.hidden}, {size.double} + {size.single} blocks, {tokens}"
    console.print(table(findings, f"{model}; {size.runs} runs of {size.steps} steps, {size.clock} time"))
    path = given.json or (None if given.quick or given.only else RESULTS)
    if path is not None:
        save(path, findings, machine, size, seconds)
        console.print(f"saved to {path}", highlight=False)


if __name__ == "__main__":
    main()
