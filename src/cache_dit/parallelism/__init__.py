"""Spreading one transformer over several devices: what is asked for."""

from cache_dit.config.parallelism import ParallelismBackend, ParallelismConfig

__all__ = ["ParallelismBackend", "ParallelismConfig"]
