"""Our side: an environment for each version of a peer that has our name, a worker in it, and how it is asked.

What both sides compute with is the same: torch, diffusers, transformers and what they stand on are pinned to the
versions that are installed here, so that a difference between two pictures is a difference between two caches.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from cache_dit.errors import CacheDitError

ROOT = Path(__file__).parents[2]
CONSTRAINTS = ROOT / "constraints.txt"
FOLDER = ROOT / ".cache" / "peers"
#: What both sides must agree on, bit for bit. Those that are not installed here are not installed there either.
_SHARED = ("torch", "numpy", "safetensors", "tokenizers", "huggingface-hub", "transformers", "diffusers", "accelerate")
WORKER = Path(__file__).with_name("worker.py")
#: What the worker may see of our environment variables: nothing that could point it to our package or to a network.
_KEPT = ("PATH", "HOME", "TMPDIR", "TEMP", "SYSTEMROOT", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
_QUIET = {"HF_HUB_OFFLINE": "1", "CACHE_DIT_LOG_LEVEL": "error"}
#: Seconds that the longest measurement may take.
TIMEOUT = 600.0


class PeerUnavailableError(CacheDitError, RuntimeError):
    """A peer's environment is not there and could not be built; the message tells what failed and what to do."""


@dataclass(frozen=True)
class Environment:
    """The environment of one version of ``cache-dit`` on PyPI, in a folder of its own below ``folder``."""

    version: str
    folder: Path = FOLDER

    @property
    def path(self) -> Path:
        return self.folder / f"cache-dit-{self.version}"

    @property
    def python(self) -> Path:
        """The interpreter, whether it is there or not."""
        return self.path / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def ready(self) -> bool:
        """Whether it was built to the end, and with the versions that are installed here now."""
        try:
            built = json.loads((self.path / "pins.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return bool(built == self.pins()) and self.python.exists()

    def pins(self) -> dict[str, str]:
        """The interpreter's version and those of all packages that are asked for by name."""
        installed = {one.name.lower(): one.version.partition("+")[0] for one in metadata.distributions() if one.name}
        shared = {name: installed[name] for name in _SHARED if name in installed}
        return {"python": platform.python_version(), "cache-dit": self.version, **shared}

    def make(self) -> Path:
        """Build it unless it is ready; a build that was stopped leaves nothing that looks ready.

        Raises:
            PeerUnavailableError: if pip cannot install the packages, for one because no index can be reached.
        """
        if self.ready:
            return self.python
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"building-{self.version}-", dir=self.folder) as aside:
            built = Environment(self.version, Path(aside))
            self._run("venv", "--without-pip", str(built.path))
            pip = ["pip", "--python", str(built.python), "install", "--quiet", "--no-input"]
            # torch first and alone, so that nothing below can choose another build of it.
            self._run(*pip, "--constraint", str(CONSTRAINTS), "torch")
            wanted = [f"{name}=={version}" for name, version in self.pins().items() if name not in ("python", "torch")]
            self._run(*pip, "--constraint", str(CONSTRAINTS), *wanted)
            (built.path / "pins.json").write_text(json.dumps(self.pins()), encoding="utf-8")
            shutil.rmtree(self.path, ignore_errors=True)
            os.replace(built.path, self.path)
        return self.python

    def _run(self, *module: str) -> None:
        command = [sys.executable, "-m", *module]
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        if done.returncode:
            # The first line stands in results: nothing of this machine is in it.
            raise PeerUnavailableError(
                f"the environment of cache-dit {self.version} could not be built: {module[0]} ended with "
                f"{done.returncode}; it needs a package index that has this version\n"
                f"{' '.join(command)}\n{(done.stderr.strip() or done.stdout.strip())[-2000:]}\n"
                "pip's own configuration says which index is asked; other methods can be measured without this one."
            )


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
