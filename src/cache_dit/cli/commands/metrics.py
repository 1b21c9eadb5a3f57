"""``cache-dit metrics``: how far pictures and videos are from others, or from their prompts."""

from __future__ import annotations

import argparse

from cache_dit.cli.arguments import Command
from cache_dit.metrics.arguments import add_arguments


def run(arguments: argparse.Namespace) -> int:
    """Measure, and print."""
    from cache_dit.metrics import application

    return application.run(arguments)


COMMAND = Command("metrics", "Measure how far pictures and videos are from others.", add_arguments, run)
