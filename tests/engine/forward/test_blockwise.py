"""DBPrune on real modules: each block by itself. In a line of blocks 1 is one that ran, 0 one that was skipped."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.hooks import apply_group_offloading
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import cache_dit
from cache_dit import (
    CalibratorConfig,
    DBCacheConfig,
    DBPruneConfig,
    FoCaCalibratorConfig,
    TaylorSeerCalibratorConfig,
)
from cache_dit.caching.cache_contexts import PrunedContextManager
from cache_dit.config import ExtraCacheConfig, HermiteCalibratorConfig, NewtonCalibratorConfig
from cache_dit.engine.predictors.registry import make_predictor
from cache_dit.engine.state import measure
from cache_dit.engine.state.snapshots import Snapshots
from cache_dit.engine.subclass import state_of
from tests.kit import tiny_flux
from tests.kit.equality import close, same
from tests.kit.threads import in_threads
from tests.kit.tiny_models import inputs, tiny
from tests.kit.toys import (
    FORMS,
    TEXT,
    TOKENS,
    WIDTH,
    InPlacePair,
    InPlaceSolo,
    Joined,
    OptionalToy,
    PairBlock,
    SoloBlock,
    Toy,
    counted,
    frozen_run,
    line,
    lines,
    loop,
    normal,
    stream_inputs,
)

DECISIONS = pytest.mark.parametrize("decision", ["block", "previous"])
CALIBRATORS: dict[str, CalibratorConfig | None] = {
    "reuse": None,
    "taylor": TaylorSeerCalibratorConfig(taylorseer_order=1),
    "taylor 2": TaylorSeerCalibratorConfig(taylorseer_order=2),
    "newton": NewtonCalibratorConfig(newton_order=2),
    "hermite": HermiteCalibratorConfig(),
    "foca": FoCaCalibratorConfig(),
    "states": TaylorSeerCalibratorConfig(taylorseer_order=0, calibrator_cache_type="hidden_states"),
    "states by taylor": TaylorSeerCalibratorConfig(taylorseer_order=1, calibrator_cache_type="hidden_states"),
}

#: One family for each way in which blocks are called and lists follow each other; tests/models has all of them.
FAMILIES = (
    "FluxTransformer2DModel",
    "Flux2Transformer2DModel",
    "QwenImageTransformer2DModel",
    "WanTransformer3DModel",
    "SD3Transformer2DModel",
    "PixArtTransformer2DModel",
)


def config(**options: Any) -> DBPruneConfig:
    """One block always computes, one step of warm-up, a generous threshold."""
    return DBPruneConfig(**{"Fn_compute_blocks": 1, "max_warmup_steps": 1, "residual_diff_threshold": 0.5, **options})


def by_mask(mask: str, **options: Any) -> DBPruneConfig:
    """A static plan: F computes, P skips all blocks that may be."""
    bits = [int(letter == "F") for letter in mask]
    return config(steps_computation_mask=bits, steps_computation_policy="static", **options)


class Watched:
    """Calls a model and notes which blocks ran in each call."""

    def __init__(self, model: Any, blocks: Sequence[nn.Module] | None = None) -> None:
        self.model = model
        self.blocks = list(model.all_blocks if blocks is None else blocks)
        self.ran: list[str] = []

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        with counted(self.blocks) as fired:
            output: Tensor = self.model(*args, **kwargs)
        self.ran.append("".join(str(fired[place]) for place in range(len(self.blocks))))
        return output


def enabled(model: Any, cache: DBCacheConfig | DBPruneConfig, calibrator: Any = None, **described: Any) -> Watched:
    """A model with the cache on."""
    cache_dit.enable_cache(model.adapter(**described), cache, calibrator)
    return Watched(model)


def stats(model: Any, chain: int = 0) -> Any:
    """What the cache did on a chain."""
    return cache_dit.summary(model, logging=False)[chain]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many numbers each read brought back from the device."""
    seen: list[int] = []
    read_back = measure.read_back

    def counting(values: Tensor) -> list[float]:
        seen.append(values.numel())
        return read_back(values)

    monkeypatch.setattr(measure, "read_back", counting)
    return seen


def reads_of(model: Callable[..., Any], reads: list[int], calls: Iterable[Sequence[Any]]) -> list[int]:
    """The number of reads in each call."""
    counts = []
    for given in calls:
        reads.clear()
        with torch.no_grad():
            model(*given)
        counts.append(len(reads))
    return counts


# -- the definition


class Definition:
    """What DBPrune is, said once more in the plainest way: put around a toy without a cache."""

    def __init__(self, model: Toy, asked: DBPruneConfig, calibrator: CalibratorConfig | None = None) -> None:
        self.blocks = model.all_blocks
        self.asked = asked
        self.predictor = make_predictor(calibrator)
        ends = [*range(asked.Fn_compute_blocks), *range(len(self.blocks) - asked.Bn_compute_blocks, len(self.blocks))]
        self.kept = {*ends, *asked.non_prune_block_ids}
        self.inputs: dict[int, Tensor] = {}
        self.pasts: dict[int, list[tuple[int, Tensor, Any]]] = {}
        self.ran: list[str] = []
        self.model, self.plain = model, model.step
        model.step = self.step  # type: ignore[method-assign]

    @torch.no_grad()
    def __call__(self, *args: Any) -> Tensor:
        self.ran.append("")
        output: Tensor = self.model(*args)
        return output

    def step(self, block: nn.Module, hidden: Tensor, encoder: Any) -> tuple[Tensor, Any]:
        place, step = len(self.ran[-1]), len(self.ran) - 1
        if self.skips(place, step, hidden):
            self.ran[-1] += "0"
            past = self.pasts[place][-self.predictor.history :]
            weights = self.predictor.coefficients([float(time) for time, _, _ in past], float(step))
            past = past[-len(weights) :]
            hidden = hidden + sum(weight * added for weight, (_, added, _) in zip(weights, past, strict=True))
            if past[-1][2] is not None:
                encoder = encoder + sum(weight * added for weight, (_, _, added) in zip(weights, past, strict=True))
            return hidden, encoder
        self.ran[-1] += "1"
        after = self.plain(block, hidden, encoder)
        told = isinstance(encoder, Tensor) and after[1] is not encoder
        self.inputs[place] = hidden
        added = after[0] - hidden, after[1] - encoder if told else None
        self.pasts.setdefault(place, []).append((step, *added))
        return after

    def skips(self, place: int, step: int, hidden: Tensor) -> bool:
        if place in self.kept or step < self.asked.max_warmup_steps:
            return False
        before = self.inputs[place]
        return bool((hidden - before).abs().mean() / before.abs().mean() < self.asked.residual_diff_threshold)


def wander(model: Toy, steps: int, *, seed: int = 0) -> list[Any]:
    """Inputs that change from step to step, now more, now less."""
    start = stream_inputs(model, seed=seed)
    sizes = [0.02 + 0.1 * abs(math.sin(2.1 * step)) for step in range(steps)]
    given = [start]
    for step, size in enumerate(sizes[1:], start=1):
        given.append([stream + size * normal(*stream.shape, seed=100 * seed + step) for stream in given[-1]])
    return given


@pytest.mark.parametrize("calibrator", ["reuse", "taylor 2", "foca"])
@pytest.mark.parametrize("form", ["0", "1", "2", "3", "4", "5"])
def test_it_does_what_its_definition_says(form: str, calibrator: str) -> None:
    patterns: set[str] = set()
    for threshold in (0.1, 0.15):
        asked = config(residual_diff_threshold=threshold, max_warmup_steps=2, non_prune_block_ids=[3])
        defined = Definition(Toy(form, (9,)), asked, CALIBRATORS[calibrator])
        model = enabled(Toy(form, (9,)), asked, CALIBRATORS[calibrator])
        for given in wander(model.model, 14):
            assert close(model(*given), defined(*given))
        assert model.ran == defined.ran
        patterns.update(model.ran)
    assert len(patterns) > 4  # blocks were decided each by itself: a block is compared with its own last computed input


def test_the_trace_of_the_reference() -> None:
    asked = config(max_warmup_steps=2, Bn_compute_blocks=1, non_prune_block_ids=[3, 60])
    model = enabled(Toy("0", (6,)), asked)
    frozen_run(model, stream_inputs(), 6)
    assert model.ran == ["111111"] * 2 + ["100101"] * 4
    told = stats(model.model)
    assert (told.pruned_ratio, told.pruned_blocks, told.actual_blocks) == (12 / 36, [0, 0, 3, 3, 3, 3], [6] * 6)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_cached_steps": 2}, "FPPFFF"),
        ({"max_continuous_cached_steps": 1}, "FPFPFP"),
        ({"max_warmup_steps": 4, "warmup_interval": 2}, "FPFPPP"),
        ({"steps_computation_mask": [1, 0, 1, 0, 0, 1]}, "FPFPPF"),
        ({"num_inference_steps": 2}, "FFFFFF"),
        ({"residual_diff_threshold": 1.0}, "FPPPPP"),
        ({"residual_diff_threshold": torch.tensor(0.5)}, "FPPPPP"),
    ],
    ids=str,
)
def test_warm_up_mask_and_limits_count_steps_not_blocks(options: dict[str, Any], expected: str) -> None:
    model = enabled(Toy(), config(**options))
    frozen_run(model, stream_inputs(), 6)
    assert model.ran == [{"F": "11111", "P": "10000"}[letter] for letter in expected]


def test_a_threshold_for_hidden_states_takes_the_place_of_the_other() -> None:
    extra = ExtraCacheConfig(l1_hidden_states_diff_threshold=0.5)
    model = enabled(Toy(), config(residual_diff_threshold=1e-9, extra_cache_config=extra))
    for given in wander(model.model, 4):
        model(*given)
    assert line(model.model) == "FPPP"


def test_only_the_tokens_that_changed_count_where_that_is_asked() -> None:
    moved = [list(stream_inputs()) for _ in range(4)]
    for step, given in enumerate(moved):
        given[0] = torch.cat([given[0][:, :1] * (1 + step / 2), given[0][:, 1:]], dim=1)
    ran = {}
    for decision in ("block", "previous"):
        for important in (0.0, 0.2):
            extra = ExtraCacheConfig(important_condition_threshold=important)
            asked = config(residual_diff_threshold=0.3, extra_cache_config=extra, prune_decision=decision)
            model = enabled(Toy("3"), asked)
            for given in moved:
                model(given[0])
            ran[decision, important] = model.ran[1 if decision == "block" else 2]
    assert ran == {
        ("block", 0.0): "10000", ("block", 0.2): "11111", ("previous", 0.0): "10000", ("previous", 0.2): "11111"
    }  # fmt: skip


def test_the_dynamic_threshold_follows_the_first_diffs_of_a_step() -> None:
    given = wander(Toy("0", (7,)), 10)
    fixed = enabled(Toy("0", (7,)), config(residual_diff_threshold=0.08))
    asked = config(
        residual_diff_threshold=0.08,
        enable_dynamic_prune_threshold=True,
        max_dynamic_prune_threshold=0.3,
        dynamic_prune_threshold_relax_ratio=1.25,
    )
    dynamic = enabled(Toy("0", (7,)), asked)
    for streams in given:
        fixed(*streams)
        dynamic(*streams)
    for step, diffs in stats(dynamic.model).residual_diffs.items():
        ran = dynamic.ran[int(step)][1:]
        for place, diff in enumerate(diffs):
            first = diffs[: min(place, 5)]
            relaxed = 1.25 * sum(first) / len(first) if first else 0.0
            limit = max(0.08, relaxed) if relaxed < 0.3 else 0.08
            assert ran[place] == ("0" if diff < limit else "1")
    assert "".join(dynamic.ran).count("0") > "".join(fixed.ran).count("0")


# -- frozen inputs


def check_frozen(model: Any, asked: DBPruneConfig, calibrator: Any = None, given: Any = None, **described: Any) -> None:
    """The same inputs at each step: true outputs, all blocks skipped that may be, and those not called."""
    given = stream_inputs(model) if given is None else given
    expected = model(*given)
    watched = enabled(model, asked, calibrator, **described)
    assert close(frozen_run(watched, given, 6), expected)
    free = [
        place in range(asked.Fn_compute_blocks, len(watched.blocks) - asked.Bn_compute_blocks)
        and place not in asked.non_prune_block_ids
        for place in range(len(watched.blocks))
    ]
    first = 2 if asked.prune_decision == "previous" else 1
    pruned = "".join("0" if may_be else "1" for may_be in free)
    assert watched.ran == ["1" * len(free)] * first + [pruned] * (6 - first)


@DECISIONS
@pytest.mark.parametrize(
    "options", [{}, {"Bn_compute_blocks": 2}, {"Fn_compute_blocks": 2, "non_prune_block_ids": [3]}]
)
@pytest.mark.parametrize("form", FORMS)
def test_a_skipped_block_gives_the_true_output(form: str, options: dict[str, Any], decision: str) -> None:
    model = Toy(form, keywords=bool(options))
    check_frozen(model, config(**options, prune_decision=decision))


@pytest.mark.parametrize("calibrator", CALIBRATORS)
@pytest.mark.parametrize("form", ["0", "1", "2", "3", "4", "5"])
def test_whatever_is_kept_and_however_it_is_predicted(form: str, calibrator: str) -> None:
    check_frozen(Toy(form), config(), CALIBRATORS[calibrator])


@DECISIONS
@pytest.mark.parametrize("form", ["0", "2", "3", "4"])
def test_two_lists_as_one_chain(form: str, decision: str) -> None:
    check_frozen(Toy(form, (3, 3)), config(Bn_compute_blocks=1, prune_decision=decision), merge=True)


@DECISIONS
@pytest.mark.parametrize("join", ["eh", "he"])
def test_two_lists_of_which_the_second_reads_both_streams_as_one(join: str, decision: str) -> None:
    check_frozen(Joined(join), config(prune_decision=decision), CALIBRATORS["taylor"])


def test_two_lists_as_two_chains_are_decided_each_by_its_own() -> None:
    model = Toy("0", (3, 4))
    expected = model(*stream_inputs())
    watched = enabled(model, config(non_prune_block_ids=[2]))
    assert close(frozen_run(watched, stream_inputs(), 3), expected)
    assert watched.ran == ["1111111", "1011010", "1011010"]
    assert [chain.pruned_blocks for chain in cache_dit.summary(model, logging=False)[:2]] == [[0, 1, 1], [0, 2, 2]]


@pytest.mark.parametrize("front", [0, 1])
@pytest.mark.parametrize("form", FORMS)
def test_a_static_mask_skips_and_reads_nothing(form: str, front: int, reads: list[int]) -> None:
    model = Toy(form)
    given = stream_inputs(model)
    expected = model(*given)
    watched = enabled(model, by_mask("FPPFPF", Fn_compute_blocks=front, Bn_compute_blocks=1))
    assert close(frozen_run(watched, given, 6), expected)
    pruned = "10001" if front else "00001"
    assert watched.ran == ["11111" if letter == "F" else pruned for letter in "FPPFPF"]
    assert reads == []
    assert all(block.input is None for block in state_of(model).latest.caches["default", 0, 0].blocks.values())


@pytest.mark.parametrize("name", FAMILIES)
@DECISIONS
def test_a_family_gives_the_true_output(name: str, decision: str) -> None:
    model = tiny(name)
    given = inputs(name, timestep=0.6)
    with torch.no_grad():
        expected = model(**given, return_dict=False)[0]
    cache_dit.enable_cache(model, config(enable_separate_cfg=False, prune_decision=decision), CALIBRATORS["taylor"])
    with torch.no_grad():
        outputs = [model(**given, return_dict=False)[0] for _ in range(5)]
    assert close(outputs, expected)
    for chain in cache_dit.summary(model, logging=False)[:-1]:
        every = chain.actual_blocks[0] - 1
        assert chain.pruned_blocks == ([0, 0] if decision == "previous" else [0, every]) + [every] * 3


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("options", [{"residual_diff_threshold": 0.0}, {"residual_diff_threshold": 1e-12}])
def test_with_all_computed_or_disabled_a_family_is_the_plain_one_bit_for_bit(
    name: str, options: dict[str, Any]
) -> None:
    model = tiny(name)
    given = [inputs(name, timestep=timestep) for timestep in loop(3)]
    with torch.no_grad():
        expected = [model(**one, return_dict=False)[0] for one in given]
        cache_dit.enable_cache(model, config(enable_separate_cfg=False, **options))
        assert same([model(**one, return_dict=False)[0] for one in given], expected)
        assert lines(model) == {"default": "FFF"}
        cache_dit.disable_cache(model)
        assert same([model(**one, return_dict=False)[0] for one in given], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_in_every_dtype(dtype: torch.dtype) -> None:
    model = Toy("1").to(dtype)
    given = [stream.to(dtype) for stream in stream_inputs()]
    expected = model(*given)
    watched = enabled(model, config(), CALIBRATORS["taylor"])
    outputs = frozen_run(watched, given, 4)
    assert close(outputs, expected, depth=4)  # the residual, the two sums of its streams, the block after
    assert watched.ran == ["11111"] + ["10000"] * 3


def test_under_inference_mode() -> None:
    model = Toy()
    expected = model(*stream_inputs())
    watched = enabled(model, config())
    with torch.inference_mode():
        outputs = [watched.model(*stream_inputs()) for _ in range(4)]
    assert close(outputs, expected)
    assert line(model) == "FPPP"


# -- predictions


class Growing(nn.Module):
    """Adds what grows with a power of the time, to both streams."""

    def __init__(self, power: int) -> None:
        super().__init__()
        self.power = power
        self.hidden, self.encoder = nn.Parameter(normal(WIDTH)), nn.Parameter(normal(WIDTH, seed=1))

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, time: float) -> tuple[Tensor, Tensor]:
        growth = (time / 4) ** self.power
        return hidden_states + growth * self.hidden, encoder_hidden_states - growth * self.encoder


class GrowingToy(Toy):
    """A toy whose every block's residual is a power of the time."""

    def __init__(self, power: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Growing(power) for _ in range(4)).requires_grad_(False)

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Any = None, timestep: Any = None) -> Tensor:
        hidden, encoder = hidden_states, encoder_hidden_states
        for block in self.blocks:
            hidden, encoder = block(hidden, encoder, time=timestep)
        return torch.cat([hidden, encoder], dim=1)


@pytest.mark.parametrize(
    ("power", "calibrator"),
    [
        (1, TaylorSeerCalibratorConfig(taylorseer_order=1)),
        (2, TaylorSeerCalibratorConfig(taylorseer_order=2)),
        (2, NewtonCalibratorConfig(newton_order=2)),
        (1, FoCaCalibratorConfig()),
        (1, TaylorSeerCalibratorConfig(taylorseer_order=1, calibrator_cache_type="hidden_states")),
        (2, TaylorSeerCalibratorConfig(taylorseer_order=2, coordinate="timestep")),
    ],
)
def test_a_polynomial_is_continued_exactly_over_uneven_gaps(power: int, calibrator: CalibratorConfig) -> None:
    mask = "FFPFPPFPPPF" + "P" * 3
    plain, model = GrowingToy(power), GrowingToy(power)
    watched = enabled(model, by_mask(mask), calibrator)
    for step in range(len(mask)):
        expected = plain(*stream_inputs(), float(step))
        output = watched(*stream_inputs(), float(step))
        if mask[step] == "F" or mask[:step].count("F") > power:
            assert close(output, expected, growth=10)  # a parabola, four steps ahead: 10 - 15 + 6
    assert watched.ran == ["1111" if letter == "F" else "1000" for letter in mask]


def test_each_block_has_times_of_its_own() -> None:
    """Of two blocks that ran at other steps, each is continued from its own."""
    model = GrowingToy(1)
    cache_dit.enable_cache(model.adapter(), config(max_warmup_steps=2), CALIBRATORS["taylor"])
    decided = {2: "01", 3: "10", 4: "01", 5: "11"}  # blocks 1 and 2; 1 is one that is refused
    step_now = 0

    def similarity(*probes: Tensor, prefix: str, **options: Any) -> bool:
        place = int(prefix.rsplit("_", 1)[1])
        return place in (1, 2) and step_now > 1 and decided[step_now][place - 1] == "0"

    model._context_manager.similarity = similarity
    watched = Watched(model)
    for step_now in range(5):
        output = watched(*stream_inputs(), float(step_now))
    assert watched.ran == ["1111", "1111", "1011", "1101", "1011"]
    assert close(output, GrowingToy(1)(*stream_inputs(), 4.0))


# -- host reads


@pytest.mark.parametrize("form", FORMS)
def test_each_block_that_is_measured_is_read_once(form: str, reads: list[int]) -> None:
    model = enabled(Toy(form, (20,)), config())
    assert reads_of(model, reads, [stream_inputs(model.model)] * 3) == [0, 19, 19]
    model = enabled(Toy(form, (6,)), config(residual_diff_threshold=1e-12))
    assert reads_of(model, reads, wander(model.model, 4)) == [0, 5, 5, 5]


def test_a_block_that_always_runs_is_not_read(reads: list[int]) -> None:
    model = enabled(Toy("3", (8,)), config(non_prune_block_ids=[4]))
    assert reads_of(model, reads, [stream_inputs(model.model)] * 4) == [0, 6, 6, 6]


class Controlled(Toy):
    """Adds control between its blocks; ``in_place`` into the very tensor that a block returned."""

    in_place = False

    def step(self, block: nn.Module, hidden: Tensor, encoder: Any) -> tuple[Tensor, Any]:
        hidden, encoder = super().step(block, hidden, encoder)
        control = 0.3 * normal(*hidden.shape, seed=len(self.control))
        self.control.append(0)
        if self.in_place:
            hidden += control
            return hidden, encoder
        return hidden + control, encoder

    def forward(self, *args: Any) -> Tensor:  # type: ignore[override]
        self.control: list[int] = []
        return super().forward(*args)


@DECISIONS
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("form", ["0", "2", "3", "5"])
def test_a_loop_that_adds_control_between_the_blocks(form: str, in_place: bool, decision: str) -> None:
    model = Controlled(form)
    model.in_place = in_place
    check_frozen(model, config(prune_decision=decision))


@pytest.mark.parametrize("in_place", [False, True])
def test_control_between_the_blocks_counts_as_their_input(in_place: bool) -> None:
    model = Controlled("0")
    model.in_place = in_place
    asked = config(residual_diff_threshold=0.15)
    defined = Definition(copy.deepcopy(model), asked)
    watched = enabled(model, asked)
    for given in wander(model, 10):
        expected = defined_control(defined, given)
        assert close(watched(*given), expected)
    assert watched.ran == defined.ran
    assert len(set(watched.ran)) > 2


def defined_control(defined: Definition, given: Any) -> Tensor:
    """The definition on a loop with control: what the blocks give is that of the plain loop's ``Toy.step``."""
    model = defined.model
    defined.plain = lambda *args: Toy.step(model, *args)
    plain = defined.step
    control: list[int] = []

    def step(*args: Any) -> tuple[Tensor, Any]:
        hidden, encoder = plain(*args)
        control.append(0)
        return hidden + 0.3 * normal(*hidden.shape, seed=len(control) - 1), encoder

    model.step = step  # type: ignore[method-assign]
    return defined(*given)


def test_the_step_before_decides_with_one_read_that_was_long_on_its_way(
    reads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    during: list[int] = []
    leave = Toy.forward

    def forward(self: Toy, *args: Any) -> Tensor:
        before = len(reads)
        output = leave(self, *args)
        during.append(len(reads) - before)
        return output

    monkeypatch.setattr(Toy, "forward", forward)
    model = enabled(Toy("0", (20,)), config(prune_decision="previous", max_warmup_steps=2))
    counts = reads_of(model, reads, [stream_inputs()] * 6)
    assert counts == [0, 0, 1, 1, 1, 1]  # at the start of a step that may skip; none in the warm-up
    assert during == [0] * 6
    assert reads == [19]


def test_the_step_before_decides_each_block_by_the_diff_it_had_there() -> None:
    model = enabled(Toy("0", (6,)), config(residual_diff_threshold=0.1, prune_decision="previous"))
    for given in wander(model.model, 12):
        model(*given)
    for step, diffs in stats(model.model).residual_diffs.items():
        assert model.ran[int(step)][1:] == "".join("0" if diff < 0.1 else "1" for diff in diffs)
    assert len(set(model.ran)) > 2


def test_snapshots_kept_elsewhere_are_asked_for_before_their_block_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Snapshots] = []

    def prefetch(snapshots: Snapshots) -> None:
        asked.append(snapshots)

    monkeypatch.setattr(Snapshots, "prefetch", prefetch)
    model = enabled(Toy(), by_mask("FPPP", cache_device="cpu"))
    frozen_run(model, stream_inputs(), 2)
    blocks = state_of(model.model).latest.caches["default", 0, 0].blocks
    assert asked == [blocks[2], blocks[3], blocks[4]]
    asked.clear()
    model = enabled(Toy(), config(cache_device="cpu"))
    frozen_run(model, stream_inputs(), 3)  # those that the step before has skipped
    blocks = state_of(model.model).latest.caches["default", 0, 0].blocks
    assert asked == [blocks[2], blocks[3], blocks[4]]
    asked.clear()
    frozen_run(enabled(Toy(), by_mask("FPPP")), stream_inputs(), 3)
    assert not asked, "nothing is brought back that lies where it is needed"


# -- branches


class Guided(Toy):
    """A toy with diffusers' ``cache_context``."""

    @contextlib.contextmanager
    def cache_context(self, name: str) -> Iterator[None]:
        yield


@DECISIONS
def test_each_branch_is_what_it_is_alone(decision: str) -> None:
    asked = config(residual_diff_threshold=0.1, prune_decision=decision)
    given = {name: wander(Toy(), 10, seed=seed) for name, seed in (("cond", 3), ("uncond", 4))}
    alone = {}
    for name, streams in given.items():
        lonely = enabled(Toy(), asked)
        alone[name] = [lonely(*one) for one in streams]
    model = Guided()
    watched = enabled(model, asked)
    both: dict[str, list[Tensor]] = {name: [] for name in given}
    for step in range(10):
        for name, streams in given.items():
            with model.cache_context(name):
                both[name].append(watched(*streams[step]))
    assert same(both["cond"], alone["cond"])
    assert same(both["uncond"], alone["uncond"])
    told = stats(model)
    assert told.pruned_blocks == [ran.count("0") for ran in watched.ran[0::2]]
    assert told.cfg_pruned_blocks == [ran.count("0") for ran in watched.ran[1::2]]
    assert told.cfg_actual_blocks == [5] * 10
    assert told.cfg_pruned_steps == [step for step, ran in enumerate(watched.ran[1::2]) if "0" in ran]
    assert told.cfg_pruned_ratio == sum(told.cfg_pruned_blocks) / 50
    assert told.cfg_residual_diffs.keys() == told.residual_diffs.keys()
    assert told.cfg_residual_diffs != told.residual_diffs


def test_branches_that_share_their_diffs_read_once_for_both(reads: list[int]) -> None:
    asked = config(enable_separate_cfg=True, cfg_diff_compute_separate=False, residual_diff_threshold=0.1)
    model = enabled(Toy(), asked)
    given = wander(model.model, 6)
    counts = reads_of(model, reads, [one for pair in zip(given, wander(Toy(), 6, seed=9), strict=True) for one in pair])
    assert counts[1::2] == [0] * 6
    assert sum(counts[0::2]) > 0
    assert model.ran[0::2] == model.ran[1::2]
    assert len(set(model.ran)) > 2
    told = stats(model.model)
    assert told.residual_diffs == told.cfg_residual_diffs


@DECISIONS
def test_sessions_that_take_turns_give_what_each_gives_alone(decision: str) -> None:
    asked = config(residual_diff_threshold=0.1, prune_decision=decision)
    given = [wander(Toy(), 8, seed=seed) for seed in (3, 4, 5)]
    alone = [[enabled_model(*one) for one in streams] for streams in given for enabled_model in [enabled(Toy(), asked)]]
    model = enabled(Toy(), asked)
    together: list[list[Tensor]] = [[], [], []]
    for step in range(8):
        for number, streams in enumerate(given):
            with cache_dit.session(number):
                together[number].append(model(*streams[step]))
    assert all(map(same, together, alone))


def test_threads_give_what_each_gives_alone() -> None:
    asked = config(residual_diff_threshold=0.1)
    given = [wander(Toy(), 8, seed=seed) for seed in (3, 4, 5)]
    alone = [[enabled_model(*one) for one in streams] for streams in given for enabled_model in [enabled(Toy(), asked)]]
    model = enabled(Toy(), asked).model
    together: dict[int, list[Tensor]] = {}
    barrier = threading.Barrier(3, timeout=30)

    @torch.no_grad()
    def work(number: int) -> None:
        together[number] = []
        for one in given[number]:
            barrier.wait()
            together[number].append(model(*one))

    in_threads(work, 3)
    assert all(same(together[number], alone[number]) for number in range(3))


@pytest.fixture
def group() -> Iterator[Any]:
    """A process group of this process alone, as the transformer's own parallelism would have it."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield torch.distributed.group.WORLD
    torch.distributed.destroy_process_group()


@DECISIONS
def test_ranks_decide_together_by_one_reduction_for_each_read(
    decision: str, group: Any, reads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    reductions: list[Any] = []
    all_reduce = torch.distributed.all_reduce
    asked = config(residual_diff_threshold=0.1, prune_decision=decision)
    alone, model = enabled(Toy("0", (9,)), asked), enabled(Toy("0", (9,)), asked)
    mesh = SimpleNamespace(get_group=lambda: group)
    parallel = SimpleNamespace(context_parallel_config=SimpleNamespace(_flattened_mesh=mesh))
    model.model._parallel_config = parallel  # type: ignore[assignment]

    def reducing(tensor: Tensor, **options: Any) -> None:
        reductions.append(options["group"])
        all_reduce(tensor, **options)

    monkeypatch.setattr(torch.distributed, "all_reduce", reducing)
    given = wander(Toy("0", (9,)), 10)
    expected = [alone(*one) for one in given]
    assert reductions == []
    reads.clear()
    assert same([model(*one) for one in given], expected)
    assert model.ran == alone.ran
    assert len(set(model.ran)) > 2
    measured = 9 if decision == "previous" else 9 * 8  # steps, or the blocks of each
    assert reductions == [group] * measured
    assert len(reads) == (8 if decision == "previous" else measured)


# -- odd blocks and loops


@pytest.mark.parametrize("calibrator", ["reuse", "states by taylor"])
@pytest.mark.parametrize("form", ["0", "1", "2", "3", "4", "5"])
def test_blocks_that_write_into_their_input_are_skipped_and_right(form: str, calibrator: str) -> None:
    def in_place() -> Toy:
        model = Toy(form, (7,))
        for block in model.blocks:
            block.__class__ = InPlaceSolo if model.form.pattern.Forward_H_only else InPlacePair
            block.writes_encoder = form != "2"
        return model

    given = stream_inputs(in_place())
    expected = in_place()(*(stream.clone() for stream in given))
    watched = enabled(in_place(), config(non_prune_block_ids=[3]), CALIBRATORS[calibrator])
    outputs = [watched(*(stream.clone() for stream in given)) for _ in range(5)]
    assert close(outputs, expected)
    assert watched.ran == ["1111111"] + ["1001000"] * 4


class Twice(Toy):
    """Runs its list two times in a forward."""

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Any = None, timestep: Any = None) -> Tensor:
        once = super().forward(hidden_states, encoder_hidden_states, timestep)
        return super().forward(once, encoder_hidden_states, timestep)


@DECISIONS
@pytest.mark.parametrize("form", ["0", "3", "5"])
def test_a_list_that_runs_twice_in_a_forward(form: str, decision: str) -> None:
    model = Twice(form)
    given = stream_inputs(model)
    expected = model(*given)
    watched = enabled(model, config(prune_decision=decision))
    assert close(frozen_run(watched, given, 5), expected)
    assert watched.ran[-1] == "20000"
    late = "FFPPP" if decision == "previous" else "FPPPP"
    assert lines(model) == {"default": late, "default #2": late}


class Grows(SoloBlock):
    """Gives one token more than it gets."""

    def forward(self, hidden_states: Tensor, scale: float = 1.0) -> Any:
        return torch.cat([hidden_states, hidden_states[:, :1]], dim=1)


@DECISIONS
def test_a_block_that_changes_the_shape_always_runs_and_the_others_need_not(decision: str) -> None:
    model = Toy("3")
    model.blocks[2].__class__ = Grows
    given = stream_inputs(model)
    expected = model(*given)
    watched = enabled(model, config(prune_decision=decision))
    assert close(frozen_run(watched, given, 4), expected)
    assert watched.ran[-1] == "10100"


def test_where_all_blocks_change_the_shape_that_is_the_reason() -> None:
    model = Toy("3")
    for block in model.blocks:
        block.__class__ = Grows
    frozen_run(enabled(model, config()), stream_inputs(model), 3)
    assert line(model) == "FFF"
    assert "change their input's shape" in stats(model).reason


class Leaves(Toy):
    """Leaves blocks out when it is told to."""

    left_out: tuple[int, ...] = ()

    def step(self, block: nn.Module, hidden: Tensor, encoder: Any) -> tuple[Tensor, Any]:
        if self.all_blocks.index(block) in self.left_out:
            return hidden, encoder
        return super().step(block, hidden, encoder)


@pytest.mark.parametrize("left_out", [(4,), (3, 4), (1,), (2,), (1, 2, 3, 4)], ids=str)
@pytest.mark.parametrize("form", ["0", "3", "4"])
def test_blocks_that_are_left_out_now_and_then(form: str, left_out: tuple[int, ...]) -> None:
    model = Leaves(form)
    plain = Leaves(form)
    given = stream_inputs(model)
    asked = config(residual_diff_threshold=1e-5)  # only what is as it was is skipped
    watched = enabled(model, asked)
    for step in range(12):
        model.left_out = plain.left_out = left_out if step // 3 % 2 else ()
        assert close([watched(*given)], plain(*given))
    assert all(watched.ran[step].count("1") == 1 for step in (2, 5, 8, 11))


def test_sd3_calls_that_skip_layers_are_a_branch_of_their_own() -> None:
    name = "SD3Transformer2DModel"
    model, given = tiny(name), inputs(name)
    dropped = {**given, "skip_layers": [2, 3]}
    with torch.no_grad():
        whole, reduced = (model(**one, return_dict=False)[0] for one in (given, dropped))
        cache_dit.enable_cache(model, config())
        for step in range(5):
            assert close([model(**given, return_dict=False)[0]], whole)
            if step > 0:
                assert close([model(**dropped, return_dict=False)[0]], reduced)
    assert lines(model)["default"] == "FPPPP"
    assert [told for name, told in lines(model).items() if name != "default"] == ["-FPPP"]


# -- what goes wrong


@DECISIONS
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_that_is_not_finite_is_a_miss_and_forgotten(bad: float, decision: str) -> None:
    model = Toy("3")
    given = stream_inputs(model)
    (expected,) = frozen_run(model, given, 1)
    watched = enabled(model, config(prune_decision=decision), CALIBRATORS["taylor 2"])
    frozen_run(watched, given, 4)
    watched(given[0] * bad)
    outputs = [watched(*given) for _ in range(5)]
    late = outputs[1:] if decision == "previous" else outputs  # blocks were chosen before the step was seen
    assert close(late, expected)
    assert watched.ran[-1] == "10000"


class Spoils(SoloBlock):
    """Gives NaN once."""

    spoilt = 0

    def forward(self, hidden_states: Tensor, scale: float = 1.0) -> Any:
        output = super().forward(hidden_states, scale)
        self.spoilt += 1
        return output * math.nan if self.spoilt == 2 else output


@DECISIONS
@pytest.mark.parametrize("place", [2, 4])
def test_a_block_whose_result_was_not_finite_is_not_predicted_from_it(place: int, decision: str) -> None:
    model = Toy("3")
    given = stream_inputs(model)
    (expected,) = frozen_run(model, given, 1)
    model.blocks[place].__class__ = Spoils
    watched = enabled(model, config(max_warmup_steps=2, prune_decision=decision), CALIBRATORS["taylor 2"])
    outputs = frozen_run(watched, given, 7)
    assert bool(outputs[1].isnan().any())
    assert close(outputs[2:], expected)
    again = 3 if decision == "block" else 4  # what it ran at is forgotten, and measured anew
    assert watched.ran[2] == "1" + "0" * (place - 1) + "1" * (5 - place)
    assert watched.ran[again:] == ["10000"] * (7 - again)


def test_a_run_of_nan_says_so() -> None:
    model = enabled(Toy(), config())
    frozen_run(model, [stream * math.nan for stream in stream_inputs()], 4)
    told = stats(model.model)
    assert told.pruned_blocks == [0] * 4
    assert "NaN or infinite in 3 of 4 steps" in told.reason


@DECISIONS
@pytest.mark.parametrize(
    "change",
    [
        lambda stream: torch.cat([stream, stream[:, :2]], dim=1),
        lambda stream: torch.cat([stream, stream]),
        lambda stream: stream.double(),
    ],
    ids=["tokens", "batch", "dtype"],
)
def test_another_shape_or_dtype_in_mid_run_is_a_miss(change: Callable[[Tensor], Tensor], decision: str) -> None:
    model = Toy("0")
    given = stream_inputs()
    other = [change(stream) for stream in given]
    watched = enabled(model, config(prune_decision=decision), CALIBRATORS["taylor"])
    plain = Toy("0")
    frozen_run(watched, given, 3)
    if other[0].dtype != given[0].dtype:
        model.double()
        plain.double()
    assert close(frozen_run(watched, other, 4), plain(*other))
    assert watched.ran[-4] == "11111"
    assert watched.ran[-1] == "10000"
    assert state_of(model).latest.caches["default", 0, 0].policy.records[3][:4:3] == (3, "conditioning")


def test_a_text_of_another_length_is_a_miss() -> None:
    model, plain = enabled(Toy("0"), config()), Toy("0")
    hidden, encoder = stream_inputs()
    longer = torch.cat([encoder, encoder], dim=1)
    frozen_run(model, (hidden, encoder), 2)
    assert close([model(hidden, longer), model(hidden, longer)], plain(hidden, longer))
    assert model.ran == ["11111", "10000", "11111", "10000"]


@DECISIONS
def test_a_text_that_is_left_out_is_a_miss(decision: str) -> None:
    model, plain = enabled(OptionalToy(), config(prune_decision=decision)), OptionalToy()
    hidden, encoder = stream_inputs()
    for given in ((hidden, encoder), (hidden, None), (hidden, encoder)):
        assert close(frozen_run(model, given, 3), plain(*given))
        assert model.ran[-3::2] == ["11111", "10000"]


class Fails(SoloBlock):
    """Fails when it is told to."""

    fails = False

    def forward(self, hidden_states: Tensor, scale: float = 1.0) -> Any:
        if self.fails:
            raise RuntimeError("out of memory")
        return super().forward(hidden_states, scale)


@DECISIONS
def test_an_aborted_step_leaves_nothing_behind(decision: str) -> None:
    model = Toy("3")
    model.blocks[4].__class__ = Fails
    given = wander(model, 6)
    watched = enabled(model, config(residual_diff_threshold=0.1, Bn_compute_blocks=1, prune_decision=decision))
    fresh = [watched(*one) for one in given]
    cache_dit.refresh_context(model)
    for _ in range(2):
        for one in wander(model, 3, seed=7):
            watched(*one)
        model.blocks[4].fails = True
        with pytest.raises(RuntimeError, match="memory"):
            watched(*given[0])
        model.blocks[4].fails = False
        assert state_of(model).latest.nbytes == 0
        assert all(chain.current.forward is None for chain, _ in state_of(model).chains)
    assert same([watched(*one) for one in given], fresh)


# -- in mid-request


@DECISIONS
def test_refreshing_begins_a_request_anew(decision: str) -> None:
    asked = config(residual_diff_threshold=0.1, prune_decision=decision)
    model = enabled(Toy(), asked)
    given = wander(model.model, 6)
    first = [model(*one) for one in given]
    cache_dit.refresh_context(model.model)
    assert same([model(*one) for one in given], first)
    cache_dit.refresh_context(model.model, residual_diff_threshold=1e-12)
    for one in given:
        model(*one)
    assert line(model.model) == "FFFFFF"


@DECISIONS
def test_a_refresh_in_mid_request_warms_up_anew(decision: str) -> None:
    asked = config(max_warmup_steps=2, force_refresh_step_hint=5, num_inference_steps=9, prune_decision=decision)
    model = enabled(Toy(), asked)
    frozen_run(model, stream_inputs(), 9)
    assert line(model.model) == "FFPPPFFPP"
    assert sum(stats(model.model).pruned_blocks) == 5 * 4


def test_a_handle_changes_from_whole_steps_to_blocks_and_back() -> None:
    model = enabled(Toy(), DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=1, residual_diff_threshold=0.5))
    expected = Toy()(*stream_inputs())
    handle = cache_dit.session("one")
    with handle:
        outputs = frozen_run(model, stream_inputs(), 3)
        handle.update(config(non_prune_block_ids=[2]))
        outputs += frozen_run(model, stream_inputs(), 3)
        handle.update(DBCacheConfig(Fn_compute_blocks=2, max_warmup_steps=1, residual_diff_threshold=0.5))
        outputs += frozen_run(model, stream_inputs(), 3)
    assert close(outputs, expected)
    assert model.ran == ["11111", "10000", "10000", "11111", "10100", "10100", "11111", "11000", "11000"]


@DECISIONS
def test_a_threshold_that_changes_in_mid_request_keeps_what_is_kept(decision: str) -> None:
    model = enabled(Toy(), config(prune_decision=decision, max_warmup_steps=2))
    handle = cache_dit.session("one")
    with handle:
        given = stream_inputs()
        frozen_run(model, given, 3)
        handle.update(residual_diff_threshold=0.4)
        frozen_run(model, given, 1)
        handle.update(non_prune_block_ids=[2])
        frozen_run(model, given, 3)
    late = "11111" if decision == "previous" else "10100"
    assert model.ran == ["11111", "11111", "10000", "10000", "11111", late, "10100"]


def test_a_change_of_what_is_kept_drops_it() -> None:
    model = enabled(Toy(), config())
    handle = cache_dit.session("one")
    with handle:
        frozen_run(model, stream_inputs(), 2)
        handle.update(extra_cache_config=ExtraCacheConfig(downsample_factor=2))
        frozen_run(model, stream_inputs(), 2)
        handle.update(calibrator_config=TaylorSeerCalibratorConfig())
        frozen_run(model, stream_inputs(), 2)
    assert model.ran == ["11111", "10000"] * 3


def test_a_handle_may_switch_the_cache_off_and_on() -> None:
    model = enabled(Toy(), config())
    handle = cache_dit.session("one")
    with handle:
        frozen_run(model, stream_inputs(), 2)
        handle.enabled = False
        frozen_run(model, stream_inputs(), 1)
        assert state_of(model.model).latest.nbytes == 0
        handle.enabled = True
        frozen_run(model, stream_inputs(), 2)
    assert model.ran == ["11111", "10000", "11111", "11111", "10000"]


class Conditioned(Toy):
    """Adds what a ControlNet gives."""

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Any, control: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(hidden_states, encoder_hidden_states) + control


@DECISIONS
def test_another_control_image_computes_all_blocks(decision: str) -> None:
    model = enabled(Conditioned(), config(max_warmup_steps=2, prune_decision=decision))
    one, other = normal(1, TOKENS, WIDTH, seed=5), normal(1, TOKENS, WIDTH, seed=6)
    for control in (one, one, one, other, other):
        model(*stream_inputs(), control)
    assert model.ran == ["11111", "11111", "10000", "11111", "10000"]


@pytest.mark.parametrize(("decision", "expected"), [("block", "FFPFPP"), ("previous", "FFPFPP")])
def test_control_made_anew_at_each_step_computes_where_it_jumps(decision: str, expected: str, reads: list[int]) -> None:
    model = enabled(Conditioned(), config(max_warmup_steps=2, prune_decision=decision, num_inference_steps=6))
    counts = []
    for size in (1.0, 1.05, 1.1, 2.0, 2.05, 2.1):
        reads.clear()
        model(*stream_inputs(), size * normal(1, TOKENS, WIDTH, seed=5))
        counts.append(len(reads))
        if decision == "block" and len(counts) == 3:
            assert len(reads) == 4  # the jump comes with the first diff
    assert line(model.model) == expected
    assert "10000" in model.ran
    assert counts == (
        [0, 1, 4, 1, 4, 4] if decision == "block" else [0, 1, 2, 2, 2, 2]
    )  # with the jump alone, on the host


def test_a_control_that_computes_every_step_is_the_reason() -> None:
    model = enabled(Conditioned(), config())
    for step in range(4):
        model(*stream_inputs(), normal(1, TOKENS, WIDTH, seed=step))
    assert "conditions on changed before 3 of 4 steps" in stats(model.model).reason


# -- a similarity of one's own


@DECISIONS
@pytest.mark.parametrize("threshold", [0.5, 1.0])
def test_a_replaced_similarity_decides_each_block(threshold: float, decision: str, reads: list[int]) -> None:
    model = enabled(Toy(), config(residual_diff_threshold=threshold, prune_decision=decision))
    seen: list[tuple[float, str]] = []

    class Own(PrunedContextManager):
        def similarity(self, t1: Any, t2: Any, *, threshold: float, parallelized: bool = False, prefix: str = "Fn"):
            assert not parallelized
            seen.append((threshold, prefix))
            self.add_residual_diff(0.25 if prefix.endswith("2") else 0.125)
            return not prefix.endswith("3")

    model.model._context_manager = Own()
    frozen_run(model, stream_inputs(), 3)
    assert model.ran == ["11111", "10010", "10010"]
    assert seen == [(threshold, f"Fn_{place}") for place in (1, 2, 3, 4)] * 2
    assert reads == []
    told = stats(model.model)
    assert told.residual_diffs == {"1": [0.125, 0.25, 0.125, 0.125], "2": [0.125, 0.25, 0.125, 0.125]}
    latest = state_of(model.model).latest.caches["default", 0, 0].policy.records[-1]
    assert (latest.diff, latest.why) == (0.25, "hit")


def test_a_replaced_similarity_is_not_asked_of_what_cannot_be_compared() -> None:
    model = enabled(Toy("3"), config())
    shapes: list[tuple[torch.Size, torch.Size]] = []
    model.model._context_manager.similarity = lambda t1, t2, **options: shapes.append((t1.shape, t2.shape)) or True
    hidden = normal(1, TOKENS, WIDTH)
    for given in (hidden, hidden, hidden[:, 1:], hidden[:, 1:]):
        model(given)
    assert model.ran == ["11111", "10000", "11111", "10000"]
    assert len(shapes) == 8
    assert all(before == now for before, now in shapes)


def test_a_replaced_similarity_does_not_move_a_static_plan() -> None:
    model = enabled(Toy(), by_mask("FPFP"))
    model.model._context_manager.similarity = lambda *probes, **options: False
    frozen_run(model, stream_inputs(), 4)
    assert line(model.model) == "FPFP"


# -- with other libraries


@pytest.mark.parametrize("decision", ["block", pytest.param("previous", marks=pytest.mark.slow)])
def test_repeated_blocks_compile_without_more_graphs(decision: str) -> None:
    def run(cached: bool) -> tuple[int, list[Tensor]]:
        torch._dynamo.reset()
        transformer = tiny_flux.tiny_transformer()
        counter = CompileCounterWithBackend("eager")
        transformer.compile_repeated_blocks(fullgraph=True, backend=counter)
        if cached:
            cache_dit.enable_cache(transformer, config(prune_decision=decision), CALIBRATORS["taylor"])
        outputs = tiny_flux.denoise(transformer)
        return counter.frame_count, outputs

    plain, cached = run(False), run(True)
    eager = tiny_flux.tiny_transformer()
    cache_dit.enable_cache(eager, config(prune_decision=decision), CALIBRATORS["taylor"])
    assert cached[0] == plain[0]
    assert not close(cached[1], tiny_flux.denoise(eager)[0])  # the run moves
    assert close(cached[1], tiny_flux.denoise(eager))
    assert stats(eager).pruned_ratio > 0


def offloaded(transformer: nn.Module, size: int) -> None:
    apply_group_offloading(
        transformer, torch.device("cpu"), offload_type="block_level", num_blocks_per_group=size, use_stream=False
    )


@pytest.mark.parametrize("first", [True, False], ids=["offloading first", "cache first"])
@pytest.mark.parametrize("size", [1, 2])
def test_blocks_that_are_loaded_together_are_not_skipped(
    size: int, first: bool, caplog: pytest.LogCaptureFixture
) -> None:
    transformer, alone, plain = (tiny_flux.tiny_transformer() for _ in range(3))
    cache_dit.enable_cache(alone, config())
    if first:
        offloaded(transformer, size)
    cache_dit.enable_cache(transformer, config(num_inference_steps=tiny_flux.STEPS))
    if not first:
        offloaded(transformer, size)
    expected = tiny_flux.denoise(alone if size == 1 else plain)
    assert same(tiny_flux.denoise(transformer), expected)
    told = stats(transformer)
    if size == 1:
        assert told.pruned_blocks == stats(alone).pruned_blocks != [0] * tiny_flux.STEPS
    else:
        assert told.pruned_blocks == [0] * tiny_flux.STEPS
        assert "num_blocks_per_group=1" in told.reason
        with caplog.at_level(logging.WARNING):
            tiny_flux.denoise(transformer, steps=1)
        assert "num_blocks_per_group=1" in caplog.text


# -- reports


def test_the_summary_of_a_run() -> None:
    model = enabled(Toy("0", (6,)), config(Bn_compute_blocks=1, max_warmup_steps=2))
    frozen_run(model, stream_inputs(), 4)
    told = stats(model.model)
    assert told.pruned_steps == told.cached_steps == [2, 3]
    assert (told.pruned_blocks, told.actual_blocks, told.pruned_ratio) == ([0, 0, 4, 4], [6] * 4, 8 / 24)
    assert (told.cfg_pruned_steps, told.cfg_pruned_blocks, told.cfg_pruned_ratio) == ([], [], None)
    assert told.residual_diffs == {"2": [0.0] * 4, "3": [0.0] * 4}
    assert (told.executed_blocks, told.possible_blocks) == (16, 24)
    assert told.steps_line == {"default": "FFPP"}


def test_the_report_and_the_tag(capsys: pytest.CaptureFixture[str]) -> None:
    model = enabled(Toy("0", (6,)), config(Bn_compute_blocks=1, max_warmup_steps=2))
    frozen_run(model, stream_inputs(), 4)
    cache_dit.summary(model.model, details=True)
    report = capsys.readouterr().out
    assert re.search(r"default +2 +2 +8 of 24 +0.0000 +0.0000 +0.0000 +0.0000 +FFPP\n", re.sub(r" +\n", "\n", report))
    assert re.search(r"4 of 6 blocks pruned +2 +0.0000 +the diff is below the threshold", report)
    assert cache_dit.strify(model.model) == "DBPrune_F1B1_W2I1M0MC0_R0.5_T0O0_P33.3"


# -- memory

FEATURE, TEXT_FEATURE = TOKENS * WIDTH * 4, TEXT * WIDTH * 4


@pytest.mark.parametrize(
    ("form", "calibrator", "options", "hidden", "encoder"),
    [
        ("3", None, {}, 2, 0),  # of each block its input and what it added
        ("0", None, {}, 2, 1),
        ("2", None, {}, 2, 0),
        ("4", None, {}, 2, 1),
        ("0", "taylor", {}, 3, 2),
        ("0", "taylor 2", {}, 4, 3),
        ("0", None, {"extra_cache_config": ExtraCacheConfig(downsample_factor=2)}, 1.5, 1),
        ("0", "taylor", {"force_reduce_calibrator_vram": True}, 2.25, 2),
        ("0", None, {"force_reduce_calibrator_vram": True}, 2, 1),
        ("0", None, {"cache_dtype": "bfloat16"}, 1.5, 0.5),
        ("3", None, {"residual_diff_threshold": 1.0}, 1, 0),  # nothing is measured
        ("3", None, {"prune_decision": "previous"}, 2, 0),
    ],
)
def test_live_bytes(form: str, calibrator: str | None, options: dict[str, Any], hidden: float, encoder: float) -> None:
    model = enabled(Toy(form), config(max_warmup_steps=4, **options), calibrator and CALIBRATORS[calibrator])
    held = []
    for given in wander(model.model, 10):
        model(*given)
        held.append(state_of(model.model).latest.nbytes)
    assert held[-1] == 4 * (hidden * FEATURE + encoder * TEXT_FEATURE)
    assert held[3:] == [held[-1]] * 7  # nothing grows
    assert stats(model.model).peak_bytes == held[-1]


@DECISIONS
def test_nothing_is_held_when_the_steps_are_done(decision: str) -> None:
    model = enabled(Toy(), config(num_inference_steps=4, prune_decision=decision))
    frozen_run(model, stream_inputs(), 4)
    session = state_of(model.model).latest
    assert session.nbytes == 0
    assert all(not cache.blocks and cache.pending is None for cache in session.caches.values())
    cache_dit.disable_cache(model.model)
    assert type(model.model) is Toy
    assert {type(block) for block in model.model.blocks} == {PairBlock}
