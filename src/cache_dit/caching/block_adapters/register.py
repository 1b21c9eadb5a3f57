"""Descriptions by class name: those that a user registers come before the built-in records."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch

from cache_dit.caching.adapter import BlockAdapter, FakeDiffusionPipeline
from cache_dit.config.base import bad_value

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


class BlockAdapterRegister:
    """What ``enable_cache`` knows of models by their class names.

    A function that you register is asked for pipelines and transformers whose class name begins with its name, before
    the built-in records are; of several such names the longest counts.
    """

    _registered: ClassVar[dict[str, Registered]] = {}

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
        if not str(name).isidentifier():
            raise bad_value("name", name, "what class names begin with, e.g. register('Foo')")

        def registered(function: AdapterFunction) -> AdapterFunction:
            if name in cls._registered:
                logger.warning("cache_dit: %r is registered again: the new function takes the place of the old", name)
            cls._registered[name] = Registered(name, function if supported else None)
            return function

        return registered

    @classmethod
    def find(cls, pipe: Any) -> Registered | None:
        """What was registered for a pipeline or transformer, by the name of its class, or None."""
        class_name = type(getattr(pipe, "_orig_mod", pipe)).__name__
        name = max(filter(class_name.startswith, cls._registered), key=len, default=None)
        return None if name is None else cls._registered[name]

    @classmethod
    def names(cls) -> list[str]:
        """The names under which supported models were registered."""
        return [name for name, registered in cls._registered.items() if registered.function is not None]

    @classmethod
    def get_adapter(cls, pipe: Any, **kwargs: Any) -> BlockAdapter | None:
        """The description of a pipeline or transformer, or None where there is none.

        Args:
            pipe: the pipeline or transformer.
            **kwargs: taken, and not used.
        """
        from cache_dit.models import adapter_of

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
        from cache_dit.models import known_pipelines

        names = known_pipelines()
        return len(names), names
