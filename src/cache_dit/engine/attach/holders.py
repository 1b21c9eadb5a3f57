"""Whom a transformer's options were given to: pipelines, and the transformer itself."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

from cache_dit.engine.adapters.normalize import Form
from cache_dit.engine.sessions.request import Request


class _Itself:
    """Stands for the transformer itself, where no pipeline was given the options."""


ITSELF = _Itself()


class Holders:
    """What all states of one transformer share; each has the options of one holder.

    A pipeline's calls have the options that it was given, all other calls those that were given last.

    Args:
        form: the chains of blocks, which are the same for all.
    """

    def __init__(self, form: Form) -> None:
        self.form = form
        #: Holder -> its ``TransformerState``, in the order of giving. A pipeline that goes is none any more.
        self.states: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
        #: Whether some holder's calls have other options than those that were given last.
        self.several = False
        #: The pipelines, by id, whose options were taken off while others had theirs: these stay, whoever asks again.
        self.left: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()

    def give(self, states: Sequence[tuple[Any, Any]], last: Any) -> None:
        """Let these be the holders with their states; all other calls have the state ``last``."""
        self.states = weakref.WeakKeyDictionary(states)
        self.several = any(state is not last for _, state in states)

    def state_of_call(self, entered: Sequence[Request], last: Any) -> Any:
        """The state of a call made inside these requests: that of the innermost pipeline's call, else ``last``."""
        for request in reversed(entered):
            holder = None if request.holder is None else request.holder()
            if holder is not None and (state := self.states.get(holder)) is not None:
                return state
        return last
