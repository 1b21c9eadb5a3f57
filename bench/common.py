"""The model that is measured, and how two ways to run it are compared."""

import copy
import random
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from rich.console import Console
from rich.progress import track

HEAD = 64
#: Wall time is what a user waits. Processor time, with one thread, tells more on a machine that others use too.
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


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

    @property
    def blocks(self) -> int:
        return self.double + self.single

    @property
    def feature_bytes(self) -> int:
        """One feature: what a block hands on, image and text tokens, in float32."""
        return (self.image_tokens + self.text_tokens) * self.hidden * 4


QUICK = Size(hidden=64, double=1, single=2, image_tokens=16, text_tokens=4, steps=6, runs=2, calls=20)


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


def without_blocks(model: Any, keep: int = 0) -> Any:
    """A twin with its first ``keep`` blocks only: what a step costs outside of the blocks that can be skipped."""
    hollow = twin(model)
    hollow.transformer_blocks = hollow.transformer_blocks[:keep]
    hollow.single_transformer_blocks = hollow.single_transformer_blocks[:0]
    return hollow


def make_inputs(size: Size) -> list[dict[str, Any]]:
    """The arguments of each step: a state that drifts slowly, as in a denoising loop."""
    generator = torch.Generator().manual_seed(0)
    state = torch.randn(1, size.image_tokens, 64, generator=generator)
    drift = torch.randn(state.shape, generator=generator) / size.steps
    fixed = {
        "encoder_hidden_states": torch.randn(1, size.text_tokens, 256, generator=generator),
        "pooled_projections": torch.randn(1, 256, generator=generator),
        "img_ids": torch.zeros(size.image_tokens, 3),
        "txt_ids": torch.zeros(size.text_tokens, 3),
        "return_dict": False,
    }
    return [
        {"hidden_states": state + step * drift, "timestep": torch.tensor([1 - step / size.steps]), **fixed}
        for step in range(size.steps)
    ]


def interleaved(
    models: dict[str, Callable[..., Any]], inputs: Sequence[dict[str, Any]], runs: int, what: str, clock: str
) -> dict[str, list[list[float]]]:
    """Seconds of each model's every step in every run; all models make a step before any makes the next."""
    order = random.Random(0)
    times: dict[str, list[list[float]]] = {name: [] for name in models}
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


def median_ms(rows: Iterable[Iterable[float]]) -> float:
    return 1000 * statistics.median(flat(rows))
