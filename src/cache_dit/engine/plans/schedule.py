"""When one branch computes, and how the steps between are predicted: the part of a plan that is run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cache_dit.config.base import bad_value, check_integer, check_number
from cache_dit.engine.predictors.base import Predictor
from cache_dit.engine.predictors.polynomial import taylor

_RULE = re.compile(r"taylor(\d+)(?:\*([0-9.eE+-]+))?")


@dataclass(frozen=True)
class GapRule:
    """How the cached steps after a full step are predicted from the last full steps.

    Args:
        order: of the Taylor polynomial through the last order + 1 full steps; 0: the last one is reused.
        damping: how much of the polynomial is taken, from 0 (reuse) to 1; see `predictors.taylor`.

    Raises:
        ConfigError: a value cannot work.
    """

    order: int = 0
    damping: float = 1.0

    def __post_init__(self) -> None:
        check_integer("order", self.order, minimum=0)
        check_number("damping", self.damping, minimum=0, maximum=1)
        reuses = self.order == 0 or self.damping == 0
        object.__setattr__(self, "order", 0 if reuses else int(self.order))
        object.__setattr__(self, "damping", 1.0 if reuses else float(self.damping))

    @property
    def name(self) -> str:
        """`reuse`, `taylor1`, or damped `taylor1*0.4`."""
        if self.order == 0:
            return "reuse"
        return f"taylor{self.order}" if self.damping == 1 else f"taylor{self.order}*{self.damping!r}"

    @classmethod
    def of(cls, value: Any) -> GapRule:
        """A rule, given as one, by its name, or as `("reuse",)`, `("taylor", order)` or `("taylor", order, damping)`.

        Raises:
            ConfigError: it is none of them.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, str) and (match := _RULE.fullmatch(value)):
            return cls(int(match[1]), _as_float(match[2] or 1))
        if value == "reuse":
            return cls()
        if isinstance(value, (tuple, list)) and value and value[0] in ("reuse", "taylor") and len(value) <= 3:
            return cls(*value[1:])
        raise bad_value("rule", value, "'reuse', 'taylor1' or 'taylor1*0.4', or ('taylor', order, damping)")

    @cached_property
    def predictor(self) -> Predictor:
        """What makes the weights, from the times of the full steps."""
        return taylor(self.order, self.damping)


def _as_float(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise bad_value("damping", value, "a number from 0 to 1") from error


@dataclass(frozen=True)
class BranchSchedule:
    """Which steps of a branch are computed, and how the others are predicted.

    Args:
        mask: one entry per step, 1: computed, 0: cached; the first is 1. A text such as `"1101"` is taken too.
        rules: one `GapRule` (or its name) per full step: how the cached steps after it are predicted, ignored where
            none follows. A single one holds for all.

    Raises:
        ConfigError: a value cannot work.
    """

    mask: tuple[int, ...]
    rules: tuple[GapRule, ...] = (GapRule(),)

    def __post_init__(self) -> None:
        given = list(self.mask)
        if not given or any(str(bit) not in ("0", "1") for bit in given):
            raise bad_value("mask", self.mask, "0 and 1 for each step, at least one")
        mask = tuple(int(bit) for bit in given)
        if not mask[0]:
            raise bad_value("mask", "".join(map(str, mask)), "a first step that is computed, as nothing is kept before")
        rules = tuple(GapRule.of(rule) for rule in self.rules)
        if len(rules) == 1:
            rules *= sum(mask)
        if len(rules) != sum(mask):
            raise bad_value("rules", [rule.name for rule in rules], f"{sum(mask)}: one for each full step of the mask")
        object.__setattr__(self, "mask", mask)
        object.__setattr__(self, "rules", rules)

    @property
    def full(self) -> tuple[int, ...]:
        """The full steps, in order."""
        return tuple(step for step, bit in enumerate(self.mask) if bit)

    @property
    def order(self) -> int:
        """The highest order of the rules that a cached step is predicted by; 0 where none is cached."""
        used = (self.rules[index] for index, after in enumerate(self._after) if after > 0)
        return max((rule.order for rule in used), default=0)

    @property
    def _after(self) -> list[int]:
        """For each full step, how many cached ones follow it."""
        ends = (*self.full[1:], len(self.mask))
        return [end - start - 1 for start, end in zip(self.full, ends, strict=True)]

    @cached_property
    def _before(self) -> tuple[GapRule, ...]:
        """For each step the rule of the last full step before it."""
        found, rules, index = [], self.rules, 0
        for bit in self.mask:
            found.append(rules[max(index - 1, 0)])
            index += bit
        return tuple(found)

    def rule(self, step: int) -> GapRule:
        """How a step is predicted: the rule of the last full step before it."""
        return self._before[step] if step < len(self._before) else self.rules[-1]

    @property
    def text(self) -> str:
        """The mask as text: `1101…`."""
        return "".join(map(str, self.mask))
