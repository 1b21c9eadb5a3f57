"""How a block is called and what it returns: the six forward patterns of diffusion transformers.

A block reads the image (or video, or audio) stream ``H`` and often a text stream ``E``; patterns say which of them
go in and which come out, in which order. Everything else in a block's call is left alone.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Optional

import torch

from cache_dit.errors import PatternMismatchError, UnsupportedModelError

HIDDEN = "hidden_states"
ENCODER = "encoder_hidden_states"


class ForwardPattern(enum.Enum):
    """What goes into a block and what comes out of it.

    Members carry ``Return_H_First``, ``Return_H_Only``, ``Forward_H_only``, ``In`` and ``Out`` (the names of the
    streams that go in and come out, in order) and ``Supported``.
    """

    Pattern_0 = (True, False, False, [HIDDEN, ENCODER], [HIDDEN, ENCODER], True)
    Pattern_1 = (False, False, False, [HIDDEN, ENCODER], [ENCODER, HIDDEN], True)
    Pattern_2 = (False, True, False, [HIDDEN, ENCODER], [HIDDEN], True)
    Pattern_3 = (False, True, True, [HIDDEN], [HIDDEN], True)
    Pattern_4 = (True, False, True, [HIDDEN], [HIDDEN, ENCODER], True)
    Pattern_5 = (False, False, True, [HIDDEN], [ENCODER, HIDDEN], True)

    def __init__(
        self,
        return_h_first: bool,
        return_h_only: bool,
        forward_h_only: bool,
        inputs: list[str],
        outputs: list[str],
        supported: bool,
    ) -> None:
        self.Return_H_First = return_h_first
        self.Return_H_Only = return_h_only
        self.Forward_H_only = forward_h_only
        self.In = inputs
        self.Out = outputs
        self.Supported = supported

    @staticmethod
    def supported_patterns() -> list[ForwardPattern]:
        """All patterns that the engine can cache."""
        return [pattern for pattern in ForwardPattern if pattern.Supported]


#: The shape of what a block returned: the number of items (0: a bare tensor), whether the second is a tensor, and the
#: second item itself when it is none (``(hidden_states, None)``, say): a skipped block hands out the same object again.
#: A plain tuple, since compiled graphs read and write it.
Form = tuple[int, bool, Any]


#: A second item that is no tensor may be of these types: nothing that could hold tensors of an earlier step.
_HANDED_OUT_AGAIN = (type(None), bool, int, float, str)


def argument_names(forward: Callable[..., Any]) -> list[str]:
    """The names of the arguments that a class's ``forward`` is called with: all but the first, the instance itself."""
    parameters = list(inspect.signature(forward).parameters.values())
    bound = parameters and parameters[0].kind in (parameters[0].POSITIONAL_ONLY, parameters[0].POSITIONAL_OR_KEYWORD)
    return [parameter.name for parameter in parameters[1 if bound else 0 :]]


def takes_any_name(block_class: type) -> bool:
    """Whether a class's ``forward`` takes arguments by any name."""
    forward = getattr(block_class, "forward", None)
    kinds = [] if forward is None else [one.kind for one in inspect.signature(forward).parameters.values()]
    return inspect.Parameter.VAR_KEYWORD in kinds


class BlockIO:
    """Reads (H, E) from a block's call and from its result, and builds a result of the same form.

    Args:
        block_class: the class whose ``forward`` is called; names are looked up there, never on the instance, where
            other libraries put wrappers of the form ``forward(*args, **kwargs)``.
        pattern: what goes in and out.
        hidden: the name of H in ``forward``.
        encoder: the name of E in ``forward``.
        strict: whether a missing name is an error; otherwise H is the first argument and E the second.

    Raises:
        PatternMismatchError: if ``strict`` and ``forward`` has no argument of that name.
        UnsupportedModelError: if the class has no ``forward``.
    """

    def __init__(
        self,
        block_class: type,
        pattern: ForwardPattern,
        *,
        hidden: str = HIDDEN,
        encoder: str = ENCODER,
        strict: bool = False,
    ) -> None:
        forward = getattr(block_class, "forward", None)  # a scripted module's class has none
        if forward is None:
            raise UnsupportedModelError(
                f"{block_class.__module__}.{block_class.__qualname__} cannot be intercepted (its class has no "
                f"forward): pass the module itself, not a scripted or frozen form of it"
            )
        names = argument_names(forward)
        self.block_name = block_class.__name__
        self.pattern = pattern
        self.reads_encoder = not pattern.Forward_H_only
        self.pairs = not pattern.Return_H_Only
        self.hidden_first = pattern.Return_H_First or pattern.Return_H_Only
        #: What a result looks like before one was seen.
        self.form: Form = (2, True, None) if self.pairs else (0, False, None)
        wanted = [hidden, encoder] if self.reads_encoder else [hidden]
        missing = [name for name in wanted if name not in names]
        if strict and missing:
            raise PatternMismatchError(
                f"{self.block_name}.forward({', '.join(names)}) has no argument {missing[0]!r}, which "
                f"{pattern.name} reads. Choose the pattern that fits the block, name two of these arguments with "
                f"stream_names=(hidden, encoder), or go by position: no stream_names, and check_forward_pattern=False."
            )
        self.hidden = hidden
        self.encoder = encoder
        self.hidden_at = names.index(hidden) if hidden in names else 0
        self.encoder_at = names.index(encoder) if encoder in names else 1

    def read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
        """(H, E) of a call; E is None where the pattern has none or the caller passed none.

        Raises:
            PatternMismatchError: if there is no H in the call.
        """
        given, at = len(args), self.hidden_at
        hidden = kwargs[self.hidden] if self.hidden in kwargs else args[at] if at < given else None
        if hidden is None:
            raise PatternMismatchError(
                f"{self.block_name} was called with {given} arguments by position and ({', '.join(kwargs)}) by "
                f"name; {self.pattern.name} expects {self.hidden!r} by name or at place {at}. "
                f"Name the block's arguments with stream_names=(hidden, encoder)."
            )
        if not self.reads_encoder:
            return hidden, None
        at = self.encoder_at
        return hidden, kwargs[self.encoder] if self.encoder in kwargs else args[at] if at < given else None

    def split(self, output: Any) -> tuple[Any, Any, Form]:
        """(H, E, form) of a block's result. E may be an object, such as a key-value store: it is passed on as it is.

        Raises:
            PatternMismatchError: if the result does not fit the pattern.
        """
        second: Any
        if isinstance(output, torch.Tensor):
            if not self.pairs or self.pattern.Forward_H_only:
                return output, None, (0, False, None)
        elif isinstance(output, (tuple, list)) and len(output) == 1 and isinstance(output[0], torch.Tensor):
            if not self.pairs or self.pattern.Forward_H_only:
                return output[0], None, (1, False, None)
        elif isinstance(output, (tuple, list)) and len(output) == 2:
            first, second = output if self.hidden_first else (output[1], output[0])
            if isinstance(first, torch.Tensor):
                tensor = isinstance(second, torch.Tensor)
                if not tensor and (isinstance(second, _HANDED_OUT_AGAIN) or second == ()):
                    return first, None, (2, False, second)
                if self.pairs or (self.reads_encoder and not tensor):
                    return first, second, (2, True, None)
        raise self.mismatch(output)

    def check_object(self, given: Any, encoder: Any, output: Any) -> None:
        """An object in E's place can be passed on only where one came in: else a skipped block could not return it.

        Args:
            given: E of the block's call.
            encoder: E of its result.
            output: its result.

        Raises:
            PatternMismatchError: if the block made an object of something else.
        """
        made = encoder is not None and not isinstance(encoder, torch.Tensor)
        if made and (given is None or isinstance(given, torch.Tensor)):
            raise self.mismatch(output)

    def mismatch(self, output: Any) -> PatternMismatchError:
        """The error for a result that does not fit the pattern."""
        return PatternMismatchError(
            f"{self.block_name} returned {describe(output)}; {self.pattern.name} expects "
            f"({', '.join(self.pattern.Out)}). Pass the ForwardPattern that fits what the block returns."
        )

    def build(self, hidden: Any, encoder: Any, form: Form) -> Any:
        """A result of ``form`` made of H and E."""
        items, has_encoder, extra = form
        if items == 0:
            return hidden
        if items == 1:
            return (hidden,)
        second = encoder if has_encoder else extra
        return (hidden, second) if self.hidden_first else (second, hidden)


def describe(value: Any) -> str:
    """A short description of a value for an error message: its type and, for tensors, its shape."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of ({', '.join(describe(item) for item in value)})"
    return f"{type(value).__module__}.{type(value).__qualname__}"


#: How the second of two merged block lists takes over from the first: with both streams as they are, or with one
#: stream made of both, text first (``eh``) or image first (``he``), concatenated over the tokens (dimension 1).
Join = Optional[str]  # noqa: UP045 (evaluated at run time, where Python 3.10 is the oldest)
JOINS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "eh": lambda hidden, encoder: torch.cat([encoder, hidden], dim=1),
    "he": lambda hidden, encoder: torch.cat([hidden, encoder], dim=1),
}
