"""What a cache costs beside peers, by the same code for all; and what the bench of costs says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from bench import measures
from bench.contenders import MEASURED, NOBODY, NOTHING, ORDERS, OURS, OURS_WITHOUT_FRONT, PLANNED, contenders
from bench.cost.ours import GROUPS, Extent
from bench.cost.steps import (
    EFFICIENCY,
    EQUAL,
    OVERHEAD,
    READS,
    SKIPPED,
    STATE,
    of_reads,
    of_state,
    of_time,
    quiet,
    watched,
)
from bench.findings import Finding, found
from bench.models import Size
from bench.peers.client import PeerError, Workers
from bench.peers.environment import PeerUnavailableError
from bench.report.parts import Bar, Chart, Panel, Part, Table, by_group, findings_table, pivot
from bench.results import OURS as SHOWN
from bench.results import Results

Row = Mapping[str, Any]

PEERS = "peers"
#: The models that peers are timed on, and how often.
MODELS = {
    "small": (Size(hidden=256, double=2, single=4, image_tokens=64, text_tokens=16, steps=12), 12),
    "middle": (Size(hidden=512, double=3, single=6, image_tokens=128, text_tokens=32, steps=10), 5),
    "large": (Size(hidden=1024, double=2, single=4, image_tokens=96, text_tokens=32, steps=8), 4),
}
#: Graphs and reads do not depend on the width.
COUNTED = Size(hidden=64, double=2, single=4, image_tokens=16, text_tokens=4, steps=6)
QUICK_COUNTED = replace(COUNTED, double=1, single=2, steps=4)
QUICK_MODELS = {"tiny": (QUICK_COUNTED, 1)}
#: After so many steps everyone has all that Taylor 2 keeps.
STATE_STEPS = 12
#: The way to compile that a quick run tries.
WHOLE = "whole model"


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
        return "/".join(("peers", self.measure, self.model, self.what, self.who))


def cases(models: Mapping[str, tuple[Size, int]], counted: Size, *, clock: str, threads: int) -> Iterator[Case]:
    """All measurements beside peers, in the order in which they are made."""

    def of_all(measure: str, algorithms: Iterable[str], name: str, size: Size, **common: Any) -> Iterator[Case]:
        given = {"size": asdict(size), "threads": threads, **common}
        for what in algorithms:
            for one in contenders(size.steps):
                if what in one.options:
                    arguments = {**given, "method": one.method, "options": one.options[what]}
                    yield Case(measure, what, one.name, name, arguments, one.version, what in one.apart)

    for name, (size, runs) in models.items():
        yield from of_all("time", (NOTHING, PLANNED, MEASURED), name, size, runs=runs, clock=clock)
    algorithms = [f"{order}, {way}" for order in ORDERS for way in ("planned", "measured")]
    for name, (size, _) in models.items():
        yield from of_all("state", algorithms, name, replace(size, steps=STATE_STEPS))
    bare = {"size": asdict(counted), "threads": threads}
    yield Case("reads", NOTHING, NOBODY, "tiny", bare)
    yield from of_all("reads", (PLANNED, MEASURED), "tiny", counted)
    for way in measures.WAYS:
        yield Case("compile", f"{NOTHING}, {way}", NOBODY, "tiny", {**bare, "way": way})
        for case in of_all("compile", (PLANNED, MEASURED), "tiny", counted, way=way):
            if case.who != OURS_WITHOUT_FRONT:  # the graphs are the same
                yield replace(case, what=f"{case.what}, {way}")


def settings_of(size: Extent) -> dict[str, Any]:
    """What makes the measurements what they are, beside what every bench saves."""
    own = {name: value for name, value in asdict(size).items() if name not in ("clock", "quick")}
    models = QUICK_MODELS if size.quick else MODELS
    return {"model": own, "peers": {name: {**asdict(one), "runs": runs} for name, (one, runs) in models.items()}}


def measure(results: Results, size: Extent, threads: int, chosen: Iterable[Case] | None = None) -> dict[str, str]:
    """Add the rows that are not there yet, and those that failed when they were tried before.

    Returns:
        The versions whose environment is not available, and why; their rows are missing.
    """
    if chosen is None:
        models, counted = (QUICK_MODELS, QUICK_COUNTED) if size.quick else (MODELS, COUNTED)
        chosen = [
            one for one in cases(models, counted, clock=size.clock, threads=threads) if not size.quick or _quick(one)
        ]
    with quiet("cache_dit", "torch._dynamo"), Workers(threads) as workers:
        for case in watched("beside peers")(chosen):
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


def _quick(case: Case) -> bool:
    return case.version is None and case.arguments.get("way", WHOLE) == WHOLE and case.what != f"{MEASURED}, {WHOLE}"


def failed(row: Row) -> bool:
    """Whether nothing was measured. What goes wrong under the compiler is a measurement."""
    return row.get("error") is not None and "breaks" not in row


# -- what follows


def findings_of(rows: Mapping[str, Row]) -> list[Finding]:
    """Our own groups' findings, and those beside peers, of whichever rows are there."""
    told = [Finding(**one) for name in GROUPS for one in rows.get(f"group/{name}", {"findings": []})["findings"]]
    good = [row for key, row in rows.items() if key.startswith("peers/") and not failed(row)]
    bare = next((row["model_reads"] for row in good if row["measure"] == "reads" and row["who"] == NOBODY), None)
    for row in good:
        if row["who"] == NOBODY and row["measure"] != "compile":
            continue
        planned, ours = row["what"] == PLANNED, _ours(row)
        if row["measure"] == "time":
            found_ = of_time(row, "wrapped", target="≥ 0.97" if planned and ours else "", shown="")
        elif row["measure"] == "state":
            found_ = [of_state(row, "")]
            found_[0].details["another_algorithm"] = row["apart"]
        elif row["measure"] == "reads":
            found_ = [of_reads(row, "", f"≤ {0 if planned else 1}" if ours else "", bare)]
        else:
            found_ = [_of_compiling(row)]
        told += [_told(one, row) for one in found_]
    return _judged(told)


def _ours(row: Row) -> bool:
    return str(row["who"]).startswith(OURS)


def _told(finding: Finding, row: Row) -> Finding:
    """A finding that tells of what and of whom it is, as data too."""
    said = {"kind": finding.name, "what": row["what"], "who": row["who"], "model": row["model"]}
    name = ", ".join((finding.name, row["what"], row["model"], row["who"]))
    return replace(finding, name=name, group=f"peers: {row['measure']}", details={**finding.details, **said})


def _of_compiling(row: Row) -> Finding:
    kept = ("graphs", "graphs_by_request", "recompiles", "error", "difference")
    finding = found("graph breaks", row["breaks"], "breaks", **{name: row[name] for name in kept})
    if row["who"] == OURS:
        finding.target, finding.reached = "0", row["breaks"] == 0 and row["error"] is None
    return finding


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
    overhead = some(OVERHEAD, what=NOTHING)
    own = [one for one in all_of_it if not one.group.startswith("peers: ")]
    errors = [f"- {key.removeprefix('peers/')}: {row['error']}" for key, row in results.rows.items() if failed(row)]
    return {
        "model": described(results.settings["model"]),
        "time": f"{results.settings['clock']} time, threads: {results.settings['threads']}",
        "reached": f"{len(judged) - len(missed)} of {len(judged)}" if judged else "",
        "missed": findings_table(missed),
        "models": "; ".join(f"{name}: {described(one)}" for name, one in results.settings["peers"].items()),
        "overhead": pivot(overhead, "model", names),
        "overhead_chart": _bars(
            "time", "how many percent longer a step takes with each cache on", overhead, {OURS: SHOWN}
        ),
        **{
            f"{place}_{kind}": pivot(some(which, what=what), "model", names)
            for place, what in (("planned", PLANNED), ("measured", MEASURED))
            for kind, which in (("share", EFFICIENCY), ("step", SKIPPED))
        },
        "state": pivot(state, "what", names),
        "state_chart": _bars("state", "features that each cache keeps alive between two steps", state, {OURS: SHOWN}),
        "reads": _table(some(READS), names, "most in a step", _READ),
        "compiled": _table(some("graph breaks"), names, "breaks", _COMPILED),
        "errors": "\n".join(errors),
        "groups": by_group(own),
    }


def described(model: Mapping[str, Any]) -> str:
    return (
        f"hidden {model['hidden']}, {model['double']} + {model['single']} blocks, {model['image_tokens']} + "
        f"{model['text_tokens']} tokens, {model['runs']} runs of {model['steps']} steps"
    )


def _bars(name: str, alt: str, findings: Sequence[Finding], names: Mapping[str, str]) -> Chart | None:
    """A panel for each model or algorithm, a bar for each contender."""
    panels: dict[str, list[Bar]] = {}
    for one in findings:
        ends = (one.value, one.value if one.low is None else one.low, one.value if one.high is None else one.high)
        if name == "time":
            ends = tuple(100 * (end - 1) for end in ends)
        who, where = one.details["who"], one.details["model"] if name == "time" else one.details["what"]
        panels.setdefault(where, []).append(Bar(names.get(who, who), *ends, ours=_ours(one.details)))
    unit, digits = ("% longer than without a cache", 2) if name == "time" else ("features", 1)
    drawn = [Panel(unit, title=where, bars=bars, digits=digits) for where, bars in panels.items()]
    height = 0.9 + 0.28 * max(map(len, panels.values()), default=1)
    return Chart(f"bench_overhead_{name}", f"Bars: {alt}", drawn, 5.6, height) if drawn else None


#: Columns of the tables of reads and of graphs, from a finding's details.
_READ = {
    "in a run": lambda told: sum(told["model_reads"]),
    "timesteps": lambda told: sum(told["timestep_reads"]),
    "own numbers": lambda told: sum(told["own_reads"]),
}
_COMPILED = {
    "graphs": lambda told: told["graphs"],
    "in the second request": lambda told: told["graphs_by_request"][-1],
    "recompiles": lambda told: told["recompiles"],
}


def _table(findings: Sequence[Finding], names: Mapping[str, str], head: str, columns: Mapping[str, Any]) -> Table:
    """A line for each finding: who did what, the value, and numbers from its details; or what went wrong."""
    rows = []
    for one in findings:
        told, who = one.details, names.get(one.details["who"], one.details["who"])
        fails = (told.get("error") or "").partition(":")[0]
        numbers = [f"{one.value:.0f}", *(str(of(told)) for of in columns.values())]
        rows.append((told["what"], who, *([f"fails: {fails}", *[""] * len(columns)] if fails else numbers)))
    return Table(("", "who", head, *columns), rows, left=2)
