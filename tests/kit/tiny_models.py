"""Tiny random transformers of the families that have a record: a table of one row each, from ``families/``."""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
import warnings
from collections.abc import Iterator
from typing import Any

import diffusers
import pytest
import torch

from tests.kit import families
from tests.kit.row import Inputs, Tiny

#: Class name of the transformer -> its row.
TINY: dict[str, Tiny] = {}
for _file in pkgutil.iter_modules(families.__path__):
    TINY.update(importlib.import_module(f"{families.__name__}.{_file.name}").ROWS)


def tiny(name: str, **changes: Any) -> torch.nn.Module:
    """A tiny random transformer by its class name, the same weights each time, none of them zero.

    Where this diffusers has no such class, the test is skipped.
    """
    if not hasattr(diffusers, name):
        pytest.skip(f"this diffusers has no {name}")
    torch.manual_seed(0)
    with _nan_where_uninitialized(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # diffusers of its own parts
        model: torch.nn.Module = getattr(diffusers, name)(**{**TINY[name].config, **changes}).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            # Zero-initialized gates and outputs would hide what the blocks do.
            if not parameter.any() or parameter.isnan().any():
                parameter.normal_(std=0.05, generator=generator)
    return model


@contextlib.contextmanager
def _nan_where_uninitialized() -> Iterator[None]:
    """Memory that a constructor leaves as it finds it holds NaN inside."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def inputs(name: str, *, batch: int = 1, side: int = 4, timestep: float = 1.0) -> Inputs:
    """What a family's transformer is called with."""
    return TINY[name].inputs(batch, side, timestep)
