"""``python -m cache_dit.metrics.networks`` says which are there; ``… fetch lpips`` gets those of LPIPS."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cache_dit.errors import CacheDitError, MissingModelError
from cache_dit.metrics.networks.files import NETWORKS, find
from cache_dit.metrics.networks.lpips_weights import fetch as fetch_lpips


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of this package; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m cache_dit.metrics.networks", description="The metrics' networks.")
    commands = parser.add_subparsers(dest="command")
    fetch = commands.add_parser("fetch", help="download weights and put them in the user's cache")
    fetchers: dict[str, Callable[..., list[Path]]] = {"lpips": fetch_lpips}
    fetch.add_argument("network", choices=sorted(fetchers))
    fetch.add_argument("--archive", type=Path, help="the archive, where it was downloaded already")
    options = parser.parse_args(arguments)
    if options.command == "fetch":
        try:
            print(*fetchers[options.network](options.archive), sep="\n")
        except CacheDitError as error:
            print(error, file=sys.stderr)
            return 1
        return 0
    missing = 0
    for network in NETWORKS:
        try:
            print(f"{network.name}: {find(network)}")
        except MissingModelError as error:
            missing = 1
            print(error)
    return missing


if __name__ == "__main__":
    raise SystemExit(main())
