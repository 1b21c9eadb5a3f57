"""Options that suit a model's checkpoints, with where their numbers come from."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cache_dit.config.cache import DBCacheConfig
from cache_dit.config.calibrator import CalibratorConfig, TaylorSeerCalibratorConfig
from cache_dit.config.modifier import ParamsModifier

#: What a preset's own options are laid over: the defaults of the reference's server.
_COMMON: dict[str, Any] = {
    "Fn_compute_blocks": 1,
    "Bn_compute_blocks": 0,
    "residual_diff_threshold": 0.24,
    "max_warmup_steps": 8,
    "max_continuous_cached_steps": 3,
}


@dataclass(frozen=True)
class Preset:
    """Options under a name, for a model or a way of running it.

    Args:
        purpose: what they are for.
        source: where the numbers come from.
        options: fields of ``DBCacheConfig``. What is not given is as in ``serving``: Fn 1, Bn 0, threshold 0.24, 8
            steps of warm-up, at most 3 cached steps in a row.
        chains: what differs for each chain of blocks, in order. It counts where a model has as many chains.
        calibrator: how skipped steps are predicted; None: by reuse.

    Raises:
        ConfigError: an option is unknown, or cannot work.
    """

    purpose: str
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)
    chains: tuple[Mapping[str, Any], ...] = ()
    calibrator: CalibratorConfig | None = None

    def __post_init__(self) -> None:
        self.arguments(len(self.chains))

    def arguments(self, chains: int) -> dict[str, Any]:
        """What to pass to ``enable_cache``, by name, for a model with so many chains; new objects in each call."""
        modifiers = [ParamsModifier(cache_config=DBCacheConfig().reset(**own)) for own in self.chains]
        return {
            "cache_config": DBCacheConfig(**copy.deepcopy({**_COMMON, **self.options})),
            "calibrator_config": copy.deepcopy(self.calibrator),
            "params_modifiers": modifiers if modifiers and len(modifiers) == chains else None,
        }


#: Where most of the presets are from.
SERVING = "the defaults of the reference's server and examples"

#: Presets that every model has, by name; the first is what is chosen where nothing is named.
COMMON: dict[str, Preset] = {
    "default": Preset(
        purpose="any model that nobody tuned for; runs of fewer than 8 steps are left alone",
        source="EasyCache's rule (arXiv 2507.02860), its numbers chosen on 8 captions of the demo model",
        options={
            "policy": "easycache",
            "Fn_compute_blocks": 0,
            "residual_diff_threshold": 0.05,
            "max_warmup_steps": 6,
            "compute_last_step": True,
        },
        calibrator=TaylorSeerCalibratorConfig(damping=0.5),
    ),
    "serving": Preset(purpose="about 20 steps and more", source=SERVING),
}
