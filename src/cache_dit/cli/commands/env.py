"""``cache-dit env``: what a bug report needs to say of this machine."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``cache-dit env``."""
    parser.add_argument("--json", action="store_true", help="print it as data")


def run(arguments: argparse.Namespace) -> int:
    """Print it."""
    from cache_dit.report.environment import describe_environment, lines

    environment = describe_environment()
    if arguments.json:
        import json

        print(json.dumps(environment, indent=2))
    else:
        print("\n".join(lines(environment)))
    return 0
