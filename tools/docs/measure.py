"""Runs the studies on the demo model. What comes out is plain data, which `report` and `draw` show."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch

import cache_dit
from cache_dit.demo.fidelity import Pixels, psnr
from cache_dit.engine.predictors.base import Predictor
from cache_dit.engine.predictors.registry import make_predictor
from cache_dit.summary import strify_options
from tools.docs.studies import (
    ERRORS_GAP,
    FEWER_STEPS,
    PREDICTOR_GAPS,
    PREDICTORS,
    PROMPTS,
    SCALES,
    SEED,
    SETTINGS_STEPS,
    STEPS,
    STUDIES,
    Case,
    every,
    planned,
    settings,
)

Data = dict[str, Any]


class Bench:
    """The demo model and its uncached pictures, with guidance and without."""

    def __init__(self) -> None:
        self.pipe = cache_dit.demo.load_pipeline(progress=False)
        self._references: dict[str, list[Pixels]] = {}

    def reference(self, scale: str) -> list[Pixels]:
        """The uncached picture of each prompt."""
        if scale not in self._references:
            cache_dit.disable_cache(self.pipe)
            self._references[scale] = [self.picture(prompt, scale) for prompt in PROMPTS]
        return self._references[scale]

    def picture(self, prompt: str, scale: str, steps: int = STEPS) -> Pixels:
        """One picture, as the pipeline stands."""
        output = self.pipe(
            prompt,
            num_inference_steps=steps,
            true_cfg_scale=SCALES[scale],
            generator=torch.Generator().manual_seed(SEED),
            output_type="np",
        )
        pixels: Pixels = output.images[0]
        return pixels

    def both(self, case: Case) -> Data:
        """One setting with guidance and without."""
        return {"label": case.label, "threshold": float(case.cache.residual_diff_threshold), "tag": _tag(case)} | {
            scale: self.case(case, scale) for scale in SCALES
        }

    def case(self, case: Case, scale: str) -> Data:
        """All prompts under one setting, against the uncached pictures."""
        reference = self.reference(scale)
        cache_dit.enable_cache(self.pipe, case.cache, case.calibrator)
        values, all_stats = [], []
        for prompt, picture in zip(PROMPTS, reference, strict=True):
            values.append(psnr(picture, self.picture(prompt, scale)))
            all_stats.append(cache_dit.summary(self.pipe, logging=False)[0])
        cache_dit.disable_cache(self.pipe)
        lines = [next(iter(stats.steps_line.values())) for stats in all_stats]
        return {
            "psnr": round(statistics.median(values), 2),
            "worst_psnr": round(min(values), 2),
            "speedup": round(statistics.geometric_mean(stats.ideal_speedup for stats in all_stats), 3),
            "computed": [min(line.count("F") for line in lines), max(line.count("F") for line in lines)],
            "peak_bytes": max(stats.peak_bytes for stats in all_stats),
            "line": lines[0],
            "diffs": {step: round(_mean(diff), 4) for step, diff in all_stats[0].residual_diffs.items()},
        }


def _mean(diff: float | list[float]) -> float:
    """A step's diff, or the mean over those of its blocks."""
    return statistics.fmean(diff) if isinstance(diff, list) else diff


def _tag(case: Case) -> str:
    return strify_options({"cache_config": case.cache, "calibrator_config": case.calibrator})


def conditions() -> Data:
    """What was measured on."""
    import diffusers

    return {
        "model": "the demo model",
        "prompts": list(PROMPTS),
        "steps": STEPS,
        "seed": SEED,
        "guidance": SCALES["guided"],
        "dtype": "float32",
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }


def study(bench: Bench, name: str) -> Data:
    """The cases of a study, and what taking fewer steps gives."""
    cases = [bench.both(case) for case in STUDIES[name].cases()]
    return {"conditions": conditions(), "cases": cases}


def baseline(bench: Bench) -> Data:
    """Uncached pictures of fewer steps, against those of all steps; and how the blocks' residual moves."""
    residuals = trajectory(bench, PROMPTS[0])
    changes = [_relative_l1(before, now) for before, now in pairwise(residuals)]
    return {
        "conditions": conditions(),
        "fewer_steps": {scale: [_fewer(bench, scale, steps) for steps in FEWER_STEPS] for scale in SCALES},
        "residual_changes": [round(change, 4) for change in changes],
    }


def settings_compared(bench: Bench, rounds: int = 5) -> Data:
    """The README's settings beside no cache and fewer steps: processor time in turns, on one thread; quality; state."""
    torch.set_num_threads(1)
    uncached = "no cache"
    fewer = f"no cache, {SETTINGS_STEPS} steps"
    cases = {case.label: case for case in settings()}
    seconds: dict[str, list[float]] = {label: [] for label in (uncached, fewer, *cases)}
    for _ in range(rounds):
        for prompt in PROMPTS:
            for label, spent in seconds.items():
                spent.append(_seconds(bench, prompt, cases.get(label), SETTINGS_STEPS if label == fewer else STEPS))
    pairs = zip(PROMPTS, bench.reference("guided"), strict=True)
    values = [psnr(picture, bench.picture(prompt, "guided", SETTINGS_STEPS)) for prompt, picture in pairs]
    found = {label: bench.case(case, "guided") for label, case in cases.items()}
    found[fewer] = {"psnr": round(statistics.median(values), 2), "worst_psnr": round(min(values), 2), "peak_bytes": 0}
    times = {label: round(statistics.median(spent), 4) for label, spent in seconds.items()}
    return {"conditions": conditions(), "seconds": times, "cases": found}


def _seconds(bench: Bench, prompt: str, case: Case | None, steps: int) -> float:
    """The processor time of a picture, prompt to pixels."""
    cache_dit.disable_cache(bench.pipe)
    if case is not None:
        cache_dit.enable_cache(bench.pipe, case.cache, case.calibrator)
    start = time.process_time()
    bench.picture(prompt, "guided", steps)
    spent = time.process_time() - start
    cache_dit.disable_cache(bench.pipe)
    return spent


def _fewer(bench: Bench, scale: str, steps: int) -> Data:
    pairs = zip(PROMPTS, bench.reference(scale), strict=True)
    values = [psnr(picture, bench.picture(prompt, scale, steps)) for prompt, picture in pairs]
    return {"steps": steps, "speedup": round(STEPS / steps, 3), "psnr": round(statistics.median(values), 2)}


def predictors(bench: Bench, names: Iterable[str]) -> Data:
    """Every predictor over the same masks, and its error at each skipped step of an uncached run."""
    residuals = trajectory(bench, PROMPTS[0])
    mask = every(ERRORS_GAP)
    found = {}
    for name in names:
        config = PREDICTORS[name].config()
        predictor = make_predictor(config)
        found[name] = {
            "label": PREDICTORS[name].label,
            "history": predictor.history,
            "errors": {step: round(error, 4) for step, error in _errors(predictor, residuals, mask)},
            "cases": [bench.both(planned(gap, calibrator=config)) for gap in PREDICTOR_GAPS],
        }
    return {"conditions": conditions(), "mask": mask, "predictors": found}


def trajectory(bench: Bench, prompt: str) -> list[torch.Tensor]:
    """What all blocks together add to the hidden states at each step of an uncached run, conditional branch."""
    cache_dit.disable_cache(bench.pipe)
    transformer = bench.pipe.transformer
    with _recorded(transformer) as calls:
        bench.picture(prompt, "guided")
    return [output - given for given, output in calls[::2]]


@contextmanager
def _recorded(transformer: Any) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """(H before the first block, H after the last block) of each call of a FLUX transformer."""
    given: list[torch.Tensor] = []
    calls: list[tuple[torch.Tensor, torch.Tensor]] = []

    def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given.append(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])

    def after(module: Any, args: tuple[Any, ...], output: Any) -> None:
        calls.append((given[-1], output[1]))

    handles = [
        transformer.transformer_blocks[0].register_forward_pre_hook(before, with_kwargs=True),
        transformer.single_transformer_blocks[-1].register_forward_hook(after),
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _errors(predictor: Predictor, residuals: list[torch.Tensor], mask: list[int]) -> Iterator[tuple[int, float]]:
    """The relative L1 error of each skipped step's prediction, from the true residuals at the computed steps."""
    times: list[float] = []
    for step, compute in enumerate(mask):
        if compute:
            times.append(float(step))
            continue
        known = times[-predictor.history :]
        snapshots = [residuals[int(time)] for time in known]
        arguments: list[Any] = [known, float(step)]
        if getattr(predictor, "needs_gram", False):
            arguments.append([[float((one * other).sum()) for other in snapshots] for one in snapshots])
        weights = predictor.coefficients(*arguments)
        pairs = zip(weights, snapshots[-len(weights) :], strict=True)
        predicted = sum((weight * snapshot for weight, snapshot in pairs), torch.zeros_like(snapshots[-1]))
        yield step, _relative_l1(residuals[step], predicted)


def _relative_l1(reference: torch.Tensor, other: torch.Tensor) -> float:
    return float((other - reference).abs().mean() / reference.abs().mean())
