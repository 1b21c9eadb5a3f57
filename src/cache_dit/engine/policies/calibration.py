"""What a policy knows of a model from one calibration run: a small JSON file, and the fits that make it."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from cache_dit.config.base import as_number, bad_value, check_choice, check_integer, unknown_key
from cache_dit.errors import ConfigError

logger = logging.getLogger(__name__)

VERSION = 1
"""The version of the file format."""

_POLICIES = ("magcache", "teacache")


@dataclass(frozen=True)
class PolicyCalibration:
    """What a policy knows of a model: made by an uncached run, kept in a JSON file, given as `policy_calibration`.

    It holds for the model, the number of steps and the scheduler it was made with, and is refused elsewhere (`check`).

    Args:
        policy: whose it is: `"magcache"` or `"teacache"`.
        model_class: the transformer's class name.
        num_inference_steps: the steps of the calibration run; None (teacache only): holds for any number of steps.
        scheduler: the scheduler's class name; None: unknown, holds for any.
        branches: by the name of the guidance branch, for magcache one ratio of magnitudes per step, or more where the
            scheduler calls the model more often (see `magnitude_ratios`), for teacache the coefficients of the
            polynomial, highest power first (see `fit_polynomial`).
        r_squared: for teacache, the coefficient of determination of each branch's fit; may be empty.
        version: the version of the file format.

    Raises:
        ConfigError: a field cannot work; the message names it.
    """

    policy: str
    model_class: str
    num_inference_steps: int | None
    scheduler: str | None
    branches: Mapping[str, Sequence[float]]
    r_squared: Mapping[str, float] = field(default_factory=dict)
    version: int = VERSION

    def __post_init__(self) -> None:
        check_choice("policy", self.policy, choices=_POLICIES)
        _check_name("model_class", self.model_class)
        if self.scheduler is not None:
            _check_name("scheduler", self.scheduler)
        if self.version != VERSION:
            raise bad_value("version", self.version, f"{VERSION}, the format that this release reads; calibrate anew")
        if self.num_inference_steps is not None or self.policy == "magcache":
            check_integer("num_inference_steps", self.num_inference_steps, minimum=1)
        branches = {name: self._checked(name, values) for name, values in _by_branch("branches", self.branches).items()}
        if not branches:
            raise bad_value("branches", self.branches, "at least one branch")
        fits = {
            name: _number(f"r_squared[{name!r}]", fit) for name, fit in _by_branch("r_squared", self.r_squared).items()
        }
        for name in fits.keys() - branches.keys():
            raise unknown_key(name, branches, where="r_squared")
        object.__setattr__(self, "branches", branches)
        object.__setattr__(self, "r_squared", fits)

    def _checked(self, name: object, values: object) -> tuple[float, ...]:
        where = f"branches[{name!r}]"
        if not isinstance(values, Sequence) or isinstance(values, str) or not values:
            raise bad_value(where, values, "a list of at least one number")
        checked = tuple(_number(f"{where}[{index}]", value) for index, value in enumerate(values))
        if self.policy == "magcache":
            if len(checked) < (self.num_inference_steps or 1):
                expected = f"num_inference_steps={self.num_inference_steps} ratios, got {len(checked)}"
                raise bad_value(where, list(checked), expected)
            if min(checked) <= 0:
                raise bad_value(where, list(checked), "ratios above 0")
        return checked

    def values(self, branch: Hashable = None) -> tuple[float, ...]:
        """The numbers of a branch.

        Args:
            branch: its name, as the session knows it; None: `default`. A variant of a branch (a tuple, its name first)
                that the calibration does not know gets the branch's own numbers. A branch that it does not know,
                because guidance was off in one of the two runs, say, gets those of the first one in the order of the
                names; where there are several, a line in the log says so.
        """
        name = _branch_name(branch)
        if name not in self.branches and isinstance(branch, tuple):
            name = _branch_name(branch[0])
        if name not in self.branches:
            name, asked = min(self.branches), name
            if len(self.branches) > 1:
                logger.info("the calibration does not know the branch %r: that of %r is used", asked, name)
        return tuple(self.branches[name])

    def check(
        self,
        *,
        policy: str | None = None,
        model_class: str | None = None,
        num_inference_steps: int | None = None,
        scheduler: str | None = None,
    ) -> None:
        """Raise `ConfigError` unless this calibration is one for these; None: unknown, not compared.

        A run has as many steps as were asked for, or as there are ratios: a scheduler of second order makes more.
        """
        asked = {
            "policy": policy,
            "model_class": model_class,
            "num_inference_steps": num_inference_steps,
            "scheduler": scheduler,
        }
        different = [
            f"{name}={known!r}, not {value!r}"
            for name, value in asked.items()
            if value is not None
            and (known := getattr(self, name)) is not None
            and value not in (known, *self._made(name))
        ]
        if different:
            raise ConfigError(
                f"policy_calibration was made with {'; '.join(different)}: calibrate anew, or run what it was made with"
            )

    def _made(self, name: str) -> set[int]:
        """What a field may be beside its value: of a number of steps, the number that the calibration run made."""
        counted = name == "num_inference_steps" and self.policy == "magcache"
        return {len(ratios) for ratios in self.branches.values()} if counted else set()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as a JSON file, with sorted keys."""
        content = {each.name: getattr(self, each.name) for each in fields(self)}
        entries = (f'"{name}": {_one_line_each(content[name])}' for name in sorted(content))
        Path(path).write_text("{\n " + ",\n ".join(entries) + "\n}\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PolicyCalibration:
        """Read the file that `save` wrote.

        Raises:
            ConfigError: the file is missing or no JSON, or a field of it is missing, unknown or cannot work; the
                message names the file and the field.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"policy_calibration={os.fspath(path)!r} cannot be read: {error}") from error
        if not isinstance(content, dict):
            raise bad_value("policy_calibration", os.fspath(path), "a JSON file with an object")
        known = {each.name for each in fields(cls)}
        for key in content.keys() - known:
            raise unknown_key(key, known, where=os.fspath(path))
        for key in sorted(known - {"r_squared"} - content.keys()):
            raise ConfigError(f"{os.fspath(path)}: the field {key!r} is missing")
        try:
            return cls(**content)
        except ConfigError as error:
            raise ConfigError(f"{os.fspath(path)}: {error}") from error

    @classmethod
    def of(cls, value: Any) -> PolicyCalibration:
        """A calibration, given as one or as the path of one.

        Raises:
            ConfigError: it is neither, or the file cannot work.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, (str, os.PathLike)):
            return cls.load(value)
        raise bad_value("policy_calibration", value, "a PolicyCalibration, or the path of its JSON file")


def fit_polynomial(
    inputs: Sequence[float], outputs: Sequence[float], degree: int = 4
) -> tuple[tuple[float, ...], float]:
    """The polynomial that maps the change of an input to the change of the output best, in least squares.

    Args:
        inputs: relL1 of the probe between neighbouring steps (TeaCache: of the modulated input).
        outputs: relL1 of the transformer's output between the same steps.
        degree: the polynomial's degree, at least 0; there must be more points than this.

    Returns:
        The degree + 1 coefficients, highest power first, and the coefficient of determination R²: 1 where the
        polynomial meets every point, 0 where it explains no more than the mean does.

    Raises:
        ConfigError: the two differ in length, hold too few different points, or a number is not finite.
    """
    import numpy as np

    check_integer("degree", degree, minimum=0)
    if len(inputs) != len(outputs):
        raise ConfigError(
            f"inputs and outputs differ in length ({len(inputs)}, {len(outputs)}): give one each per step"
        )
    x, y = np.asarray(inputs, dtype=np.float64), np.asarray(outputs, dtype=np.float64)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ConfigError("inputs and outputs must be finite; a NaN or an infinity was measured: calibrate anew")
    if len(np.unique(x)) <= degree:
        raise bad_value("inputs", list(inputs), f"more than degree={degree} different numbers")
    # Fitted on [-1, 1], where the powers are far apart, and told in the powers of the input itself.
    fit = np.polynomial.Polynomial.fit(x, y, degree)
    rest, spread = float(((y - fit(x)) ** 2).sum()), float(((y - y.mean()) ** 2).sum())
    coefficients = np.zeros(degree + 1)
    plain = fit.convert().coef
    coefficients[: len(plain)] = plain
    return tuple(float(c) for c in coefficients[::-1]), 1.0 if y.min() == y.max() else 1.0 - rest / spread


def magnitude_ratios(norms_by_step: Sequence[float]) -> list[float]:
    """The ratio of each step's magnitude to the one before it: MagCache's γ (arXiv 2506.09045).

    Args:
        norms_by_step: for each step of an uncached run, the mean over the tokens of the norm of what the middle blocks
            added to their input.

    Returns:
        One ratio per step; the first, which has no step before it, is 1.

    Raises:
        ConfigError: there is none, or one is not a finite number above 0.
    """
    norms = [_number(f"norms_by_step[{step}]", norm) for step, norm in enumerate(norms_by_step)]
    if not norms or min(norms) <= 0:
        raise bad_value("norms_by_step", norms, "at least one norm, each above 0")
    return [1.0, *(later / earlier for earlier, later in pairwise(norms))]


def _branch_name(branch: object) -> str:
    """The name of a branch in the file; that of a branch without a name is `default`."""
    if branch is None:
        return "default"
    return " ".join(map(str, branch)) if isinstance(branch, tuple) else str(branch)


def _by_branch(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise bad_value(name, value, "an entry for each branch, by its name")
    return {_branch_name(branch): entry for branch, entry in value.items()}


def _one_line_each(value: Any) -> str:
    """JSON with a line for each entry of an object, so that a list of numbers stays on one."""
    if not isinstance(value, dict) or not value:
        return json.dumps(value)
    lines = (f"{json.dumps(name)}: {json.dumps(value[name])}" for name in sorted(value))
    return "{\n  " + ",\n  ".join(lines) + "\n }"


def _check_name(name: str, value: object) -> None:
    if not isinstance(value, str) or not value:
        raise bad_value(name, value, "a class name")


def _number(name: str, value: Any) -> float:
    try:
        number = as_number(name, value)
    except OverflowError as error:  # an integer beyond the floats
        raise bad_value(name, value, "a finite number") from error
    if not math.isfinite(number):
        raise bad_value(name, value, "a finite number")
    return number
