"""Another name of ``cache_dit.parallelism``."""

from cache_dit.parallelism import ParallelismBackend, ParallelismConfig

__all__ = ["ParallelismBackend", "ParallelismConfig"]
