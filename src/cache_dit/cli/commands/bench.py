"""``cache-dit bench``: what the cache costs and gives, measured here. The benches are part of the repository."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from cache_dit.errors import MissingDependencyError

_ROOT = Path(__file__).parents[4]
"""The repository, where this is a checkout or an editable install of one."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare nothing: the benches have arguments of their own."""


def run(arguments: argparse.Namespace) -> int:
    """Run ``python -m bench`` of the repository in this process."""
    if not (_ROOT / "bench" / "commands.py").is_file() or not (_ROOT / "pyproject.toml").is_file():
        raise MissingDependencyError(
            "the benches are part of cache-dit's repository, not of the installed package: clone the repository, "
            "pip install --editable '.[bench]' there, and run cache-dit bench again"
        )
    if str(_ROOT) not in sys.path:
        sys.path.insert(0, str(_ROOT))
    status: int = importlib.import_module("bench.commands").main(arguments.rest)
    return status
