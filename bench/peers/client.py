"""Our side: starts a worker in a peer's environment, asks it, and never waits for ever."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

from cache_dit.errors import CacheDitError

WORKER = Path(__file__).with_name("worker.py")
#: What the worker may see of our environment variables: nothing that could point it to our package or to a network.
_KEPT = ("PATH", "HOME", "TMPDIR", "TEMP", "SYSTEMROOT", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_QUIET = {"HF_HUB_OFFLINE": "1", "CACHE_DIT_LOG_LEVEL": "error"}


class PeerError(CacheDitError, RuntimeError):
    """The peer answered with an error, answered nonsense, did not answer in time, or ended."""


class Peer:
    """A worker process; a context manager.

    Args:
        python: the interpreter of its environment.
        threads: threads that it computes with.
        timeout: seconds that an answer may take where a request does not say.
    """

    def __init__(self, python: str | os.PathLike[str], *, threads: int = 1, timeout: float = 120.0) -> None:
        self.timeout = timeout
        self._asked = 0
        self._log = tempfile.TemporaryFile(mode="w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - closed by close
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        self._process = subprocess.Popen(
            [os.fspath(python), "-I", "-u", str(WORKER)],  # -I: nothing of ours, nothing of the user's
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            encoding="utf-8",
            env={**kept, **dict.fromkeys(_THREADS, str(threads)), **_QUIET},
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def ask(self, what: str, *, timeout: float | None = None, **arguments: Any) -> Any:
        """The result of a request; see worker.py for the kinds and their arguments.

        Raises:
            PeerError: if there is none. After a missing or senseless answer the process is ended.
        """
        self._asked += 1
        request = json.dumps({"id": self._asked, "do": what, **arguments}, allow_nan=False)
        if self._process.poll() is not None or self._process.stdin is None:
            raise PeerError(f"the worker has ended ({self._process.returncode}){self._said()}")
        try:
            self._process.stdin.write(request + "\n")
            self._process.stdin.flush()
        except OSError as error:
            self.close()
            raise PeerError(f"the worker ended when asked to {what}{self._said()}") from error
        answer = self._answer(what, self.timeout if timeout is None else timeout)
        if not answer["ok"]:
            error = answer["error"]
            raise PeerError(f"asked to {what}, the peer raised {error['type']}: {error['message']}\n{error['places']}")
        return answer["result"]

    def close(self) -> None:
        """End the process; what it has not answered is lost."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._reader.join(timeout=5)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:
                    continue  # what was never read by the other side

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._log.close()

    def _read(self) -> None:
        for line in self._process.stdout or ():
            self._lines.put(line)
        self._lines.put("")  # the end

    def _answer(self, what: str, timeout: float) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            self.close()
            raise PeerError(f"asked to {what}, the peer did not answer within {timeout:g} s{self._said()}") from None
        if not line:
            self.close()
            raise PeerError(f"asked to {what}, the worker ended ({self._process.returncode}){self._said()}")
        try:
            answer = json.loads(line)
            if answer["id"] == self._asked and isinstance(answer["ok"], bool):
                return dict(answer)
        except (ValueError, KeyError, TypeError):
            pass
        self.close()
        raise PeerError(f"asked to {what}, the peer answered {line.strip()[:200]!r}{self._said()}")

    def _said(self) -> str:
        """The end of what it wrote to its error stream."""
        if self._log.closed:
            return ""
        self._log.seek(0)
        said = self._log.read().strip()[-2000:]
        return f"; it said:\n{said}" if said else ""
