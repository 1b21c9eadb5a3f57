"""Seeing the modulated input of a chain's first block, by which TeaCache decides: what its attention is given."""

from __future__ import annotations

from typing import Any

from cache_dit.engine.adapters.pattern import argument_names
from cache_dit.engine.forward.chain import Chain
from cache_dit.engine.policies.base import Probe
from cache_dit.errors import ConfigError

_NAMES = ("attn1", "attn", "self_attn", "attention", "self_attention")


class ObserverRole:
    """What the observed module must know: the chain that it belongs to, and the first argument of its ``forward``."""

    def __init__(self, chain: Chain, module: Any) -> None:
        self.current = chain.current
        self.argument = argument_names(type(module).forward)[0]

    def see(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Leave what the module is called with for the decision."""
        forward = self.current.forward
        if forward is not None and forward.watches is Probe.MODULATED and forward.probe is None:
            forward.probe = args[0] if args else kwargs.get(self.argument)


def observed_module(chain: Chain) -> Any:
    """The first attention of a chain's first block: its input is the block's modulated one.

    Raises:
        ConfigError: if no part of the block looks like one.
    """
    block = chain.blocks[0]
    named = dict(block.named_modules())
    for name in _NAMES:
        if name in named:
            return named[name]
    for module in named.values():
        if module is not block and "attention" in type(module).__name__.lower():
            return module
    raise ConfigError(
        f"a policy like 'teacache' looks at the attention's input in the first block of {chain.name}, and "
        f"{type(block).__name__} has no attention that can be recognised: pass policy='dbcache'"
    )
