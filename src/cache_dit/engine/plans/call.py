"""The arguments of a pipeline's call: what a plan records of the calls that it was made with, and compares."""

from __future__ import annotations

import inspect
import itertools
import numbers
import re
from collections.abc import Iterable, Mapping
from typing import Any

_SIZES = ("height", "width", "num_frames")
"""Arguments that are a pipeline's own choice where they are None: the latent's shape tells which it was."""

_SAYS_NOTHING = re.compile(
    r"output_type|return_dict|(.*_)?seed|callback.*|num_\w+_per_prompt|(prior_)?num_inference_steps|timesteps|sigmas"
)
"""Arguments that change nothing that a plan rests on, or that other fields of `PlanScope` tell."""

_NO_HOST_VALUE = object()


def parameters_of(pipe: Any) -> tuple[dict[str, inspect.Parameter], bool]:
    """The arguments that a pipeline's call takes, by name, and whether it takes any others too.

    A call that takes any hands them on to that of the class it was derived from.
    """
    calls = (vars(cls)["__call__"] for cls in type(pipe).__mro__ if "__call__" in vars(cls))
    inherited = (_of_instance(inspect.signature(call)) for call in calls)
    named: dict[str, inspect.Parameter] = {}
    for signature in itertools.chain([inspect.signature(pipe)], inherited):
        kinds = [one.kind for one in signature.parameters.values()]
        for one in signature.parameters.values():
            if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY):
                named.setdefault(one.name, one)
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            return named, False
    return named, True


def _of_instance(signature: inspect.Signature) -> inspect.Signature:
    return signature.replace(parameters=list(signature.parameters.values())[1:])


def arguments_of(pipe: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a pipeline's call by name, with the defaults of those that were not given.

    None are known where the call cannot take them: the call itself will say what is wrong.
    """
    try:
        known, _ = parameters_of(pipe)
        bound = inspect.signature(pipe).bind_partial(*args, **kwargs)
    except (TypeError, ValueError):
        return {}
    own = getattr(pipe, "default_call_parameters", {})  # a modular pipeline's blocks say what they take
    defaults = {name: one.default for name, one in known.items() if one.default is not one.empty}
    return {**own, **defaults, **{name: value for name, value in bound.arguments.items() if name in known}, **kwargs}


def host_values(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a call's arguments that lie on the host: None, numbers, flags, texts, and lists and dicts of them."""
    found = {name: _host_value(value) for name, value in arguments.items()}
    return {name: value for name, value in found.items() if value is not _NO_HOST_VALUE}


def _host_value(value: Any) -> Any:
    """A value as a file can hold it."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, Mapping):
        held = {str(name): _host_value(one) for name, one in value.items()}
        return _NO_HOST_VALUE if _NO_HOST_VALUE in held.values() else held
    if isinstance(value, (list, tuple)):
        parts = tuple(map(_host_value, value))
        return _NO_HOST_VALUE if _NO_HOST_VALUE in parts else parts
    return _NO_HOST_VALUE


def recorded(calls: Iterable[Mapping[str, Any] | None], asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a plan records of the calls of the runs that it was made by; None: none of them is known.

    Args:
        calls: the arguments of each.
        asked: the arguments that were asked for by name. Texts are recorded of these alone, as others are prompts.

    Returns:
        What was the same in all of them, and is not left to the pipeline by None.
    """
    known = [host_values(call) for call in calls if call is not None]
    if not known:
        return None
    wanted = host_values(asked)
    return {
        name: value
        for name, value in {**known[0], **wanted}.items()
        if value is not None
        and not _SAYS_NOTHING.fullmatch(name)
        and (name in wanted or (_is_number(value) and all(_same(call.get(name), value) for call in known)))
    }


def _is_number(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_number, value.values()))
    return all(map(_is_number, value)) if isinstance(value, (tuple, list)) else not isinstance(value, str)


def _same(one: Any, other: Any) -> bool:
    return bool(one == other) and isinstance(one, bool) is isinstance(other, bool)


def differing(made: Mapping[str, Any], run: Mapping[str, Any]) -> list[str]:
    """What is known of both calls and differs, as sentences: `guidance_scale=2.0, not 4.5`."""
    return [
        f"{name}={value!r}, not {run[name]!r}"
        for name, value in made.items()
        if name in run and not (run[name] is None and name in _SIZES) and not _same(value, run[name])
    ]
