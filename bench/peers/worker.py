"""A peer's side: answers requests in an environment that has the peer and not us.

Run by path, it imports of this repository the files of ``bench`` that need torch and diffusers alone. A request is the
name of one of `Worker`'s methods and its arguments; the answer is whether it went well, and the result or what was
raised. The peer is imported when a cache is asked for, and not before, so uncached pictures need diffusers alone.
"""

import json
import sys
import traceback
import warnings
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_PACKAGES = ("cache-dit", "torch", "diffusers", "transformers", "numpy", "safetensors", "tokenizers")
KINDS = ("versions", "load", "draw", "cost")


class Worker:
    """What the requests act on."""

    def __init__(self) -> None:
        self.pipe: Any = None
        self.defaults: dict[str, Any] = {}
        self.options: tuple[dict[str, Any], int] | None = None

    def versions(self) -> dict[str, str]:
        """Versions of Python and of the packages that matter, as far as they are installed."""
        found = {"python": sys.version.partition(" ")[0]}
        for name in _PACKAGES:
            try:
                found[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                continue
        return found

    def load(self, folder: str, threads: int = 1) -> dict[str, Any]:
        """Load the FluxPipeline in a folder, in float32, with the arguments of its calls in cache_dit_demo.json."""
        import torch
        from diffusers import FluxPipeline

        from bench.models import blocks_of

        torch.set_num_threads(threads)
        self.pipe, self.options = FluxPipeline.from_pretrained(folder, local_files_only=True), None
        for part in self.pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.float()
        self.pipe.set_progress_bar_config(disable=True)
        self.defaults = json.loads((Path(folder) / "cache_dit_demo.json").read_text(encoding="utf-8"))
        return {"blocks": len(blocks_of(self.pipe.transformer))}

    def draw(
        self,
        out: str,
        caption: str,
        seed: int,
        steps: int,
        options: Any = None,
        counted: bool = True,
        clock: str = "processor",
    ) -> dict[str, Any]:
        """Draw a picture, save its (height, width, 3) float32 pixels to `out`, and tell seconds and the counts.

        `options`: of the peer's cache, as `bench.measures.configured` takes them; None: without.
        """
        import numpy as np
        import torch

        from bench.counting import WorkMeter
        from bench.timer import CLOCKS

        if self.pipe is None:
            raise RuntimeError("there is no pipeline yet: ask to load one first")
        self._use(None if options is None else (options, steps))
        meter = WorkMeter(self.pipe.transformer) if counted else None
        generator, now = torch.Generator().manual_seed(seed), CLOCKS[clock]
        given = {**self.defaults, "num_inference_steps": steps}
        try:
            start = now()
            output = self.pipe(caption, generator=generator, output_type="np", **given)
            seconds = now() - start
        finally:
            if meter is not None:
                meter.remove()
        np.save(out, output.images[0].astype(np.float32, copy=False))
        return {"seconds": seconds, **{name: getattr(meter, name, None) for name in ("work", "blocks", "calls")}}

    def cost(self, **arguments: Any) -> Any:
        """What `run` in bench/measures.py returns for these arguments."""
        from bench.measures import run

        return run(**arguments)

    def _use(self, options: tuple[dict[str, Any], int] | None) -> None:
        """Put a cache on the pipeline, or take it off."""
        if options == self.options:
            return
        import cache_dit as peer
        from bench.measures import configured

        if self.options is not None:
            peer.disable_cache(self.pipe)
            self.options = None
        if options is not None:
            config, calibrator = configured(*options)
            peer.enable_cache(self.pipe, cache_config=config, calibrator_config=calibrator)
            self.options = options


def answer(worker: Worker, what: str, arguments: dict[str, Any]) -> tuple[bool, Any]:
    """The answer to one request; what goes wrong is an answer too."""
    try:
        if what not in KINDS:
            raise ValueError(f"unknown request {what!r}: it is one of {', '.join(KINDS)}")
        return True, getattr(worker, what)(**arguments)
    except Exception as error:  # noqa: BLE001 - the one who asked decides what to do about it
        return False, f"{type(error).__name__}: {error}\n{places(error)}"


def places(error: BaseException) -> str:
    """Where it was raised, the innermost last: file, line and function, without the text of a line."""
    found = []
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = Path(frame.f_code.co_filename).as_posix()
        package = file.rpartition("/site-packages/")[2] if "/site-packages/" in file else Path(file).name
        found.append(f"{package}:{line} in {frame.f_code.co_name}")
    return "\n".join(found[-20:])


def serve(pipe: Connection) -> None:
    """Answer each request until the other side is gone."""
    sys.tracebacklimit = 0  # what is told where this process ends quotes no lines of the peer either
    warnings.formatwarning = lambda message, category, *_, **__: f"{category.__name__}: {message}\n"
    worker = Worker()
    while True:
        try:
            what, arguments = pipe.recv()
        except EOFError:
            return
        pipe.send(answer(worker, what, arguments))


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).resolve().parents[2]))  # behind all that is installed here
    serve(Connection(int(sys.argv[1])))
