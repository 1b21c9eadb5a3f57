"""What our own settings cost: those of ``groups.yaml``, with what is expected of each."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

import cache_dit
from bench.cost.settings import ALWAYS, NEVER, Variant, options_by_name, threshold, variants_of
from bench.cost.steps import Row, expected
from bench.measures import Subject, by_name, putting
from bench.models import Size, drifting, guided, twin
from bench.results import row_of
from bench.timer import quiet

Options = dict[str, Any]
Table = tuple[Subject, list[Variant]]


@dataclass(frozen=True)
class Extent(Size):
    """The model, its input, how often it runs, and by which clock."""

    steps: int = 16
    runs: int = 3
    clock: str = "processor"
    quick: bool = False

    def subject(self) -> Subject:
        return Subject.of(self, self.clock, self.runs)

    def at_most(self, **fields: int) -> Extent:
        """The same with no more than so much of these."""
        return replace(self, **{name: min(most, getattr(self, name)) for name, most in fields.items()})


QUICK = Extent(hidden=64, double=1, single=2, image_tokens=16, text_tokens=4, steps=6, runs=2, quick=True)
#: By the name that ``--only`` knows them by, in the order in which they run.
GROUPS: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("groups.yaml").read_text(encoding="utf-8"))
#: The drifts of a batch's samples, slow ones and fast ones.
SPEEDS = tuple(0.2 * 1.6**place for place in range(8))


def table(name: str, size: Extent) -> Table:
    """What a group is measured on, and its settings."""
    group = GROUPS[name]
    size = size.at_most(**group.get("at_most", {}))
    size = size if size.quick else replace(size, **group.get("unless_quick", {}))
    if name == "batches":
        subject = _samples(size)
        return subject, variants(name, size, threshold(_median_diff(subject), max_warmup_steps=3))
    if "branches" in group:
        return _two_branches(size, by_name=group["branches"] == "by name"), variants(name, size)
    subject = size.subject()
    return subject, [_calibrated(one, subject) for one in variants(name, size)]


def variants(name: str, size: Extent, middling: Options | None = None) -> list[Variant]:
    """The settings of a group for a size; ``middling``: a threshold that about half of the diffs are below."""
    kept, blocks = list(range(0, size.blocks, 2)), size.blocks - 1  # DBPrune never decides on the first
    bases = {
        **options_by_name(size.steps),
        **{"middling": middling, "zero": threshold(0.0)},
        "half of the blocks": threshold(ALWAYS, non_prune_block_ids=kept),
    }
    places = {"decided": blocks, "prunable": size.blocks - len(kept), "two_each": 2 * blocks, "three_each": 3 * blocks}
    return variants_of(GROUPS[name]["settings"], bases, **places)


def _calibrated(variant: Variant, subject: Subject) -> Variant:
    """With what MagCache must know of the model."""
    options = variant.options or {}
    if options.get("policy") != "magcache":
        return variant
    watched = twin(subject.model)
    ratios = cache_dit.calibrate(watched, lambda: subject.run(watched), policy="magcache")
    return replace(variant, options={**options, "policy_calibration": ratios})


def _two_branches(size: Extent, *, by_name: bool) -> Subject:
    """Inputs of two branches of guidance, which differ in what they are told; half the runs, since each is two."""
    subject = replace(size, runs=max(1, size.runs // 2)).subject()
    words = ("encoder_hidden_states", "pooled_projections")
    pairs = zip(subject.inputs, drifting(size, seed=1), strict=True)
    both = [{"cond": cond, "uncond": {**cond, **{key: other[key] for key in words}}} for cond, other in pairs]
    return replace(subject, inputs=both, called=partial(guided, by_name=by_name))


def _samples(size: Extent) -> Subject:
    """A batch of samples that drift at speeds of their own."""
    subject = replace(size.subject(), inputs=drifting(size, SPEEDS))
    # Random weights react to the time like nothing trained does; so damped, it is the samples that differ.
    subject.model.time_text_embed.timestep_embedder.linear_2.weight.mul_(0.01)
    return subject


def _median_diff(subject: Subject) -> float:
    watched, steps = twin(subject.model), len(subject.inputs)
    with putting(by_name("cache_dit", threshold(NEVER)), watched, steps):
        subject.run(watched)
        return statistics.median(cache_dit.summary(watched, logging=False)[0].residual_diffs.values())


@torch.no_grad()
def measured(name: str, size: Extent) -> Row:
    """The row of a group: times, and what follows."""
    with quiet("cache_dit"):
        findings, row = expected(*table(name, size))
    return row_of((replace(finding, group=name) for finding in findings), **row)
