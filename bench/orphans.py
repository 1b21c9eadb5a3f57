"""Processes that end with the one that started them, also where that is killed and can tell nobody."""

import os
import threading
from collections.abc import Callable
from multiprocessing import parent_process


def end_with_parent(close: Callable[[], object]) -> None:
    """From now on end this process when its parent is gone. A pool's process would go on with what it was given.

    Args:
        close: called before, in a thread of its own; what this process has started ends there.
    """
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        try:
            close()
        finally:
            os._exit(1)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()
