"""What a cache holds for one chain of blocks in one request, as plain values."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from cache_dit.caching.calibrators import Calibrator, CalibratorBase
from cache_dit.config.cache import BasicCacheConfig
from cache_dit.config.calibrator import CalibratorConfig
from cache_dit.config.extra import ExtraCacheConfig
from cache_dit.config.prune import DBPruneConfig
from cache_dit.errors import ConfigError


@dataclass
class CachedContext:
    """What a cache holds for one chain of blocks in one request: a copy, whose change changes nothing.

    ``transformer._context_manager.get_context()`` gives one. One that you make yourself holds a configuration, and
    calibrators where that asks for them. The fields with ``cfg_`` are those of the second branch of guidance.

    Args:
        name: the chain.
        buffers: the bytes of what is kept, as ``"nbytes"`` and ``"cfg_nbytes"``. The tensors themselves may lie on
            another device or be scaled, and are not handed out.
        cache_config, extra_cache_config, calibrator_config: what was asked for.
        calibrator, encoder_calibrator, cfg_calibrator, cfg_encoder_calibrator: in a context of your own, what predicts
            the hidden states and the encoder's; None where they are reused, and always None in one that was read from
            a cache, which asks its predictors directly.
        executed_steps: the steps that have begun.
        transformer_executed_steps: the calls of the transformer that have ended.
        cached_steps, residual_diffs: the numbers of the cached steps; step number (as text) to measured diff.
        accumulated_residual_diff, continuous_cached_steps: the sum of the diffs and the number of the steps that were
            cached since the last computed one.
    """

    name: str = "default"
    buffers: dict[str, Any] = field(default_factory=dict)
    cache_config: BasicCacheConfig = field(default_factory=BasicCacheConfig)
    extra_cache_config: ExtraCacheConfig = field(default_factory=ExtraCacheConfig)
    calibrator_config: CalibratorConfig | None = None
    calibrator: CalibratorBase | None = None
    encoder_calibrator: CalibratorBase | None = None
    cfg_calibrator: CalibratorBase | None = None
    cfg_encoder_calibrator: CalibratorBase | None = None
    executed_steps: int = 0
    transformer_executed_steps: int = 0
    cached_steps: list[int] = field(default_factory=list)
    residual_diffs: dict[str, Any] = field(default_factory=lambda: defaultdict(float))
    accumulated_residual_diff: float = 0.0
    continuous_cached_steps: int = 0
    cfg_cached_steps: list[int] = field(default_factory=list)
    cfg_residual_diffs: dict[str, Any] = field(default_factory=lambda: defaultdict(float))
    cfg_accumulated_residual_diff: float = 0.0
    cfg_continuous_cached_steps: int = 0

    def __post_init__(self) -> None:
        asked = self.calibrator_config
        if asked is None:
            return
        prefixes = ("", "cfg_") if self.cache_config.enable_separate_cfg else ("",)
        for prefix in prefixes:
            for name in ("calibrator", "encoder_calibrator"):
                if getattr(asked, f"enable_{name}") and getattr(self, prefix + name) is None:
                    setattr(self, prefix + name, Calibrator(asked))


@dataclass
class PrunedContext(CachedContext):
    """The same for DBPrune, where ``cached_steps`` are the steps in which a block was skipped.

    Args: those of ``CachedContext``, and
        pruned_blocks, actual_blocks: for each call of the transformer the number of blocks that were skipped, and the
            number of all.

    Raises:
        ConfigError: ``cache_config`` is no ``DBPruneConfig``.
    """

    cache_config: BasicCacheConfig = field(default_factory=DBPruneConfig)
    pruned_blocks: list[int] = field(default_factory=list)
    actual_blocks: list[int] = field(default_factory=list)
    cfg_pruned_blocks: list[int] = field(default_factory=list)
    cfg_actual_blocks: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not isinstance(self.cache_config, DBPruneConfig):
            raise ConfigError(f"cache_config is a {type(self.cache_config).__name__}: pass a DBPruneConfig")
        super().__post_init__()
