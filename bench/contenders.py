"""The one table of contenders: whose caches are measured, how each is put on, and what is asked of it.

A cost is measured of every contender that has options for the algorithm (bench/cost/beside.py). How it draws, with
which settings, stands in bench/quality.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from bench.cost.steps import ALWAYS, NEVER, half_mask, static, threshold
from bench.peers.environment import VERSIONS

Owner = Literal["ours", "peer", "baseline"]
Options = dict[str, Any]

#: How rows call ours and no cache; people read `bench.results.Results.made_by` instead.
OURS, OURS_WITHOUT_FRONT, NOBODY = "ours", "ours, Fn=0", "no cache"
#: The algorithms that are asked for, and what fills a skipped step.
NOTHING, PLANNED, MEASURED = "nothing cached", "every other step, planned", "skips by measurement"
ORDERS = {"reuse": None, "Taylor 1": 1, "Taylor 2": 2}


@dataclass(frozen=True)
class Contender:
    """A cache, by what method of ``bench.measures.by_name``, and its options by what is asked for.

    What it cannot do is not there; ``version``: of its own environment; ``apart``: the algorithms that are not those of
    the others: shown, and not compared.
    """

    name: str
    owner: Owner
    method: str
    version: str | None = None
    options: dict[str, Options] = field(default_factory=dict)
    apart: frozenset[str] = frozenset()


def _alike(steps: int) -> dict[str, Options]:
    """What ours and the packages of our name have in common: Fn=1, Bn=0, one warm-up step."""
    planned, measured = static(half_mask(steps), 1), threshold(ALWAYS, max_continuous_cached_steps=1)
    return {
        NOTHING: threshold(NEVER),
        PLANNED: planned,
        MEASURED: measured,
        **{f"{name}, planned": {**planned, "taylor": order} for name, order in ORDERS.items()},
        **{f"{name}, measured": {**measured, "taylor": order} for name, order in ORDERS.items()},
    }


def _mag(steps: int, value: float, every: int = 2) -> Options:
    return {"mag_ratios": [1.0] * steps, "retention_ratio": 0.0, "max_skip_steps": every - 1, "threshold": value}


def _taylor(order: int, *, lite: bool, every: int = 2) -> Options:
    return {"disable_cache_before_step": 1, "cache_interval": every, "max_order": order, "use_lite_mode": lite}


def contenders(steps: int) -> list[Contender]:
    """Everyone, ours first, for runs of so many steps."""
    alike = _alike(steps)
    attention, lite = (
        {f"Taylor {order}, planned": _taylor(order, lite=one) for order in (1, 2)} for one in (False, True)
    )
    never_taylor = {"disable_cache_before_step": 10**6}
    first_block = {"threshold": 1e9}  # it has no limit: all steps after the first are skipped
    first = {NOTHING: {"threshold": -1.0}, MEASURED: first_block, "reuse, measured": first_block}
    mag = {NOTHING: _mag(steps, -1.0), PLANNED: _mag(steps, 1.0), "reuse, planned": _mag(steps, 1.0)}
    seer = "TaylorSeerCacheConfig"
    return [
        Contender(OURS, "ours", "cache_dit", options=alike),
        Contender(OURS_WITHOUT_FRONT, "ours", "cache_dit", options={PLANNED: static(half_mask(steps))}),
        *(Contender(f"cache-dit {version}", "peer", "cache_dit", version, alike) for version in VERSIONS),
        Contender("diffusers FirstBlockCache", "peer", "FirstBlockCacheConfig", options=first),
        Contender("diffusers MagCache", "peer", "MagCacheConfig", options=mag),
        Contender(
            *("diffusers TaylorSeer, attention", "peer", seer, None),
            *({NOTHING: never_taylor, **attention}, frozenset(attention)),
        ),
        Contender(
            *("diffusers TaylorSeer, lite", "peer", seer, None),
            *({PLANNED: _taylor(1, lite=True), **lite}, frozenset(lite)),
        ),
    ]
