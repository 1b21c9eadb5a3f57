"""The environment variables that change what the package does; those of the metrics' networks are named with these."""

from __future__ import annotations

import os
from typing import Any

from cache_dit.errors import ConfigError

#: What each is where it is not set; one that is True or False is off when it is empty, 0 or false.
DEFAULTS: dict[str, str | bool | None] = {
    "CACHE_DIT_LOG_LEVEL": "info",
    "CACHE_DIT_LOG_DIR": None,
    "CACHE_DIT_FLUX_ENABLE_DUMMY_BLOCKS": True,
    "CACHE_DIT_PATCH_FUNCTOR_DISABLE_DIFFUSERS_CHECK": False,
}


class Environment:
    """The variables as attributes, read when they are asked for.

    A value that a program assigns comes before the variable: ``ENV.CACHE_DIT_LOG_LEVEL = "debug"``.
    """

    def __getattr__(self, name: str) -> Any:
        if name not in DEFAULTS:
            raise AttributeError(f"{name} is no variable of this package: there are {', '.join(DEFAULTS)}")
        given, default = os.environ.get(name), DEFAULTS[name]
        if given is None:
            return default
        return given.strip().lower() not in ("", "0", "false") if isinstance(default, bool) else given

    def __setattr__(self, name: str, value: str | bool | None) -> None:
        if name not in DEFAULTS:
            raise ConfigError(f"{name} is no variable of this package: there are {', '.join(DEFAULTS)}")
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *DEFAULTS})


ENV = Environment()
