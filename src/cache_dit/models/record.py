"""What must be known of a model family to cache it: where its blocks are, and how they are called."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from cache_dit.engine.adapters import registry
from cache_dit.engine.adapters.block_adapter import BlockAdapter
from cache_dit.engine.adapters.pattern import ENCODER, HIDDEN, ForwardPattern, Join
from cache_dit.engine.adapters.rules import CallRules
from cache_dit.engine.subclass import base_of
from cache_dit.envs import ENV
from cache_dit.errors import ConfigError
from cache_dit.models.presets import COMMON, Preset


@dataclass(frozen=True)
class Blocks:
    """One block list of a transformer.

    Args:
        attribute: where it is; dots lead into modules.
        pattern: what goes into its blocks and comes out.
        streams: the names of H and E in their ``forward``.
        part: which blocks of the list are meant, asked of the transformer; None: all.
        chain: lists with the same number are one chain with one decision.
    """

    attribute: str
    pattern: ForwardPattern
    streams: tuple[str, str] = (HIDDEN, ENCODER)
    part: Callable[[Any], slice] | None = None
    chain: int = 0

    def find(self, transformer: torch.nn.Module) -> list[torch.nn.Module]:
        """The blocks themselves."""
        found: Any = transformer.get_submodule(self.attribute)
        blocks = list(found.values() if isinstance(found, torch.nn.ModuleDict) else found)
        return blocks if self.part is None else blocks[self.part(transformer)]


@dataclass(frozen=True)
class ModelRecord:
    """One model family.

    Args:
        name: what its pipelines' class names begin with.
        transformers: class names of its transformers; subclasses count, other classes with such a prefix do not.
        blocks: its block lists in call order. Several are one chain with one decision, unless they say otherwise.
        join: how the second list takes over from the first; see ``BlockAdapter``.
        interleave: the block lists take turns, block by block; see ``BlockAdapter``.
        long_skip: the last blocks read what the first ones returned; see ``BlockAdapter``.
        idle: modules between blocks that do nothing while these are skipped, with the name of their H argument.
        separate_cfg: whether conditional and unconditional calls take turns, for pipelines that do not name them.
        components: the pipeline's attributes that may hold a transformer.
        rules: which calls must compute, or are no step.
        split_variable: a variable of `cache_dit.envs` that, set to 0, makes each block list a chain of its own.
        aliases: what the class names of further pipelines with its transformers begin with.
        presets: options that suit its checkpoints, by name, beside those that every model has.
        package: where its classes are from.
    """

    name: str
    transformers: tuple[str, ...]
    blocks: tuple[Blocks, ...]
    join: Join = None
    interleave: bool = False
    long_skip: bool = False
    idle: dict[str, str] = field(default_factory=dict)
    separate_cfg: bool = False
    components: tuple[str, ...] = ("transformer",)
    rules: CallRules = field(default_factory=CallRules)
    split_variable: str | None = None
    aliases: tuple[str, ...] = ()
    presets: dict[str, Preset] = field(default_factory=dict)
    package: str = "diffusers"

    def adapter(self, transformers: list[torch.nn.Module], pipe: Any = None) -> BlockAdapter:
        """The description of these transformers, all of this family."""
        described = [self._lists(transformer) for transformer in transformers]
        chains = [blocks.chain for blocks, _ in described[0]]
        return BlockAdapter(
            pipe=pipe,
            transformer=list(transformers),
            blocks=[[found for _, found in lists] for lists in described],
            blocks_name=[[blocks.attribute for blocks, _ in lists] for lists in described],
            forward_pattern=[[blocks.pattern for blocks, _ in lists] for lists in described],
            stream_names=[blocks.streams for lists in described for blocks, _ in lists],
            has_separate_cfg=self.separate_cfg,
            merge=chains if self.split_variable is None or getattr(ENV, self.split_variable) else False,
            join=self.join,
            interleave=self.interleave,
            long_skip=self.long_skip,
            idle=dict(self.idle),
            rules=self.rules,
        )

    def all_presets(self) -> dict[str, Preset]:
        """Its presets by name, and first of all those that every model has."""
        return {**COMMON, **self.presets}

    def _lists(self, transformer: torch.nn.Module) -> list[tuple[Blocks, list[torch.nn.Module]]]:
        """The block lists that a transformer really has, with their blocks."""
        found = [(blocks, blocks.find(transformer)) for blocks in self.blocks]
        return [(blocks, listed) for blocks, listed in found if listed] or found


_records: dict[str, ModelRecord] = {}  # class name of a transformer -> its family
_components: dict[str, None] = {}  # the pipelines' attributes that may hold a transformer, each once


def register_model(record: ModelRecord) -> ModelRecord:
    """Make a family known: ``register_model(ModelRecord(name="Foo", transformers=("FooTransformer2DModel",), …))``.

    Raises:
        ConfigError: if one of its transformers has a record already, or it names no transformer or block list.
    """
    if not record.transformers or not record.blocks:
        raise ConfigError(f"the record of {record.name!r} needs at least one transformer class and one block list")
    for name in record.transformers:
        if _records.setdefault(name, record) is not record:
            raise ConfigError(f"{name} is in the record of {_records[name].name!r} already: take it out of one of them")
    _components.update(dict.fromkeys(record.components))
    return record


def record_of(module: Any) -> ModelRecord | None:
    """The record of a transformer, by the exact name of its class or of one it derives from; of PEFT's, its base's."""
    return _find(module)[0]


def _find(module: Any) -> tuple[ModelRecord | None, Any]:
    """The record of a transformer, and the module to cache."""
    plain = getattr(module, "_orig_mod", module)
    found = next((_records[cls.__name__] for cls in type(plain).__mro__ if cls.__name__ in _records), None)
    if found is None and module is not None and (base := base_of(plain)) is not plain:
        return _find(base)
    return found, module


def component_names() -> list[str]:
    """The attributes of pipelines that may hold a transformer."""
    return list(_components)


def transformers_of(pipe: Any) -> Iterator[tuple[str, torch.nn.Module]]:
    """The attributes of a pipeline that hold a transformer with a record, with the transformer."""
    for attribute in _components:
        record, module = _find(getattr(pipe, attribute, None))
        if record is not None and attribute in record.components:
            yield attribute, module


def adapter_of(pipe_or_module: Any) -> BlockAdapter | None:
    """The description of a pipeline or a transformer: what a user registered, else by its record, or None."""
    own = registry.find(base_of(pipe_or_module)) if registry.registered else None
    return recorded_adapter(pipe_or_module) if own is None else own.describe(base_of(pipe_or_module))


def recorded_adapter(pipe_or_module: Any) -> BlockAdapter | None:
    """The description of a pipeline or a transformer by its record, or None where there is none."""
    if isinstance(pipe_or_module, torch.nn.Module):
        record, module = _find(pipe_or_module)
        return None if record is None else record.adapter([module])
    found = [module for _, module in transformers_of(pipe_or_module)]
    record = record_of(found[0]) if found else None
    if record is None:
        return None
    return record.adapter([module for module in found if record_of(module) is record], pipe_or_module)


def known_pipelines() -> list[str]:
    """What the class names of supported pipelines begin with, in the order of registration; users' own come last."""
    return list(dict.fromkeys((*known_families(), *registry.names())))


def known_families() -> dict[str, str]:
    """The names of the families with a record and their aliases, with the family that each stands for, in order."""
    return {name: record.name for record in records() for name in (record.name, *record.aliases)}


def records() -> list[ModelRecord]:
    """The records, in the order of registration."""
    return list({id(record): record for record in _records.values()}.values())
