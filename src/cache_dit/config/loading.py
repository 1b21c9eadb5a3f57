"""Configurations from YAML files and dicts, for one model or for several."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from typing import Any, Literal, overload

from cache_dit.config.base import check_flag, refuse_unbuilt, unknown_key
from cache_dit.config.cache import BasicCacheConfig
from cache_dit.config.calibrator import CalibratorConfig
from cache_dit.config.modifier import ParamsModifier
from cache_dit.config.options import OPTION_KEYS, read_options
from cache_dit.config.parallelism import ParallelismConfig
from cache_dit.config.section import Section, read_section
from cache_dit.errors import ConfigError

logger = logging.getLogger(__name__)

#: Sections of what is not in this version: they may be there, and hold nothing.
_UNBUILT = ("attention_backend", "quantize_config")
_SECTIONS = ("cache_config", "parallelism_config", "params_modifiers", *_UNBUILT)
_PARALLELISM_KEYS = {
    **{name: name for name in ("backend", "ulysses_size", "ring_size", "tp_size", "parallel_kwargs")},
    "ulysses": "ulysses_size",
    "ring": "ring_size",
    "tp": "tp_size",
}

PathOrDict = str | os.PathLike[str] | Mapping[str, Any]
Loaded = tuple[BasicCacheConfig | None, CalibratorConfig | None, ParallelismConfig | None]


@overload
def load_configs(path_or_dict: PathOrDict, return_dict: Literal[True] = True, **kwargs: Any) -> dict[str, Any]: ...


@overload
def load_configs(path_or_dict: PathOrDict, return_dict: Literal[False], **kwargs: Any) -> Loaded: ...


@overload
def load_configs(path_or_dict: PathOrDict, return_dict: bool = True, **kwargs: Any) -> dict[str, Any] | Loaded: ...


def load_configs(path_or_dict: PathOrDict, return_dict: bool = True, **kwargs: Any) -> dict[str, Any] | Loaded:
    """All configurations of a YAML file or dict, ready for `enable_cache(pipe, **load_configs(path))`.

    The file has the sections `cache_config` (options by name, the calibrator's among them, as `enable_taylorseer` and
    `taylorseer_order`), `parallelism_config`, and `params_modifiers` (a list of sections like `cache_config` that name
    only what differs); each may be left out. Instead, it may be the content of `cache_config` alone, or a mapping
    `models` from names to such sections.

    Args:
        path_or_dict: the path of the YAML file, or what it would hold.
        return_dict: whether to return a dict or a tuple.
        **kwargs: `model` (None): which of several models; may be left out where there is one. `reset` (False): whether
            the cache options that are not given stay None, for an override. `auto_parallel_size` (True): whether a
            size may be `"auto"`, the number of processes.

    Returns:
        A dict with `cache_config`, `calibrator_config` and `parallelism_config`, each None where its section is
        missing (the calibrator: where none is enabled), and with `params_modifiers` where there are some; or a tuple of
        the first three.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: it is no YAML, a key is unknown, or a value cannot work; the message names file and line. Also for
            modifiers and `return_dict=False`, as the tuple has no place for them.
    """
    settings = _settings(kwargs, where="load_configs", reset=False, auto_parallel_size=True)
    section = _chosen(read_section(path_or_dict), settings["model"])
    cache, calibrator = _cache(section, sparse=settings["reset"])
    parallelism = _parallelism(section, auto_size=settings["auto_parallel_size"])
    modifiers = None if section.values.get("params_modifiers") is None else _modifiers(section)
    if not return_dict:
        if modifiers is not None:
            raise section.refusal(
                "params_modifiers have no place in a tuple: pass return_dict=True", "params_modifiers"
            )
        return cache, calibrator, parallelism
    configs = {"cache_config": cache, "calibrator_config": calibrator, "parallelism_config": parallelism}
    return configs if modifiers is None else {**configs, "params_modifiers": modifiers}


def load_cache_config(
    path_or_dict: PathOrDict, **kwargs: Any
) -> tuple[BasicCacheConfig | None, CalibratorConfig | None]:
    """The cache's and the calibrator's configuration of a YAML file or dict; see `load_configs`.

    Args:
        path_or_dict: the path of the YAML file, or what it would hold.
        **kwargs: `model` and `reset`, as in `load_configs`.

    Returns:
        Both configurations; the calibrator's is None where none is enabled, and both are None where there are other
        sections but no `cache_config`.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: as in `load_configs`.
    """
    settings = _settings(kwargs, where="load_cache_config", reset=False)
    return _cache(_chosen(read_section(path_or_dict), settings["model"]), sparse=settings["reset"])


def load_parallelism_config(path_or_dict: PathOrDict, **kwargs: Any) -> ParallelismConfig | bool | None:
    """The parallelism configuration of a YAML file or dict; see `load_configs`.

    Args:
        path_or_dict: the path of the YAML file, or what it would hold.
        **kwargs: `model` and `auto_parallel_size`, as in `load_configs`; `check_only` (False): only tell whether there
            is such a section.

    Returns:
        The configuration, or None where there is no such section; with `check_only` True or False.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: as in `load_configs`.
    """
    settings = _settings(kwargs, where="load_parallelism_config", check_only=False, auto_parallel_size=True)
    section = _chosen(read_section(path_or_dict), settings["model"])
    if settings["check_only"]:
        return section.values.get("parallelism_config") is not None
    return _parallelism(section, auto_size=settings["auto_parallel_size"])


def load_attn_backend_config(path_or_dict: PathOrDict, **kwargs: Any) -> None:
    """The section `attention_backend` of a YAML file or dict: None, as other backends are not in this version.

    Args:
        path_or_dict: the path of the YAML file, or what it would hold.
        **kwargs: `model`, as in `load_configs`.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: as in `load_configs`; also where the section holds anything.
    """
    _checked(path_or_dict, kwargs, where="load_attn_backend_config")


def load_quantize_config(path_or_dict: PathOrDict, **kwargs: Any) -> None:
    """The section `quantize_config` of a YAML file or dict: None, as quantization is not in this version.

    Args:
        path_or_dict: the path of the YAML file, or what it would hold.
        **kwargs: `model`, as in `load_configs`.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: as in `load_configs`; also where the section holds anything.
    """
    _checked(path_or_dict, kwargs, where="load_quantize_config")


def load_options(path_or_dict: PathOrDict, reset: bool = False) -> dict[str, Any]:
    """Deprecated: the cache's and the calibrator's configuration as a dict; use `load_configs`.

    Args:
        path_or_dict: the path of the YAML file, or what it would hold.
        reset: whether options that are not given stay None, for an override.

    Returns:
        A dict with `cache_config`, and `calibrator_config` where a calibrator is enabled.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: as in `load_configs`.
    """
    warnings.warn("load_options is deprecated; use load_configs", DeprecationWarning, stacklevel=2)
    cache, calibrator = load_cache_config(path_or_dict, reset=reset)
    return {"cache_config": cache, **({} if calibrator is None else {"calibrator_config": calibrator})}


def _settings(kwargs: Mapping[str, Any], *, where: str, **defaults: bool) -> dict[str, Any]:
    """The keyword arguments of a loader: its flags, and `model`."""
    known = (*defaults, "model")
    for key, value in kwargs.items():
        if key not in known:
            raise unknown_key(key, known, where=where)
        if key != "model":
            check_flag(key, value)
    return {"model": None, **defaults, **kwargs}


def _chosen(whole: Section, model: str | None) -> Section:
    """The section of one model, checked for unknown keys."""
    section = whole
    if "models" in whole.values:
        whole.check_keys(["models"])
        models = whole.child("models")
        section = models.child(_name(models, model))
    elif model is not None:
        raise whole.refusal(f"model={model!r} was asked for, but there is no mapping 'models' to choose from")
    if _is_flat(section):
        section.check_keys((*OPTION_KEYS, *_SECTIONS, "models"))
    else:
        section.check_keys(_SECTIONS)
        for name in _UNBUILT:
            with section.naming(name):
                refuse_unbuilt(**{name: section.values.get(name)})
    return section


def _name(models: Section, model: str | None) -> str:
    names = list(models.values)
    if model is None and len(names) == 1:
        return names[0]
    if model is None:
        raise models.refusal(f"there are {len(names)} models ({', '.join(map(str, names))}): pass model=…, one of them")
    if model not in names:
        raise models.refusal(unknown_key(str(model), map(str, names), where="models"))
    return model


def _checked(path_or_dict: PathOrDict, kwargs: Mapping[str, Any], *, where: str) -> Section:
    """The section of the model that the keyword arguments of a loader name, which takes no others."""
    return _chosen(read_section(path_or_dict), _settings(kwargs, where=where)["model"])


def _is_flat(section: Section) -> bool:
    """Whether a section is the content of `cache_config` alone."""
    return not any(name in section.values for name in _SECTIONS)


def _cache(section: Section, *, sparse: bool) -> tuple[BasicCacheConfig | None, CalibratorConfig | None]:
    if _is_flat(section):
        return read_options(section, sparse=sparse)
    if "cache_config" not in section.values:
        return None, None
    return read_options(section.child("cache_config"), sparse=sparse)


def _modifiers(section: Section) -> list[ParamsModifier]:
    """The modifiers of a section; an empty one changes nothing."""
    return [ParamsModifier(*read_options(entry, sparse=True)) for entry in section.children("params_modifiers")]


def _parallelism(section: Section, *, auto_size: bool) -> ParallelismConfig | None:
    if section.values.get("parallelism_config") is None:
        return None
    section = section.child("parallelism_config")
    section.check_keys(_PARALLELISM_KEYS)
    options: dict[str, Any] = {}
    for field, key in section.sources(_PARALLELISM_KEYS).items():
        value = section.given(key)
        if value is None:
            continue
        with section.naming(key):
            if field.endswith("_size") and str(value).lower() == "auto":
                value = _world_size(key, allowed=auto_size)
            ParallelismConfig._checks[field](field, value)
        options[field] = value
    if "parallel_kwargs" in options:
        inner = section.child("parallel_kwargs")
        inner.check_keys(ParallelismConfig._options)
        for key in inner.values:
            with inner.naming(key):
                ParallelismConfig(parallel_kwargs={key: inner.given(key)})
    with section.naming():
        return ParallelismConfig(**options)


def _world_size(key: str, *, allowed: bool) -> int:
    """The number of processes, for a size that is `"auto"`."""
    if not allowed:
        raise ConfigError(f"{key}: 'auto' was switched off by auto_parallel_size=False: expected a number of devices")
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size()
    logger.warning("%s: 'auto' is 1, as torch.distributed is not initialized: call init_process_group first", key)
    return 1
