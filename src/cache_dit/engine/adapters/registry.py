"""Descriptions that a user registers by class name: they come before the built-in records."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch

from cache_dit.config.base import bad_value
from cache_dit.engine.adapters.block_adapter import BlockAdapter, FakeDiffusionPipeline

logger = logging.getLogger(__name__)

AdapterFunction = TypeVar("AdapterFunction", bound=Callable[..., BlockAdapter])


class Registered(NamedTuple):
    """What a user registered under a name; no function: such models are not to be cached."""

    name: str
    function: Callable[..., BlockAdapter] | None

    def describe(self, pipe: Any) -> BlockAdapter | None:
        """The description of a pipeline or transformer.

        Raises:
            ConfigError: the function gave something else.
        """
        if self.function is None:
            return None
        adapter = self.function(FakeDiffusionPipeline(pipe) if isinstance(pipe, torch.nn.Module) else pipe)
        if not isinstance(adapter, BlockAdapter):
            raise bad_value(f"the function registered as {self.name!r}: its result", adapter, "a BlockAdapter")
        return adapter


#: By what class names begin with.
registered: dict[str, Registered] = {}


def register(name: str, supported: bool = True) -> Callable[[AdapterFunction], AdapterFunction]:
    """Decorate a function that describes the models whose class names begin with ``name``.

    The function is given the pipeline, or a ``FakeDiffusionPipeline`` that holds the bare transformer, and returns
    a ``BlockAdapter``. It takes the place of an earlier one of the same name, and a line of log says so.

    Args:
        name: what the class names of its pipelines and transformers begin with.
        supported: False: such models are known not to be cached, and ``enable_cache`` refuses them.

    Raises:
        ConfigError: ``name`` is no identifier.
    """
    if not str(name).isidentifier():
        raise bad_value("name", name, "what class names begin with, e.g. register('Foo')")

    def add(function: AdapterFunction) -> AdapterFunction:
        if name in registered:
            logger.warning("cache_dit: %r is registered again: the new function takes the place of the old", name)
        registered[name] = Registered(name, function if supported else None)
        return function

    return add


def find(pipe: Any) -> Registered | None:
    """What was registered for a pipeline or transformer, by the name of its class, or None; the longest name counts."""
    class_name = type(getattr(pipe, "_orig_mod", pipe)).__name__
    name = max(filter(class_name.startswith, registered), key=len, default=None)
    return None if name is None else registered[name]


def names() -> list[str]:
    """The names under which supported models were registered."""
    return [name for name, known in registered.items() if known.function is not None]
