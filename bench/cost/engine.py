"""The one place that reaches into the engine: its kernels for a weighted sum."""

from __future__ import annotations

from typing import Any

from cache_dit.engine.state.weighted_sum import Compiled, plain


def kernels(backend: str) -> dict[str, Any]:
    """The two kernels of out ← anchor + Σ weight · part, eager, and compiled by a backend of torch."""
    return {"eager": plain, "compiled": Compiled(backend)}
