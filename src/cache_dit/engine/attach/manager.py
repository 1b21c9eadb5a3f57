"""What servers know as ``transformer._context_manager``: the engine needs none, and takes one that is offered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: Makes the manager of a transformer's state; None: nobody offers one.
factory: Callable[[Any], Any] | None = None

#: Whether states have their managers made unasked, because somebody may have replaced how all of them decide.
eager = False


def manager_of(state: Any) -> Any:
    """The manager of a transformer's state, made when it is first asked for; None where nobody offers one."""
    if state.manager is None and factory is not None:
        state.manager = factory(state)
    return state.manager


def set_manager(state: Any, manager: Any) -> None:
    """Let a manager be that of a transformer's state."""
    manager.bind(state)
    state.manager = manager
