"""Descriptions of models: your own, those that you register, and those of the built-in families; and the class form
of ``enable_cache``.

There is one function per family with a record, such as ``flux_adapter(pipe, **options)``: it gives the description of
a pipeline or transformer of this family, with the given fields of ``BlockAdapter`` in place of the record's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from cache_dit.api import enable_cache
from cache_dit.caching.subclassed import Subclassed
from cache_dit.config.base import unknown_key
from cache_dit.engine.adapters.block_adapter import BlockAdapter
from cache_dit.engine.adapters.normalize import as_list
from cache_dit.engine.adapters.registry import AdapterFunction, register
from cache_dit.errors import UnsupportedModelError
from cache_dit.models import adapter_of, known_pipelines, record_of
from cache_dit.models.record import known_families, recorded_adapter

Cacheable = TypeVar("Cacheable")

_SUFFIX = "_adapter"


class BlockAdapterRegister:
    """What ``enable_cache`` knows of models by their class names.

    A function that you register is asked for pipelines and transformers whose class name begins with its name, before
    the built-in records are; of several such names the longest counts.
    """

    @classmethod
    def register(cls, name: str, supported: bool = True) -> Callable[[AdapterFunction], AdapterFunction]:
        """Decorate a function that describes models: ``@BlockAdapterRegister.register("Foo")``.

        The function is given the pipeline, or a ``FakeDiffusionPipeline`` that holds the bare transformer, and returns
        a ``BlockAdapter``. It takes the place of an earlier one of the same name, and a line of log says so.

        Args:
            name: what the class names of its pipelines and transformers begin with.
            supported: False: such models are known not to be cached, and ``enable_cache`` refuses them.

        Raises:
            ConfigError: ``name`` is no identifier.
        """
        return register(name, supported)

    @classmethod
    def get_adapter(cls, pipe: Any, **kwargs: Any) -> BlockAdapter | None:
        """The description of a pipeline or transformer, or None where there is none.

        Args:
            pipe: the pipeline or transformer.
            **kwargs: taken, and not used.
        """
        return adapter_of(pipe)

    @classmethod
    def has_separate_cfg(cls, pipe: Any) -> bool:
        """Whether a model's conditional and unconditional calls take turns, by its description."""
        adapter = cls.get_adapter(pipe)
        return adapter is not None and adapter.has_separate_cfg

    @classmethod
    def is_supported(cls, pipe: Any) -> bool:
        """Whether there is a description of a pipeline or transformer."""
        return cls.get_adapter(pipe) is not None

    @classmethod
    def supported_pipelines(cls, **kwargs: Any) -> tuple[int, list[str]]:
        """The number of families with a description, and what their class names begin with."""
        names = known_pipelines()
        return len(names), names


class CachedAdapter(Subclassed):
    """Puts a cache on: ``CachedAdapter.apply(pipe)`` and ``CachedAdapter()(pipe)`` are ``enable_cache(pipe)``."""

    @classmethod
    def apply(cls, pipe: Cacheable, **context_kwargs: Any) -> Cacheable:
        """Put a cache on, as ``cache_dit.enable_cache`` does.

        Args:
            pipe: a pipeline, a ``BlockAdapter`` or a transformer.
            **context_kwargs: the other arguments of ``enable_cache``.

        Returns:
            ``pipe`` itself.

        Raises:
            CacheDitError: as ``enable_cache``.
        """
        return enable_cache(pipe, **context_kwargs)

    def __call__(self, pipe: Cacheable, **context_kwargs: Any) -> Cacheable:
        """The same as ``apply``."""
        return self.apply(pipe, **context_kwargs)


def import_error_adapter(pipe: Any, **kwargs: Any) -> BlockAdapter:
    """What stands for the function of a family that the installed diffusers does not have.

    Raises:
        UnsupportedModelError: always.
    """
    raise UnsupportedModelError(
        f"the installed diffusers has no such model as {type(pipe).__name__}: upgrade diffusers, or pass a BlockAdapter"
    )


def _families() -> dict[str, str]:
    return {f"{name.lower()}{_SUFFIX}": family for name, family in known_families().items()}


def _make(function: str, family: str) -> Callable[..., BlockAdapter]:
    def family_adapter(pipe: Any, **options: Any) -> BlockAdapter:
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
