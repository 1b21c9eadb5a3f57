"""Our side: starts a worker in a peer's environment, asks it, and never waits for ever."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from bench.peers.environment import Environment, PeerUnavailableError
from cache_dit.errors import CacheDitError

WORKER = Path(__file__).with_name("worker.py")
#: What the worker may see of our environment variables: nothing that could point it to our package or to a network.
_KEPT = ("PATH", "HOME", "TMPDIR", "TEMP", "SYSTEMROOT", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
_QUIET = {"HF_HUB_OFFLINE": "1", "CACHE_DIT_LOG_LEVEL": "error"}
#: Seconds that the longest measurement may take.
TIMEOUT = 600.0


class PeerError(CacheDitError, RuntimeError):
    """The peer answered with an error, did not answer in time, or ended."""


class Peer:
    """A worker process in an interpreter's environment, asked through a pipe of its own; a context manager."""

    def __init__(self, python: str | os.PathLike[str], *, threads: int = 1, timeout: float = 120.0) -> None:
        self.timeout = timeout
        self._log = tempfile.TemporaryFile(mode="w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - closed by close
        self._pipe, other = Pipe()
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        kept |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
        self._process = subprocess.Popen(
            [os.fspath(python), "-I", "-u", str(WORKER), str(other.fileno())],  # -I: nothing of ours or the user's
            **{"stdin": subprocess.DEVNULL, "stdout": self._log, "stderr": self._log},
            pass_fds=[other.fileno()],
            env={**kept, **_QUIET},
        )
        other.close()

    def ask(self, what: str, *, timeout: float | None = None, **arguments: Any) -> Any:
        """What a function there returns; ``what`` is its place, e.g. ``bench.measures:run``.

        Raises:
            PeerError: if there is none. After a missing answer the process is ended.
        """
        seconds = self.timeout if timeout is None else timeout
        try:
            self._pipe.send((what, arguments))
            if not self._pipe.poll(seconds):
                raise PeerError(f"asked to {what}, the peer did not answer within {seconds:g} s{self._ended()}")
            ok, told = self._pipe.recv()
        except (OSError, EOFError) as error:
            said = self._ended()
            code = self._process.returncode
            raise PeerError(f"asked to {what}, the worker ended or has ended ({code}){said}") from error
        if not ok:
            raise PeerError(f"asked to {what}, the peer raised {told}")
        return told

    def close(self) -> None:
        """End the process; what it has not answered is lost."""
        self._pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=0.2)  # it ends by itself where it waits for a request
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._log.close()

    def _ended(self) -> str:
        """End it; the end of what it has said."""
        self.close()
        self._log.seek(0)
        said = self._log.read().strip()[-2000:]
        return f"; it said:\n{said}" if said else ""


class Workers(contextlib.ExitStack):
    """The workers of the peers' environments, each started when it is first asked; a context manager."""

    def __init__(self, threads: int) -> None:
        super().__init__()
        self.threads, self.unavailable = threads, dict[str, str]()
        self._peers: dict[str, Peer] = {}

    def run(self, version: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """What ``bench.measures.run`` gives there.

        Raises:
            PeerError: it failed there; the next request has a new worker.
            PeerUnavailableError: there is no such environment, and it cannot be made.
        """
        if version in self.unavailable:
            raise PeerUnavailableError(self.unavailable[version])
        try:
            if version not in self._peers:
                self._peers[version] = self.enter_context(Peer(Environment(version).make(), threads=self.threads))
            return dict(self._peers[version].ask("bench.measures:run", timeout=TIMEOUT, **arguments))
        except PeerUnavailableError as error:
            self.unavailable[version] = str(error)
            raise
        except PeerError:
            self._peers.pop(version).close()
            raise
