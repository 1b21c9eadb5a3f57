"""The guard of a plan, what it promises and what comes true: ``python -m tools.docs.guard`` measures, fills the page.

The demo model's plan is calibrated on one style of its captions, then tried on further captions of that style, on
another style, and with another number of steps. With ``--draw`` nothing is measured.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from tools.docs.report import DOCS, FIGURES

STYLE, OTHER = "noto emoji of", "glossy 3d emoji of"
PICTURES, STEPS, OTHER_STEPS, SEED, LEVEL = 24, 28, 50, 100, 0.9

#: Of the demo model's plan. What its next faster point does without, the guard may drop.
FULL_STEPS = 8

_PLACE = re.compile(r"(<!-- guard -->\n).*?(<!-- end of guard -->)", re.DOTALL)

Data = dict[str, Any]


def main() -> None:
    """Measure, unless asked not to; draw; fill the page."""
    parser = argparse.ArgumentParser(prog="python -m tools.docs.guard", description=__doc__)
    parser.add_argument("--captions", metavar="FILE", help="JSON lines with a caption each")
    parser.add_argument("--draw", action="store_true", help="only draw, and fill the page")
    arguments = parser.parse_args()
    path = FIGURES / "guard.json"
    if not arguments.draw:
        if arguments.captions is None:
            parser.error("--captions FILE: where are the captions?")
        with open(arguments.captions, encoding="utf-8") as lines:
            captions = [json.loads(line)["caption"] for line in lines]
        data = measure(captions)
        path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    draw(json.loads(path.read_text(encoding="utf-8")))
    page = DOCS / "plan_guard.md"
    page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")


def chosen(captions: Sequence[str], style: str, count: int, start: int = 0) -> list[str]:
    """Captions of a style, drawn at random, always the same."""
    found = sorted({caption for caption in captions if caption.startswith(style)})
    random.Random(style).shuffle(found)
    return found[start : start + count]


def measure(captions: Sequence[str]) -> Data:
    """Calibrate, then draw every picture of each case by the plan alone and under the guard."""
    import torch

    import cache_dit
    from cache_dit.demo.plans import demo_plan
    from cache_dit.planning.guard_run import calibrate_guard

    torch.set_num_threads(1)
    began = time.perf_counter()
    pipe = cache_dit.demo.load_pipeline(progress=False)
    levels = {steps: _sigmas(pipe, steps) for steps in (STEPS, OTHER_STEPS)}
    plan = demo_plan(STEPS).select(full_steps=FULL_STEPS)
    plan = calibrate_guard(pipe, plan, chosen(captions, STYLE, PICTURES), level=LEVEL, seed=SEED, progress=_say)
    adapted = plan.adapt(OTHER_STEPS, levels[OTHER_STEPS])
    assert plan.guard is not None
    if adapted.guard is None:
        adapted = replace(adapted, guard=plan.guard.adapted(levels[STEPS], levels[OTHER_STEPS]))
    same = chosen(captions, STYLE, PICTURES, PICTURES)
    other = chosen(captions, OTHER, PICTURES)
    fewer = same[: PICTURES // 2] + other[: PICTURES // 2]
    cases = {
        "the calibration's style": (plan, same, STEPS),
        "another style": (plan, other, STEPS),
        f"both, {OTHER_STEPS} steps": (adapted, fewer, OTHER_STEPS),
    }
    return {
        "masks": {branch: schedule.text for branch, schedule in plan.point.branches.items()},
        "planned": plan.point.quality.mean if plan.point.quality else None,
        "guidance": pipe.call_defaults["true_cfg_scale"],
        "steps": STEPS,
        "level": LEVEL,
        "style": STYLE,
        "other_style": OTHER,
        "calibration_prompts": PICTURES,
        "calibration": {name: value for name, value in plan.as_dict()["guard"].items()},
        "promise": plan.guard.promise(LEVEL),
        "below": plan.guard.below(LEVEL),
        "cases": {name: _case(pipe, *case) for name, case in cases.items()},
        "torch": torch.__version__,
        "seconds": round(time.perf_counter() - began),
    }


def _say(done: int, runs: int) -> None:
    print(f"{done} of {runs} runs", flush=True)


def _sigmas(pipe: Any, steps: int) -> list[float]:
    """The noise level of each step of the demo's runs."""
    pipe(STYLE, num_inference_steps=steps, output_type="latent")
    return [round(float(sigma), 6) for sigma in pipe.scheduler.sigmas[:steps]]


def _case(pipe: Any, plan: Any, prompts: Sequence[str], steps: int) -> Data:
    """Each picture by the plan alone, and under the guard."""
    import torch

    from cache_dit.planning.guard_run import Runner

    def draw_one(prompt: Any, number: int) -> Any:
        generator = torch.Generator().manual_seed(SEED + 1000 + number)
        return pipe(prompt, num_inference_steps=steps, generator=generator, output_type="np").images[0]

    runner = Runner(pipe, plan, draw_one)
    rows = []
    for number, prompt in enumerate(prompts):
        alone = runner.guarded(prompt, number, plan.guard, acts=False)
        under = runner.guarded(prompt, number, plan.guard)
        print(f"{prompt}: {alone.psnr:.1f} dB alone, {under.psnr:.1f} dB guarded, {under.computed} steps", flush=True)
        rows.append(
            {
                "prompt": prompt,
                "alone": {"psnr": round(alone.psnr, 3), "estimated": round(alone.estimated, 3)},
                "guarded": {
                    "psnr": round(under.psnr, 3),
                    "estimated": round(under.estimated, 3),
                    "computed": under.computed,
                    "inserted": list(under.inserted),
                    "dropped": list(under.dropped),
                    "reads": under.reads,
                },
            }
        )
    return {"steps": steps, "planned": plan.point.full_steps, "pictures": rows}


def facts(data: Data, case: Data) -> Data:
    """What a case comes to."""
    rows = case["pictures"]
    alone, under = [row["alone"] for row in rows], [row["guarded"] for row in rows]
    target, count = data["calibration"]["target"], len(rows)
    return {
        "pictures": count,
        "alone": statistics.fmean(one["psnr"] for one in alone),
        "alone_reach": sum(one["psnr"] >= target for one in alone),
        "mean": statistics.fmean(one["psnr"] for one in under),
        "reach": sum(one["psnr"] >= target for one in under),
        "kept": sum(one["psnr"] >= data["promise"] for one in under),
        "covered": sum(one["psnr"] >= one["estimated"] - data["below"] for one in under),
        "computed": statistics.fmean(one["computed"] for one in under),
        "inserting": sum(bool(one["inserted"]) for one in under),
        "dropping": sum(bool(one["dropped"]) for one in under),
        "error": statistics.fmean(abs(one["estimated"] - one["psnr"]) for one in alone),
        "correlation": correlation([one["estimated"] for one in alone], [one["psnr"] for one in alone]),
        "reads": statistics.fmean(one["reads"] for one in under),
    }


def correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Pearson's; 0 where one does not vary."""
    middle_x, middle_y = statistics.fmean(x), statistics.fmean(y)
    spread = math.sqrt(sum((a - middle_x) ** 2 for a in x) * sum((b - middle_y) ** 2 for b in y))
    return sum((a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True)) / spread if spread else 0.0


def filled(text: str) -> str:
    """The page with its table made anew from the data."""
    data = json.loads((FIGURES / "guard.json").read_text(encoding="utf-8"))
    body = "\n".join(_lines(data))
    return _PLACE.sub(lambda place: f"{place[1]}\n{body}\n\n{place[2]}", text)


def _lines(data: Data) -> Iterator[str]:
    made, level = data["calibration"], data["level"]
    masks = " and ".join(f"`{text}`" for text in data["masks"].values())
    pictures = data["calibration_prompts"]
    yield (
        "![Estimated and true PSNR of each picture under the guard, and the line above which the promise holds]"
        "(figures/guard.svg)"
    )
    yield ""
    yield (
        f"*The demo model, {data['steps']} steps, guidance {data['guidance']:g}; its plan for {made['full_steps']} "
        f"full steps, {masks}, measured at {data['planned']:.1f} dB on captions of all kinds. Calibrated "
        f"with {pictures} captions that begin with “{data['style']}”; the other style is "
        f"“{data['other_style']}”. torch {data['torch']}. [Data](figures/guard.json).*"
    )
    yield ""
    yield (
        f"The calibration chose to listen to {', '.join(made['branches']) or 'all branches'}, to work for "
        f"{made['target']:.1f} dB and to act below an estimate of {made['target'] + made['margin']:.1f} dB. Its "
        f"{len(made['scores'])} held-out pictures promise, for at least {level:.0%} of pictures like them: "
        f"**PSNR ≥ {data['promise']:.1f} dB**, and of each picture a PSNR of at least its estimate less "
        f"{data['below']:.1f} dB."
    )
    yield ""
    found = {name: facts(data, case) for name, case in data["cases"].items()}
    yield f"| | {' | '.join(found)} |"
    yield f"| --- |{' --- |' * len(found)}"
    for label, show in _ROWS:
        yield f"| {label} | {' | '.join(show(one) for one in found.values())} |"


def _of(name: str) -> Any:
    return lambda one: f"{one[name]} of {one['pictures']} ({one[name] / one['pictures']:.0%})"


_ROWS: tuple[tuple[str, Any], ...] = (
    ("**the plan's promise kept**", _of("kept")),
    ("**the picture's own promise kept**", _of("covered")),
    ("reached what the guard works for", _of("reach")),
    ("the same without the guard", _of("alone_reach")),
    ("mean PSNR, guarded", lambda one: f"{one['mean']:.1f} dB"),
    ("mean PSNR without", lambda one: f"{one['alone']:.1f} dB"),
    ("full steps, guarded", lambda one: f"{one['computed']:.1f}"),
    ("pictures with inserted steps", _of("inserting")),
    ("pictures with dropped steps", _of("dropping")),
    ("estimate and truth, without the guard: mean distance", lambda one: f"{one['error']:.1f} dB"),
    ("their correlation", lambda one: f"{one['correlation']:.2f}"),
    ("reads of the host in a run", lambda one: f"{one['reads']:.1f}"),
)


def draw(data: Data) -> None:
    """Estimated against true PSNR, case by case."""
    import matplotlib.pyplot as plt

    from bench.report import style
    from bench.report.style import CACHED, COMPUTED, GRID, INK

    figure, axes = plt.subplots(1, len(data["cases"]), figsize=(9, 3.2), sharex=True, sharey=True, layout="constrained")
    for axis, (name, case) in zip(axes, data["cases"].items(), strict=True):
        rows = case["pictures"]
        ends = [row["guarded"]["estimated"] for other in data["cases"].values() for row in other["pictures"]]
        line = [min(ends), max(ends)]
        axis.plot(line, [end - data["below"] for end in line], color=INK, linewidth=1)
        axis.axhline(data["promise"], color=GRID, linewidth=1)
        for key, color in (("alone", CACHED), ("guarded", COMPUTED)):
            points = [(row[key]["estimated"], row[key]["psnr"]) for row in rows]
            axis.plot(*zip(*points, strict=True), "o", color=color, markersize=4, label=key)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("estimated PSNR, dB")
    axes[0].set_ylabel("PSNR, dB")
    axes[0].legend(fontsize=8)
    style.save(figure, FIGURES / "guard.svg")


if __name__ == "__main__":
    main()
