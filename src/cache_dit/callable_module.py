"""A name that is both a module and a function, such as ``cache_dit.summary``."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


class CallableModule(ModuleType):
    """A module whose call is the call of one of its functions."""

    _function: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the function gives."""
        return self._function(*args, **kwargs)


def make_callable(name: str, function: Callable[..., Any]) -> None:
    """Let a module be called as a function of its own: ``make_callable(__name__, summary)`` at the module's end.

    The name then works in both orders of import: as the function, and as the module that a package binds over it when
    it is imported. Its signature and text become the function's.

    Args:
        name: the module, which is being imported or was.
        function: what a call of the module calls.
    """
    module = sys.modules[name]
    vars(module).update(_function=function, __signature__=inspect.signature(function), __doc__=function.__doc__)
    module.__class__ = CallableModule
