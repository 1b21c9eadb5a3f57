"""What the bench of overhead says: in the report, and on the documentation's page of benchmarks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.findings import Finding, interval_text, value_text
from bench.overhead.contenders import MEASURED, NOBODY, NOTHING, PLANNED
from bench.overhead.groups import GROUPS
from bench.overhead.peer_findings import COMPILE, EFFICIENCY, OVERHEAD, READS, SKIPPED, STATE, TIME, failed
from bench.overhead.plots import overhead_figure, state_figure
from bench.overhead.run import findings_of
from bench.report.section import Drawn, Section, findings_table, markdown_table
from bench.results import Results

_COMPILED = (
    "The backend runs each graph as it is: graphs, breaks and recompiles depend on what the compiler sees, not on the "
    "code that it makes. Two requests each; a graph that is made again with other guards counts as a recompile. The "
    "first row is the model without a cache.\n"
)


def text(results: Results) -> str:
    """How it was measured, ours beside peers, and our own groups."""
    found = findings_of(results.rows)
    parts = [_method(results), _missed(found)]
    beside = [*_time(results, found), *_state(found), *_reads(found), *_compiling(found)]
    if beside:
        parts += ["### Beside peers\n", _alike(results), *beside]
    parts += [_failed(results)]
    for name in GROUPS:
        own = [finding for finding in found if finding.group == name]
        if own:
            parts += [f"### {name.capitalize()}\n", findings_table(own)]
    return "\n".join(part for part in parts if part)


def figures(results: Results) -> Iterator[Drawn]:
    """Overhead and live state by contender, as far as they were measured."""
    found = findings_of(results.rows)
    yield from overhead_figure(_split(found, TIME, OVERHEAD, by="model", keys=("what", NOTHING)))
    yield from state_figure(_split(found, STATE, "live state", by="what", keys=("model", _one_model(found, STATE))))


def _split(
    found: Sequence[Finding], group: str, kind: str, *, by: str, keys: tuple[str, str | None]
) -> dict[str, dict[str, Finding]]:
    """Findings by one of their details and by contender, of those whose other detail has a value."""
    split: dict[str, dict[str, Finding]] = {}
    for one in found:
        if one.group == group and one.details["kind"] == kind and one.details[keys[0]] == keys[1]:
            split.setdefault(one.details[by], {})[one.details["who"]] = one
    return split


def _one_model(found: Sequence[Finding], group: str) -> str | None:
    """The largest model of a group: features hardly depend on it."""
    return next((one.details["model"] for one in reversed(found) if one.group == group), None)


def _method(results: Results) -> str:
    model = results.settings["model"]
    return (
        f"What the cache costs. Our own groups run a FLUX transformer with random weights (hidden {model['hidden']}, "
        f"{model['double']} + {model['single']} blocks, {model['image_tokens']} + {model['text_tokens']} tokens, "
        f"float32, CPU), {model['runs']} runs of {model['steps']} steps. What is compared runs in turn, step by step "
        f"and in random order, on copies that share their weights; a ratio is the median over pairs of the same step, "
        f"its interval the bootstrap's. Time is {results.settings['clock']} time with {results.settings['threads']} "
        f"thread{'s' * (results.settings['threads'] != 1)}.\n"
    )


def _missed(found: Sequence[Finding]) -> str:
    judged = [one for one in found if one.reached is not None]
    missed = [one for one in judged if not one.reached]
    if not judged:
        return ""
    line = f"{len(judged) - len(missed)} of {len(judged)} targets are reached."
    return f"{line}\n" if not missed else f"{line} Missed:\n\n{findings_table(missed)}"


def _alike(results: Results) -> str:
    sizes = "; ".join(
        f"{name}: hidden {one['hidden']}, {one['double']} + {one['single']} blocks, {one['image_tokens']} + "
        f"{one['text_tokens']} tokens, {one['runs']} runs of {one['steps']} steps"
        for name, one in results.settings["peers"].items()
    )
    return (
        f"All are measured by the same code on a bare transformer, called as diffusers' pipelines call it. Packages of "
        f"our name are measured as black boxes in environments of their own. Models: {sizes}. Options are the same "
        f"wherever a cache has them: Fn=1, Bn=0, one warm-up step.\n"
    )


def _wide(split: Mapping[str, Mapping[str, Finding]]) -> str:
    """A table with a column for each part and a line for each contender."""
    names = list(dict.fromkeys(who for part in split.values() for who in part))
    rows = ([who, *(_cell(part.get(who)) for part in split.values())] for who in names)
    return markdown_table(("", *split), rows)


def _cell(finding: Finding | None) -> str:
    if finding is None:
        return "–"
    between = interval_text(finding)
    return f"{value_text(finding)} ({between})" if between else value_text(finding)


def _time(results: Results, found: Sequence[Finding]) -> Iterator[str]:
    if overhead := _split(found, TIME, OVERHEAD, by="model", keys=("what", NOTHING)):
        yield "A step with the cache on, over one without, where nothing is ever skipped:\n"
        yield _wide(overhead)
        yield "{figure: bench_overhead_time}\n"
    for what in (PLANNED, MEASURED):
        if share := _split(found, TIME, EFFICIENCY, by="model", keys=("what", what)):
            yield f"{what[0].upper()}{what[1:]}: the ideal time of a run over the measured one. {_IDEAL}\n"
            yield _wide(share)
            yield "A skipped step of these runs, over the same step of a model that has no other blocks:\n"
            yield _wide(_split(found, TIME, SKIPPED, by="model", keys=("what", what)))


_IDEAL = (
    "Ideally a step that skips blocks takes as long as in a model that has no others. Not all skip equally often: "
    "FirstBlockCache has no limit and skips every step after the first, and 1.2.0 counts its limit in its own way."
)


def _state(found: Sequence[Finding]) -> Iterator[str]:
    model = _one_model(found, STATE)
    if state := _split(found, STATE, "live state", by="what", keys=("model", model)):
        yield (
            "Live state between two steps, in features (what a block hands on, image and text tokens), by what the "
            "garbage collector finds alive; the attention and lite forms of diffusers' TaylorSeer extrapolate other "
            f"tensors, and are not compared (model: {model}):\n"
        )
        yield _wide(state)
        yield "{figure: bench_overhead_state}\n"


def _reads(found: Sequence[Finding]) -> Iterator[str]:
    rows = [
        (
            f"{one.details['who']}, {one.details['what']}",
            f"{one.value:.0f}",
            str(sum(one.details["model_reads"])),
            str(sum(one.details["timestep_reads"])),
            str(sum(one.details["own_reads"])),
        )
        for one in found
        if one.group == READS
    ]
    if rows:
        yield (
            "Numbers of tensors that the host reads. Those made from hidden states or weights keep it waiting for an "
            "accelerator; a cache's own numbers lie on the host anyway, and timesteps too where the model runs on it:\n"
        )
        yield markdown_table(("", "most in a step", "in a run", "timesteps", "own numbers"), rows)


def _compiling(found: Sequence[Finding]) -> Iterator[str]:
    rows = [_compiled_row(one) for one in found if one.group == COMPILE]
    if rows:
        yield f"torch.compile. {_COMPILED}"
        yield markdown_table(("", "who", "breaks", "graphs", "in the second request", "recompiles"), rows, left=2)


def _compiled_row(finding: Finding) -> tuple[str, ...]:
    told: dict[str, Any] = finding.details
    if told["error"] is not None:
        return (told["what"], told["who"], f"fails: {told['error'].partition(':')[0]}", "", "", "")
    again = told["graphs_by_request"][-1]
    who = told["who"] if told["who"] != NOBODY else f"*{NOBODY}*"
    counts = (finding.value, told["graphs"], again, told["recompiles"])
    return (told["what"], who, *(f"{count:.0f}" for count in counts))


def _failed(results: Results) -> str:
    lines = [f"- {key.removeprefix('peers/')}: {row['error']}" for key, row in results.rows.items() if failed(row)]
    return "\n".join(["Not measured, because the peer failed:\n", *lines, ""]) if lines else ""


SECTION = Section("overhead", "What the cache costs", "cache-dit bench overhead", text, figures)
