"""What the report says of a CUDA GPU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from bench.gpu.findings import COMPUTED, KERNELS, findings_of
from bench.gpu.models import SPECS
from bench.gpu.plan import LEFT_OUT
from bench.report.section import Drawn, Section, findings_table

if TYPE_CHECKING:
    from bench.findings import Finding
    from bench.results import Results


def _text(results: Results) -> str:
    findings = results.findings or findings_of(results.rows)
    parts = [
        _INTRO.format(dtype=results.settings.get("dtype", "bfloat16")),
        _models(results),
        *_remarks(results, findings),
    ]
    for group in dict.fromkeys(finding.group for finding in findings):
        table = findings_table(finding for finding in findings if finding.group == group)
        figure = _figure_name(group)
        place = f"\n{{figure: {figure}}}\n" if figure in _drawable(results) else ""
        before = f"{_KERNELS}\n" if group == KERNELS else ""
        parts.append(f"### {group}\n\n{before}{table}{place}")
    parts.append(_missing(results))
    return "\n".join(part for part in parts if part)


_INTRO = """\
Transformers of the sizes that people run, in {dtype}, with random weights, whose blocks cost what those of the
checkpoints cost: this is about time, memory and waits, and says nothing of pictures. They are called by themselves,
without a pipeline. Time is that of events in the device's stream. *Full step*, *wrapped ÷ bare* and *cached step* come
from steps that all models make in turn, in random order. A *loop* is a whole denoising run.

*Static* and *planned* follow a mask made before (Fn=0), *dynamic* and *measured* a threshold (Fn=1); *planned* and
*measured* skip nothing, the others every step but the first. In loops, *even* computes evenly spaced steps, about one
in four, and *slow* to *ultra* are the presets of `steps_mask`. *Ideal* is the speed-up if nothing but blocks took time.
"""

_IN_TURN = """\
**A cached step has two prices.** The host prepares its work in about as long as the row *alone* says. Where the host is
ahead of the device, as in a loop by a plan, that time is hidden behind the computed step before, and what is left is
the row *in a loop*: all that the loop takes beyond its computed steps. *In turn with other models* a step often comes
after one that waited, and the host is not ahead: of these steps some have the one price and some the other, which is
why the interval is wide.
"""

_WAITS = """\
**Measured steps of a transformer alone wait twice**, for the decision and for the timestep, by which it is noticed that
a run was given up and another began. In the call of a pipeline that names its branches, as those of diffusers do, the
timestep is not read, and the decision is the only wait: that is tested on a processor, by counting reads, and is not in
these rows, which miss the target. A wait lets the device run dry until the host has given it work again, so the cost is
*wrapped − bare*, a time for each step, and counts for more the shorter the step. With a plan there is no wait.
"""

_ROUNDS = """\
**Each loop was run {rounds} times**: the interval of a loop shows how far these runs lie apart, and no more.
"""

_PEERS = """\
**Beside diffusers' caches**, every method computes about every fourth step, FirstBlockCache and *ours, dynamic* with
the first block in each. *By work*, the ideal is the bare run's multiply-adds in the blocks over the method's.
TaylorSeer leaves out attention alone, so that it saves less; its share can exceed 1, where attention takes more time
for a multiply-add than the rest of a block. TaylorSeer lite predicts the model's output.
"""

_COMPILED = """\
**Compiled block by block**, the computed steps of a plan took longer than a bare model's, by more than the goal allows;
why is not known yet. A whole compiled loop has that in it: its share of the ideal is what is left of the speed-up.
"""

_KERNELS = """\
*Sum of n* is the prediction of a cached step, a tensor plus n weighted snapshots, for a feature of a large model:
compiled into one kernel, or by eager torch. Bytes are those of the tensors, each counted once; eager torch moves more.

*Pinned memory*: a step that sends one snapshot to the host and brings two back, with one matrix product to hide them
behind. It takes as long as the transfers: the ratio compares the host's link with the device's memory, and is not what
a loop loses. A step that computes blocks is much longer and has room for transfers; a cached step has not, and pays for
what it brings. `cache_device="cpu"` is for where memory is short.
"""


def _remarks(results: Results, findings: Iterable[Finding]) -> Iterator[str]:
    """What must be known to read the tables, as far as there are rows for it."""
    rows = {key: row for key, row in results.rows.items() if "error" not in row and "skipped" not in row}
    if any(key.endswith(": steps") for key in rows):
        yield _IN_TURN
    reads = [row["reads"].get("measured", ()) for key, row in rows.items() if key.endswith(": reads")]
    if any({"timesteps", "decisions"} <= set(step) for steps in reads for step in steps):
        yield _WAITS
    if any(": loop of" in key for key in rows) and "rounds" in results.settings:
        yield _ROUNDS.format(rounds=results.settings["rounds"])
    if any(key.endswith(": peers") for key in rows):
        yield _PEERS
    if any(one.name == COMPUTED.format(mode="regional") and one.reached is False for one in findings):
        yield _COMPILED


def _models(results: Results) -> str:
    lines = []
    for spec in SPECS.values():
        row = results.rows.get(f"{spec.name}: made", {})
        if "parameters" in row:
            picture, text = spec.tokens
            lines.append(
                f"- {spec.title}: {row['parameters'] / 1e9:.1f} billion parameters, {row['blocks']} blocks, {picture} "
                f"tokens of picture or video and {text} of text\n"
            )
    return "".join(lines)


def _missing(results: Results) -> str:
    """What failed, and what did not fit: said, so that nobody takes it for measured."""
    errors = {key: row["error"] for key, row in results.rows.items() if "error" in row}
    skipped = {key: row["skipped"] for key, row in results.rows.items() if "skipped" in row}
    left = results.rows.get(LEFT_OUT, {}).get("keys", [])
    lines = [f"- {key}: {reason}\n" for key, reason in (errors | skipped).items()]
    for key, row in results.rows.items():
        lines += [f"- {key}, {peer}: {reason}\n" for peer, reason in row.get("errors", {}).items() if ": peers" in key]
    by_model: dict[str, list[str]] = {}
    for key in left:
        name, _, part = key.rpartition(": ")
        model = f"{SPECS[name].title}: " if name in SPECS else ""
        by_model.setdefault(model, []).append(_PARTS.get(part, part))
    lines += [f"- {model}no time left for {', '.join(parts)}\n" for model, parts in by_model.items()]
    more = f"\n`{SECTION.repeat} --minutes 30` goes on with what did not fit, on the same machine.\n" if left else ""
    return f"### Not run\n\n{''.join(lines)}{more}" if lines else ""


#: Rows, for people.
_PARTS = {
    "made": "its size",
    "reads": "waits",
    "regional": "blocks compiled",
    "whole": "compiled whole",
    "graphs": "CUDA graphs",
}


def _figure_name(group: str) -> str:
    return next((f"gpu_{spec.name}" for spec in SPECS.values() if spec.title == group), "")


def _drawable(results: Results) -> dict[str, str]:
    """The figures that there are rows for, with their models' names."""
    return {
        f"gpu_{name}": name
        for name in SPECS
        if any(key.startswith(f"{name}: loop") and "error" not in row for key, row in results.rows.items())
    }


def _figures(results: Results) -> Iterator[Drawn]:
    from bench.gpu.plots import loops_figure

    for figure, name in _drawable(results).items():
        title = SPECS[name].title
        alt = f"{title}: measured speed-up of whole denoising loops over the ideal one, at each mask"
        yield Drawn(figure, alt, loops_figure(results.rows, name))


SECTION = Section(bench="gpu", title="On a GPU", repeat="cache-dit bench gpu", text=_text, figures=_figures)
