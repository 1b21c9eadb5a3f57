"""Small helpers for scripts around the cache."""

from __future__ import annotations

import builtins
import contextlib
import gc
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def disable_print() -> Iterator[None]:
    """Within it ``print`` does nothing, in every thread: for ``with disable_print(): pipe(…)`` on all ranks but one."""
    plain = builtins.print

    def silent(*args: Any, **kwargs: Any) -> None:
        pass

    builtins.print = silent
    try:
        yield
    finally:
        builtins.print = plain


def maybe_empty_cache() -> None:
    """Collect garbage, and give memory that nothing uses back to the device, where there is one."""
    gc.collect()
    if torch.accelerator.is_available():
        torch.get_device_module().empty_cache()


def is_diffusers_at_least_0_3_5() -> bool:
    """Whether the installed diffusers is 0.35 or newer."""
    import diffusers
    from packaging.version import Version

    return Version(diffusers.__version__) >= Version("0.35")
