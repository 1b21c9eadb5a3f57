"""Who is measured beside us, and what each is asked for; everything by the same code, ``bench.peers.cost``."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from bench.common import ALWAYS, NEVER, static
from bench.overhead.common import half_mask
from bench.peers.cost import WAYS, Size
from bench.peers.environment import VERSIONS

OURS, OURS_WITHOUT_FRONT, NOBODY = "ours", "ours, Fn=0", "no cache"

NOTHING, PLANNED, MEASURED = "nothing cached", "every other step, planned", "skips by measurement"


@dataclass(frozen=True)
class Model:
    """A model that peers are timed on, and how often."""

    size: Size
    runs: int


MODELS = {
    "small": Model(Size(hidden=256, double=2, single=4, image_tokens=64, text_tokens=16, steps=12), runs=12),
    "middle": Model(Size(hidden=512, double=3, single=6, image_tokens=128, text_tokens=32, steps=10), runs=5),
    "large": Model(Size(hidden=1024, double=2, single=4, image_tokens=96, text_tokens=32, steps=8), runs=4),
}
#: Graphs and reads do not depend on the width.
COUNTED = Size(hidden=64, double=2, single=4, image_tokens=16, text_tokens=4, steps=6)
#: After so many steps everyone has all that Taylor 2 keeps.
STATE_STEPS = 12
QUICK_COUNTED = replace(COUNTED, double=1, single=2, steps=4)
QUICK_MODELS = {"tiny": Model(QUICK_COUNTED, runs=1)}


@dataclass(frozen=True)
class Case:
    """One measurement of one contender.

    Args:
        measure: as for ``bench.peers.cost.run``.
        what: the algorithm, by a name that all share who run it.
        who: the contender.
        model: the model's name.
        arguments: of ``run``.
        version: of the peer's own environment; None: measured in this process.
        apart: does what others do not; shown, and not compared.
    """

    measure: str
    what: str
    who: str
    model: str
    arguments: dict[str, Any] = field(hash=False)
    version: str | None = None
    apart: bool = False

    @property
    def key(self) -> str:
        """Of its row, in every run."""
        return "/".join(("peers", self.measure, self.model, self.what, self.who))

    def described(self) -> dict[str, Any]:
        """What the row says of itself."""
        return {name: value for name, value in asdict(self).items() if name != "version"}


@dataclass(frozen=True)
class Contender:
    """A cache, and its options by what is asked for; what it cannot do is not there.

    Args:
        who: as it is shown.
        method: as for ``bench.peers.cost.by_name``.
        options: by the algorithm's name.
        version: of its own environment.
        apart: the algorithms that are not those of the others.
    """

    who: str
    method: str
    options: dict[str, dict[str, Any]]
    version: str | None = None
    apart: frozenset[str] = frozenset()

    def arguments(self, what: str) -> dict[str, Any]:
        return {"method": self.method, "options": self.options[what]}


def _alike(size: Size) -> dict[str, dict[str, Any]]:
    """Options of the algorithms that ours and the packages of our name have in common: Fn=1, Bn=0, one warm-up step."""
    mask = static(half_mask(size))
    measured = {"residual_diff_threshold": ALWAYS, "max_continuous_cached_steps": 1}
    algorithms = {
        NOTHING: {"residual_diff_threshold": NEVER},
        PLANNED: mask,
        MEASURED: measured,
        **{f"{name}, planned": {**mask, "taylor": order} for name, order in ORDERS.items()},
        **{f"{name}, measured": {**measured, "taylor": order} for name, order in ORDERS.items()},
    }
    return {name: {"Fn_compute_blocks": 1, **options} for name, options in algorithms.items()}


#: What fills a skipped step.
ORDERS = {"reuse": None, "Taylor 1": 1, "Taylor 2": 2}


def _mag(**options: Any) -> dict[str, Any]:
    return {"mag_ratios": [1.0], "retention_ratio": 0.0, "max_skip_steps": 1, **options}


def _taylor(order: int, *, lite: bool) -> dict[str, Any]:
    return {"disable_cache_before_step": 1, "cache_interval": 2, "max_order": order, "use_lite_mode": lite}


def contenders(size: Size) -> list[Contender]:
    """Ours first."""
    alike = _alike(size)
    no_front = {PLANNED: {**alike[PLANNED], "Fn_compute_blocks": 0}}
    orders = (1, 2)
    attention = {f"Taylor {order}, planned": _taylor(order, lite=False) for order in orders}
    lite = {f"Taylor {order}, planned": _taylor(order, lite=True) for order in orders}
    return [
        Contender(OURS, "cache_dit", alike),
        Contender(OURS_WITHOUT_FRONT, "cache_dit", no_front),
        *(Contender(f"cache-dit {version}", "cache_dit", alike, version) for version in VERSIONS),
        Contender(
            "diffusers FirstBlockCache",
            "FirstBlockCacheConfig",
            {
                NOTHING: {"threshold": -1.0},
                MEASURED: {"threshold": 1e9},  # it has no limit: all steps after the first are skipped
                "reuse, measured": {"threshold": 1e9},
            },
        ),
        Contender(
            "diffusers MagCache",
            "MagCacheConfig",
            {NOTHING: _mag(threshold=-1.0), PLANNED: _mag(threshold=1.0), "reuse, planned": _mag(threshold=1.0)},
        ),
        Contender(
            "diffusers TaylorSeer, attention",
            "TaylorSeerCacheConfig",
            {NOTHING: {"disable_cache_before_step": 10**6}, **attention},
            apart=frozenset(attention),
        ),
        Contender(
            "diffusers TaylorSeer, lite",
            "TaylorSeerCacheConfig",
            {PLANNED: _taylor(1, lite=True), **lite},
            apart=frozenset(lite),
        ),
    ]


def cases(models: dict[str, Model], counted: Size, *, clock: str, threads: int) -> Iterator[Case]:
    """All measurements beside peers, in the order in which they are made.

    Args:
        models: what is timed, by name.
        counted: the model for reads and graphs.
        clock: of the times.
        threads: that torch computes with.
    """
    for name, model in models.items():
        timing = {"size": asdict(model.size), "runs": model.runs, "clock": clock, "threads": threads}
        yield from _cases("time", (NOTHING, PLANNED, MEASURED), name, model.size, timing)
    for name, model in models.items():
        size = replace(model.size, steps=STATE_STEPS)
        algorithms = tuple(f"{order}, {way}" for order in ORDERS for way in ("planned", "measured"))
        yield from _cases("state", algorithms, name, size, {"size": asdict(size), "threads": threads})
    counting = {"size": asdict(counted), "threads": threads}
    yield Case("reads", NOTHING, NOBODY, "tiny", counting)
    yield from _cases("reads", (PLANNED, MEASURED), "tiny", counted, counting)
    for way in WAYS:
        yield Case("compile", f"{NOTHING}, {way}", NOBODY, "tiny", {**counting, "way": way})
        for case in _cases("compile", (PLANNED, MEASURED), "tiny", counted, {**counting, "way": way}):
            if case.who != OURS_WITHOUT_FRONT:  # the graphs are the same
                yield replace(case, what=f"{case.what}, {way}")


def _cases(measure: str, algorithms: tuple[str, ...], name: str, size: Size, common: dict[str, Any]) -> Iterator[Case]:
    for what in algorithms:
        for one in contenders(size):
            if what in one.options:
                arguments = {**common, **one.arguments(what)}
                yield Case(measure, what, one.who, name, arguments, one.version, what in one.apart)
