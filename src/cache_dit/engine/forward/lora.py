"""Which of peft's adapters act in a model, and how strongly: read from its layers, and no weight is looked at."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch

#: What a peft layer says of its adapters: whether they are off, which are active, how strong each is, and which are
#: merged into the weights.
_SAID = ("_disable_adapters", "_active_adapter", "scaling", "merged_adapters")

#: The arguments in which diffusers is told by how much to scale all adapters during a call.
_KWARGS = ("joint_attention_kwargs", "attention_kwargs", "cross_attention_kwargs")


class AdapterReader:
    """The adapters of one model, for the length of a request.

    Args:
        module: the model.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module = getattr(module, "_orig_mod", module)
        #: What the model has under its attributes' names: ``peft_config`` where it has adapters.
        self.home = module.__dict__
        self._find()

    def _find(self) -> None:
        self._known = list(self.home.get("peft_config") or ())
        tuners = sys.modules.get("peft.tuners.tuners_utils")
        #: The attributes of each of its layers that hold adapters; without peft there are none to look for.
        self.layers: list[dict[str, Any]] = []
        if tuners is not None:
            self.layers = [one.__dict__ for one in self._module.modules() if isinstance(one, tuners.BaseTunerLayer)]

    def read(self, given: Mapping[str, Any]) -> list[Any]:
        """What acts in a call with these arguments, to compare with what acted before."""
        if list(self.home.get("peft_config") or ()) != self._known:
            self._find()
        said = [[layer.get(name) for name in _SAID] for layer in self.layers]
        said += [[kwargs.get("scale")] for name in _KWARGS if isinstance(kwargs := given.get(name), dict) and said]
        return said

    @staticmethod
    def copied(said: list[Any]) -> list[Any]:
        """The same, to keep: peft changes its lists and dicts in place."""
        return [[part.copy() if isinstance(part, (dict, list)) else part for part in parts] for parts in said]
