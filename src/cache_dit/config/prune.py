"""What a user asks of DBPrune: which blocks it may skip, and by which threshold."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from cache_dit.config.base import bad_value, check_choice, check_flag, check_number
from cache_dit.config.cache import BasicCacheConfig, CacheType
from cache_dit.errors import ConfigError


def _check_block_ids(name: str, value: Any) -> None:
    if not isinstance(value, list) or any(type(block) is not int or block < 0 for block in value):
        raise bad_value(name, value, "a list of block ids, integers >= 0")


@dataclass(repr=False)
class DBPruneConfig(BasicCacheConfig):
    """The options of DBPrune, which skips single blocks: those whose input hardly changed since they last ran.

    The first Fn blocks, the last Bn blocks and those named in `non_prune_block_ids` always run. The other options of
    `BasicCacheConfig` mean here, block by block, what they mean there for a step: `residual_diff_threshold` bounds
    relL1 = mean|x - x'| / mean|x'| of a block's input (x now, x' when it last ran).

    Args:
        cache_type: `CacheType.DBPrune`, or `CacheType.NONE` for no cache.
        enable_dynamic_prune_threshold: whether the threshold follows the run: the mean of the first diffs of a step,
            times `dynamic_prune_threshold_relax_ratio`, where that lies above `residual_diff_threshold` and below
            `max_dynamic_prune_threshold`.
        max_dynamic_prune_threshold: above this the dynamic threshold is not used; more than 0. None: twice
            `residual_diff_threshold`.
        dynamic_prune_threshold_relax_ratio: see `enable_dynamic_prune_threshold`; more than 0.
        non_prune_block_ids: the ids of blocks that always run, counted from 0 in their chain; those beyond its end
            have no effect. See `block_range`.
        force_reduce_calibrator_vram: whether, with a calibrator, only every fourth element of the last dimension is
            kept for the comparison; see `ExtraCacheConfig.downsample_factor`.
        prune_decision: `"block"`: each block is decided by a diff of this step, read back from the device (several at
            once where blocks in a row are skipped); `"previous"`: by its diff in the step before, with no read in this
            one.

    Raises:
        ConfigError: a value cannot work; the message says what was seen and what was expected.
    """

    cache_type: CacheType = CacheType.DBPrune
    enable_dynamic_prune_threshold: bool = False
    max_dynamic_prune_threshold: float | None = None
    dynamic_prune_threshold_relax_ratio: float = 1.25
    non_prune_block_ids: list[int] = field(default_factory=list)
    force_reduce_calibrator_vram: bool = False
    prune_decision: str = field(default="block", kw_only=True)

    _checks: ClassVar[dict[str, Callable[[str, Any], object]]] = {
        **BasicCacheConfig._checks,
        "enable_dynamic_prune_threshold": check_flag,
        "max_dynamic_prune_threshold": partial(check_number, above=0),
        "dynamic_prune_threshold_relax_ratio": partial(check_number, above=0),
        "non_prune_block_ids": _check_block_ids,
        "force_reduce_calibrator_vram": check_flag,
        "prune_decision": partial(check_choice, choices=("block", "previous")),
    }
    _own_type: ClassVar[CacheType] = CacheType.DBPrune

    def _normalize(self) -> None:
        super()._normalize()
        ids: Any = self.non_prune_block_ids
        if isinstance(ids, Iterable) and not isinstance(ids, (str, bytes, dict)):
            self.non_prune_block_ids = list(ids)

    def _validate_together(self) -> None:
        super()._validate_together()
        if self.policy not in (None, "dbcache"):
            raise ConfigError(
                f"policy={self.policy!r} decides for whole steps, DBPrune for single blocks: pass policy='dbcache', "
                "or a DBCacheConfig"
            )

    def strify(self) -> str:
        """A short tag for file names, e.g. `DBPrune_F8B0_W8I1M0MC0_R0.08`; fields that are None show as `-`."""
        return "NONE" if self.cache_type is CacheType.NONE else "_".join(self._tags())
