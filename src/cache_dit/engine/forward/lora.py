"""Which of peft's adapters act in a model, and how strongly: read from its layers on the host, no weight is looked at."""

from __future__ import annotations

import sys
from typing import Any

import torch

#: What a peft layer says of its adapters: whether they are off, which are active, how strong each is, and which are
#: merged into the weights.
_SAID = ("_disable_adapters", "_active_adapter", "scaling", "merged_adapters")


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
        found = () if tuners is None else self._module.modules()
        #: The attributes of each of its layers that hold adapters.
        self.layers = [layer.__dict__ for layer in found if isinstance(layer, tuners.BaseTunerLayer)]  # type: ignore[union-attr]

    def read(self) -> list[Any]:
        """What acts now, to compare with what acted before."""
        if list(self.home.get("peft_config") or ()) != self._known:
            self._find()
        return [[layer.get(name) for name in _SAID] for layer in self.layers]

    @staticmethod
    def copied(said: list[Any]) -> list[Any]:
        """The same, to keep: peft changes its lists and dicts in place."""
        return [[part.copy() if isinstance(part, (dict, list)) else part for part in parts] for parts in said]
