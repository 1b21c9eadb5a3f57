"""What every configuration dataclass shares: partial updates, and errors that say what to pass instead."""

from __future__ import annotations

import copy
import difflib
import math
import numbers
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from cache_dit.errors import ConfigError

if TYPE_CHECKING:
    from typing_extensions import Self


GUARD_IS_GONE = (
    "the guard of plans is gone: plan.promise(level) states, before a picture, what PSNR it reaches with at least this "
    "probability; select a point with more full steps where that is too little"
)
"""What is said to those who ask for `plan_guard`, `calibrate_guard` or `Plan.with_guard`."""


def unknown_key(key: str, known: Iterable[str], *, where: str) -> ConfigError:
    """The error for a key that `where` does not know; it names the nearest known key, or all of them.

    Args:
        key: the key that was passed.
        known: the keys that could have been passed.
        where: what was given the key, as the user would write it, e.g. `"DBCacheConfig"`.
    """
    if key == "plan_guard":
        return ConfigError(f"{where}: {key!r} is no option, {GUARD_IS_GONE}")
    known = list(known)
    nearest = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(sorted(known))}"
    return ConfigError(f"{where}: unknown key {key!r}; {hint}")


def bad_value(name: str, value: object, expected: str) -> ConfigError:
    """The error for an option whose value cannot work: what was seen, and what was expected.

    Args:
        name: the option's name.
        value: what was passed for it.
        expected: what may be passed, e.g. `"an integer >= 0"`.
    """
    return ConfigError(f"{name}={value!r} is not valid: expected {expected}")


def refuse_unbuilt(**options: Any) -> None:
    """Raise `ConfigError` for an option of what is not in this version, unless it is None."""
    for name, value in options.items():
        if value is not None:
            raise ConfigError(f"{name}={value!r} is for what is not in this version: pass None, or leave it out")


def check_integer(name: str, value: Any, *, minimum: int | None = None) -> None:
    """Raise `ConfigError` unless `value` is an integer (not a bool) of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or (minimum is not None and value < minimum):
        raise bad_value(name, value, "an integer" if minimum is None else f"an integer >= {minimum}")


def check_number(
    name: str, value: Any, *, minimum: float | None = None, above: float | None = None, maximum: float | None = None
) -> None:
    """Raise `ConfigError` unless `value` is a number (see `as_number`) within the bounds that are given."""
    number = as_number(name, value)
    if minimum is not None and number < minimum:
        raise bad_value(name, value, f"a number >= {minimum}")
    if above is not None and number <= above:
        raise bad_value(name, value, f"a number > {above}")
    if maximum is not None and not number <= maximum:
        raise bad_value(name, value, f"a number <= {maximum}")


def check_registration(name: Any, factory: Any, taken: Iterable[str], *, example: str) -> None:
    """Raise `ConfigError` unless `name` is a free lower-case identifier and `factory` can be called.

    Args:
        name: the name to be registered.
        factory: what is to be registered under it.
        taken: the names that are registered already.
        example: a registration that works, for the message.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", str(name)):
        raise bad_value("name", name, f"a lower-case identifier, e.g. {example}")
    if name in (known := sorted(taken)):
        raise bad_value("name", name, f"a name that is not taken yet (taken: {', '.join(known)}), e.g. {example}")
    if not callable(factory):
        raise bad_value("factory", factory, f"something that can be called, e.g. {example}")


def check_flag(name: str, value: Any) -> None:
    """Raise `ConfigError` unless `value` is True or False."""
    if not isinstance(value, bool):
        raise bad_value(name, value, "True or False")


def check_text(name: str, value: Any, *, expected: str) -> None:
    """Raise `ConfigError` unless `value` is a string with something in it; `expected` says what, for the message."""
    if not isinstance(value, str) or not value:
        raise bad_value(name, value, expected)


def check_dict(name: str, value: Any, *, expected: str) -> None:
    """Raise `ConfigError` unless `value` is a dict; `expected` says of what, for the message."""
    if not isinstance(value, dict):
        raise bad_value(name, value, expected)


def check_choice(name: str, value: Any, *, choices: tuple[str, ...]) -> None:
    """Raise `ConfigError` unless `value` is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise bad_value(name, value, " or ".join(map(repr, choices)))


def as_number(name: str, value: Any) -> float:
    """The float that a number, or a tensor of one element, stands for.

    Args:
        name: the option's name, for the message.
        value: a real number, or anything whose `.item()` gives one.

    Raises:
        ConfigError: `value` is no number, or is NaN.
    """
    try:
        number = value.item() if hasattr(value, "item") else value
    except (RuntimeError, ValueError) as error:  # what torch and numpy raise for more than one element
        raise bad_value(name, value, "one number") from error
    if isinstance(number, bool) or not isinstance(number, numbers.Real) or math.isnan(number):
        raise bad_value(name, value, "a number")
    return float(number)


def laid_over(current: Any, value: Any) -> Any:
    """`value`, or where it and `current` are configurations of one class, a copy of `current` updated by `value`."""
    if isinstance(current, SparseConfig) and type(value) is type(current):
        return copy.deepcopy(current).update(**value.given())
    return value


def joined(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """The options of both mappings; where both have one, that of `over`, laid over the other."""
    return {**under, **{name: laid_over(under.get(name), value) for name, value in over.items()}}


_known: dict[type, tuple[str, ...]] = {}


def _names(cls: type[Any]) -> tuple[str, ...]:
    """The names of a configuration's fields, told once for each class."""
    if cls not in _known:
        _known[cls] = tuple(field.name for field in fields(cls))
    return _known[cls]


def defaults_of(cls: type[Any]) -> dict[str, Any]:
    """The fields of a configuration class with their defaults."""
    return {
        field.name: field.default if field.default_factory is MISSING else field.default_factory()
        for field in fields(cls)
    }


@dataclass(repr=False)
class SparseConfig:
    """Base of the configuration dataclasses: any field may be None, which means "not given here".

    A sparse configuration (`DBCacheConfig().reset(max_warmup_steps=4)`) overlays another one: its fields that are None
    leave the other's as they are.
    """

    _checks: ClassVar[dict[str, Callable[[str, Any], object]]] = {}
    """For each field, what raises `ConfigError` when called with its name and a value that cannot work."""

    _kept_by_empty: ClassVar[tuple[str, ...]] = ()
    """Fields that `empty` leaves as they are."""

    _shared: ClassVar[tuple[str, ...]] = ()
    """Fields whose value copies have in common: objects too large, or too much another's, to be taken apart."""

    _meaning_of_none: ClassVar[dict[str, Any]] = {}
    """For fields whose None is a value of its own when it is given to the constructor: what is kept for it."""

    def __post_init__(self) -> None:
        for name, meaning in self._meaning_of_none.items():
            if getattr(self, name) is None:
                setattr(self, name, meaning)
        self._check()
        self._refuse_given(vars(self))

    def _check(self) -> None:
        self._normalize()
        self.validate()

    def _normalize(self) -> None:
        """Bring every accepted spelling of a value to one form."""

    def validate(self) -> None:
        """Check the fields that are not None, alone and against each other.

        Called at construction and by `update`; call it after setting attributes by hand.

        Raises:
            ConfigError: a value cannot work; the message says what was seen and what was expected.
        """
        for name, check in self._checks.items():
            if (value := getattr(self, name)) is not None:
                check(name, value)
        self._validate_together()

    def _validate_together(self) -> None:
        """Raise `ConfigError` for values that exclude each other."""

    @classmethod
    def _refuse_given(cls, options: Mapping[str, Any]) -> None:
        """Raise `ConfigError` for options, given in one go, that contradict each other; laid over others, they may."""

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """A configuration with these fields, and None in all others.

        Raises:
            ConfigError: an unknown name or a value that cannot work.
        """
        made = cls.__new__(cls)
        vars(made).update(dict.fromkeys(_names(cls)))
        made._set(options)
        made._check()
        return made

    @classmethod
    def over(
        cls, base: SparseConfig, options: Mapping[str, Any], *, dropped: Iterable[str] = (), complete: bool = False
    ) -> Self:
        """A configuration of this class: that of `base`, with `options` laid over it; neither changes.

        Args:
            base: the configuration to start from; what it has and this class has not is left out.
            options: field names and values; those that are None leave the base's.
            dropped: fields of the base that make way.
            complete: whether fields that neither gives get their defaults, or stay None.

        Raises:
            ConfigError: an unknown name, or values that cannot work together.
        """
        usual = defaults_of(cls)
        kept = {name: value for name, value in base.given().items() if name in usual and name not in dropped}
        laid = joined(kept, {name: value for name, value in options.items() if value is not None})
        if complete:
            laid = {**usual, **laid}
            for name, value in laid.items():
                if isinstance(value, SparseConfig):
                    laid[name] = type(value).over(value, {}, complete=True)
        return cls.of(laid)

    def _set(self, options: Mapping[str, Any]) -> None:
        """Set the options that are not None; nothing is checked but their names."""
        known = _names(type(self))
        for name, value in options.items():
            if name not in known:
                raise unknown_key(name, known, where=type(self).__name__)
            if value is not None:
                current = getattr(self, name)
                setattr(self, name, value if current is None else laid_over(current, value))

    def update(self, **options: Any) -> Self:
        """Set the given fields, but leave those given as None as they are.

        A field that holds a configuration itself is updated by the given one's fields.

        Args:
            **options: field names and their new values.

        Returns:
            This configuration itself.

        Raises:
            ConfigError: an unknown name or a value that cannot work; this configuration is then unchanged.
        """
        changed = copy.copy(self)
        changed._set(options)
        changed._check()
        self._refuse_given({name: vars(changed)[name] for name, value in options.items() if value is not None})
        vars(self).update(vars(changed))
        return self

    def empty(self, **options: Any) -> Self:
        """Set every field to None ("not given"), then `update` with `options`. Returns this configuration itself."""
        blank = copy.copy(self)
        vars(blank).update({name: None for name in _names(type(self)) if name not in self._kept_by_empty})
        blank._set(options)
        blank._check()
        self._refuse_given(vars(blank))
        vars(self).update(vars(blank))
        return self

    def reset(self, **options: Any) -> Self:
        """The same as `empty`: `DBCacheConfig().reset(x=…)` is the usual way to write a sparse override."""
        return self.empty(**options)

    def as_dict(self) -> dict[str, Any]:
        """A deep copy of all fields, None included, by name. A configuration in a field stays a configuration."""
        values = {name: getattr(self, name) for name in _names(type(self))}
        return {name: value if name in self._shared else copy.deepcopy(value) for name, value in values.items()}

    def given(self) -> dict[str, Any]:
        """A deep copy of the fields that are not None, by name."""
        return {name: value for name, value in self.as_dict().items() if value is not None}

    def __repr__(self) -> str:
        """The call that makes it: what differs from the defaults, or of a sparse one what is given."""
        usual = defaults_of(type(self))
        values = {name: getattr(self, name) for name in usual}
        sparse = any(value is None and usual[name] is not None for name, value in values.items())
        left_out = dict.fromkeys(usual) if sparse else usual
        shown = ", ".join(f"{name}={value!r}" for name, value in values.items() if value != left_out[name])
        return f"{type(self).__name__}{'().reset' if sparse else ''}({shown})"

    @classmethod
    def field_names(cls) -> list[str]:
        """The names of all fields, in the order of the constructor."""
        return list(_names(cls))
