"""What a user asks of the cache: its type, when it may skip, and how it treats the branches of guidance."""

from __future__ import annotations

import logging
import math
import numbers
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import InitVar, dataclass, field
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from cache_dit.config.base import (
    SparseConfig,
    as_number,
    bad_value,
    check_choice,
    check_flag,
    check_integer,
    check_number,
    check_text,
    defaults_of,
    unknown_key,
)
from cache_dit.config.extra import ExtraCacheConfig
from cache_dit.config.masks import PRESETS, PresetMask, fitted_mask
from cache_dit.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

_ALIASES = {
    "DBCache": ("DUAL_BLOCK_CACHE", "DB_CACHE", "DBCACHE", "DB"),
    "DBPrune": ("DYNAMIC_BLOCK_PRUNE", "DB_PRUNE", "DBPRUNE", "DBP"),
    "NONE": ("NONE", "NO_CACHE", "NOCACHE", "NC"),
}
_DTYPES = ("float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")
_WITHOUT_BLOCKS = ("magcache", "easycache")  # policies that measure nothing on blocks
#: Options that a plan leaves nothing to decide for.
DECIDED_BY_PLAN = (
    "Fn_compute_blocks",
    "Bn_compute_blocks",
    "residual_diff_threshold",
    "max_accumulated_residual_diff_threshold",
    "max_warmup_steps",
    "warmup_interval",
    "max_cached_steps",
    "max_continuous_cached_steps",
    "steps_computation_mask",
    "steps_computation_policy",
    "policy",
    "policy_calibration",
    "decision",
    "compute_last_step",
    "force_refresh_step_hint",
)
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

    def __repr__(self) -> str:
        return f"CacheType.{self.name}"


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


def known_cache_type(hint: Any) -> CacheType:
    """The cache type that a name stands for, as `cache_type` knows them.

    Raises:
        ConfigError: `hint` is no `CacheType` and none of the names.
    """
    if isinstance(hint, CacheType) or (isinstance(hint, str) and hint.upper() in _VALUE_OF_ALIAS):
        return cache_type(hint)
    raise bad_value("cache_type", hint, f"one of {', '.join(_ALIASES)}")


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

    Raises:
        ConfigError: one of them is no integer.
    """
    for name, value in (("start", start), ("end", end), ("step", step)):
        check_integer(name, value)
    if start > end or end <= 0 or step <= 1:
        return []
    return sorted({0, *range(start, end, step), end - 1})


def _check_mask(name: str, value: Any) -> None:
    if not isinstance(value, list) or not value or any(type(bit) is not int or bit not in (0, 1) for bit in value):
        raise bad_value(
            name, value, f"a list of at least one 0 (may be cached) or 1 (compute), or one of {', '.join(PRESETS)}"
        )


def _check_calibration(name: str, value: Any) -> None:
    path = isinstance(value, (str, os.PathLike))
    if (path and not os.fspath(value)) or (not path and type(value).__module__ == "builtins"):
        raise bad_value(name, value, "a PolicyCalibration, or the path of its JSON file")


def _check_plan(name: str, value: Any) -> None:
    path = isinstance(value, (str, os.PathLike))
    if (path and not os.fspath(value)) or (
        not path and not isinstance(value, Mapping) and type(value).__module__ == "builtins"
    ):
        raise bad_value(name, value, "a Plan, or the path of its JSON file")


def _check_device(name: str, value: Any) -> None:
    if not isinstance(value, str) or not re.fullmatch(r"[a-z][a-z0-9_]*(:\d+)?", value):
        raise bad_value(name, value, "a device, e.g. 'cpu' or 'cuda:1'")


def _check_extra(name: str, value: Any) -> None:
    if not isinstance(value, ExtraCacheConfig):
        raise bad_value(name, value, "an ExtraCacheConfig")
    value.validate()


def _is_torch(value: Any, kind: str) -> bool:
    """Whether `value` is a `torch.device` or a `torch.dtype`, told without importing torch."""
    return (type(value).__module__, type(value).__name__) == ("torch", kind)


def _preset_mask(name: str, preset: str, steps: Any) -> list[int] | None:
    """The mask of a preset, or None for `"none"`."""
    if preset != "none" and steps is None:
        raise ConfigError(
            f"{name}={preset!r} names a preset, which needs the number of steps: pass num_inference_steps too, "
            "e.g. num_inference_steps=28"
        )
    return None if preset == "none" else PresetMask(preset, steps)


def _tag(value: Any, shown: Callable[[Any], object] = str) -> str:
    return "-" if value is None else str(shown(value))


@dataclass(repr=False)
class BasicCacheConfig(SparseConfig):
    """When the cache may skip work, and how much of the model always runs.

    A model's blocks are a chain F | M | B: the first Fn and the last Bn blocks always run; a cached step skips the M
    blocks between them and predicts what they would have added. The F blocks also tell how much the step differs from
    the last computed one: relL1 = mean|R - R'| / mean|R'| of what they add to their input (R now, R' then).

    Args:
        cache_type: the kind of cache; names as in `cache_type` are taken too.
        Fn_compute_blocks: number of blocks F; at least 1, or 0 with a static mask or with the policies "magcache" and
            "easycache", which measure nothing on blocks.
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
        steps_computation_mask: one entry per step, 1: compute, 0: may be cached; see `steps_mask`. A preset's name
            (`"slow"`, `"medium"`, `"fast"`, `"ultra"`) makes its mask, and needs `num_inference_steps`; `"none"`: no
            mask. A preset's mask follows the number of steps that a run turns out to have. A mask of one's own of
            another length than the run is said once in the log: what is too long is cut, and the last step computes;
            steps past its end compute. Given together with `num_inference_steps`, it must have as many entries, unless
            `force_refresh_step_hint` lets it begin anew.
        steps_computation_policy: `"dynamic"`: a 0 in the mask allows caching, and the threshold decides; `"static"`:
            a 0 is a cached step, nothing is measured, and the limits do not apply. A preset's name is taken as
            `"dynamic"`, and makes the mask if none is given.
        policy: the rule that decides: `"dbcache"`, `"teacache"`, `"magcache"`, `"easycache"`, or a registered name.
            `residual_diff_threshold` is the budget of each: dbcache's bound on relL1, teacache's on the sum of the
            rescaled diffs, magcache's and easycache's on the accumulated error.
        policy_calibration: what a policy knows of the model, for those that need it: a `PolicyCalibration` or the path
            of its JSON file. Copies of this configuration share it.
        decision: how a batch decides: `"mean"`: by the mean over the whole batch; `"any"`: a step is computed if any
            sample needs it; `"all"`: if all do; `"sample"`: each sample for itself.
        cache_device: the device where snapshots are kept, e.g. `"cpu"` or `"cuda:1"`, or a `torch.device`; None: where
            they arise.
        cache_dtype: the type they are kept as: `"float32"`, `"bfloat16"`, `"float16"`, `"float8_e4m3fn"` or
            `"float8_e5m2"`, or such a `torch.dtype`; None: as they arise.
        force_refresh_step_hint: after how many steps of a request, at least 1, what is kept is dropped and the warm-up
            begins anew, e.g. the steps of the first of two sampling stages. None: never.
        force_refresh_step_policy: `"once"`: after that many steps; `"repeat"`: after every so many.
        compute_last_step: whether the last step of a request is computed whatever its diff, where the number of its
            steps is known; a static mask says so itself.
        conditioning_diff_threshold: how much (relL1) a conditioning tensor that the pipeline makes anew at each step
            may change since the last computed step before the step is computed; at least 0. None (in an override or
            in `update`, where None means "not given": `math.inf`): it is not looked at.
        extra_cache_config: how a diff is measured; see `ExtraCacheConfig`.
        max_sessions: how many requests a transformer keeps open, at least 1; beyond it the one unused for longest is
            closed.
        plan: a `Plan` with a chosen point, or the path of its JSON file: it says which steps are computed and how the
            others are predicted, and nothing is measured. The options that decide are then left alone, F and B are 0,
            and the policy is `"plan"`. A run that it does not hold for is refused. Copies share it.

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
    policy: str = field(default="dbcache", kw_only=True)
    policy_calibration: Any = field(default=None, kw_only=True)
    decision: str = field(default="mean", kw_only=True)
    cache_device: str | None = field(default=None, kw_only=True)
    cache_dtype: str | None = field(default=None, kw_only=True)
    force_refresh_step_hint: int | None = field(default=None, kw_only=True)
    force_refresh_step_policy: str = field(default="once", kw_only=True)
    compute_last_step: bool = field(default=False, kw_only=True)
    conditioning_diff_threshold: float | None = field(default=0.25, kw_only=True)
    extra_cache_config: ExtraCacheConfig | None = field(default=None, kw_only=True)
    max_sessions: int = field(default=64, kw_only=True)
    plan: Any = field(default=None, kw_only=True)
    plan_guard: InitVar[None] = field(default=None, kw_only=True)  # gone, and said so

    _checks: ClassVar[dict[str, Callable[[str, Any], object]]] = {
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
        "policy": partial(check_text, expected="a policy's name, e.g. 'dbcache'"),
        "policy_calibration": _check_calibration,
        "decision": partial(check_choice, choices=("mean", "any", "all", "sample")),
        "cache_device": _check_device,
        "cache_dtype": partial(check_choice, choices=_DTYPES),
        "force_refresh_step_hint": partial(check_integer, minimum=1),
        "force_refresh_step_policy": partial(check_choice, choices=("once", "repeat")),
        "compute_last_step": check_flag,
        "conditioning_diff_threshold": partial(check_number, minimum=0),
        "extra_cache_config": _check_extra,
        "max_sessions": partial(check_integer, minimum=1),
        "plan": _check_plan,
    }
    _shared: ClassVar[tuple[str, ...]] = ("policy_calibration", "plan")
    _meaning_of_none: ClassVar[dict[str, Any]] = {"conditioning_diff_threshold": math.inf}
    _own_type: ClassVar[CacheType] = CacheType.DBCache

    def __post_init__(self, plan_guard: None) -> None:
        if plan_guard is not None:
            raise unknown_key("plan_guard", (), where=type(self).__name__)
        super().__post_init__()

    def _normalize(self) -> None:
        if self.cache_type is not None:
            self.cache_type = known_cache_type(self.cache_type)
        self._resolve_presets()
        mask: Any = self.steps_computation_mask
        if isinstance(mask, PresetMask):
            self.steps_computation_mask = fitted_mask(mask, self.num_inference_steps or len(mask))
        elif isinstance(mask, (list, tuple)) and all(isinstance(bit, numbers.Integral) for bit in mask):
            self.steps_computation_mask = [int(bit) for bit in mask]
        if _is_torch(self.cache_device, "device"):
            self.cache_device = str(self.cache_device)
        if isinstance(self.cache_dtype, str) or _is_torch(self.cache_dtype, "dtype"):
            self.cache_dtype = str(self.cache_dtype).removeprefix("torch.")
        if self.plan is not None:
            self._leave_to_plan()

    @classmethod
    def _refuse_given(cls, options: Mapping[str, Any]) -> None:
        mask, steps = options.get("steps_computation_mask"), options.get("num_inference_steps")
        if not isinstance(mask, (list, tuple)) or steps in (None, len(mask)) or options.get("force_refresh_step_hint"):
            return
        raise ConfigError(
            f"steps_computation_mask has {len(mask)} entries and num_inference_steps={steps}: pass one entry per step, "
            f"e.g. steps_mask(total_steps={steps}, mask_policy='medium'), or leave out num_inference_steps"
        )

    def _leave_to_plan(self) -> None:
        """With a plan, cached steps run no block: F and B are 0 where nobody asked for some."""
        usual = defaults_of(BasicCacheConfig)
        self.policy = "plan" if self.policy in (None, usual["policy"]) else self.policy
        back: int | None = self.Bn_compute_blocks
        self.Bn_compute_blocks = back or 0
        if self.Fn_compute_blocks in (None, usual["Fn_compute_blocks"]):
            self.Fn_compute_blocks = 0

    def _resolve_presets(self) -> None:
        """Turn the name of a preset, in the mask's place or in the policy's, into its mask."""
        presets = (*PRESETS, "none")
        mask: Any = self.steps_computation_mask
        policy: Any = self.steps_computation_policy
        if isinstance(mask, str) and mask in presets:
            mask = _preset_mask("steps_computation_mask", mask, self.num_inference_steps)
        if isinstance(policy, str) and policy in presets:
            if mask is None:
                mask = _preset_mask("steps_computation_policy", policy, self.num_inference_steps)
            self.steps_computation_policy = "dynamic"
        self.steps_computation_mask = mask

    def _validate_together(self) -> None:
        if self.cache_type not in (None, CacheType.NONE, self._own_type):
            raise ConfigError(
                f"cache_type={self.cache_type} is not that of a {type(self).__name__}: pass a {self.cache_type}Config"
            )
        if self.plan is not None:
            self._refuse_beside_plan()
        if self.cfg_compute_first and self.cfg_diff_compute_separate:
            raise ConfigError(
                "cfg_compute_first=True and cfg_diff_compute_separate=True exclude each other: "
                "pass cfg_diff_compute_separate=False too"
            )
        # Where one of the two is None, in a sparse configuration, it is not known yet what will be measured.
        known = None not in (self.steps_computation_policy, self.policy)
        if known and self.Fn_compute_blocks == 0 and not self.is_static and self.policy not in _WITHOUT_BLOCKS:
            raise ConfigError(
                f"Fn_compute_blocks=0 leaves nothing to measure a diff on with policy={self.policy!r}: expected at "
                f"least 1, a steps_computation_mask with steps_computation_policy='static', or one of the policies "
                f"{', '.join(_WITHOUT_BLOCKS)}"
            )

    def _refuse_beside_plan(self) -> None:
        """Raise `ConfigError` for options that decide what the plan decides."""
        planned = {**defaults_of(BasicCacheConfig), "Fn_compute_blocks": 0, "policy": "plan"}
        for name in DECIDED_BY_PLAN:
            value = getattr(self, name)
            if value is not None and value != planned[name]:
                raise ConfigError(f"{name}={value!r} and plan exclude each other, the plan decides: leave out {name}")

    @property
    def is_static(self) -> bool:
        """Whether a static mask or a plan alone decides each step, so that nothing is measured to decide."""
        masked = self.steps_computation_mask is not None and self.steps_computation_policy == "static"
        return masked or self.plan is not None

    @property
    def watches_conditioning(self) -> bool:
        """Whether a conditioning tensor that changes between steps can make a step computed."""
        threshold = self.conditioning_diff_threshold
        return threshold is not None and threshold < math.inf

    def strify(self) -> str:
        """A short tag for file names, e.g. `DBCache_F1B0_W2I1M0MC0_R0.5_N6_CFG0`; fields that are None show as `-`.

        A policy other than "dbcache" follows the type, a step of forced refresh comes last: `…_CFG0_FR8_once`. With a
        plan: `DBCache_PLAN12of28_CFG0`.
        """
        if self.cache_type is CacheType.NONE:
            return "NONE"
        parts = self._tags() if self.plan is None else self._plan_tags()
        if self.steps_computation_mask is not None:
            parts += [f"SCM{''.join(map(str, self.steps_computation_mask))}", _tag(self.steps_computation_policy)]
        if self.num_inference_steps is not None:
            parts.append(f"N{self.num_inference_steps}")
        parts.append(f"CFG{int(bool(self.enable_separate_cfg))}")
        if self.force_refresh_step_hint is not None:
            parts += [f"FR{self.force_refresh_step_hint}", _tag(self.force_refresh_step_policy)]
        return "_".join(parts)

    def _plan_tags(self) -> list[str]:
        """The parts of the tag that say which plan is followed."""
        path = self.plan if isinstance(self.plan, (str, os.PathLike)) else ""
        name = getattr(self.plan, "tag", os.path.splitext(os.path.basename(path))[0])
        return [_tag(self.cache_type), f"PLAN{name}"]

    def _tags(self) -> list[str]:
        """The parts of the tag that every type of cache has."""
        threshold = _tag(
            self.residual_diff_threshold, lambda value: round(as_number("residual_diff_threshold", value), 6)
        )
        max_cached = _tag(self.max_cached_steps, lambda steps: max(0, steps))
        max_continuous = _tag(self.max_continuous_cached_steps, lambda steps: max(0, steps))
        policy = [] if self.policy in (None, "dbcache", "plan") else [self.policy]
        return [
            _tag(self.cache_type),
            *policy,
            f"F{_tag(self.Fn_compute_blocks)}B{_tag(self.Bn_compute_blocks)}",
            f"W{_tag(self.max_warmup_steps)}I{_tag(self.warmup_interval)}M{max_cached}MC{max_continuous}",
            f"R{threshold}",
        ]


@dataclass(repr=False)
class DBCacheConfig(BasicCacheConfig):
    """The options of DBCache: those of `BasicCacheConfig`, which describes each of them."""
