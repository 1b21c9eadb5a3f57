"""A batch's decisions: one for all samples, or each sample for itself, giving what it gives alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import cache_dit
from cache_dit import BlockAdapter, DBCacheConfig, ForwardPattern, TaylorSeerCalibratorConfig
from cache_dit.engine.state import measure
from cache_dit.engine.subclass import state_of
from cache_dit.models import adapter_of
from tests.kit.equality import close
from tests.kit.tiny_models import inputs, tiny
from tests.kit.toys import FORMS, TEXT, TOKENS, WIDTH, Joined, Toy, lines, normal

STEPS = 10

#: How fast the samples of a batch change: they need computing at different steps.
SPEEDS = (0.02, 0.5, 0.12, 0.25)
BATCH = len(SPEEDS)

#: Taylor of order 1 takes the latest residual twice and the one before it away once.
LINE_GROWTH = 3


def config(decision: str = "sample", **options: Any) -> DBCacheConfig:
    """F1, two steps of warm-up, a threshold that the samples reach at different steps."""
    defaults = {"Fn_compute_blocks": 1, "max_warmup_steps": 2, "residual_diff_threshold": 0.15}
    return DBCacheConfig(**{**defaults, "decision": decision, "enable_separate_cfg": False, **options})


def taylor(**options: Any) -> TaylorSeerCalibratorConfig:
    """Taylor of order 1 on both streams."""
    return TaylorSeerCalibratorConfig(taylorseer_order=1, **options)


def moving(shape: Sequence[int], samples: Iterable[int], step: int) -> Tensor:
    """A stream of some samples at a step: each starts from numbers of its own, and moves at a speed of its own."""
    return torch.cat([normal(1, *shape, seed=i) + SPEEDS[i] * step * normal(1, *shape, seed=50 + i) for i in samples])


def fixed(shape: Sequence[int], samples: Iterable[int]) -> Tensor:
    """What some samples keep from step to step."""
    return torch.cat([normal(1, *shape, seed=100 + i) for i in samples])


Call = Callable[[Any, Sequence[int], int], Tensor]


def call_toy(model: Any, samples: Sequence[int], step: int) -> Tensor:
    """A step of a toy, for some samples of the batch."""
    hidden, encoder = moving((TOKENS, WIDTH), samples, step), fixed((TEXT, WIDTH), samples)
    solo = isinstance(model, Toy) and model.form.pattern.Forward_H_only
    return model(hidden, None if solo else encoder)  # type: ignore[no-any-return]


def call_family(model: Any, samples: Sequence[int], step: int) -> Tensor:
    """A step of a tiny real transformer, for some samples of the batch."""
    name = next(cls.__name__ for cls in type(model).__mro__ if cls.__module__.startswith("diffusers"))
    given = inputs(name, batch=len(samples), timestep=0.6 - 1e-4 * step)
    given["hidden_states"] = moving(given["hidden_states"].shape[1:], samples, step)
    for key in ("encoder_hidden_states", "pooled_projections"):
        if key in given:
            given[key] = fixed(given[key].shape[1:], samples)
    return model(**given, return_dict=False)[0]  # type: ignore[no-any-return]


@torch.no_grad()
def run(model: Any, samples: Sequence[int] = range(BATCH), call: Call = call_toy, steps: int = STEPS) -> list[Tensor]:
    """The outputs of a request for some samples."""
    return [call(model, samples, step) for step in range(steps)]


class Alone(NamedTuple):
    """What each sample gives alone: its outputs, and its steps."""

    outputs: list[list[Tensor]]
    lines: list[str]


def alone(model: Any, options: DBCacheConfig, calibrator: Any = None, call: Call = call_toy) -> Alone:
    """Every sample in a request of its own, decided by the usual rule."""
    adapter = model.adapter() if hasattr(model, "adapter") else model
    cache_dit.enable_cache(adapter, dataclasses.replace(options, decision="mean"), calibrator)
    outputs, told = [], []
    for sample in range(BATCH):
        outputs.append(run(model, [sample], call))
        told.extend(lines(model).values())
        cache_dit.refresh_context(model)
    cache_dit.disable_cache(adapter)
    return Alone(outputs, told)


def together(model: Any, options: DBCacheConfig, calibrator: Any = None, call: Call = call_toy) -> Alone:
    """The same in one batch; the cache stays on."""
    cache_dit.enable_cache(model.adapter() if hasattr(model, "adapter") else model, options, calibrator)
    outputs = run(model, call=call)
    return Alone([[output[i : i + 1] for output in outputs] for i in range(BATCH)], list(lines(model).values()))


def agree(first: Alone, second: Alone, *, equal_nan: bool = False) -> bool:
    """Whether the samples computed at the same steps, and gave the same to rounding."""
    pairs = zip(first.outputs, second.outputs, strict=True)
    return first.lines == second.lines and all(close(a, b, growth=LINE_GROWTH, equal_nan=equal_nan) for a, b in pairs)


def mixed(told: Sequence[str]) -> bool:
    """Whether there are steps that some samples compute and others don't, more than one."""
    return sum(len(set(letters)) > 1 for letters in zip(*told, strict=True)) > 1


def give_what_they_give_alone(
    model: Any, options: DBCacheConfig, calibrator: Any = None, call: Call = call_toy
) -> bool:
    """Whether in a batch, decided by sample, all is as alone; in steps that some compute and others don't."""
    expected = alone(model, options, calibrator, call)
    found = together(model, options, calibrator, call)
    assert mixed(found.lines)
    return agree(found, expected)


def records(model: Any) -> list[list[Any]]:
    """What was noted of each sample's steps."""
    (state,) = (state_of(model),)
    (cache,) = state.latest.caches.values()
    return [policy.records for policy in cache.policies().values()]


@contextmanager
def rows_seen(blocks: Iterable[nn.Module]) -> Iterator[list[list[tuple[int, int]]]]:
    """For each step (begun by appending a list) the blocks that ran, each with the length of the batch that it got."""
    seen: list[list[tuple[int, int]]] = []

    def note(place: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            first = args[0] if args else kwargs["hidden_states"]
            seen[-1].append((place, len(first)))

        return hook

    hooks = [block.register_forward_hook(note(place), with_kwargs=True) for place, block in enumerate(blocks)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


# -- each sample as alone

FAMILIES = {
    "FluxTransformer2DModel": 0.06,
    "Flux2Transformer2DModel": 0.06,
    "QwenImageTransformer2DModel": 0.06,
    "WanTransformer3DModel": 0.1,
    "SD3Transformer2DModel": 0.06,
    "PixArtTransformer2DModel": 0.1,
}

#: Thresholds at which there are steps that no sample computes.
LOOSE = {name: 2 * threshold if threshold < 0.1 else 0.16 for name, threshold in FAMILIES.items()}
LOOSE["Flux2Transformer2DModel"] = 0.2


@pytest.mark.parametrize(("kept", "front", "back"), [("residual", 1, 0), ("hidden_states", 2, 1)])
@pytest.mark.parametrize("name", FAMILIES)
def test_in_a_real_family_each_sample_gets_what_it_gets_alone(name: str, kept: str, front: int, back: int) -> None:
    options = config(residual_diff_threshold=FAMILIES[name], Fn_compute_blocks=front, Bn_compute_blocks=back)
    calibrator = taylor(calibrator_cache_type=kept)
    assert give_what_they_give_alone(tiny(name).requires_grad_(False), options, calibrator, call_family)


@pytest.mark.parametrize("kept", ["residual", "hidden_states"])
@pytest.mark.parametrize("form", FORMS)
def test_with_any_pattern_each_sample_gets_what_it_gets_alone(form: str, kept: str) -> None:
    assert give_what_they_give_alone(Toy(form), config(), taylor(calibrator_cache_type=kept))
    assert give_what_they_give_alone(Toy(form, keywords=True), config(Bn_compute_blocks=1))


@pytest.mark.parametrize("kept", ["residual", "hidden_states"])
@pytest.mark.parametrize("join", ["eh", "he"])
def test_over_two_lists_that_are_joined_each_sample_gets_what_it_gets_alone(join: str, kept: str) -> None:
    assert give_what_they_give_alone(Joined(join), config(), taylor(calibrator_cache_type=kept))


LIMITS: dict[str, dict[str, Any]] = {
    "continuous": {"max_continuous_cached_steps": 1},
    "cached": {"max_cached_steps": 3},
    "accumulated": {"max_accumulated_residual_diff_threshold": 0.2},
    "mask": {"steps_computation_mask": [1, 1, 0, 0, 1, 0, 0, 0, 0, 1], "steps_computation_policy": "dynamic"},
    "state": {"extra_cache_config": cache_dit.ExtraCacheConfig(l1_hidden_states_diff_threshold=0.3)},
    "thinned": {"extra_cache_config": cache_dit.ExtraCacheConfig(downsample_factor=2)},
    "important": {
        "extra_cache_config": cache_dit.ExtraCacheConfig(important_condition_threshold=0.3),
        "residual_diff_threshold": 0.35,
    },
    "kept as bfloat16": {"cache_dtype": "bfloat16"},
}


@pytest.mark.parametrize("limit", LIMITS)
def test_under_any_limit_each_sample_gets_what_it_gets_alone(limit: str) -> None:
    assert give_what_they_give_alone(Toy("0"), config(**LIMITS[limit]), taylor())


def test_a_sample_that_computes_unasked_has_no_diff_though_others_were_measured() -> None:
    model = Toy("0")
    together(model, config(max_continuous_cached_steps=1))
    noted = [record for sample in records(model) for record in sample]
    assert {record.diff for record in noted if record.why == "max_continuous"} == {None}
    assert all(record.diff is not None for record in noted if record.why in ("hit", "threshold"))


def test_by_teacache_each_sample_gets_what_it_gets_alone() -> None:
    model = tiny("FluxTransformer2DModel").requires_grad_(False)
    options = config(policy="teacache", residual_diff_threshold=0.2)
    assert give_what_they_give_alone(model, options, taylor(), call_family)


def test_magcache_and_static_masks_decide_alike_for_all_samples_and_measure_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Toy("0")
    cache_dit.enable_cache(model.adapter(), config("mean"))
    calibration = cache_dit.calibrate(model, lambda: run(model), policy="magcache")
    cache_dit.disable_cache(model)
    plans = (
        {"policy": "magcache", "policy_calibration": calibration, "residual_diff_threshold": 0.3},
        {"steps_computation_mask": [1, 1, 0, 1, 0, 0, 1, 0, 0, 1], "steps_computation_policy": "static"},
    )
    for plan in plans:
        for front in (0, 1):
            options = config(**plan, Fn_compute_blocks=front)
            expected = alone(model, options, taylor())
            with monkeypatch.context() as patch:
                patch.setattr(measure, "read_back", None)
                found = together(model, options, taylor())
            assert agree(found, expected)
            assert len(set(found.lines)) == 1
            assert "C" in found.lines[0]


def test_a_batch_of_one_is_what_it_is_under_any_decision() -> None:
    model = Toy("0")
    outputs = []
    for decision in ("mean", "any", "all", "sample"):
        cache_dit.enable_cache(model.adapter(), config(decision), taylor())
        outputs.append(run(model, [2]))
    assert all(torch.equal(a, b) for other in outputs[1:] for a, b in zip(outputs[0], other, strict=True))


# -- what runs, and what it costs


@pytest.mark.parametrize("back", [0, 1])
@pytest.mark.parametrize("name", FAMILIES)
def test_middle_blocks_get_the_samples_that_compute_and_none_is_called_when_all_are_skipped(
    name: str, back: int
) -> None:
    model = tiny(name).requires_grad_(False)
    lists = [blocks for chain in adapter_of(model).targets()[0].chains for blocks in chain.lists]
    blocks = [block for one in lists for block in one.blocks]
    options = config(
        residual_diff_threshold=LOOSE[name],
        Bn_compute_blocks=back,
        steps_computation_policy="dynamic",
        steps_computation_mask=[1, 1, 0, 0, 0, 1, 0, 0, 0, 0],
    )
    cache_dit.enable_cache(model, options)
    with rows_seen(blocks) as seen, torch.no_grad():
        for step in range(STEPS):
            seen.append([])
            call_family(model, range(BATCH), step)
    told = list(lines(model).values())
    computed = [sum(line[step] == "F" for line in told) for step in range(STEPS)]
    assert {0, BATCH} < set(computed)
    for step, ran in enumerate(seen):
        middle = range(1, len(blocks) - back)
        expected = [(place, computed[step] if place in middle else BATCH) for place in range(len(blocks))]
        assert ran == [pair for pair in expected if pair[1]]
    stats = cache_dit.summary(model, logging=False)[0]
    assert stats.possible_blocks == STEPS * BATCH * len(blocks)
    assert stats.executed_blocks == sum(rows for ran in seen for _, rows in ran)
    assert stats.ideal_speedup == stats.possible_blocks / stats.executed_blocks > 1


def test_the_summary_has_a_line_for_each_sample_and_counts_a_step_as_cached_where_all_skipped() -> None:
    model = Toy("0")
    found = together(model, config())
    stats = cache_dit.summary(model, logging=False)[0]
    assert list(stats.steps_line) == [f"default[{place}]" for place in range(BATCH)]
    skipped = [step for step in range(STEPS) if all(line[step] == "C" for line in found.lines)]
    assert stats.cached_steps == skipped
    assert stats.reason is None


@pytest.mark.parametrize("decision", ["mean", "any", "all", "sample"])
def test_a_step_that_is_measured_waits_for_the_device_once_whatever_the_batch(
    monkeypatch: pytest.MonkeyPatch, decision: str
) -> None:
    reads: list[int] = []
    real = measure.read_back
    monkeypatch.setattr(measure, "read_back", lambda values: reads.append(len(values)) or real(values))
    model = Toy("0")
    cache_dit.enable_cache(model.adapter(), config(decision), taylor())
    run(model)
    assert len(reads) == STEPS - 2  # after the warm-up


def test_what_is_kept_of_a_sample_keeps_no_batch_alive_and_does_not_grow() -> None:
    model = Toy("0")
    cache_dit.enable_cache(model.adapter(), config(), taylor())
    handle = cache_dit.session("kept", keep=True)
    peaks = []
    for _ in range(3):
        with handle:
            run(model)
        (cache,) = state_of(model).latest.caches.values()
        kept = [
            tensor
            for snapshots in cache.snapshots
            for history in (snapshots.hidden, snapshots.encoder)
            for tensor in history._tensors
        ]
        assert len(kept) == BATCH * 2 * 2
        assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in kept)
        peaks.append((cache_dit.summary(model, logging=False)[0].peak_bytes, state_of(model).latest.nbytes))
        handle.close()
        assert state_of(model).latest.nbytes == 0
    assert len(set(peaks)) == 1
    assert peaks[0][1] == sum(tensor.nbytes for tensor in kept) + BATCH * TOKENS * WIDTH * 4


# -- one decision for all


def by_hand(residuals: Sequence[Tensor], decision: str, threshold: float) -> str:
    """The steps line of a batch, from what the first block adds at each step."""
    told, last = "", residuals[0]
    for step, now in enumerate(residuals):
        changed, size = (now - last).abs(), last.abs()
        each = changed.mean((1, 2)) / size.mean((1, 2))
        diff = {"any": each.max(), "all": each.min(), "mean": changed.mean() / size.mean()}[decision]
        skipped = step >= 2 and diff < threshold
        told += "C" if skipped else "F"
        last = last if skipped else now
    return told


@pytest.mark.parametrize("threshold", [0.1, 0.2, 0.35])
@pytest.mark.parametrize("decision", ["any", "all", "mean"])
def test_one_decision_for_all_is_by_the_largest_the_smallest_or_the_mean_diff(decision: str, threshold: float) -> None:
    model = Toy("3")
    residuals: list[Tensor] = []
    hook = model.blocks[0].register_forward_hook(lambda block, args, output: residuals.append(output - args[0]))
    run(model)
    hook.remove()
    cache_dit.enable_cache(model.adapter(), config(decision, residual_diff_threshold=threshold))
    run(model)
    assert list(lines(model).values()) == [by_hand(residuals, decision, threshold)]


def test_the_decisions_differ_and_the_careful_ones_compute_more() -> None:
    model = Toy("3")
    told = {}
    for decision in ("any", "mean", "all"):
        cache_dit.enable_cache(model.adapter(), config(decision))
        run(model)
        (told[decision],) = lines(model).values()
    assert len(set(told.values())) == 3
    assert told["any"].count("F") > told["mean"].count("F") > told["all"].count("F")


def test_a_sample_that_is_not_finite_lets_any_and_all_compute() -> None:
    for decision in ("any", "all", "mean"):
        model = Toy("3")
        cache_dit.enable_cache(model.adapter(), config(decision, residual_diff_threshold=0.9))
        run(model, call=with_nan(sample=1, at=4))
        (told,) = lines(model).values()
        assert told[4:6] == "FF"
        assert "C" in told[:4]
        assert "C" in told[6:]


# -- numbers that are none


def with_nan(sample: int, at: int) -> Call:
    """A run in which one sample is not finite at one step."""

    def call(model: Any, samples: Sequence[int], step: int) -> Tensor:
        hidden, encoder = moving((TOKENS, WIDTH), samples, step), fixed((TEXT, WIDTH), samples)
        if step == at and sample in samples:
            hidden[list(samples).index(sample)] = torch.nan
        reads = not model.form.pattern.Forward_H_only
        return model(hidden, encoder if reads else None)  # type: ignore[no-any-return]

    return call


@pytest.mark.parametrize("at", [0, 1, 4])
@pytest.mark.parametrize("form", ["0", "3"])
def test_a_sample_that_is_not_finite_harms_no_other_and_recovers(form: str, at: int) -> None:
    model = Toy(form)
    call = with_nan(1, at)
    expected, found = alone(model, config(), taylor(), call), together(model, config(), taylor(), call)
    assert agree(found, expected, equal_nan=True)
    finite = [[bool(output.isfinite().all()) for output in outputs] for outputs in found.outputs]
    assert all(map(all, (finite[0], finite[2], finite[3], finite[1][at + 1 :])))


# -- what blocks are called with


class Extras(NamedTuple):
    """A named pair of arguments."""

    scale: Any
    other: Any


@dataclasses.dataclass
class Given:
    """Arguments as a dataclass."""

    scale: Any
    table: Any


class Closed:
    """An object that nobody can look into."""

    def __init__(self, scale: Tensor) -> None:
        self.scale = scale


class NestedBlock(nn.Module):
    """Reads a scale of each sample from wherever it lies, and a table of positions that all samples share."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden_states: Tensor, scale: Any, table: Any = None, *, more: Any = None) -> Tensor:
        scale, table = (scale(more), table) if callable(scale) else (found(scale), found(table))
        return hidden_states + 0.5 * torch.tanh(self.linear(hidden_states) * scale + (0 if table is None else table))


def found(value: Any) -> Any:
    """The one tensor that lies in there somewhere, or None."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, (Given, Closed)):
        return value.scale
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return next((tensor for item in items if (tensor := found(item)) is not None), None)


def taken(more: dict[str, Any]) -> Tensor:
    """The scale out of keyword arguments."""
    return more["deep"][0]["scale"]  # type: ignore[no-any-return]


class Nested(nn.Module):
    """A toy whose blocks get a scale of each sample, wrapped in some way."""

    def __init__(self, wrap: Callable[[Tensor, Tensor], tuple[tuple[Any, ...], dict[str, Any]]]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wrap = wrap
        self.blocks = nn.ModuleList(NestedBlock() for _ in range(4))
        self.table = 0.2 * normal(TOKENS, WIDTH, seed=9)
        self.requires_grad_(False)

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        scale = 1 + encoder_hidden_states.mean((1, 2)).reshape(-1, 1, 1)
        args, kwargs = self.wrap(scale, self.table[: hidden_states.shape[1]])
        for block in self.blocks:
            hidden_states = block(hidden_states, *args, **kwargs)
        return hidden_states

    def adapter(self) -> BlockAdapter:
        """Its description."""
        return BlockAdapter(transformer=self, blocks=self.blocks, forward_pattern=ForwardPattern.Pattern_3)


WRAPS: dict[str, Callable[[Tensor, Tensor], tuple[tuple[Any, ...], dict[str, Any]]]] = {
    "tensors": lambda scale, table: ((scale, table), {}),
    "keywords": lambda scale, table: ((), {"scale": scale, "table": table}),
    "tuple": lambda scale, table: (((None, (scale, 3)), (table, None)), {}),
    "list": lambda scale, table: (([scale], [None, table]), {}),
    "dict": lambda scale, table: (({"a": None, "b": {"c": scale}}, {"table": table}), {}),
    "deep keyword": lambda scale, table: ((taken, table), {"more": {"deep": ({"scale": scale}, None), "flag": True}}),
    "named tuple": lambda scale, table: ((Extras(scale, None), table), {}),
    "dataclass": lambda scale, table: ((Given(scale, table), None), {}),
}


def sizes_seen(model: Any, call: Call = call_toy) -> set[int]:
    """The lengths of the batches that the last block gets in a run."""
    with rows_seen(model.blocks) as seen, torch.no_grad():
        for step in range(STEPS):
            seen.append([])
            call(model, range(BATCH), step)
    return {rows for ran in seen for place, rows in ran if place == len(model.blocks) - 1}


@pytest.mark.parametrize("wrap", WRAPS)
def test_arguments_of_single_samples_are_found_however_deep_they_lie_and_tables_are_left_alone(wrap: str) -> None:
    model = Nested(WRAPS[wrap])
    assert give_what_they_give_alone(model, config(), taylor())
    cache_dit.refresh_context(model)
    assert len(sizes_seen(model)) > 1


def few_tokens(model: Any, samples: Sequence[int], step: int) -> Tensor:
    """As many tokens as there are samples."""
    return model(moving((BATCH, WIDTH), samples, step), fixed((TEXT, WIDTH), samples))  # type: ignore[no-any-return]


UNCLEAR: dict[str, tuple[Any, Call]] = {
    "a table of as many positions as samples": (WRAPS["tensors"], few_tokens),
    "an object": (lambda scale, table: ((Closed(scale), table), {}), call_toy),
}


@pytest.mark.parametrize("what", UNCLEAR)
def test_where_arguments_cannot_be_told_apart_blocks_compute_all_samples_and_each_gets_what_it_gets_alone(
    what: str, caplog: pytest.LogCaptureFixture
) -> None:
    wrap, call = UNCLEAR[what]
    model = Nested(wrap)
    assert give_what_they_give_alone(model, config(), taylor(), call)
    assert "all samples are computed" in caplog.text
    stats = cache_dit.summary(model, logging=False)[0]
    skipped = len(stats.cached_steps)
    assert skipped < STEPS
    assert stats.executed_blocks == BATCH * (STEPS * 4 - skipped * 3)


class ListedBlock(nn.Module):
    """Reads a list with one tensor for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden_states: Tensor, each: list[Tensor]) -> Tensor:
        means = torch.stack([one.mean() for one in each]).reshape(-1, 1, 1)
        return hidden_states + 0.5 * torch.tanh(self.linear(hidden_states) + means)


class Listed(nn.Module):
    """A transformer that takes lists with one tensor for each sample, of any length, as Z-Image's."""

    def __init__(self, *, hands_list: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hands_list = hands_list
        self.blocks = nn.ModuleList(ListedBlock() if hands_list else FORMS["3"].block() for _ in range(4))
        self.requires_grad_(False)

    def forward(self, x: list[Tensor], cap_feats: list[Tensor]) -> list[Tensor]:
        lengths = [len(one) for one in x]
        hidden = nn.utils.rnn.pad_sequence(x, batch_first=True)
        for block in self.blocks:
            hidden = block(hidden, cap_feats) if self.hands_list else block(hidden)
        return [one[:length] for one, length in zip(hidden, lengths, strict=True)]

    def adapter(self) -> BlockAdapter:
        """Its description."""
        return BlockAdapter(transformer=self, blocks=self.blocks, forward_pattern=ForwardPattern.Pattern_3)


def call_listed(model: Any, samples: Sequence[int], step: int) -> Tensor:
    """A step with lists of equally long samples."""
    hidden, encoder = moving((TOKENS, WIDTH), samples, step), fixed((TEXT, WIDTH), samples)
    return torch.stack(model(list(hidden), list(encoder)))


@pytest.mark.parametrize("hands_list", [False, True])
def test_samples_in_a_list_get_what_they_get_alone(hands_list: bool) -> None:
    assert give_what_they_give_alone(Listed(hands_list=hands_list), config(), taylor(), call_listed)


@torch.no_grad()
def test_samples_in_a_list_may_differ_in_length() -> None:
    model = Listed()
    x, captions = (
        [normal(TOKENS - i % 2, WIDTH, seed=i) for i in range(BATCH)],
        list(fixed((TEXT, WIDTH), range(BATCH))),
    )
    expected = model(x, captions)
    cache_dit.enable_cache(model.adapter(), config())
    for _ in range(4):
        assert close(model(x, captions), expected)
    assert list(lines(model).values()) == ["FFCC"] * BATCH


# -- what models do between blocks, and what they do otherwise


class Controlled(Toy):
    """Adds a control tensor of the whole batch after each block, in place or not."""

    def __init__(self, form: str = "0", *, in_place: bool = False, depths: Sequence[int] = (5,)) -> None:
        super().__init__(form, depths)
        self.in_place = in_place

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Any = None, timestep: Any = None, control: Any = None
    ) -> Tensor:
        self.control = normal(1, 1, WIDTH, seed=7) * hidden_states.mean(1, keepdim=True) if control is None else control
        return super().forward(hidden_states, encoder_hidden_states, timestep)

    def step(self, block: nn.Module, hidden: Tensor, encoder: Any) -> tuple[Tensor, Any]:
        hidden, encoder = super().step(block, hidden, encoder)
        return (hidden.add_(0.1 * self.control) if self.in_place else hidden + 0.1 * self.control), encoder


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("form", ["0", "1", "3", "4"])
def test_what_the_loop_adds_between_blocks_is_added_for_all_samples(form: str, in_place: bool) -> None:
    assert give_what_they_give_alone(Controlled(form, in_place=in_place), config(), taylor())


def test_flux_adds_controlnet_residuals_of_the_whole_batch() -> None:
    def call(model: Any, samples: Sequence[int], step: int) -> Tensor:
        given = inputs("FluxTransformer2DModel", batch=len(samples), timestep=0.6)
        given["hidden_states"] = moving((16, 8), samples, step)
        given["encoder_hidden_states"], given["pooled_projections"] = fixed((5, 12), samples), fixed((6,), samples)
        double, single = fixed((16, 16), samples), fixed((16, 16), samples) + 1
        return model(  # type: ignore[no-any-return]
            **given,
            controlnet_block_samples=[double] * 3,
            controlnet_single_block_samples=[single] * 3,
            return_dict=False,
        )[0]

    model = tiny("FluxTransformer2DModel").requires_grad_(False)
    for back in (0, 2):
        options = config(residual_diff_threshold=0.06, Bn_compute_blocks=back)
        assert give_what_they_give_alone(model, options, taylor(), call)


class InPlaceBlock(nn.Module):
    """Writes into its input."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states.add_(0.5 * torch.tanh(self.linear(hidden_states)))


class Solo(nn.Module):
    """Blocks of one stream in a row; ``around`` what is done with the stream before and after them."""

    def __init__(
        self, make: Callable[[], nn.Module], depth: int = 5, into: Any = lambda h: h.clone(), out_of: Any = lambda h: h
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.into, self.out_of = into, out_of
        self.blocks = nn.ModuleList(make() for _ in range(depth))
        self.requires_grad_(False)

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Any = None, skip: int | None = None) -> Tensor:
        hidden = self.into(hidden_states)
        for block in self.blocks[:skip]:
            hidden = block(hidden)
        return self.out_of(hidden)  # type: ignore[no-any-return]

    def adapter(self) -> BlockAdapter:
        """Its description."""
        return BlockAdapter(transformer=self, blocks=self.blocks, forward_pattern=ForwardPattern.Pattern_3)


def test_blocks_that_write_into_their_input_give_each_sample_what_it_gets_alone() -> None:
    assert give_what_they_give_alone(Solo(InPlaceBlock), config(), taylor())


class HalfwayBlock(nn.Module):
    """Returns another dtype, or another shape, than it gets: a stream that looks otherwise in the middle."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change, self.linear = change, nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden_states: Tensor) -> Tensor:
        wide = hidden_states.float()
        return self.change(wide + 0.5 * torch.tanh(self.linear(wide)))


@pytest.mark.parametrize(
    ("there", "back"),
    [
        (lambda h: h.double(), lambda h: h.float()),
        (lambda h: h.repeat(1, 2, 1), lambda h: h[:, :TOKENS] - h[:, TOKENS:] / 2),
    ],
)
def test_a_stream_may_look_otherwise_in_the_middle(there: Any, back: Any) -> None:
    changes = iter([lambda h: h, lambda h: h, there, lambda h: h if h.shape[1] > TOKENS else h.double(), back])
    assert give_what_they_give_alone(Solo(lambda: HalfwayBlock(next(changes))), config(), taylor())


def test_samples_that_are_not_along_the_first_dimension_are_all_computed_and_the_reason_is_told() -> None:
    frames: dict[str, Any] = {
        "into": lambda h: h.reshape(-1, TOKENS // 2, WIDTH),
        "out_of": lambda h: h.reshape(-1, TOKENS, WIDTH),
    }
    model = Solo(FORMS["3"].block, **frames)
    expected = run(model)
    found = together(model, config())
    assert found.lines == ["F" * STEPS] * BATCH
    assert all(map(torch.equal, map(torch.cat, zip(*found.outputs, strict=True)), expected))
    assert "along the first dimension" in str(cache_dit.summary(model, logging=False)[0].reason)


@pytest.mark.parametrize("decision", ["any", "all"])
def test_where_samples_cannot_be_told_apart_one_decision_is_by_the_mean_and_a_line_says_so(
    decision: str, caplog: pytest.LogCaptureFixture
) -> None:
    frames: dict[str, Any] = {
        "into": lambda h: h.reshape(-1, TOKENS // 2, WIDTH),
        "out_of": lambda h: h.reshape(-1, TOKENS, WIDTH),
    }
    asked = together(Solo(FORMS["3"].block, **frames), config(decision))
    assert asked.lines == together(Solo(FORMS["3"].block, **frames), config("mean")).lines
    assert sum("the mean over all decides" in record.message for record in caplog.records) == 1


def test_a_text_stream_that_all_samples_share_is_no_stream_of_samples() -> None:
    class Shared(Toy):
        def forward(self, hidden_states: Tensor, encoder_hidden_states: Any = None, timestep: Any = None) -> Tensor:
            hidden, text = hidden_states, fixed((TEXT, WIDTH), [0])
            for block in self.blocks:
                hidden, _ = block(hidden, text)
            return hidden

    model = Shared("0")
    expected = run(model)
    found = together(model, config())
    assert all(map(torch.equal, map(torch.cat, zip(*found.outputs, strict=True)), expected))
    assert "along the first dimension" in str(cache_dit.summary(model, logging=False)[0].reason)


def test_when_the_last_block_is_left_out_the_step_is_computed_and_the_reason_told() -> None:
    def call(model: Any, samples: Sequence[int], step: int) -> Tensor:
        skip = -1 if step == 4 else None
        return model(moving((TOKENS, WIDTH), samples, step), None, skip)  # type: ignore[no-any-return]

    model = Solo(FORMS["3"].block)
    expected = run(model, call=call)
    found = together(model, config(residual_diff_threshold=0.1), call=call)
    assert mixed([told[:4] for told in found.lines])
    after = [torch.cat(outputs) for outputs in zip(*found.outputs, strict=True)][4:]
    assert all(map(torch.equal, after, expected[4:]))
    assert [told[4:] for told in found.lines] == ["F" * (STEPS - 4)] * BATCH


# -- requests


def test_another_number_of_samples_in_mid_request_begins_anew_for_each() -> None:
    plain, model = Toy("0"), Toy("0")
    cache_dit.enable_cache(model.adapter(), config(), taylor())
    batches = [[0, 1, 2]] * 4 + [[0, 1]] * 3 + [[0, 1, 2, 3]] * 3
    with torch.no_grad():
        outputs = [call_toy(model, samples, step) for step, samples in enumerate(batches)]
        expected = [call_toy(plain, samples, step) for step, samples in enumerate(batches)]
    for step in (0, 1, 4, 7):
        assert torch.equal(outputs[step], expected[step])
    told = list(lines(model).values())
    assert {letters[4] + letters[7] for letters in told[:2]} == {"FF"}
    assert all(letters[7] == "F" for letters in told)
    assert "C" in "".join(told)
    assert {samples[7].why for samples in records(model)[:2]} == {"shape"}
    first, second = records(model)[:2]
    assert len(first) == len(second) == len(batches)


def test_another_number_of_samples_in_the_next_request_changes_nothing() -> None:
    model = Toy("0")
    first = together(model, config(), taylor())
    cache_dit.refresh_context(model)
    for samples in ([0, 1], [3], [2, 1, 0, 3, 1]):
        found = run(model, samples)
        assert list(lines(model).values()) == [first.lines[i] for i in samples]
        for place, i in enumerate(samples):
            rows = [output[place : place + 1] for output in found]
            assert close(rows, first.outputs[i], growth=LINE_GROWTH)
        cache_dit.refresh_context(model)


@torch.no_grad()
def test_other_tokens_or_another_dtype_in_mid_request_are_computed() -> None:
    plain, model = Toy("0"), Toy("0")
    cache_dit.enable_cache(model.adapter(), config(residual_diff_threshold=0.9), taylor())
    text = fixed((TEXT, WIDTH), range(3))
    for step in range(8):
        hidden = moving((TOKENS if step < 4 else TOKENS + 2, WIDTH), range(3), step)
        output = model(hidden, text)
        assert step != 4 or torch.equal(output, plain(hidden, text))
    assert list(lines(model).values()) == ["FFCCFCCC"] * 3
    assert {samples[4].why for samples in records(model)} == {"shape"}


@torch.no_grad()
def test_what_does_not_fit_the_snapshots_is_computed_for_all_samples() -> None:
    plain, model = Toy("0").bfloat16(), Toy("0")
    cache_dit.enable_cache(model.adapter(), config(residual_diff_threshold=0.2, max_warmup_steps=1), taylor())
    for step in range(3):
        call_toy(model, range(BATCH), step)
    model.bfloat16()
    given = moving((TOKENS, WIDTH), range(BATCH), 2).bfloat16(), fixed((TEXT, WIDTH), range(BATCH)).bfloat16()
    assert torch.equal(model(*given), plain(*given))
    assert all(told.endswith("F") for told in lines(model).values())
    assert "shape" in {samples[-1].why for samples in records(model)}


def test_two_requests_in_turn_give_what_they_give_alone() -> None:
    model = Toy("0")
    cache_dit.enable_cache(model.adapter(), config(), taylor())
    batches = {"a": [0, 1, 2], "b": [3, 2], "c": [1]}
    expected = {}
    for name, samples in batches.items():
        expected[name] = run(model, samples)
        cache_dit.refresh_context(model)
    found: dict[str, list[Tensor]] = {name: [] for name in batches}
    for step in range(STEPS):
        for name, samples in batches.items():
            with cache_dit.session(name), torch.no_grad():
                found[name].append(call_toy(model, samples, step))
    assert all(torch.equal(x, y) for name in batches for x, y in zip(found[name], expected[name], strict=True))


@pytest.mark.parametrize("at", [3, 5])
def test_a_run_that_fails_or_is_given_up_leaves_nothing_behind(at: int) -> None:
    model = Toy("0")
    expected = together(model, config(num_inference_steps=STEPS), taylor())
    again = torch.cat([torch.cat(outputs) for outputs in zip(*expected.outputs, strict=True)])
    run(model, steps=at)  # given up
    cache_dit.refresh_context(model)
    assert torch.equal(torch.cat(run(model)), again)

    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    run(model, steps=at)
    hook = model.blocks[0].register_forward_pre_hook(broken)
    with pytest.raises(ZeroDivisionError):
        run(model, steps=1)
    hook.remove()
    assert not state_of(model).sessions
    assert torch.equal(torch.cat(run(model)), again)
    assert list(lines(model).values()) == expected.lines


def guided(model: Any, samples: Sequence[int], step: int) -> Tensor:
    """A step with guidance: a conditional and an unconditional call."""
    hidden = moving((TOKENS, WIDTH), samples, step)
    text = fixed((TEXT, WIDTH), samples)
    return torch.cat([model(hidden, text), model(hidden, -0.3 * text)], dim=1)


@pytest.mark.parametrize("separate", [True, False])
def test_branches_of_guidance_decide_each_for_itself_or_the_second_as_the_first(separate: bool) -> None:
    model = Toy("0")
    options = config(enable_separate_cfg=True, cfg_diff_compute_separate=separate)
    expected = alone(model, options, taylor(), guided)
    found = together(model, options, taylor(), guided)
    told = [line for place in range(BATCH) for line in (found.lines[place], found.lines[BATCH + place])]
    assert told == expected.lines
    assert agree(Alone(found.outputs, []), Alone(expected.outputs, []))
    assert mixed(found.lines[:BATCH])
    assert mixed(found.lines[BATCH:])
    assert (found.lines[:BATCH] == found.lines[BATCH:]) or separate


def test_the_second_branch_reads_nothing_where_it_decides_as_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    real = measure.read_back
    monkeypatch.setattr(measure, "read_back", lambda values: reads.append(len(values)) or real(values))
    together(Toy("0"), config(enable_separate_cfg=True, cfg_diff_compute_separate=False), call=guided)
    assert len(reads) == STEPS - 2


@torch.no_grad()
def test_a_jump_of_the_conditioning_lets_the_samples_compute_that_would_have_been_skipped() -> None:
    model = Controlled("0")
    cache_dit.enable_cache(model.adapter(), config(residual_diff_threshold=0.9), taylor())
    for step in range(8):
        control = normal(BATCH, 1, WIDTH, seed=3) * (1 + 0.01 * step) * (-1 if step >= 5 else 1)
        model(moving((TOKENS, WIDTH), range(BATCH), 0), fixed((TEXT, WIDTH), range(BATCH)), control=control)
    assert list(lines(model).values()) == ["FFCCCFCC"] * BATCH
    assert {samples[5].why for samples in records(model)} == {"conditioning"}


@torch.no_grad()
def test_a_jump_of_one_samples_conditioning_lets_that_one_compute_however_small_it_is_in_the_mean() -> None:
    model = Controlled("0")
    cache_dit.enable_cache(model.adapter(), config(residual_diff_threshold=0.9), taylor())
    for step in range(8):
        control = normal(BATCH, 1, WIDTH, seed=3) * (1 + 0.01 * step)
        control[1] *= 0.5 if step >= 5 else 1
        model(moving((TOKENS, WIDTH), range(BATCH), 0), fixed((TEXT, WIDTH), range(BATCH)), control=control)
    assert list(lines(model).values()) == ["FFCCCCCC", "FFCCCFCC", "FFCCCCCC", "FFCCCCCC"]


@pytest.mark.parametrize("policy", ["once", "repeat"])
def test_a_refresh_in_mid_request_begins_anew_for_each_sample(policy: str) -> None:
    options = config(force_refresh_step_hint=4, force_refresh_step_policy=policy)
    model = Toy("0")
    assert give_what_they_give_alone(model, options, taylor())
    assert all(told[4:6] == "FF" for told in lines(model).values())


def test_options_changed_in_mid_request_apply_to_each_sample_as_alone() -> None:
    handles: dict[str, Any] = {}

    def with_handle(model: Any, samples: Sequence[int], step: int) -> Tensor:
        handle = handles.setdefault(f"{list(samples)}", cache_dit.session(f"{list(samples)}"))
        if step in (3, 6):
            handle.update(**({"residual_diff_threshold": 0.4} if step == 3 else {"max_continuous_cached_steps": 1}))
        with handle:
            return call_toy(model, samples, step)

    model = Toy("0")
    expected = alone(model, config(), taylor(), with_handle)
    handles.clear()
    found = together(model, config(), taylor(), with_handle)
    assert mixed(found.lines)
    assert agree(found, expected)


@pytest.mark.parametrize("decisions", [("mean", "sample"), ("sample", "any"), ("sample", "mean")])
def test_the_decision_may_change_in_mid_request(decisions: tuple[str, str]) -> None:
    plain, model = Toy("0"), Toy("0")
    first, second = decisions
    cache_dit.enable_cache(model.adapter(), config(first), taylor())
    handle = cache_dit.session("changing")
    outputs = []
    with handle, torch.no_grad():
        for step in range(STEPS):
            if step == 5:
                handle.update(decision=second)
            outputs.append(call_toy(model, range(BATCH), step))
        expected = call_toy(plain, range(BATCH), 5)
    assert torch.equal(outputs[5], expected)  # nothing is kept that the other one could use
    told = lines(model)
    assert len(told) == (BATCH if second == "sample" else 1)
    for line in told.values():
        assert line[5] == "F"
        assert len(line) == STEPS
        assert "C" in line[6:]
    stats = cache_dit.summary(model, logging=False)[0]
    assert stats.executed_blocks < stats.possible_blocks


@torch.no_grad()
def test_a_call_of_no_samples_is_computed() -> None:
    model = Toy("0")
    expected = model(torch.zeros(0, TOKENS, WIDTH), torch.zeros(0, TEXT, WIDTH))
    cache_dit.enable_cache(model.adapter(), config())
    for _ in range(4):
        assert torch.equal(model(torch.zeros(0, TOKENS, WIDTH), torch.zeros(0, TEXT, WIDTH)), expected)


@torch.no_grad()
def test_a_step_in_which_no_middle_block_is_called_counts_as_computed() -> None:
    model = Solo(FORMS["3"].block)
    cache_dit.enable_cache(model.adapter(), config(residual_diff_threshold=0.9))
    for step in range(6):
        model(moving((TOKENS, WIDTH), range(2), step), None, 1 if step == 3 else None)
    assert [told[3] for told in lines(model).values()] == ["F", "F"]


# -- compiled


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """No compiled code from other tests, and none left for them."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(model: Any, how: str, backend: Any = "eager") -> Any:
    """A model compiled as a whole, or block by block."""
    if how == "whole":
        model.compile(backend=backend)
        return model
    for block in model.blocks:
        block.compile(backend=backend, fullgraph=True)
    return model


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("how", ["blocks", "whole"])
def test_compiled_each_sample_gets_what_it_gets_alone(how: str) -> None:
    expected = alone(Toy("0", (3,)), config(), taylor())
    found = together(compiled(Toy("0", (3,)), how), config(), taylor())
    assert mixed(found.lines)
    assert agree(found, expected)


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_blocks_are_compiled_anew_for_another_number_of_samples_only_until_it_is_a_symbol() -> None:
    counter = CompileCounterWithBackend("eager")
    model = compiled(Toy("0", (4,)), "blocks", counter)
    first = together(model, config(), taylor())
    assert len({sum(told[step] == "F" for told in first.lines) for step in range(STEPS)}) > BATCH
    assert 1 < counter.frame_count <= 3  # the whole batch, any number, and one
    before = counter.frame_count
    cache_dit.refresh_context(model)
    run(model, [3, 2, 1, 0])
    assert counter.frame_count == before


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("how", ["repeated blocks", "whole"])
def test_a_compiled_family_gives_each_sample_what_it_gives_alone(how: str) -> None:
    name = "FluxTransformer2DModel"
    options = config(residual_diff_threshold=FAMILIES[name])
    expected = alone(tiny(name).requires_grad_(False), options, taylor(), call_family)
    model = tiny(name).requires_grad_(False)
    if how == "whole":
        model.compile(backend="eager")
    else:
        model.compile_repeated_blocks(backend="eager", fullgraph=True)
    found = together(model, options, taylor(), call_family)
    assert mixed(found.lines)
    assert agree(found, expected)
