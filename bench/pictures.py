"""How a pipeline draws a picture, ours here as a peer's in its own environment. It needs torch and diffusers alone."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.counting import WorkMeter
from bench.measures import configured
from bench.timer import CLOCKS

#: Of a worker: the pipeline, the arguments of its calls, and the options of the cache that is on.
_LOADED: dict[str, Any] = {}


def drawn(
    pipe: Any, caption: str, seed: int, *, counted: bool, clock: str, **given: Any
) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
    """(height, width, 3) float32 pixels in 0 … 1, and seconds of the call, work and calls of blocks, if counted."""
    meter = WorkMeter(pipe.transformer) if counted else None
    generator, now = torch.Generator().manual_seed(seed), CLOCKS[clock]
    with meter or contextlib.nullcontext():
        start = now()
        output = pipe(caption, generator=generator, output_type="np", **given)
        seconds = now() - start
    counts = {name: getattr(meter, name, None) for name in ("work", "blocks")}
    return output.images[0].astype(np.float32, copy=False), {"seconds": seconds, **counts}


def load(folder: str) -> int:
    """Load the FluxPipeline in a folder, in float32; how many blocks it has."""
    from diffusers import FluxPipeline

    from bench.models import blocks_of

    torch.set_num_threads(1)
    pipe = FluxPipeline.from_pretrained(folder, local_files_only=True)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.float()
    pipe.set_progress_bar_config(disable=True)
    defaults = json.loads((Path(folder) / "cache_dit_demo.json").read_text(encoding="utf-8"))
    _LOADED.update(pipe=pipe, defaults=defaults, on=None)
    return len(blocks_of(pipe.transformer))


def draw(out: str, steps: int, options: dict[str, Any] | None = None, **asked: Any) -> dict[str, Any]:
    """Draw by the peer's cache, as `configured` takes options, save the pixels, and tell what `drawn` tells."""
    pipe = _LOADED["pipe"]
    if _LOADED["on"] != (wanted := options and (options, steps)):
        import cache_dit as peer

        if _LOADED["on"]:
            peer.disable_cache(pipe)
        _LOADED["on"] = None
        if wanted:
            config, calibrator = configured(*wanted)
            peer.enable_cache(pipe, cache_config=config, calibrator_config=calibrator)
            _LOADED["on"] = wanted
    pixels, told = drawn(pipe, **{**_LOADED["defaults"], "num_inference_steps": steps}, **asked)
    np.save(out, pixels)
    return told
