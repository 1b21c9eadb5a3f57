"""What a cache costs beside peers, by the same code for all; and what the bench of costs says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from bench import measures
from bench.cost.ours import GROUPS, Extent, measured
from bench.cost.settings import options_by_name
from bench.cost.steps import EFFICIENCY, EQUAL, OVERHEAD, READS, SKIPPED, STATE, of_reads, of_state, of_time
from bench.findings import Finding
from bench.models import Size
from bench.peers.client import PeerError, PeerUnavailableError, Workers
from bench.report.parts import Part, by_group, findings_table, pivot
from bench.results import Results
from bench.results import findings_of as groups_findings
from bench.timer import quiet, watched

Row = Mapping[str, Any]
Options = dict[str, Any]

#: How rows call ours and no cache; people read `bench.results.Results.made_by` instead.
OURS, OURS_WITHOUT_FRONT, NOBODY = "ours", "ours, Fn=0", "no cache"
#: The algorithms that are asked for, and what fills a skipped step.
NOTHING, PLANNED, MEASURED = "nothing cached", "every other step, planned", "skips by measurement"
ORDERS = ("reuse", "Taylor 1", "Taylor 2")
CONTENDERS = yaml.safe_load(Path(__file__).with_name("contenders.yaml").read_text(encoding="utf-8"))

PEERS = "peers"
#: The models that peers are timed on, and how often.
MODELS = {
    "small": (Size(hidden=256, double=2, single=4, image_tokens=64, text_tokens=16, steps=12), 12),
    "middle": (Size(hidden=512, double=3, single=6, image_tokens=128, text_tokens=32, steps=10), 5),
    "large": (Size(hidden=1024, double=2, single=4, image_tokens=96, text_tokens=32, steps=8), 4),
}
#: Reads do not depend on the width.
COUNTED = Size(hidden=64, double=2, single=4, image_tokens=16, text_tokens=4, steps=6)
QUICK_COUNTED = replace(COUNTED, double=1, single=2, steps=4)
QUICK_MODELS = {"tiny": (QUICK_COUNTED, 1)}
#: After so many steps everyone has all that Taylor 2 keeps.
STATE_STEPS = 12


@dataclass(frozen=True)
class Contender:
    """A cache, by what method of ``bench.measures.by_name``, and its options by what is asked for.

    What it cannot do is not there; ``version``: of its own environment; ``apart``: the algorithms that are not those of
    the others: shown, and not compared.
    """

    name: str
    method: str
    options: dict[str, Options]
    version: str | None = None
    apart: frozenset[str] = field(default=frozenset())


def contenders(steps: int) -> list[Contender]:
    """Everyone, ours first, for runs of so many steps."""
    named, made = options_by_name(steps), []
    for row in CONTENDERS:
        options = {what: dict(given) for what, given in row["options"].items()}
        options = {what: named[given.pop("use", "")] | given for what, given in options.items()}
        made.append(Contender(**{**row, "options": options, "apart": frozenset(row.get("apart", ()))}))
    return made


@dataclass(frozen=True)
class Case:
    """One measurement of one contender: arguments of ``bench.measures.run``, here or in a version's own environment.

    ``what``: the algorithm, by a name that all share who run it; ``apart``: shown, and not compared.
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
        return "/".join((PEERS, self.measure, self.model, self.what, self.who))


def cases(size: Extent, threads: int) -> Iterator[Case]:
    """All measurements beside peers, in the order in which they are made; a quick run needs no other environment."""
    models, counted = (QUICK_MODELS, QUICK_COUNTED) if size.quick else (MODELS, COUNTED)

    def of_all(measure: str, algorithms: Iterable[str], name: str, size_: Size, **common: Any) -> Iterator[Case]:
        for what in algorithms:
            for one in contenders(size_.steps):
                if what in one.options and not (size.quick and one.version):
                    asked = {"method": one.method, "options": one.options[what], "size": asdict(size_)}
                    given = {**asked, "threads": threads, **common}
                    yield Case(measure, what, one.name, name, given, one.version, what in one.apart)

    for name, (model, runs) in models.items():
        yield from of_all("time", (NOTHING, PLANNED, MEASURED), name, model, runs=runs, clock=size.clock)
    algorithms = [f"{order}, {way}" for order in ORDERS for way in ("planned", "measured")]
    for name, (model, _) in models.items():
        yield from of_all("state", algorithms, name, replace(model, steps=STATE_STEPS))
    yield Case("reads", NOTHING, NOBODY, "tiny", {"size": asdict(counted), "threads": threads})
    yield from of_all("reads", (PLANNED, MEASURED), "tiny", counted)


def settings_of(size: Extent) -> dict[str, Any]:
    """What makes the measurements what they are, beside what every bench saves."""
    own = {name: value for name, value in asdict(size).items() if name not in ("clock", "quick")}
    models = QUICK_MODELS if size.quick else MODELS
    return {"model": own, "peers": {name: {**asdict(one), "runs": runs} for name, (one, runs) in models.items()}}


def measure(results: Results, size: Extent, threads: int, names: Sequence[str]) -> dict[str, str]:
    """Add the rows of these groups that are not there yet.

    Returns:
        The versions whose environment is not available, and why; their rows are missing.
    """
    for name in names:
        if name != PEERS:
            results.row(f"group/{name}", lambda name=name: measured(name, size))
    return measure_cases(results, cases(size, threads), threads) if PEERS in names else {}


def measure_cases(results: Results, chosen: Iterable[Case], threads: int) -> dict[str, str]:
    """Those that failed when they were tried before are tried again."""
    with quiet("cache_dit"), Workers(threads) as workers:
        for case in watched("beside peers")(list(chosen)):
            if case.key in results and not failed(results.rows[case.key]):
                continue
            arguments = {"measure": case.measure, **case.arguments}
            try:
                row = workers.run(case.version, arguments) if case.version else measures.run(**arguments)
            except PeerUnavailableError:
                continue
            except PeerError as error:
                row = {"error": str(error).splitlines()[0]}
            described = {name: value for name, value in asdict(case).items() if name != "version"}
            results.add(case.key, {**described, **row})
        return workers.unavailable


def failed(row: Row) -> bool:
    """Whether nothing was measured. What went wrong under the compiler, in rows of before, was a measurement."""
    return row.get("error") is not None and "breaks" not in row


# -- what follows


def findings_of(rows: Mapping[str, Row]) -> list[Finding]:
    """Our own groups' findings, and those beside peers, of whichever rows are there."""
    told = groups_findings(rows.values())
    good = [row for key, row in rows.items() if key.startswith("peers/") and not failed(row)]
    bare = next((row["model_reads"] for row in good if row["measure"] == "reads" and row["who"] == NOBODY), None)
    for row in good:
        if row["who"] != NOBODY:
            told += [_told(one, row) for one in _findings(row, bare)]
    return _judged(told)


def _findings(row: Row, bare: Sequence[int] | None) -> list[Finding]:
    planned, ours = row["what"] == PLANNED, _ours(row)
    if row["measure"] == "time":
        return of_time(row, "wrapped", target="≥ 0.97" if planned and ours else "", shown="")
    if row["measure"] == "reads":
        return [of_reads(row, "", f"≤ {0 if planned else 1}" if ours else "", bare)]
    finding = of_state(row, "")
    finding.details["another_algorithm"] = row["apart"]
    return [finding]


def _ours(row: Row) -> bool:
    return str(row["who"]).startswith(OURS)


def _told(finding: Finding, row: Row) -> Finding:
    """A finding that tells of what and of whom it is, as data too."""
    said = {"kind": finding.name, "what": row["what"], "who": row["who"], "model": row["model"]}
    name = ", ".join((finding.name, row["what"], row["model"], row["who"]))
    return replace(finding, name=name, group=f"peers: {row['measure']}", details={**finding.details, **said})


def _judged(findings: list[Finding]) -> list[Finding]:
    """Ours beside the best of the others: no overhead above theirs but for what intervals leave open, no more alive."""
    for number, ours in enumerate(findings):
        kind = ours.details.get("kind")
        if ours.details.get("who") != OURS or kind not in (OVERHEAD, STATE):
            continue
        alike = {name: ours.details[name] for name in ("kind", "what", "model")}
        others = [one for one in findings if alike.items() <= one.details.items() and not _ours(one.details)]
        others = [one for one in others if not one.details.get("another_algorithm")]
        best = min(others, key=lambda one: one.value, default=None)
        told = {**ours.details, **({"best_peer": best.details["who"], "best_peer_value": best.value} if best else {})}
        if kind == OVERHEAD:
            below = best is None or (ours.low or ours.value) <= (best.high or best.value)
            target, reached = "≤ 1.01, no peer below" if best else "≤ 1.01", ours.value <= 1.01 and below
        elif best is not None:
            target, reached = f"≤ {best.value:.2f}", ours.value <= best.value * EQUAL
        else:
            continue
        findings[number] = replace(ours, target=target, reached=reached, details=told)
    return findings


# -- the page


def parts(results: Results) -> dict[str, Part]:
    """What the places of ``pages/overhead.md`` hold."""
    all_of_it = results.findings or findings_of(results.rows)
    judged = [one for one in all_of_it if one.reached is not None]
    missed = [one for one in judged if not one.reached]
    names = {OURS: results.ours, OURS_WITHOUT_FRONT: f"{results.ours}, Fn=0"}

    def some(kind: str, **details: str) -> list[Finding]:
        wanted = {"kind": kind, **details}
        return [one for one in all_of_it if wanted.items() <= one.details.items()]

    state = some(STATE)
    state = [one for one in state if one.details["model"] == state[-1].details["model"]]  # features hardly depend on it
    breaks = some("graph breaks")
    own = [one for one in all_of_it if not one.group.startswith("peers: ")]
    older = [one for one in dict.fromkeys(one.group for one in own) if one not in GROUPS]
    errors = [f"- {key.removeprefix('peers/')}: {row['error']}" for key, row in results.rows.items() if failed(row)]
    tables = {
        f"{place}_{kind}": pivot(some(which, what=what), "model", names)
        for place, what in (("planned", PLANNED), ("measured", MEASURED))
        for kind, which in (("share", EFFICIENCY), ("step", SKIPPED))
    }
    return {
        **tables,
        "model": described(results.settings["model"]),
        "time": f"{results.settings['clock']} time, threads: {results.settings['threads']}",
        "reached": f"{len(judged) - len(missed)} of {len(judged)}" if judged else "",
        "missed": findings_table(missed),
        "models": "; ".join(f"{name}: {described(one)}" for name, one in results.settings["peers"].items()),
        "overhead": pivot(some(OVERHEAD, what=NOTHING), "model", names),
        "state": pivot(state, "what", names),
        "reads": pivot(some(READS), "what", names),
        "compiled": pivot(breaks, "what", names),
        "older": ", ".join([*older, *["graph breaks"] * bool(breaks)]),
        "errors": "\n".join(errors),
        "groups": by_group(own),
    }


def described(model: Mapping[str, Any]) -> str:
    return (
        f"hidden {model['hidden']}, {model['double']} + {model['single']} blocks, {model['image_tokens']} + "
        f"{model['text_tokens']} tokens, {model['runs']} runs of {model['steps']} steps"
    )
