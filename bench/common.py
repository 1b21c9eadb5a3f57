"""The model that is measured, and how ways to run it are compared."""

import copy
import random
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from rich.console import Console
from rich.progress import track

import cache_dit
from cache_dit import DBCacheConfig, TaylorSeerCalibratorConfig

HEAD = 64
#: Wall time is what a user waits. Processor time, with one thread, tells more on a machine that others use too.
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}

#: Seconds of each model's every step in every run.
Times = dict[str, list[list[float]]]


@dataclass(frozen=True)
class Size:
    """The model, its input, how often it runs, and by which clock."""

    hidden: int = 512
    double: int = 4
    single: int = 8
    image_tokens: int = 256
    text_tokens: int = 64
    steps: int = 28
    runs: int = 12
    calls: int = 2000
    clock: str = "wall"
    quick: bool = False

    @property
    def blocks(self) -> int:
        return self.double + self.single

    @property
    def feature_bytes(self) -> int:
        """One feature: what a block hands on, image and text tokens, in float32."""
        return (self.image_tokens + self.text_tokens) * self.hidden * 4

    @property
    def shallow(self) -> "Size":
        """The same with three blocks: where only cached steps count, and how many blocks they skip does not."""
        return replace(self, double=1, single=2)


QUICK = Size(hidden=64, double=1, single=2, image_tokens=16, text_tokens=4, steps=6, runs=2, calls=10, quick=True)


def make_transformer(size: Size) -> FluxTransformer2DModel:
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=size.double,
        num_single_layers=size.single,
        attention_head_dim=HEAD,
        num_attention_heads=size.hidden // HEAD,
        joint_attention_dim=256,
        pooled_projection_dim=256,
        guidance_embeds=False,
        axes_dims_rope=(16, 24, 24),
    )
    return model.eval().requires_grad_(False)


def twin(model: torch.nn.Module) -> Any:
    """Another instance of a model with the very same weights."""
    memo = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, memo)


def with_blocks(model: Any, kept: Iterable[int] = ()) -> Any:
    """A twin that has only some of the blocks, numbered over both lists: what a step costs that runs no others."""
    kept = set(kept)
    hollow = twin(model)
    first = len(hollow.transformer_blocks)
    for name, start in (("transformer_blocks", 0), ("single_transformer_blocks", first)):
        blocks = enumerate(getattr(hollow, name), start=start)
        setattr(hollow, name, torch.nn.ModuleList(block for number, block in blocks if number in kept))
    return hollow


def make_inputs(size: Size) -> list[dict[str, Any]]:
    """The arguments of each step: a state that drifts slowly, as in a denoising loop."""
    return drifting(size, [1.0])


def drifting(size: Size, speeds: Sequence[float], *, seed: int = 0) -> list[dict[str, Any]]:
    """The arguments of each step: a batch of different samples, each of which drifts at a speed of its own."""
    batch = len(speeds)
    generator = torch.Generator().manual_seed(seed)
    state = torch.randn(batch, size.image_tokens, 64, generator=generator)
    drift = torch.randn(state.shape, generator=generator) / size.steps
    drift = drift * torch.tensor(speeds).view(-1, 1, 1)
    fixed = {
        "encoder_hidden_states": torch.randn(batch, size.text_tokens, 256, generator=generator),
        "pooled_projections": torch.randn(batch, 256, generator=generator),
        "img_ids": torch.zeros(size.image_tokens, 3),
        "txt_ids": torch.zeros(size.text_tokens, 3),
        "return_dict": False,
    }
    return [
        {"hidden_states": state + step * drift, "timestep": torch.full((batch,), 1 - step / size.steps), **fixed}
        for step in range(size.steps)
    ]


# -- caches


def cached(
    model: Any,
    size: Size,
    *,
    order: int | None = None,
    calibrator: Any = None,
    config: Any = DBCacheConfig,
    **options: Any,
) -> Any:
    """A twin of a model with a cache on it; ``order`` asks for a Taylor polynomial."""
    if order is not None:
        calibrator = TaylorSeerCalibratorConfig(taylorseer_order=order)
    given = {"num_inference_steps": size.steps, "Bn_compute_blocks": 0, "max_warmup_steps": 1, **options}
    return cache_dit.enable_cache(twin(model), config(**given), calibrator)


def half_mask(size: Size) -> list[int]:
    return [1 - step % 2 for step in range(size.steps)]


def static(mask: list[int]) -> dict[str, Any]:
    """The options of a plan that is made in advance."""
    return {"steps_computation_mask": mask, "steps_computation_policy": "static"}


#: A threshold that every diff is below, and yet is measured; and one that none is.
ALWAYS, NEVER = 0.99, 1e-9


# -- times


def interleaved(
    models: dict[str, Callable[..., Any]], inputs: Sequence[dict[str, Any]], runs: int, what: str, clock: str
) -> Times:
    """Seconds of each model's every step in every run; all models make a step before any makes the next."""
    order = random.Random(0)
    times: Times = {name: [] for name in models}
    names = list(models)
    shown, now = Console().is_terminal, CLOCKS[clock]
    for run in track(range(runs + 1), what, transient=True, refresh_per_second=1, disable=not shown):
        rows: dict[str, list[float]] = {name: [] for name in names}
        for arguments in inputs:
            order.shuffle(names)
            for name in names:
                start = now()
                models[name](**arguments)
                rows[name].append(now() - start)
        if run:  # the first one warms up
            for name, row in rows.items():
                times[name].append(row)
    return times


def pairs_of(times: Times, name: str, base: str, steps: Sequence[int] | None = None) -> list[tuple[float, float]]:
    """The times of the same steps of two models; None: of all steps."""
    return [
        (row[step], other[step])
        for row, other in zip(times[name], times[base], strict=True)
        for step in (range(len(row)) if steps is None else steps)
    ]


def interval(samples: Sequence[Any], statistic: Callable[[Sequence[Any]], float]) -> tuple[float, float]:
    """The 95 % interval of a statistic by the bootstrap (percentiles of 1,000 resamplings)."""
    draw = random.Random(0)
    values = sorted(statistic(draw.choices(samples, k=len(samples))) for _ in range(1000))
    return values[25], values[974]


def median_ratio(pairs: Sequence[tuple[float, float]]) -> float:
    """The median of first over second, pair by pair."""
    return statistics.median(first / second for first, second in pairs)


def ratio_of_medians(pairs: Sequence[tuple[float, float]]) -> float:
    return statistics.median(first for first, _ in pairs) / statistics.median(second for _, second in pairs)


def flat(rows: Iterable[Iterable[float]]) -> list[float]:
    return [seconds for row in rows for seconds in row]


def median_ms(seconds: Iterable[float]) -> float:
    return 1000 * statistics.median(seconds)
