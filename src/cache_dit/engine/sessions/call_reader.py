"""Reading a transformer's call: its arguments by name, its timestep, its latent, and what makes it another branch."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from cache_dit.engine.adapters.pattern import argument_names
from cache_dit.engine.adapters.rules import CallRules
from cache_dit.engine.forward.conditioning import conditions_of, is_condition, is_text
from cache_dit.engine.state.measure import read_back

_TIMESTEP_NAMES = ("timestep", "timesteps", "t", "vision_timesteps", "decoder_noise_time")
#: What holds the latent where it is not a forward's first argument.
_LATENT_NAMES = ("vision_tokens", "decoder_input_tokens")


class CallReader:
    """Reads the calls of one class of transformers.

    Args:
        cls: the class.
        rules: what its record says of its calls.
    """

    def __init__(self, cls: type, rules: CallRules) -> None:
        forward: Any = cls.forward  # type: ignore[attr-defined]
        parameters = inspect.signature(forward).parameters
        self._names = argument_names(forward)
        self._latent = next((name for name in (*_LATENT_NAMES, *self._names[:1]) if name in self._names), "")
        self._timestep = next((name for name in _TIMESTEP_NAMES if name in self._names), "")
        self._own_timestep = rules.timestep
        self._kinds: dict[tuple[str, ...], tuple[list[str], list[str]]] = {}  # by the names of a call's arguments
        #: The arguments that may make another branch, each with its default, as it would be said.
        self.branching = {
            name: repr(parameters[name].default) if name in parameters else None for name in rules.branch_arguments
        }

    def given(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        """A call's arguments by name."""
        return {**dict(zip(self._names, args, strict=False)), **kwargs}

    def latent(self, given: Mapping[str, Any]) -> tuple[torch.Tensor | None, int]:
        """The latent, mostly the first argument, and how many samples it holds: a tensor, or a list of one for each."""
        value = given.get(self._latent)
        if isinstance(value, torch.Tensor):
            return value, max(value.shape[0], 1) if value.dim() else 1
        if isinstance(value, (list, tuple)) and value and all(isinstance(one, torch.Tensor) for one in value):
            alike = all(one.shape == value[0].shape for one in value)
            return (torch.stack(tuple(value)) if alike else None), len(value)
        return None, 1

    def conditions(self, given: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], list[str]]:
        """The tensors that condition the run, by their place, and the arguments that hold text states.

        The latter are the same list for all calls with the same arguments.
        """
        names = tuple(given)
        if names not in self._kinds:
            others = [name for name in names if name != self._latent]
            self._kinds[names] = list(filter(is_condition, others)), list(filter(is_text, others))
        conditioning, texts = self._kinds[names]
        for name in conditioning:
            value = given[name]
            if isinstance(value, torch.Tensor) or (isinstance(value, (list, tuple, dict)) and value):
                return conditions_of(given, conditioning), texts
        return {}, texts

    def variant(self, given: Mapping[str, Any]) -> tuple[str, ...]:
        """What makes a call one of another branch than calls without it."""
        said = {name: repr(given[name]) for name in self.branching if given.get(name) is not None}
        return tuple(value for name, value in said.items() if value != self.branching[name])

    def timestep(self, given: Mapping[str, Any], *, waits: bool) -> float | None:
        """A call's timestep, or None where it is unknown, or on another device and nobody wants to wait for it."""
        value = given.get(self._timestep) if self._own_timestep is None else self._own_timestep(given)
        if not isinstance(value, torch.Tensor):
            return float(value) if isinstance(value, (int, float)) else None
        if value.numel() == 0 or value.is_meta or (value.device.type != "cpu" and not waits):
            return None
        if value.numel() == 1:
            return float(read_back(value if value.dim() == 1 else value.reshape(1))[0])
        return float(read_back(value.max().reshape(1))[0])


def sigma_of(scheduler: Any, step: int) -> float | None:
    """The noise level of a step, where a scheduler has it at hand; its sigmas lie on the host."""
    sigmas = getattr(scheduler, "sigmas", None)
    index = getattr(scheduler, "step_index", None)
    if index is None:  # before its first step, and image-to-image does not begin at the first sigma
        index = step + (getattr(scheduler, "begin_index", None) or 0)
    if not isinstance(sigmas, torch.Tensor) or sigmas.device.type != "cpu" or index >= len(sigmas):
        return None
    return float(sigmas[index])


def needs_grad(module: torch.nn.Module, given: Mapping[str, Any]) -> bool:
    """Whether a backward could be asked for: then nothing may be skipped or kept."""
    return any(tensor.requires_grad for tensor in (*_tensors(given), *module.parameters()))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested lists and dicts."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def shallow(value: Any) -> Any:
    """A list or dict of one's own with the same things in it."""
    return list(value) if type(value) is list else dict(value) if type(value) is dict else value
