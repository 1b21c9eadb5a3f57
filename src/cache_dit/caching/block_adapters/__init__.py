"""Descriptions of models: your own, those that you register, and those of the built-in families.

There is one function per family with a record, such as ``flux_adapter(pipe, **options)``: it gives the description of
a pipeline or transformer of this family, with the given fields of ``BlockAdapter`` in place of the record's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from cache_dit.caching.adapter import BlockAdapter, FakeDiffusionPipeline
from cache_dit.caching.block_adapters.register import BlockAdapterRegister
from cache_dit.caching.nesting import as_list
from cache_dit.config.base import unknown_key
from cache_dit.config.modifier import ParamsModifier
from cache_dit.errors import UnsupportedModelError

__all__ = ["BlockAdapter", "BlockAdapterRegister", "FakeDiffusionPipeline", "ParamsModifier"]

_SUFFIX = "_adapter"


def _families() -> dict[str, str]:
    from cache_dit.models.record import known_families

    return {f"{name.lower()}{_SUFFIX}": family for name, family in known_families().items()}


def _make(function: str, family: str) -> Callable[..., BlockAdapter]:
    def family_adapter(pipe: Any, **options: Any) -> BlockAdapter:
        from cache_dit.models.record import record_of, recorded_adapter

        adapter = recorded_adapter(pipe)
        record = None if adapter is None else record_of(as_list(adapter.transformer)[0])
        if adapter is None or record is None or not record.name.startswith(family):
            raise UnsupportedModelError(
                f"{function}: {type(pipe).__name__} is not of the family {family}: use cache_dit.get_adapter(pipe)"
            )
        known = [field.name for field in dataclasses.fields(adapter)]
        for name in options:
            if name not in known:
                raise unknown_key(name, known, where=function)
        return dataclasses.replace(adapter, **options)

    family_adapter.__name__ = family_adapter.__qualname__ = function
    family_adapter.__doc__ = f"The description of a pipeline or transformer of the family {family}."
    return family_adapter


def __getattr__(name: str) -> Any:
    if name.endswith(_SUFFIX) and (family := _families().get(name)) is not None:
        return globals().setdefault(name, _make(name, family))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_families()})
