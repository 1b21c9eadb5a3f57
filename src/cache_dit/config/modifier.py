"""Options for one block list or one transformer of several, laid over those that all share."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar, cast

from cache_dit.config.base import SparseConfig, joined, unknown_key
from cache_dit.config.cache import DECIDED_BY_PLAN, BasicCacheConfig, CacheType, DBCacheConfig, known_cache_type
from cache_dit.config.calibrator import CalibratorConfig
from cache_dit.config.options import OPTION_KEYS, read_calibrator, read_options
from cache_dit.config.prune import DBPruneConfig
from cache_dit.config.section import Section
from cache_dit.errors import ConfigError

_Config = TypeVar("_Config", bound=SparseConfig)

_FLAT_CACHE_OPTIONS = (
    "Fn_compute_blocks",
    "Bn_compute_blocks",
    "max_warmup_steps",
    "max_cached_steps",
    "max_continuous_cached_steps",
    "residual_diff_threshold",
    "enable_separate_cfg",
    "cfg_compute_first",
    "cfg_diff_compute_separate",
)
_FLAT_TAYLORSEER_OPTIONS = (
    "enable_taylorseer",
    "enable_encoder_taylorseer",
    "taylorseer_cache_type",
    "taylorseer_order",
)


class ParamsModifier:
    """Options that differ for one block list, or one transformer, from those given to `enable_cache`.

    The modifiers given to `enable_cache` or to a `BlockAdapter` go to the block lists in order; lists without one
    keep the shared options. Fields that are None keep the shared value, so a modifier is best written sparsely:
    `ParamsModifier(cache_config=DBCacheConfig().reset(residual_diff_threshold=0.24))`. A calibrator may be given
    alone.

    Args:
        cache_config: cache options to lay over the shared ones.
        calibrator_config: calibrator options to lay over the shared ones; one of another class replaces them.
        **kwargs: deprecated flat options (`Fn_compute_blocks=…`, `enable_taylorseer=…`); see `flat_options`.

    Raises:
        ConfigError: an unknown option, or one that is no configuration of the expected class.
    """

    def __init__(
        self,
        cache_config: BasicCacheConfig | None = None,
        calibrator_config: CalibratorConfig | None = None,
        **kwargs: Any,
    ) -> None:
        check_classes(cache_config, calibrator_config)
        options, flat_calibrator = flat_options(kwargs, where="ParamsModifier")
        if options:
            cache_config = overlay(cache_config or BasicCacheConfig().reset(), options)
        self.cache_config = cache_config
        self.calibrator_config = flat_calibrator or calibrator_config

    def __repr__(self) -> str:
        given = {name: value for name, value in vars(self).items() if value is not None}
        return f"ParamsModifier({', '.join(f'{name}={value!r}' for name, value in given.items())})"


def flat_options(options: Mapping[str, Any], *, where: str) -> tuple[dict[str, Any], CalibratorConfig | None]:
    """Sort the deprecated flat options of `enable_cache` and `ParamsModifier` into cache and calibrator options.

    Args:
        options: fields of `DBCacheConfig` by name, and `enable_taylorseer` (False), `enable_encoder_taylorseer` (True),
            `taylorseer_cache_type` (`"residual"`), `taylorseer_order` (1). Those given as None count as not given.
        where: what was given the options, for messages, e.g. `"enable_cache"`.

    Returns:
        The cache options, and a calibrator configuration or None if no TaylorSeer was asked for.

    Raises:
        ConfigError: an unknown option, or a value that cannot work.
    """
    if not options:
        return {}, None
    known = (*_FLAT_CACHE_OPTIONS, *_FLAT_TAYLORSEER_OPTIONS)
    for key in options:
        if key not in known and key in BasicCacheConfig.field_names():
            raise ConfigError(f"{where}: {key} is no keyword of its own: pass cache_config=DBCacheConfig({key}=…)")
        if key not in known:
            raise unknown_key(key, known, where=where)
    given = {key: value for key, value in options.items() if value is not None}
    if given:
        warnings.warn(
            f"{where}: the flat options {', '.join(given)} are deprecated; pass cache_config=DBCacheConfig(…) "
            "and calibrator_config=TaylorSeerCalibratorConfig(…)",
            DeprecationWarning,
            stacklevel=3,
        )
    cache_options = {key: value for key, value in given.items() if key in _FLAT_CACHE_OPTIONS}
    return cache_options, read_calibrator(Section(given, where))


def refresh_options(
    options: Mapping[str, Any], *, where: str = "refresh_context"
) -> tuple[dict[str, Any], CalibratorConfig | None]:
    """Sort what `refresh_context` was given into options to lay over the old ones.

    Args:
        options: `cache_config` (a configuration, of which the fields that are not None count, or a dict of flat
            options), `calibrator_config`, and flat options by name, which count over those of `cache_config`: fields
            of the cache configurations and of `ExtraCacheConfig`, and `enable_taylorseer`, `taylorseer_order` and
            the like of the other calibrators. Those given as None count as not given.
        where: what was given the options, for messages.

    Returns:
        The cache options by field, for `overlay`; and a sparse calibrator configuration, or None if none was given.
        An enabled calibrator among the flat options counts in place of `calibrator_config`.

    Raises:
        ConfigError: an unknown option, or a value that cannot work.
    """
    flat = dict(options)
    config, calibrator = flat.pop("cache_config", None), flat.pop("calibrator_config", None)
    known = (*OPTION_KEYS, "cache_config", "calibrator_config")
    for key in flat:
        if key not in known:
            raise unknown_key(key, known, where=where)
    if isinstance(config, Mapping):
        config, nested = read_options(Section(config, "cache_config"), sparse=True)
        calibrator = nested or calibrator
    check_classes(config, calibrator)
    given = {} if config is None else config.given()
    own, named = read_options(Section(flat, where), sparse=True)
    return joined(given, own.given()), named or calibrator


def check_classes(cache_config: Any, calibrator_config: Any) -> None:
    """Raise `ConfigError` unless each is a configuration of its kind, or None."""
    if cache_config is not None and not isinstance(cache_config, BasicCacheConfig):
        raise ConfigError(f"cache_config is a {type(cache_config).__name__}: pass a DBCacheConfig")
    if calibrator_config is not None and not isinstance(calibrator_config, CalibratorConfig):
        raise ConfigError(f"calibrator_config is a {type(calibrator_config).__name__}: pass a CalibratorConfig")


def effective(
    base_cache: BasicCacheConfig,
    base_calibrator: CalibratorConfig | None = None,
    modifier: ParamsModifier | None = None,
) -> tuple[BasicCacheConfig, CalibratorConfig | None]:
    """The options of one block list: the shared ones, with those of its modifier laid over them.

    Args:
        base_cache: the shared cache options; fields that are None get their defaults.
        base_calibrator: the shared calibrator options, or None.
        modifier: the list's own options, or None. Its calibrator counts also when it has no cache options.

    Returns:
        New, complete configurations that share nothing with the given ones; the calibrator is None when nobody gave
        one.

    Raises:
        ConfigError: the combination cannot work.
    """
    own_cache, own_calibrator = (modifier.cache_config, modifier.calibrator_config) if modifier else (None, None)
    options = {} if own_cache is None else own_cache.given()
    if own_calibrator is None and "plan" in options:
        base_calibrator = None  # the plan says how steps are predicted
    return overlay(base_cache, options, complete=True), calibrator_over(base_calibrator, own_calibrator)


def calibrator_over(base: CalibratorConfig | None, own: CalibratorConfig | None) -> CalibratorConfig | None:
    """Complete calibrator options: `own` laid over `base`, in whose place it comes where it is of another class."""
    if own is None or type(base) is not type(own):
        chosen = base if own is None else own
        return None if chosen is None else overlay(chosen, {}, complete=True)
    return overlay(base, own.given(), complete=True)


def overlay(base: _Config, options: Mapping[str, Any], *, complete: bool = False) -> _Config:
    """A copy of `base` with `options` laid over it; `base` stays as it is.

    The copy has the class of `base`, unless `options` give the other `cache_type`: DBPrune over a `DBCacheConfig`
    makes a `DBPruneConfig`, DBCache over a `DBPruneConfig` makes a `DBCacheConfig` without the options of DBPrune.

    Args:
        base: the configuration to start from.
        options: field names and values; those that are None leave the base's.
        complete: whether fields that neither gives get their defaults, or stay None.

    Raises:
        ConfigError: an unknown name, options of DBPrune over a `DBCacheConfig` without its cache type, or values that
            cannot work together.
    """
    given = [name for name, value in options.items() if value is not None]
    cls = _class_over(base, options.get("cache_type"), given)
    laid = cls.over(base, options, dropped=_dropped(base, given, options.get("policy")), complete=complete)
    return cast(_Config, laid)


def _dropped(base: SparseConfig, given: Collection[str], policy: str | None) -> tuple[str, ...]:
    """What of `base` makes way for the given options: for a plan all that decides, for another policy the plan."""
    if "plan" in given:
        return DECIDED_BY_PLAN
    leaves = getattr(base, "plan", None) is not None and policy not in (None, "plan")
    return ("plan", "policy", "Fn_compute_blocks") if leaves else ()


def _class_over(base: SparseConfig, hint: Any, given: Iterable[str]) -> type[SparseConfig]:
    """The class of what comes out when the given options, a cache type among them or not, are laid over `base`."""
    if not isinstance(base, BasicCacheConfig):
        return type(base)
    kind = None if hint is None else known_cache_type(hint)
    if kind is CacheType.DBPrune:
        return type(base) if isinstance(base, DBPruneConfig) else DBPruneConfig
    if kind is CacheType.DBCache and isinstance(base, DBPruneConfig):
        return DBCacheConfig
    for name in given:
        if name in DBPruneConfig.field_names() and name not in base.field_names():
            raise ConfigError(
                f"{name} is an option of DBPrune, and a {type(base).__name__} is what it is laid over: pass a "
                "DBPruneConfig with its cache_type, e.g. DBPruneConfig().reset(cache_type='DBPrune', …)"
            )
    return type(base)
