"""The policies by name: when to compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cache_dit.config.base import bad_value, check_registration, unknown_key
from cache_dit.config.cache import BasicCacheConfig
from cache_dit.engine.policies.base import StepPolicy
from cache_dit.engine.policies.budget import EasyCachePolicy, MagCachePolicy, TeaCachePolicy
from cache_dit.engine.policies.dbcache import DBCachePolicy
from cache_dit.engine.policies.plan import PlanPolicy

PolicyFactory = Callable[..., StepPolicy]

_factories: dict[str, PolicyFactory] = {}


def register_policy(*, name: str, factory: PolicyFactory) -> None:
    """Make a policy available as `policy=name`.

    Args:
        name: a lower-case identifier that is not taken yet, e.g. `"every_third"`.
        factory: a subclass of `StepPolicy`, or what takes its arguments and returns an instance of one.

    Raises:
        ConfigError: the name is taken or no lower-case identifier, or the factory cannot be called.
    """
    example = "register_policy(name='every_third', factory=EveryThirdPolicy)"
    check_registration(name, factory, _factories, example=example)
    _factories[name] = factory


def make_policy(config: BasicCacheConfig, **arguments: Any) -> StepPolicy:
    """The policy that the options ask for.

    Args:
        config: complete cache options; their `policy` is its name.
        **arguments: as for `StepPolicy`.

    Raises:
        ConfigError: no policy has that name, or an option or the calibration cannot work.
    """
    if config.policy not in _factories:
        raise unknown_key(config.policy, _factories, where="policy")
    made = _factories[config.policy](config, **arguments)
    if not isinstance(made, StepPolicy):
        raise bad_value(f"policy={config.policy!r}: what its factory made", made, "a StepPolicy")
    return made


register_policy(name="dbcache", factory=DBCachePolicy)
register_policy(name="teacache", factory=TeaCachePolicy)
register_policy(name="magcache", factory=MagCachePolicy)
register_policy(name="easycache", factory=EasyCachePolicy)
register_policy(name="plan", factory=PlanPolicy)
