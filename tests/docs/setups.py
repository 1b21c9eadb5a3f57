"""What pages take for granted: each function makes the names that the blocks of a page begin with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import cache_dit
from tests.kit.tiny_flux import denoise, flux_inputs, tiny_transformer


def demo() -> dict[str, Any]:
    """The demo pipeline, without its progress bar, as `pipe`; `cache_dit` and `torch` are imported."""
    return {"cache_dit": cache_dit, "torch": torch, "pipe": cache_dit.demo.load_pipeline(progress=False)}


def tiny_flux() -> dict[str, Any]:
    """A small random FLUX `transformer` without a pipeline; `denoise(transformer)` runs its loop of 6 steps."""
    return {
        "cache_dit": cache_dit,
        "torch": torch,
        "transformer": tiny_transformer(),
        "denoise": denoise,
        "inputs": flux_inputs(),
    }


SETUPS: dict[str, Callable[[], dict[str, Any]]] = {"demo": demo, "tiny_flux": tiny_flux}
