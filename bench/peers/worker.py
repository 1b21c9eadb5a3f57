"""A peer's side: answers requests, one JSON object a line, in an environment that has the peer and not us.

    {"id": 1, "do": "versions"}
    {"id": 1, "ok": true, "result": {"torch": "2.13.0", ...}}
    {"id": 2, "ok": false, "error": {"type": "ValueError", "message": "...", "places": "..."}}

It stands on its own: run by path, it imports nothing of this repository but the files beside it that stand on their
own too. Answers go to what was the standard output when it began; whatever a library prints goes to the error stream.
The peer is imported when a cache is asked for, and not before, so uncached pictures need diffusers alone.
"""

import importlib.util
import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("cache-dit", "torch", "diffusers", "transformers", "numpy", "safetensors", "tokenizers")
_CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
_CALIBRATORS = {
    "taylorseer": "TaylorSeerCalibratorConfig",
    "foca": "FoCaCalibratorConfig",
    "dmd": "DMDCalibratorConfig",
}


def beside(name: str) -> Any:
    """The module in the file `name`.py in this file's folder."""
    spec = importlib.util.spec_from_file_location(f"bench_peers_{name}", Path(__file__).with_name(f"{name}.py"))
    if spec is None or spec.loader is None:
        raise ImportError(f"there is no {name}.py beside {Path(__file__).name}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Worker:
    """What the requests act on; each public method is one kind of request, its arguments those of the request."""

    def __init__(self) -> None:
        self.pipe: Any = None
        self.defaults: dict[str, Any] = {}
        self.cache: dict[str, Any] | None = None
        self.steps = 0  # that the cache is made for

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

        torch.set_num_threads(threads)
        pipe = FluxPipeline.from_pretrained(folder, local_files_only=True)
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.float()
        pipe.set_progress_bar_config(disable=True)
        self.pipe, self.cache = pipe, None
        self.defaults = json.loads((Path(folder) / "cache_dit_demo.json").read_text(encoding="utf-8"))
        return {"blocks": sum(len(getattr(pipe.transformer, name)) for name in beside("work").LISTS)}

    def draw(
        self,
        out: str,
        caption: str,
        seed: int,
        steps: int | None = None,
        cache: dict[str, Any] | None = None,
        counted: bool = True,
        clock: str = "processor",
    ) -> dict[str, Any]:
        """Draw a picture, save its (height, width, 3) float32 pixels to `out`, and tell seconds and the counts."""
        import numpy as np
        import torch

        if self.pipe is None:
            raise RuntimeError("there is no pipeline yet: ask to load one first")
        arguments = {**self.defaults, **({} if steps is None else {"num_inference_steps": steps})}
        self._use(cache, arguments["num_inference_steps"])
        now = _CLOCKS[clock]
        meter = beside("work").WorkMeter(self.pipe.transformer) if counted else None
        try:
            generator = torch.Generator().manual_seed(seed)
            start = now()
            output = self.pipe(caption, generator=generator, output_type="np", **arguments)
            seconds = now() - start
        finally:
            if meter is not None:
                meter.remove()
        np.save(out, output.images[0].astype(np.float32, copy=False))
        return {"seconds": seconds, **{name: getattr(meter, name, None) for name in ("work", "blocks", "calls")}}

    def cost(self, **arguments: Any) -> Any:
        """What `run` in cost.py, beside this file, returns for these arguments."""
        return beside("cost").run(**arguments)

    def _use(self, cache: dict[str, Any] | None, steps: int) -> None:
        """Put a cache on the pipeline, or take it off; `cache` holds

        - "config": fields of the peer's DBCacheConfig;
        - "mask": arguments of its steps_mask, whose result becomes "steps_computation_mask";
        - "calibrator": {"name": one of taylorseer, foca, dmd, and fields of its configuration}.
        """
        if cache == self.cache and (cache is None or self.steps == steps):
            return
        import cache_dit as peer

        if self.cache is not None:
            peer.disable_cache(self.pipe)
            self.cache = None
        if cache is None:
            return
        unknown = set(cache) - {"config", "mask", "calibrator"}
        if unknown:
            raise ValueError(f"unknown part of a cache: {', '.join(sorted(unknown))}")
        config = dict(cache.get("config", {}))
        if "mask" in cache:
            config["steps_computation_mask"] = peer.steps_mask(total_steps=steps, **cache["mask"])
        calibrator = dict(cache["calibrator"]) if cache.get("calibrator") else None
        made = None if calibrator is None else getattr(peer, _CALIBRATORS[calibrator.pop("name")])(**calibrator)
        peer.enable_cache(self.pipe, cache_config=peer.DBCacheConfig(**config), calibrator_config=made)
        self.cache, self.steps = cache, steps


def answer(worker: Worker, line: str) -> dict[str, Any]:
    """The answer to one request; what goes wrong is an answer too."""
    number = None
    try:
        request = json.loads(line)
        if not isinstance(request, dict):
            raise ValueError(f"a request is an object, not {line.strip()[:80]}")
        number, what = request.pop("id", None), request.pop("do", None)
        kinds: dict[str, Callable[..., Any]] = {
            name: getattr(worker, name) for name in ("versions", "load", "draw", "cost")
        }
        if what not in kinds:
            raise ValueError(f"unknown request {what!r}: it is one of {', '.join(kinds)} and quit")
        result = kinds[what](**request)
        return json.loads(json.dumps({"id": number, "ok": True, "result": result}, allow_nan=False))
    except Exception as error:  # noqa: BLE001 - the one who asked decides what to do about it
        told = {"type": type(error).__name__, "message": str(error), "places": places(error)}
        return {"id": number, "ok": False, "error": told}


def places(error: BaseException) -> str:
    """Where it was raised, the innermost last: file, line and function, without the text of a line."""
    found = []
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = Path(frame.f_code.co_filename).as_posix()
        package = file.rpartition("/site-packages/")[2] if "/site-packages/" in file else Path(file).name
        found.append(f"{package}:{line} in {frame.f_code.co_name}")
    return "\n".join(found[-20:])


def _without_source_lines() -> None:
    """The error stream, of which the end is told where this process ends, quotes no lines of the peer either."""
    sys.tracebacklimit = 0
    warnings.formatwarning = lambda message, category, *_, **__: f"{category.__name__}: {message}\n"


def serve() -> None:
    """Answer each line of the standard input until it ends or says quit."""
    _without_source_lines()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # what libraries print, also from C
    worker = Worker()
    for line in sys.stdin:
        if not line.strip():
            continue
        try:
            if json.loads(line).get("do") == "quit":
                return
        except (ValueError, AttributeError):
            pass  # answered as an error below
        answers.write(json.dumps(answer(worker, line)) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()
