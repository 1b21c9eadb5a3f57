"""The command line: one console script with a subcommand for each file in ``commands``."""

from cache_dit.cli.application import main, metrics_main

__all__ = ["main", "metrics_main"]
