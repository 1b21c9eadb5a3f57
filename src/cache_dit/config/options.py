"""From options by their flat names to configurations: what files, `refresh_context` and deprecated keywords share."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, TypeVar

from cache_dit.config.base import SparseConfig, check_flag
from cache_dit.config.cache import BasicCacheConfig, CacheType, DBCacheConfig, known_cache_type
from cache_dit.config.calibrator import (
    CalibratorConfig,
    DMDCalibratorConfig,
    FoCaCalibratorConfig,
    HermiteCalibratorConfig,
    NewtonCalibratorConfig,
    TaylorSeerCalibratorConfig,
)
from cache_dit.config.extra import ExtraCacheConfig
from cache_dit.config.prune import DBPruneConfig
from cache_dit.config.section import Section

logger = logging.getLogger(__name__)

_Config = TypeVar("_Config", bound=SparseConfig)

_CALIBRATORS: dict[str, type[CalibratorConfig]] = {
    "taylorseer": TaylorSeerCalibratorConfig,
    "foca": FoCaCalibratorConfig,
    "dmd": DMDCalibratorConfig,
    "hermite": HermiteCalibratorConfig,
    "newton": NewtonCalibratorConfig,
}
_EXTRA = ExtraCacheConfig.field_names()


def _calibrator_names(kind: str) -> dict[str, str]:
    """The flat names of a calibrator's options, each with the field of its configuration."""
    own = [name for name in _CALIBRATORS[kind].field_names() if name.startswith(f"{kind}_")]
    return {
        f"enable_{kind}": "enable_calibrator",
        f"enable_encoder_{kind}": "enable_encoder_calibrator",
        f"{kind}_cache_type": "calibrator_cache_type",
        **{name: name for name in ("calibrator_cache_type", "calibrator_kwargs", "coordinate", *own)},
    }


CALIBRATOR_KEYS = tuple(dict.fromkeys(key for kind in _CALIBRATORS for key in _calibrator_names(kind)))
"""The flat names of all calibrators' options."""

OPTION_KEYS = (*DBPruneConfig.field_names(), *_EXTRA, *CALIBRATOR_KEYS)
"""Every flat name of an option: fields of the cache configurations, of `ExtraCacheConfig`, and of the calibrators."""


def read_options(section: Section, *, sparse: bool = False) -> tuple[BasicCacheConfig, CalibratorConfig | None]:
    """The configurations that a section of flat options describes.

    Args:
        section: options out of `OPTION_KEYS`; null means not given.
        sparse: whether fields that are not given stay None, for an override, or get their defaults.

    Returns:
        The cache configuration, a `DBPruneConfig` where `cache_type` says so or, if `sparse`, where an option that
        only it has is given; and the calibrator's, or None where none is enabled.

    Raises:
        ConfigError: an unknown key, or values that cannot work; for a file it names the line.
    """
    section.check_keys(OPTION_KEYS)
    cls = _cache_class(section, sparse=sparse)
    names = {name: name for name in cls.field_names() if name != "extra_cache_config"}
    config = _built(cls, section, names, sparse=sparse, extra_cache_config=_extra(section, sparse=sparse))
    return config, read_calibrator(section, sparse=sparse)


def read_calibrator(section: Section, *, sparse: bool = False) -> CalibratorConfig | None:
    """The calibrator's configuration that a section's flat options describe, or None where none is enabled.

    Options of a calibrator that is not enabled have no effect; one line of log says so, unless it is switched off by
    name.

    Raises:
        ConfigError: more than one is enabled, or values that cannot work.
    """
    for kind in _CALIBRATORS:
        if (switch := section.given(f"enable_{kind}")) is not None:
            with section.naming(f"enable_{kind}"):
                check_flag(f"enable_{kind}", switch)
    enabled = [kind for kind in _CALIBRATORS if section.given(f"enable_{kind}")]
    if len(enabled) > 1:
        seen = " and ".join(f"enable_{kind}" for kind in enabled)
        raise section.refusal(f"{section.name}: {seen} exclude each other: expected one", f"enable_{enabled[1]}")
    names = _calibrator_names(enabled[0]) if enabled else {}
    _report_unused(section, names)
    return _built(_CALIBRATORS[enabled[0]], section, names, sparse=sparse) if enabled else None


def _report_unused(section: Section, used: Mapping[str, str]) -> None:
    off = {key for kind in _CALIBRATORS if section.given(f"enable_{kind}") is False for key in _calibrator_names(kind)}
    unused = [key for key in CALIBRATOR_KEYS if key not in (*used, *off) and section.given(key) is not None]
    if unused:
        logger.warning(
            "%s: %s without effect: no calibrator that knows it is enabled, e.g. by enable_taylorseer",
            section.name,
            ", ".join(unused),
        )


def _cache_class(section: Section, *, sparse: bool) -> type[BasicCacheConfig]:
    """The class of the cache configuration that the section's cache type and options ask for."""
    kind = None
    if (hint := section.given("cache_type")) is not None:
        with section.naming("cache_type"):
            kind = known_cache_type(hint)
    own = (name for name in DBPruneConfig.field_names() if name not in DBCacheConfig.field_names())
    first = next((name for name in own if section.given(name) is not None), None)
    if kind is CacheType.DBPrune or (kind is None and sparse and first is not None):
        return DBPruneConfig
    if first is not None:
        raise section.refusal(f"{section.name}: {first} is an option of DBPrune: pass cache_type: DBPrune too", first)
    return DBCacheConfig


def _extra(section: Section, *, sparse: bool) -> ExtraCacheConfig | None:
    """The options of how a diff is measured: those of the nested section and those given flat."""
    names = {name: name for name in _EXTRA}
    given = _built(ExtraCacheConfig, section, names, sparse=True).given()
    nested = section.given("extra_cache_config")
    if nested is not None and not isinstance(nested, ExtraCacheConfig):
        inner = section.child("extra_cache_config")
        inner.check_keys(_EXTRA)
        nested = _built(ExtraCacheConfig, inner, names, sparse=True)
    for name, value in ({} if nested is None else nested.given()).items():
        if name in given:
            raise section.refusal(f"{name} is given in extra_cache_config and beside it: expected one of them", name)
        given[name] = value
    if not given and nested is None:
        return None
    return ExtraCacheConfig().reset(**given) if sparse else ExtraCacheConfig(**given)


def _built(cls: type[_Config], section: Section, names: Mapping[str, str], *, sparse: bool, **more: Any) -> _Config:
    """A configuration of the section's options.

    Args:
        cls: its class.
        section: the options.
        names: their keys, each with the field that it sets.
        sparse: whether fields that are not given stay None.
        **more: further fields.

    Raises:
        ConfigError: a value, or a combination, cannot work.
    """
    options: dict[str, Any] = {}
    known: dict[str, Any] = {}  # what other options need to be understood
    for field, key in section.sources(names).items():
        value = section.given(key)
        value = cls._meaning_of_none.get(field) if value is None else value
        if value is None:
            continue
        with section.naming(key):
            cls.of({**known, field: value})
        options[field] = value
        if field in ("num_inference_steps", "steps_computation_mask"):
            known[field] = value
    with section.naming():
        return cls().reset(**options, **more) if sparse else cls(**options, **more)
