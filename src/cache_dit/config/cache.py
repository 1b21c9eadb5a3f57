"""What a user asks of the cache: its type, when it may skip, and how it treats the branches of guidance."""

from __future__ import annotations

import logging
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from cache_dit.config.base import SparseConfig, as_number, bad_value, check_choice, check_flag, check_integer
from cache_dit.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

_ALIASES = {
    "DBCache": ("DUAL_BLOCK_CACHE", "DB_CACHE", "DBCACHE", "DB"),
    "DBPrune": ("DYNAMIC_BLOCK_PRUNE", "DB_PRUNE", "DBPRUNE", "DBP"),
    "NONE": ("NONE", "NO_CACHE", "NOCACHE", "NC"),
}
_VALUE_OF_ALIAS = {alias: value for value, aliases in _ALIASES.items() for alias in aliases}


class CacheType(Enum):
    """The kinds of cache: none, whole steps (DBCache), or single blocks (DBPrune)."""

    NONE = "NONE"
    DBCache = "DBCache"
    DBPrune = "DBPrune"

    @staticmethod
    def type(hint: CacheType | str | None) -> CacheType:
        """The cache type that `hint` names; see `cache_type`."""
        return cache_type(hint)

    def __str__(self) -> str:
        return self.value


def cache_type(type_hint: CacheType | str | None) -> CacheType:
    """The cache type that a name stands for.

    Args:
        type_hint: a `CacheType`, None, or a name in any case: `DBCache`, `DB_CACHE`, `DUAL_BLOCK_CACHE`, `DB`;
            `DBPrune`, `DB_PRUNE`, `DYNAMIC_BLOCK_PRUNE`, `DBP`; `NONE`, `NO_CACHE`, `NOCACHE`, `NC`.

    Returns:
        The type. None and every other value give `CacheType.NONE`, the latter with a warning in the log.
    """
    if isinstance(type_hint, CacheType):
        return type_hint
    value = "NONE" if type_hint is None else _VALUE_OF_ALIAS.get(str(type_hint).upper())
    if value is None:
        logger.warning("cache type %r is unknown: no cache is used; known are %s", type_hint, ", ".join(_ALIASES))
    return CacheType(value or "NONE")


def block_range(start: int, end: int, step: int = 1) -> list[int]:
    """Every `step`-th block id from `start` up to `end`, and always the first block, 0, and the last, `end - 1`.

    Meant for `non_prune_block_ids`: `block_range(0, 10, 2)` is `[0, 2, 4, 6, 8, 9]`.

    Args:
        start: the first block id of the range.
        end: one past the last block id.
        step: the distance between ids, 2 or more.

    Returns:
        The ids in ascending order; `[]` if `start > end`, if `end <= 0`, and also if `step <= 1`, the default. To
        keep every block, use `range`.
    """
    if start > end or end <= 0 or step <= 1:
        return []
    return sorted({0, *range(start, end, step), end - 1})


def _check_cache_type(name: str, value: Any) -> None:
    if not isinstance(value, CacheType):
        raise bad_value(name, value, f"one of {', '.join(_ALIASES)}")


def _check_mask(name: str, value: Any) -> None:
    if not isinstance(value, list) or not value or any(type(bit) is not int or bit not in (0, 1) for bit in value):
        raise bad_value(name, value, "a list of at least one 0 (may be cached) or 1 (compute)")


def _tag(value: Any, shown: Callable[[Any], object] = str) -> str:
    return "-" if value is None else str(shown(value))


@dataclass
class BasicCacheConfig(SparseConfig):
    """When the cache may skip work, and how much of the model always runs.

    A model's blocks are a chain F | M | B: the first Fn and the last Bn blocks always run; a cached step skips the M
    blocks between them and predicts what they would have added. The F blocks also tell how much the step differs from
    the last computed one: relL1 = mean|R - R'| / mean|R'| of what they add to their input (R now, R' then).

    Args:
        cache_type: the kind of cache; names as in `cache_type` are taken too.
        Fn_compute_blocks: number of blocks F; at least 1, or 0 with a static mask.
        Bn_compute_blocks: number of blocks B, at least 0.
        residual_diff_threshold: a step is cached if its relL1 is below this. 0 or less: nothing is cached; 1 or more:
            every step that the other options allow is cached, without a measurement. A number or a tensor of one
            element.
        max_accumulated_residual_diff_threshold: the most that the diffs of the cached steps since the last computed
            step may add up to. None, 0 or less: no limit.
        max_warmup_steps: the first steps of a request, which are computed. A request of fewer than this + 2 steps runs
            without the cache, unless a static mask plans it.
        warmup_interval: only every such step of the warm-up is computed.
        max_cached_steps: the most cached steps of a request, per guidance branch; negative: no limit.
        max_continuous_cached_steps: the most cached steps in a row; negative: no limit.
        enable_separate_cfg: whether the conditional and unconditional branches are separate calls of the transformer;
            None: as the model's record says.
        cfg_compute_first: whether the unconditional branch is the first of the two calls of a step. Needs
            `cfg_diff_compute_separate=False`.
        cfg_diff_compute_separate: whether each branch measures its own diff; False: the second takes that of the first.
        num_inference_steps: steps of a request, at least 1, for a bare transformer, which cannot know it otherwise.
        steps_computation_mask: one entry per step, 1: compute, 0: may be cached; see `steps_mask`.
        steps_computation_policy: `"dynamic"`: a 0 in the mask allows caching, and the threshold decides; `"static"`:
            a 0 is a cached step, nothing is measured, and the limits do not apply.

    Raises:
        ConfigError: a value cannot work; the message says what was seen and what was expected.
    """

    cache_type: CacheType = CacheType.DBCache
    Fn_compute_blocks: int = 8
    Bn_compute_blocks: int = 0
    residual_diff_threshold: float | Tensor = 0.08
    max_accumulated_residual_diff_threshold: float | None = None
    max_warmup_steps: int = 8
    warmup_interval: int = 1
    max_cached_steps: int = -1
    max_continuous_cached_steps: int = -1
    enable_separate_cfg: bool | None = None
    cfg_compute_first: bool = False
    cfg_diff_compute_separate: bool = True
    num_inference_steps: int | None = None
    steps_computation_mask: list[int] | None = None
    steps_computation_policy: str = "dynamic"

    _checks: ClassVar[dict[str, Callable[[str, Any], object]]] = {
        "cache_type": _check_cache_type,
        "Fn_compute_blocks": partial(check_integer, minimum=0),
        "Bn_compute_blocks": partial(check_integer, minimum=0),
        "residual_diff_threshold": as_number,
        "max_accumulated_residual_diff_threshold": as_number,
        "max_warmup_steps": partial(check_integer, minimum=0),
        "warmup_interval": partial(check_integer, minimum=1),
        "max_cached_steps": check_integer,
        "max_continuous_cached_steps": check_integer,
        "enable_separate_cfg": check_flag,
        "cfg_compute_first": check_flag,
        "cfg_diff_compute_separate": check_flag,
        "num_inference_steps": partial(check_integer, minimum=1),
        "steps_computation_mask": _check_mask,
        "steps_computation_policy": partial(check_choice, choices=("dynamic", "static")),
    }

    def _normalize(self) -> None:
        hint: Any = self.cache_type
        if isinstance(hint, str) and hint.upper() in _VALUE_OF_ALIAS:
            self.cache_type = cache_type(hint)
        mask: Any = self.steps_computation_mask
        if isinstance(mask, (list, tuple)) and all(isinstance(bit, numbers.Integral) for bit in mask):
            self.steps_computation_mask = [int(bit) for bit in mask]

    def _validate_together(self) -> None:
        if self.cfg_compute_first and self.cfg_diff_compute_separate:
            raise ConfigError(
                "cfg_compute_first=True and cfg_diff_compute_separate=True exclude each other: "
                "pass cfg_diff_compute_separate=False too"
            )
        # In a sparse configuration the policy is None: what the mask will be is not known yet.
        if (
            self.Fn_compute_blocks == 0
            and self.steps_computation_policy in ("dynamic", "static")
            and not self.is_static
        ):
            raise ConfigError(
                "Fn_compute_blocks=0 leaves nothing to measure a diff on: expected at least 1, "
                "or a steps_computation_mask with steps_computation_policy='static'"
            )

    @property
    def is_static(self) -> bool:
        """Whether a static mask alone decides each step, so that nothing is ever measured."""
        return self.steps_computation_mask is not None and self.steps_computation_policy == "static"

    def strify(self) -> str:
        """A short tag for file names, e.g. `DBCache_F1B0_W2I1M0MC0_R0.5_N6_CFG0`; fields that are None show as `-`."""
        if self.cache_type is CacheType.NONE:
            return "NONE"
        threshold = _tag(
            self.residual_diff_threshold, lambda value: round(as_number("residual_diff_threshold", value), 6)
        )
        max_cached = _tag(self.max_cached_steps, lambda steps: max(0, steps))
        max_continuous = _tag(self.max_continuous_cached_steps, lambda steps: max(0, steps))
        parts = [
            _tag(self.cache_type),
            f"F{_tag(self.Fn_compute_blocks)}B{_tag(self.Bn_compute_blocks)}",
            f"W{_tag(self.max_warmup_steps)}I{_tag(self.warmup_interval)}M{max_cached}MC{max_continuous}",
            f"R{threshold}",
        ]
        if self.steps_computation_mask is not None:
            parts += [f"SCM{''.join(map(str, self.steps_computation_mask))}", _tag(self.steps_computation_policy)]
        if self.num_inference_steps is not None:
            parts.append(f"N{self.num_inference_steps}")
        parts.append(f"CFG{int(bool(self.enable_separate_cfg))}")
        return "_".join(parts)


@dataclass
class DBCacheConfig(BasicCacheConfig):
    """The options of DBCache: those of `BasicCacheConfig`, which describes each of them."""
