"""Settings whose cost is measured, of any contender, with what is expected of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bench.measures import PutOn, by_name

#: A threshold that every diff is below, and yet is measured; and one that none is.
ALWAYS, NEVER = 0.99, 1e-9


def static(mask: list[int], front: int = 0) -> dict[str, Any]:
    """The options of a plan that is made in advance, of which a run may make the first steps only."""
    masked = {"steps_computation_mask": mask, "steps_computation_policy": "static", "num_inference_steps": len(mask)}
    return {"Fn_compute_blocks": front, **masked}


def threshold(value: float, front: int = 1, **more: Any) -> dict[str, Any]:
    """The options of a decision by a threshold."""
    return {"Fn_compute_blocks": front, "residual_diff_threshold": value, **more}


def half_mask(steps: int) -> list[int]:
    """Every other step, from the first on."""
    return [1 - step % 2 for step in range(steps)]


def options_by_name(steps: int) -> dict[str, dict[str, Any] | None]:
    """What tables of settings have names for, for runs of so many steps; the last one is diffusers' MagCache's."""
    mag = {"mag_ratios": [1.0] * steps, "retention_ratio": 0.0, "max_skip_steps": 1, "threshold": 1.0}
    return {
        "bare": None,
        "": {},
        "never": threshold(NEVER),
        "always": threshold(ALWAYS),
        "alternate": threshold(ALWAYS, max_continuous_cached_steps=1),
        "half": static(half_mask(steps)),
        "only the first": static([1] + [0] * (steps - 1)),
        "all": static([1] * steps + [0]),
        "ratios of one": mag,
    }


@dataclass(frozen=True)
class Variant:
    """A setting, as `bench.measures.by_name` takes it, and targets; None: that is not measured, "": without a target.

    No options: another instance of the bare model. ``against``: another variant, whose steps of the same kind this
    one's are held against, with the target; ``faster``: one whose whole runs are.
    """

    name: str
    options: dict[str, Any] | None
    time: str | None = None
    reads: str | None = None
    state: str | None = None
    against: tuple[str, str] | None = None
    faster: str | None = None
    method: str = "cache_dit"

    def put_on(self) -> PutOn:
        return by_name(self.method, self.options or {})


def variants_of(rows: Iterable[Mapping[str, Any]], named: Mapping[str, Any], **places: Any) -> list[Variant]:
    """The settings of a table: what `named` has under ``use``, and on top of it their own options."""
    made = []
    for row in rows:
        told = {key: value.format(**places) if isinstance(value, str) else value for key, value in row.items()}
        base, more = named[told.pop("use")], told.pop("options", {})
        made.append(Variant(options=None if base is None else {**base, **more}, **told))
    return made
