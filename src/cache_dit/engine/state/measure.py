"""How much a step differs from another. ``read_back`` is the one place where the engine waits for numbers of a device.

A decision costs one packed reduction and one read, however many numbers it takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch


def read_back(values: torch.Tensor) -> list[float]:
    """The numbers in a tensor of one dimension, on the host."""
    numbers: list[float] = values.tolist()
    return numbers


class Reading(NamedTuple):
    """What one read gave: the diffs (one, or one per sample), and what was asked for beside them."""

    diffs: list[float]
    beside: list[float]

    def jumped(self, threshold: float | None) -> bool:
        """Whether anything that was read beside the diffs exceeds a threshold."""
        return any(exceeds(number, threshold) for number in self.beside)


def exceeds(distance: float, threshold: float | None) -> bool:
    """Whether a distance is above a threshold, or no number; None: there is no threshold."""
    return threshold is not None and not distance <= threshold


def read_numbers(numbers: Sequence[torch.Tensor], group: Any = None) -> list[float]:
    """Single numbers by one host read; with a group, their means over its ranks, so that all see the same."""
    packed = torch.stack([number.reshape(()).to(numbers[0]) for number in numbers])
    if group is not None:
        torch.distributed.all_reduce(packed, group=group)
        packed = packed / torch.distributed.get_world_size(group)
    return read_back(packed)


def relative_l1(previous: Any, current: Any, group: Any = None, *, health: torch.Tensor | None = None) -> float | None:
    """mean|previous − current| / mean|previous| over whole tensors; see ``read_relative_l1``."""
    reading = read_relative_l1(previous, current, group, health=health)
    return None if reading is None else reading.diffs[0]


def read_relative_l1(
    previous: Any,
    current: Any,
    group: Any = None,
    *,
    samples: int | None = None,
    important: float = 0.0,
    health: torch.Tensor | None = None,
    beside: Sequence[torch.Tensor] = (),
) -> Reading | None:
    """mean|previous − current| / mean|previous| in float32 or better, by one host read.

    Args:
        previous, current: tensors of any floating dtype. Of different shape or device, or missing, they cannot be
            compared.
        group: over whose ranks the means are taken, by one reduction; None: this process alone.
        samples: the length of the first dimension, for one ratio per sample; None: one for all.
        important: above 0: where a token (last dimension but one) differs by more than this, only such tokens count.
        health: a number on the tensors' device that must be finite for the results to be.
        beside: single numbers on the tensors' device to read too; with a group, their means.

    Returns:
        The ratios, NaN where a value is NaN or both means are zero; None if they cannot be compared on some rank.
    """
    fits = isinstance(previous, torch.Tensor) and isinstance(current, torch.Tensor)
    fits = fits and previous.shape == current.shape and previous.device == current.device
    if group is None and not fits:
        return None
    count = samples or 1
    if fits:
        changed, size = _sums(_wide(previous), _wide(current), samples, important)
        if health is not None:
            changed = changed + 0 * health  # 0 times NaN or infinity is NaN
    if group is None:
        ratios = changed / size
        numbers = read_back(torch.cat([ratios, *(number.reshape(1).to(ratios) for number in beside)]))
        return Reading(numbers[:count], numbers[count:])
    anchor = current if isinstance(current, torch.Tensor) else previous
    device = anchor.device if isinstance(anchor, torch.Tensor) else None
    packed = torch.zeros(2 * count + len(beside) + 2, dtype=torch.float64, device=device)
    if fits:
        packed[:count], packed[count : 2 * count] = changed, size
        for place, number in enumerate(beside, start=2 * count):
            packed[place] = number
    packed[-2], packed[-1] = 1, 0 if fits else 1
    torch.distributed.all_reduce(packed, group=group)
    numbers = read_back(packed)
    if numbers[-1]:
        return None
    sums = zip(numbers[:count], numbers[count : 2 * count], strict=True)
    ratios_read = [changed / size if size else float("nan") for changed, size in sums]
    return Reading(ratios_read, [number / numbers[-2] for number in numbers[2 * count : -2]])


def _sums(
    previous: torch.Tensor, current: torch.Tensor, samples: int | None, important: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Σ|previous − current| and Σ|previous|, each in one dimension: one number, or one per sample."""
    rows = samples or 1
    changed, size = (previous - current).abs(), previous.abs()
    if important > 0 and previous.dim() > 1:
        changed, size = changed.mean(-1, keepdim=True), size.mean(-1, keepdim=True)
        chosen = changed > important * size
        anywhere = chosen.flatten() if samples is None else chosen.reshape(samples, -1)
        chosen = chosen | ~anywhere.any(-1).reshape(-1, *[1] * (chosen.dim() - 1))
        changed, size = changed * chosen, size * chosen
    rows = samples or 1
    wide = torch.float32 if changed.device.type == "mps" else torch.float64
    # a mean in the tensors' own precision and one multiplication: a sum over all would lose more of it
    scale = changed.numel() / rows
    totals = (part.reshape(rows, -1).mean(1).to(wide) * scale for part in (changed, size))
    return next(totals), next(totals)


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    """Half precision as float32, and so are integers, such as the latent of a model of discrete tokens."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) or tensor.is_complex() else tensor.float()


def relative_l1_sums(
    previous: torch.Tensor, current: torch.Tensor, *, important: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Σ|previous − current| and Σ|previous| as 0-dim tensors on their device: nothing is read back."""
    changed, size = _sums(_wide(previous), _wide(current), None, important)
    return changed[0], size[0]


class Landing:
    """Numbers on their way to the host: sent without waiting, and there by the time the next step begins.

    Args:
        values: a tensor of one dimension; on a processor it is there at once.
    """

    def __init__(self, values: torch.Tensor) -> None:
        self._event: Any = None
        if values.is_cuda:
            landing = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            landing.copy_(values, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
            values = landing
        self._values = values

    def numbers(self) -> list[float]:
        """The numbers; waits for them where they are not there yet."""
        if self._event is not None:
            self._event.synchronize()
        return read_back(self._values)


class Travelling:
    """Numbers of a step on their way to the host: asked for when it ends, there when the next one begins.

    Args:
        step: the step they were measured in.
        sums: by block, what ``relative_l1_sums`` gave, stacked.
        group: over whose ranks the sums are taken, or None.
    """

    def __init__(self, step: int, sums: Mapping[int, torch.Tensor], group: Any = None) -> None:
        self.step = step
        self.blocks = list(sums)
        packed = torch.stack(list(sums.values()))
        if group is not None:
            torch.distributed.all_reduce(packed, group=group)
        self._ratios = Landing(packed[:, 0] / packed[:, 1])

    def arrived(self) -> tuple[int, dict[int, float]]:
        """The step, and its ratios by block."""
        return self.step, dict(zip(self.blocks, self._ratios.numbers(), strict=True))


def _wide_sum(tensor: torch.Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def first_tensor(value: Any) -> torch.Tensor | None:
    """The first tensor in a model's output: a tensor, a tuple of them, or a dataclass or dict with such."""
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        return next((found for item in value if (found := first_tensor(item)) is not None), None)
    return first_tensor(getattr(value, "sample", None)) if hasattr(value, "sample") else None


class Transformation:
    """EasyCache's measure (arXiv 2507.02860): by what share the model's output is expected to change in a step.

    At two computed steps j < i the rate is k = mean|v_i − v_j| / mean|x_i − x_j|; x is what goes into the transformer,
    v what comes out of it. A step t then counts k · mean|x_t − x_{t−1}| / mean|v_i|. Both x and v are as small as a
    latent, so that keeping three of them costs little.
    """

    def __init__(self) -> None:
        self.previous: torch.Tensor | None = None
        self.full: tuple[torch.Tensor, torch.Tensor] | None = None
        self.rate: torch.Tensor | None = None

    def increment(self, latent: Any) -> torch.Tensor | None:
        """What the step with this input counts, one number on its device; None before two steps were computed."""
        if self.rate is None or not isinstance(latent, torch.Tensor) or self.previous is None:
            return None
        if latent.shape != self.previous.shape or latent.device != self.previous.device:
            return None
        return self.rate * _distance(latent, self.previous)

    def note(self, latent: Any, output: Any, *, computed: bool) -> None:
        """Take note of a step's input and, where it was computed, of its output."""
        if not isinstance(latent, torch.Tensor):
            return
        latent = latent.detach().clone()  # a scheduler may write into it
        self.previous = latent
        result = first_tensor(output)
        if not computed or result is None:
            return
        result = result.detach().clone()
        if self.full is not None and self.full[0].shape == latent.shape and self.full[1].shape == result.shape:
            rate = _distance(result, self.full[1]) / _distance(latent, self.full[0])
            self.rate = rate / _wide(result).abs().mean()
        self.full = latent, result

    def clear(self) -> None:
        """Forget everything."""
        self.previous = self.full = self.rate = None

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        kept = {id(tensor): tensor.nbytes for tensor in (self.previous, *(self.full or ())) if tensor is not None}
        return sum(kept.values())


def _distance(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return (_wide(first) - _wide(second)).abs().mean()
