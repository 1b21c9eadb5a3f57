"""``cache-dit metrics``: how far pictures and videos are from others, or from their prompts."""

from __future__ import annotations

import argparse

from cache_dit.cli.metrics.arguments import add_arguments

__all__ = ["add_arguments", "run"]


def run(arguments: argparse.Namespace) -> int:
    """Measure, and print."""
    from cache_dit.cli.metrics import application

    return application.run(arguments)
