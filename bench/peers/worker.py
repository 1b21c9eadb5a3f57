"""A peer's side: answers requests in an environment that has the peer and not us.

Run by path, it imports of this repository the files of ``bench`` that need torch and diffusers alone. A request is the
place of a function, e.g. ``bench.measures:run``, and its arguments; the answer is whether it went well, and the result
or what was raised, without a line of the peer's text.
"""

import importlib
import sys
import traceback
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


def answer(what: str, arguments: dict[str, Any]) -> tuple[bool, Any]:
    """The answer to one request; what goes wrong is an answer too."""
    try:
        module, _, name = what.partition(":")
        return True, getattr(importlib.import_module(module), name)(**arguments)
    except Exception as error:  # noqa: BLE001 - the one who asked decides what to do about it
        frames = list(traceback.walk_tb(error.__traceback__))[-20:]
        places = [f"{Path(one.f_code.co_filename).name}:{line} in {one.f_code.co_name}" for one, line in frames]
        return False, "\n".join([f"{type(error).__name__}: {error}", *places])


def serve(pipe: Connection) -> None:
    """Answer each request until the other side is gone."""
    sys.tracebacklimit = 0  # what is told where this process ends quotes no lines of the peer either
    warnings.formatwarning = lambda message, category, *_, **__: f"{category.__name__}: {message}\n"
    while True:
        try:
            what, arguments = pipe.recv()
        except EOFError:
            return
        pipe.send(answer(what, arguments))


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).resolve().parents[2]))  # behind all that is installed here
    serve(Connection(int(sys.argv[1])))
