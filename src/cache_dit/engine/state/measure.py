"""How much a step differs from another. ``read_back`` is the one place where the engine waits for numbers of a device.

A decision costs one packed reduction and one read, however many numbers it takes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch


def read_back(values: torch.Tensor) -> list[float]:
    """The numbers in a tensor of one dimension, on the host."""
    numbers: list[float] = values.tolist()
    return numbers


class Reading(NamedTuple):
    """What one read gave.

    Args:
        diffs: one, or one per sample.
        beside: what was asked for beside them.
        before, sizes: mean|previous| and mean|current|, one, or one per sample: what a comparison to come divides by;
            None: it must measure it.
    """

    diffs: list[float]
    beside: list[float]
    before: list[float] | None = None
    sizes: list[float] | None = None


def exceeds(distance: float, threshold: float | None) -> bool:
    """Whether a distance is above a threshold, or no number; None: there is no threshold."""
    return threshold is not None and not distance <= threshold


def read_numbers(numbers: Sequence[torch.Tensor], group: Any = None) -> list[float]:
    """Single numbers by one host read; with a group, their means over its ranks, so that all see the same."""
    return read_back(averaged(torch.stack([number.reshape(()).to(numbers[0]) for number in numbers]), group))


def averaged(numbers: torch.Tensor, group: Any) -> torch.Tensor:
    """Numbers as their means over a group's ranks, so that all see the same; None: as they are."""
    if group is None:
        return numbers
    torch.distributed.all_reduce(numbers, group=group)
    return numbers / torch.distributed.get_world_size(group)


def relative_l1(previous: Any, current: Any, group: Any = None, *, health: Sequence[torch.Tensor] = ()) -> float | None:
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
    health: Sequence[torch.Tensor] = (),
    beside: Sequence[torch.Tensor] = (),
    sizes: list[float] | None = None,
) -> Reading | None:
    """mean|previous − current| / mean|previous| in float32 or better, by one host read.

    Args:
        previous, current: tensors of any floating dtype. Of different shape or device, or missing, they cannot be
            compared.
        group: over whose ranks the means are taken, by one reduction; None: this process alone.
        samples: the length of the first dimension, for one ratio per sample; None: one for all.
        important: above 0: where a token (last dimension but one) differs by more than this, only such tokens count.
        health: numbers that must be finite for the ratio to be; with samples, vectors of one for each.
        beside: single numbers on the tensors' device to read too; with a group, their means.
        sizes: mean|previous| where an earlier reading gave it; None: it is measured.

    Returns:
        The ratios, NaN where a value is NaN or the mean of the previous is zero; None if they cannot be compared on
        some rank.
    """
    fits = isinstance(previous, torch.Tensor) and isinstance(current, torch.Tensor)
    fits = fits and previous.shape == current.shape and previous.device == current.device
    if group is not None:
        return _read_over_ranks(previous, current, group, fits, samples, important, health, beside)
    if not fits:
        return None
    before = previous if previous.dtype is torch.float32 else _wide(previous)
    now = current if current.dtype is torch.float32 else _wide(current)
    if important > 0 and now.dim() > 1:
        parts, given = list(_sums(before, now, samples, important)), None
    else:
        changed = (before - now).abs_()
        parts = [changed.mean(), now.abs().mean()] if samples is None else _row_means(samples, changed, now.abs())
        given = sizes if sizes is not None and len(sizes) == (samples or 1) else None
        if given is None:
            parts.insert(1, before.abs().mean() if samples is None else _row_means(samples, before.abs())[0])
    measured = len(parts)
    first = parts[0]
    for number in (*health, *beside):
        alike = number.dtype is first.dtype and number.device == first.device
        parts.append(number if alike else number.to(first))
    numbers = read_back(torch.stack(parts) if samples is None else torch.cat([part.reshape(-1) for part in parts]))
    return _reading(numbers, samples or 1, measured, len(health), given)


def _reading(numbers: list[float], count: int, measured: int, healths: int, given: list[float] | None) -> Reading:
    """The numbers of one read, taken apart: changes, sizes before (unless given), sizes now, health, and the rest."""
    divisors = numbers[count : 2 * count] if given is None else given
    diffs = []
    for place in range(count):
        diffs.append(numbers[place] / divisors[place] if divisors[place] else math.nan)
    end = (measured + healths) * count
    for place in range(measured * count, end):
        if not math.isfinite(numbers[place]):
            diffs[place % count] = math.nan
    newest = (2 if given is None else 1) * count
    sizes = numbers[newest : newest + count] if newest < measured * count else None
    return Reading(diffs, numbers[end:], None if sizes is None else divisors, sizes)


def _row_means(samples: int, *tensors: torch.Tensor) -> list[torch.Tensor]:
    """The mean of each sample, for each tensor."""
    return [tensor.reshape(samples, -1).mean(1) for tensor in tensors]


def _read_over_ranks(
    previous: Any,
    current: Any,
    group: Any,
    fits: bool,
    samples: int | None,
    important: float,
    health: Sequence[torch.Tensor],
    beside: Sequence[torch.Tensor],
) -> Reading | None:
    """The same where every rank has a part: one reduction, which also tells whether all could compare."""
    count = samples or 1
    anchor = current if isinstance(current, torch.Tensor) else previous
    device = anchor.device if isinstance(anchor, torch.Tensor) else None
    packed = torch.zeros(2 * count + len(beside) + 2, dtype=torch.float64, device=device)
    if fits:
        changed, size = _sums(_wide(previous), _wide(current), samples, important)
        for number in health:
            changed = changed + 0 * number.to(changed)  # 0 times NaN or infinity is NaN
        packed[:count], packed[count : 2 * count] = changed, size
        for place, number in enumerate(beside, start=2 * count):
            packed[place] = number
    packed[-2], packed[-1] = 1, 0 if fits else 1
    torch.distributed.all_reduce(packed, group=group)
    numbers = read_back(packed)
    if numbers[-1]:
        return None
    sums = zip(numbers[:count], numbers[count : 2 * count], strict=True)
    ratios = [changed / size if size else math.nan for changed, size in sums]
    return Reading(ratios, [number / numbers[-2] for number in numbers[2 * count : -2]])


def _sums(
    previous: torch.Tensor, current: torch.Tensor, samples: int | None, important: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Σ|previous − current| and Σ|previous|: one number without dimensions, or one per sample."""
    changed, size = (previous - current).abs(), previous.abs()
    if important > 0 and previous.dim() > 1:
        changed, size = changed.mean(-1, keepdim=True), size.mean(-1, keepdim=True)
        chosen = changed > important * size
        anywhere = chosen.flatten() if samples is None else chosen.reshape(samples, -1)
        chosen = chosen | ~anywhere.any(-1).reshape(-1, *[1] * (chosen.dim() - 1))
        changed, size = changed * chosen, size * chosen
    wide = torch.float32 if changed.device.type == "mps" else torch.float64
    # a mean in the tensors' own precision and one multiplication: a sum over all would lose more of it
    scale = changed.numel() / (samples or 1)
    if samples is None:
        return changed.mean().to(wide) * scale, size.mean().to(wide) * scale
    rows = _row_means(samples, changed, size)
    return rows[0].to(wide) * scale, rows[1].to(wide) * scale


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    """Half precision as float32, and so are integers, such as the latent of a model of discrete tokens."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) or tensor.is_complex() else tensor.float()


def relative_l1_sums(
    previous: torch.Tensor, current: torch.Tensor, *, important: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Σ|previous − current| and Σ|previous| as 0-dim tensors on their device: nothing is read back."""
    return _sums(_wide(previous), _wide(current), None, important)


def relative_l1_means(
    previous: torch.Tensor, current: torch.Tensor, *, important: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """mean|previous − current| and mean|previous|, or what has their ratio: for one process, by fewer operators."""
    before, now = _wide(previous), _wide(current)
    if important > 0 and now.dim() > 1:
        return _sums(before, now, None, important)
    return (before - now).abs().mean(), before.abs().mean()


class HostCopy:
    """Numbers of a device on their way to the host: sent without waiting, there when the next step begins.

    Args:
        numbers: a tensor of one dimension.
    """

    def __init__(self, numbers: torch.Tensor) -> None:
        #: Whether nobody has to wait for them.
        self.at_hand = numbers.device.type == "cpu"
        self._numbers = numbers
        self._event: Any = None
        if numbers.is_cuda:
            on_host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._numbers = on_host.copy_(numbers, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def arrived(self) -> list[float]:
        """The numbers; waits for them where they are not there yet."""
        if self._event is not None:
            self._event.synchronize()
        return read_back(self._numbers)


class PendingDiffs:
    """Diffs of a step on their way to the host: sent without waiting when it ends, there when the next one begins.

    Args:
        step: the step they were measured in.
        measured: by block, two numbers: what changed, and what it is divided by. With a group, those of
            ``relative_l1_sums``.
        group: over whose ranks the numbers are summed, or None.
        health: by block, numbers that must be finite for its diff to be.
    """

    def __init__(
        self,
        step: int,
        measured: Mapping[int, Sequence[torch.Tensor]],
        group: Any = None,
        *,
        health: Mapping[int, Sequence[torch.Tensor]],
    ) -> None:
        self.step = step
        self.blocks = list(measured)
        self._watched = [block for block, numbers in health.items() for _ in numbers]
        numbers = [number for some in (*measured.values(), *health.values()) for number in some]
        first = numbers[0]
        alike = [one.dtype is first.dtype and one.device == first.device for one in numbers]
        packed = torch.stack([one if same else one.to(first) for one, same in zip(numbers, alike, strict=True)])
        if group is not None:
            torch.distributed.all_reduce(packed, group=group)
        end = 2 * len(self.blocks)
        ratios = packed[:end:2] / packed[1:end:2]
        self._numbers = HostCopy(torch.cat([ratios, packed[end:]]) if self._watched else ratios)

    def arrived(self) -> tuple[int, dict[int, float]]:
        """The step, and its diffs by block; waits for them where they are not there yet."""
        numbers, count = self._numbers.arrived(), len(self.blocks)
        diffs = dict(zip(self.blocks, numbers[:count], strict=True))
        for block, number in zip(self._watched, numbers[count:], strict=True):
            if not math.isfinite(number):
                diffs[block] = math.nan
        return self.step, diffs


def first_tensor(value: Any) -> torch.Tensor | None:
    """The first tensor in a model's output: a tensor, a tuple of them, or a dataclass or dict with such."""
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        return next((found for item in value if (found := first_tensor(item)) is not None), None)
    return first_tensor(getattr(value, "sample", None)) if hasattr(value, "sample") else None


class EasyCacheProbe:
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
