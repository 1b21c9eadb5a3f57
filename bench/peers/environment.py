"""An environment of its own for each version of a peer that has our name, and so cannot be installed beside us.

What both sides compute with is the same: torch, diffusers, transformers and what they stand on are pinned to the
versions that are installed here, so that a difference between two pictures is a difference between two caches.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from cache_dit.errors import CacheDitError

ROOT = Path(__file__).parents[2]
CONSTRAINTS = ROOT / "constraints.txt"
FOLDER = ROOT / ".cache" / "peers"
#: The versions that are measured; the second stands for 1.5.x.
VERSIONS = ("1.2.0", "1.5.3")
#: What both sides must agree on, bit for bit. Those that are not installed here are not installed there either.
_SHARED = ("torch", "numpy", "safetensors", "tokenizers", "huggingface-hub", "transformers", "diffusers", "accelerate")


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
