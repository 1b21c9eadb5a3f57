"""What a user asks of several devices: over how many a transformer is spread, and in which way."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from importlib import metadata
from typing import Any, ClassVar

from cache_dit.config.base import (
    bad_value,
    check_dict,
    check_flag,
    check_integer,
    check_text,
    unknown_key,
)
from cache_dit.errors import ConfigError, MissingDependencyError

logger = logging.getLogger(__name__)

_CONTEXT_PARALLEL_SINCE = (0, 36)  # the diffusers version that brought it


class ParallelismBackend(Enum):
    """What spreads a transformer over devices: diffusers (context parallelism) or PyTorch (tensor parallelism)."""

    AUTO = "Auto"
    NATIVE_DIFFUSER = "Native_Diffuser"
    NATIVE_PYTORCH = "Native_PyTorch"
    NONE = "None"

    @classmethod
    def is_supported(cls, backend: ParallelismBackend) -> bool:
        """Whether `backend` can be used here: all but `NONE`.

        Raises:
            MissingDependencyError: for `NATIVE_DIFFUSER`, diffusers is not installed or older than 0.36.
        """
        if backend is cls.NATIVE_DIFFUSER:
            _check_diffusers()
        return backend is not cls.NONE

    @classmethod
    def from_str(cls, backend_str: str) -> ParallelismBackend:
        """The backend with this value, in any case, e.g. `"native_pytorch"`.

        Raises:
            ConfigError: there is none; the message names the nearest.
        """
        of_value = {backend.value.lower(): backend for backend in cls}
        if str(backend_str).lower() not in of_value:
            raise unknown_key(backend_str, [backend.value for backend in cls], where="parallelism backend")
        return of_value[str(backend_str).lower()]

    def __str__(self) -> str:
        return self.value


def _check_diffusers() -> None:
    needed = ".".join(map(str, _CONTEXT_PARALLEL_SINCE))
    try:
        version = metadata.version("diffusers")
    except metadata.PackageNotFoundError as error:
        raise MissingDependencyError(
            f"context parallelism needs diffusers>={needed}, which is not installed"
        ) from error
    if tuple(int(part) for part in version.split(".")[:2]) < _CONTEXT_PARALLEL_SINCE:
        raise MissingDependencyError(f"context parallelism needs diffusers>={needed}; {version} is installed")


def _check_modules(name: str, value: Any) -> None:
    if not isinstance(value, (list, tuple)) or any(entry is None or entry == "" for entry in value):
        raise bad_value(name, value, "a list of modules, or of names of the pipeline's, e.g. ['text_encoder', 'vae']")


def _backend(name: str, value: Any) -> ParallelismBackend:
    """The backend that a value stands for."""
    if isinstance(value, ParallelismBackend):
        return value
    if isinstance(value, str):
        return ParallelismBackend.from_str(value)
    raise bad_value(name, value, "a ParallelismBackend or its value, e.g. 'Native_PyTorch'")


@dataclass
class ParallelismConfig:
    """Over how many devices a transformer is spread: by its tokens (Ulysses or ring), or by its weights (TP).

    One of the three sizes is above 1; with none of them nothing is spread. Every process of the group passes the same.

    Args:
        backend: a `ParallelismBackend` or its value in any case. `AUTO` becomes the one that the sizes need; another
            that cannot do what they say becomes that too, with a warning in the log.
        ulysses_size: devices of Ulysses context parallelism, at least 1; None as 1: off.
        ring_size: devices of ring context parallelism, at least 1; None as 1: off.
        tp_size: devices of tensor parallelism, at least 1; None as 1: off.
        parallel_kwargs: further options: `cp_plan` (a dict: the model's own split plan), `attention_backend` (a name),
            `extra_parallel_modules` (modules, or names of the pipeline's, that are spread too),
            `experimental_ulysses_anything`, `experimental_ulysses_float8`, `experimental_ulysses_async` and
            `has_controlnet` (flags).
        _has_text_encoder: whether the text encoder is spread too.
        _has_auto_encoder: whether the VAE is.
        _has_controlnet: whether the ControlNet is; `has_controlnet` in `parallel_kwargs` sets it.

    Raises:
        ConfigError: a value or a combination of sizes cannot work, or an option is unknown.
    """

    backend: ParallelismBackend = ParallelismBackend.AUTO
    ulysses_size: int | None = None
    ring_size: int | None = None
    tp_size: int | None = None
    parallel_kwargs: dict[str, Any] | None = field(default_factory=dict)
    _has_text_encoder: bool = False
    _has_auto_encoder: bool = False
    _has_controlnet: bool = False

    _checks: ClassVar[dict[str, Callable[[str, Any], object]]] = {
        "backend": _backend,
        **dict.fromkeys(("ulysses_size", "ring_size", "tp_size"), partial(check_integer, minimum=1)),
        "parallel_kwargs": partial(check_dict, expected="a dict, e.g. {'attention_backend': 'native'}"),
        **dict.fromkeys(("_has_text_encoder", "_has_auto_encoder", "_has_controlnet"), check_flag),
    }
    _options: ClassVar[dict[str, Callable[[str, Any], object]]] = {
        "cp_plan": partial(
            check_dict, expected="a dict from the names of submodules to how their inputs or outputs are split"
        ),
        "attention_backend": partial(check_text, expected="a name"),
        "extra_parallel_modules": _check_modules,
        "experimental_ulysses_anything": check_flag,
        "experimental_ulysses_float8": check_flag,
        "experimental_ulysses_async": check_flag,
        "has_controlnet": check_flag,
    }

    def __post_init__(self) -> None:
        for name, check in self._checks.items():
            if (value := getattr(self, name)) is not None:
                check(name, value)
        options = dict(self.parallel_kwargs or {})
        for key, value in options.items():
            if key not in self._options:
                raise unknown_key(str(key), self._options, where="parallel_kwargs")
            if value is not None:
                self._options[key](key, value)
        self.parallel_kwargs = options
        self._has_controlnet = self._has_controlnet or bool(options.get("has_controlnet"))
        self._choose_backend()

    def _choose_backend(self) -> None:
        backend = _backend("backend", self.backend)
        used = self._used()
        if len(used) > 1:
            seen = " and ".join(f"{name}={size}" for name, size in used.items())
            raise ConfigError(f"{seen} exclude each other: expected only one of them above 1")
        needed = ParallelismBackend.NATIVE_DIFFUSER if used else ParallelismBackend.NONE
        if "tp_size" in used:
            needed = ParallelismBackend.NATIVE_PYTORCH
        if backend is ParallelismBackend.NONE and used:
            raise bad_value("backend", str(backend), f"{needed} or Auto, as {next(iter(used))} is above 1")
        if backend not in (ParallelismBackend.AUTO, needed):
            logger.warning("parallelism backend %s does not fit the sizes given, %s is used", backend, needed)
        self.backend = needed

    def _sizes(self) -> dict[str, int | None]:
        return {name: getattr(self, name) for name in ("ulysses_size", "ring_size", "tp_size")}

    def _used(self) -> dict[str, int]:
        return {name: size for name, size in self._sizes().items() if size is not None and size > 1}

    def enabled(self) -> bool:
        """Whether anything is spread over devices."""
        return bool(self._used())

    @property
    def text_encoder_world_size(self) -> int | None:
        """The number of devices for the text encoder, where it is spread too; None if nothing is spread."""
        return max(self._used().values(), default=None)

    @property
    def auto_encoder_world_size(self) -> int | None:
        """The number of devices for the VAE, where it is spread too; None if nothing is spread."""
        return self.text_encoder_world_size

    @property
    def vae_world_size(self) -> int | None:
        """The same as `auto_encoder_world_size`."""
        return self.auto_encoder_world_size

    @property
    def controlnet_world_size(self) -> int | None:
        """The number of devices for the ControlNet, where it is spread too; None if nothing is spread."""
        return self.text_encoder_world_size

    def strify(
        self, details: bool = False, text_encoder: bool = False, vae: bool = False, controlnet: bool = False
    ) -> str:
        """A short tag for file names, e.g. `Ulysses2_TEP`; `NONE` if nothing is spread.

        Args:
            details: a longer one for people, e.g. `Native_Diffuser(ulysses_size=2)_TEP`.
            text_encoder: add `TEP`, as is done where the text encoder is known to be spread.
            vae: add `VAEP`, as is done where the VAE is.
            controlnet: add `CNP`, as is done where the ControlNet is.
        """
        if not self.enabled():
            return "NONE"
        ((name, size),) = self._used().items()
        short = {"ulysses_size": "Ulysses", "ring_size": "Ring", "tp_size": "TP"}[name]
        extras = {
            "TEP": text_encoder or self._has_text_encoder,
            "VAEP": vae or self._has_auto_encoder,
            "CNP": controlnet or self._has_controlnet,
        }
        return "_".join(
            [f"{self.backend}({name}={size})" if details else f"{short}{size}", *filter(extras.get, extras)]
        )
