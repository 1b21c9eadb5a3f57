"""A user's own description of a model: every way to write it down, and what is wrong with one."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor, nn

import cache_dit
from cache_dit import (
    BlockAdapter,
    ConfigError,
    DBCacheConfig,
    ForwardPattern,
    ParamsModifier,
    PatternMismatchError,
    UnsupportedModelError,
)
from cache_dit.caching import FakeDiffusionPipeline
from tests.kit.equality import close
from tests.kit.toys import FORMS, WIDTH, Joined, SoloBlock, Toy, counted, frozen_run, line, static, stream_inputs

P0, P1, P3 = ForwardPattern.Pattern_0, ForwardPattern.Pattern_1, ForwardPattern.Pattern_3
LINE = "FFCCFC"


def shape_of(adapter: BlockAdapter) -> list[list[tuple[str, ...]]]:
    """For each transformer and chain, the names of its lists."""
    return [[tuple(lst.name for lst in chain.lists) for chain in target.chains] for target in adapter.targets()]


def runs_right(model: Toy, adapter: BlockAdapter) -> None:
    """Frozen inputs give the true output under this description."""
    inputs = stream_inputs(model)
    expected = frozen_run(model, inputs, 1)[0]
    cache_dit.enable_cache(adapter, static(LINE))
    assert close(frozen_run(model, inputs, len(LINE)), expected)
    assert line(model) == LINE


# -- one transformer


@pytest.mark.parametrize("blocks", ["scalar", "list", "list of lists"])
@pytest.mark.parametrize("pattern", ["scalar", "list", "list of lists"])
@pytest.mark.parametrize("transformer", ["scalar", "list"])
def test_one_list_of_one_transformer_may_be_nested_or_not(transformer: str, pattern: str, blocks: str) -> None:
    model = Toy("0")
    nested = {"scalar": lambda value: value, "list": lambda value: [value], "list of lists": lambda value: [[value]]}
    adapter = BlockAdapter(
        transformer=nested[transformer](model),
        blocks=nested[blocks](model.blocks),
        forward_pattern=nested[pattern](P0),
    )
    assert shape_of(adapter) == [[("blocks",)]]
    runs_right(model, adapter)


def test_several_lists_are_chains_of_their_own() -> None:
    model = Toy("0", (3, 4))
    assert shape_of(model.adapter()) == [[("blocks",), ("blocks_1",)]]


def test_merged_lists_are_one_chain() -> None:
    model = Toy("0", (3, 4))
    assert shape_of(model.adapter(merge=True)) == [[("blocks", "blocks_1")]]


def test_lists_of_unlike_patterns() -> None:
    model = Joined("eh")
    adapter = BlockAdapter(
        transformer=model, blocks=[model.double_blocks, model.single_blocks], forward_pattern=[P1, P3]
    )
    (target,) = adapter.targets()
    assert [chain.lists[0].pattern for chain in target.chains] == [P1, P3]
    inputs = stream_inputs()
    expected = frozen_run(model, inputs, 1)[0]
    cache_dit.enable_cache(adapter, static(LINE))
    assert close(frozen_run(model, inputs, len(LINE)), expected)


def test_one_pattern_serves_all_lists() -> None:
    (target,) = Toy("0", (3, 4)).adapter(forward_pattern=[P0]).targets()
    assert [chain.lists[0].pattern for chain in target.chains] == [P0, P0]


def test_a_list_of_blocks_is_one_block_list() -> None:
    model = Toy("0")
    adapter = model.adapter(blocks=list(model.blocks))
    assert shape_of(adapter) == [[("blocks",)]]
    runs_right(model, adapter)


# -- several transformers


@pytest.mark.parametrize("nested", [False, True])
def test_several_transformers_with_a_list_each(nested: bool) -> None:
    first, second = Toy("0"), Toy("1")
    blocks: Any = [first.blocks, second.blocks]
    patterns: Any = [P0, P1]
    adapter = BlockAdapter(
        transformer=[first, second],
        blocks=[[item] for item in blocks] if nested else blocks,
        forward_pattern=[[item] for item in patterns] if nested else patterns,
    )
    assert shape_of(adapter) == [[("blocks",)], [("blocks",)]]
    assert [target.transformer for target in adapter.targets()] == [first, second]
    cache_dit.enable_cache(adapter, static(LINE))
    for model in (first, second):
        inputs = stream_inputs(model)
        plain = Toy("0" if model is first else "1")
        assert close(frozen_run(model, inputs, len(LINE)), frozen_run(plain, inputs, 1)[0])
    cache_dit.disable_cache(adapter)
    assert type(first) is type(second) is Toy


def test_several_transformers_with_unlike_numbers_of_lists() -> None:
    first, second = Toy("0", (3, 3)), Toy("0", (4,))
    adapter = BlockAdapter(transformer=[first, second], blocks=[first.lists, second.lists], forward_pattern=P0)
    assert shape_of(adapter) == [[("blocks",), ("blocks_1",)], [("blocks",)]]


# -- names


def test_names_are_found_by_identity() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Toy("0", (3, 4))

    model = Deep()
    adapter = BlockAdapter(transformer=model, blocks=model.inner.lists, forward_pattern=P0)
    assert shape_of(adapter) == [[("inner.blocks",), ("inner.blocks_1",)]]


def test_names_that_are_given_are_kept() -> None:
    model = Toy("0", (3, 4))
    assert shape_of(model.adapter(blocks_name=["a", "b"])) == [[("a",), ("b",)]]
    assert shape_of(model.adapter(blocks_name=[["a", "b"]], merge=True)) == [[("a", "b")]]


def test_lists_of_one_name_get_unique_ones() -> None:
    first, second = Toy("0"), Toy("0")
    adapter = BlockAdapter.normalize(
        BlockAdapter(transformer=[first, second], blocks=[first.blocks, second.blocks], forward_pattern=P0)
    )
    names = [name for names in adapter.unique_blocks_name for name in names]
    assert len(set(names)) == 2
    assert all(name.startswith("blocks_") for name in names)


def test_skip_post_init_leaves_everything_as_it_was_given() -> None:
    model = Toy("0")
    adapter = BlockAdapter(transformer=model, blocks=model.blocks, forward_pattern=P0, skip_post_init=True)
    assert (adapter.pipe, adapter.blocks_name, adapter.blocks) == (None, None, model.blocks)
    runs_right(model, adapter)
    cache_dit.disable_cache(adapter)
    assert type(model) is Toy


def test_normalizing_twice_changes_nothing() -> None:
    model = Toy("0", (3, 4))
    adapter = model.adapter()
    assert not BlockAdapter.is_normalized(adapter)
    once = BlockAdapter.normalize(adapter)
    assert once is adapter
    assert BlockAdapter.is_normalized(adapter)
    kept = (adapter.transformer, adapter.blocks, adapter.blocks_name, adapter.forward_pattern)
    BlockAdapter.normalize(adapter)
    assert (adapter.transformer, adapter.blocks, adapter.blocks_name, adapter.forward_pattern) == kept


# -- auto


class Several(Toy):
    """Lists of several lengths, names and kinds."""

    def __init__(self) -> None:
        super().__init__("0")
        self.transformer_blocks = nn.ModuleList(FORMS["0"].block() for _ in range(3))
        self.single_transformer_blocks = nn.ModuleList(SoloBlock() for _ in range(9))
        self.refiner = nn.ModuleList(FORMS["0"].block() for _ in range(8))


def test_auto_finds_the_list_that_fits() -> None:
    model = Toy("0")
    adapter = BlockAdapter(transformer=model, forward_pattern=P0, auto=True)
    assert shape_of(adapter) == [[("blocks",)]]
    runs_right(model, adapter)


@pytest.mark.parametrize(
    ("pattern", "options", "expected"),
    [
        (P0, {}, "blocks"),
        (P0, {"blocks_policy": "min"}, "transformer_blocks"),
        (P0, {"check_prefixes": False}, "refiner"),
        (P0, {"allow_prefixes": ["ref"]}, "refiner"),
        (P3, {}, "single_transformer_blocks"),
        (P3, {"check_suffixes": True, "allow_suffixes": ["PairBlock"]}, "blocks"),
    ],
)
def test_auto_considers_what_it_is_told_to(pattern: ForwardPattern, options: dict[str, Any], expected: str) -> None:
    adapter = BlockAdapter(transformer=Several(), forward_pattern=pattern, auto=True, **options)
    assert shape_of(adapter) == [[(expected,)]]


def test_auto_takes_the_transformer_from_the_pipe() -> None:
    model = Toy("0")
    adapter = BlockAdapter(pipe=FakeDiffusionPipeline(model), forward_pattern=P0, auto=True)
    assert adapter.transformer is model


def test_an_auto_adapter_found_again_keeps_the_rest() -> None:
    model = Toy("0")
    modifier = cache_dit.ParamsModifier(cache_config=cache_dit.DBCacheConfig().reset(Bn_compute_blocks=1))
    adapter = BlockAdapter(
        transformer=model, forward_pattern=P0, auto=True, has_separate_cfg=True, params_modifiers=modifier
    )
    found = BlockAdapter.auto_block_adapter(adapter)
    assert found.blocks is model.blocks
    assert found.has_separate_cfg
    assert found.params_modifiers is modifier
    with pytest.raises(ConfigError, match="auto=True"):
        BlockAdapter.auto_block_adapter(model.adapter())


def test_outputs_are_counted_in_the_return_annotation_where_that_is_asked() -> None:
    class Annotated(nn.Module):
        def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
            return hidden_states, hidden_states

    block = Annotated()
    assert BlockAdapter.match_block_pattern(block, P3)
    assert not BlockAdapter.match_block_pattern(block, P3, check_num_outputs=True)
    assert BlockAdapter.match_block_pattern(block, ForwardPattern.Pattern_4, check_num_outputs=True)
    assert not BlockAdapter.match_block_pattern(block, P0)
    assert BlockAdapter.match_blocks_pattern([block, block], ForwardPattern.Pattern_5)


# -- what is wrong


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no blocks": ({"blocks": None}, ConfigError, "lacks blocks"),
    "no pattern": ({"forward_pattern": None}, ConfigError, "lacks forward_pattern"),
    "no transformer": ({"transformer": None, "blocks_name": "blocks"}, ConfigError, "lacks transformer"),
    "a pattern that is none": ({"forward_pattern": 0}, ConfigError, "forward_pattern=0 is no ForwardPattern"),
    "too many patterns": ({"forward_pattern": [P0, P0]}, ConfigError, "forward_pattern has 2 items for 1 block lists"),
    "too many names": ({"blocks_name": ["a", "b"]}, ConfigError, "blocks_name has 2 items for 1 block lists"),
    "too deep": ({"forward_pattern": [[[P0]]]}, ConfigError, "nested 3 deep"),
    "too many lists": ({"forward_pattern": [[P0], [P0]]}, ConfigError, "2 lists for 1 transformers"),
    "an unknown join": ({"join": "ee"}, ConfigError, "join='ee'.*'eh', 'he'"),
    "too many stream names": ({"stream_names": [("a", "b"), ("c", "d")]}, ConfigError, "2 pairs in stream_names for 1"),
    "an unknown policy": ({"auto": True, "blocks_policy": "longest"}, ConfigError, "pass 'max' or 'min'"),
    "auto without a pattern": ({"auto": True, "forward_pattern": None}, ConfigError, "auto=True needs"),
    "auto for several": ({"auto": True, "transformer": [Toy("0"), Toy("0")]}, ConfigError, "one transformer"),
    "auto and nothing fits": (
        {"auto": True, "check_suffixes": True},
        UnsupportedModelError,
        "no block list of Toy fits Pattern_0 .found: blocks.",
    ),
    "blocks of another model": ({"blocks": Toy("0").blocks}, ConfigError, "no attribute of Toy"),
    "no block at all": ({"blocks": nn.ModuleList()}, ConfigError, "block list"),
    "a missing argument": (
        {"check_forward_pattern": True, "stream_names": ("hidden_states", "text")},
        PatternMismatchError,
        "PairBlock.forward.hidden_states, encoder_hidden_states, scale. has no argument 'text'.*Pattern_0",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_description_that_cannot_work_is_a_typed_error(wrong: str) -> None:
    changes, error, message = WRONG[wrong]
    model = Toy("0")
    with pytest.raises(error, match=message):
        cache_dit.enable_cache(model.adapter(**changes), static("FC"))
    assert type(model) is Toy


@pytest.mark.parametrize("check", [None, False, True])
@pytest.mark.parametrize("names", [("x", "y"), ("hidden_states", "text"), ("image", "encoder_hidden_states")])
def test_stream_names_that_the_block_has_not_are_refused(names: tuple[str, str], check: bool | None) -> None:
    model = Toy("0")
    adapter = model.adapter(stream_names=names, check_forward_pattern=check)
    missing = next(name for name in names if name not in ("hidden_states", "encoder_hidden_states"))
    told = rf"PairBlock.forward\(hidden_states, encoder_hidden_states, scale\) has no argument '{missing}'"
    with pytest.raises(PatternMismatchError, match=told):
        cache_dit.enable_cache(adapter, static("FC"))
    assert type(model) is Toy


def test_stream_names_are_asked_of_each_list_and_of_what_its_pattern_reads_alone() -> None:
    model = Joined("eh")
    cache_dit.enable_cache(model.adapter(stream_names=("hidden_states", "encoder_hidden_states")), static("FC"))
    names = [("hidden_states", "encoder_hidden_states"), ("hidden_states", "text")]
    cache_dit.enable_cache(model.adapter(stream_names=names), static("FC"))
    names = [("hidden_states", "encoder_hidden_states"), ("x", "text")]
    with pytest.raises(PatternMismatchError, match=r"SoloBlock.forward\(hidden_states, scale\) has no argument 'x'"):
        cache_dit.enable_cache(model.adapter(stream_names=names), static("FC"))


def test_hooks_of_offloading_switch_the_check_of_names_off() -> None:
    model = Toy("0")
    model._hf_hook = object()
    cache_dit.enable_cache(model.adapter(check_forward_pattern=True, stream_names=("x", "y")), static("FC"))
    assert len(frozen_run(model, stream_inputs(), 2)) == 2


def test_a_patch_functor_is_applied_once_to_each_transformer() -> None:
    class Functor:
        def __init__(self) -> None:
            self.applied: list[nn.Module] = []

        def apply(self, transformer: nn.Module) -> None:
            self.applied.append(transformer)

    functor, model = Functor(), Toy("0")
    adapter = model.adapter(patch_functor=functor)
    cache_dit.enable_cache(adapter, static("FC"))
    assert functor.applied == [model]


def test_blocks_outside_of_the_description_always_run() -> None:
    model = Toy("0", (3, 4))
    cache_dit.enable_cache(model.adapter(blocks=model.blocks_1), static("FCCC"))
    with counted(model.all_blocks) as fired:
        frozen_run(model, stream_inputs(), 4)
    assert [fired[place] for place in range(7)] == [4, 4, 4, 4, 1, 1, 1]


def test_helpers_for_nested_lists() -> None:
    blocks = nn.ModuleList([nn.Linear(WIDTH, WIDTH)])
    assert [BlockAdapter.nested_depth(value) for value in (blocks, [blocks], [[blocks]], [])] == [0, 1, 2, 1]
    assert BlockAdapter.flatten([[1, 2], [3], []]) == [1, 2, 3]
    assert set(BlockAdapter.find_blocks(Several())) == {
        "blocks",
        "transformer_blocks",
        "single_transformer_blocks",
        "refiner",
    }


def test_an_adapter_tells_whether_it_is_normalized_and_cached() -> None:
    adapter = Toy("3").adapter()
    assert not BlockAdapter.is_normalized(adapter)
    with pytest.raises(ConfigError, match="normal form"):
        BlockAdapter.assert_normalized(adapter)
    cache_dit.enable_cache(adapter, static("FC"))
    BlockAdapter.assert_normalized(adapter)
    assert BlockAdapter.is_cached(adapter)
    cache_dit.disable_cache(adapter)
    assert not BlockAdapter.is_cached(adapter)


def test_merged_lists_take_one_modifier_for_each_and_the_first_counts(caplog: pytest.LogCaptureFixture) -> None:
    model = Toy("0", (2, 2))
    modifiers = [
        ParamsModifier(cache_config=DBCacheConfig().reset(residual_diff_threshold=value)) for value in (0.1, 0.3)
    ]
    cache_dit.enable_cache(model.adapter(merge=True), static("FC"), params_modifiers=modifiers)
    stats = cache_dit.summary(model, logging=False)
    assert stats[0].cache_options["cache_config"].residual_diff_threshold == 0.1
    assert "the first list's modifier counts" in caplog.text


H, E = "hidden_states", "encoder_hidden_states"


@pytest.mark.parametrize(
    ("name", "first", "only", "forward_only", "reads", "gives"),
    [
        ("Pattern_0", True, False, False, [H, E], [H, E]),
        ("Pattern_1", False, False, False, [H, E], [E, H]),
        ("Pattern_2", False, True, False, [H, E], [H]),
        ("Pattern_3", False, True, True, [H], [H]),
        ("Pattern_4", True, False, True, [H], [H, E]),
        ("Pattern_5", False, False, True, [H], [E, H]),
    ],
)
def test_the_patterns_say_what_goes_in_and_what_comes_out(
    name: str, first: bool, only: bool, forward_only: bool, reads: list[str], gives: list[str]
) -> None:
    pattern = ForwardPattern[name]
    assert pattern.value == (first, only, forward_only, reads, gives, True)
    assert (pattern.Return_H_First, pattern.Return_H_Only, pattern.Forward_H_only) == (first, only, forward_only)
    assert (pattern.In, pattern.Out, pattern.Supported) == (reads, gives, True)
    assert pattern in ForwardPattern.supported_patterns()
    assert len(ForwardPattern) == 6


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ({"transformer": 3}, "transformer=3 is no torch.nn.Module"),
        ({"blocks": [3]}, "blocks holds a int, not a list of blocks"),
        ({"blocks": "blocks"}, "blocks holds a str, not a list of blocks"),
        ({"patch_functor": 3}, "patch_functor=3 has no apply: pass a PatchFunctor"),
        ({"idle": {"nowhere": "hidden_states"}}, "idle names 'nowhere', which Toy has not"),
    ],
)
def test_a_part_of_the_wrong_kind_is_refused(described: dict[str, Any], message: str) -> None:
    model = Toy("0")
    parts = {"transformer": model, "blocks": model.blocks, "forward_pattern": ForwardPattern.Pattern_0, **described}
    with pytest.raises(ConfigError, match=message):
        cache_dit.enable_cache(BlockAdapter(**parts), DBCacheConfig(Fn_compute_blocks=1))


def test_lists_that_take_turns_are_of_one_length() -> None:
    model = Toy("0", (3, 2))
    adapter = BlockAdapter(transformer=model, blocks=model.lists, forward_pattern=P0, merge=True, interleave=True)
    with pytest.raises(ConfigError, match=r"interleave=True with lists of \[3, 2\] blocks: pass lists of one length"):
        cache_dit.enable_cache(adapter, DBCacheConfig(Fn_compute_blocks=1))
    assert not BlockAdapter.check_block_adapter(adapter)


def test_an_adapter_is_checked_without_being_changed() -> None:
    model = Toy("0", (3, 3))
    adapter = model.adapter()
    before = (adapter.blocks, adapter.transformer)
    assert BlockAdapter.check_block_adapter(adapter)
    assert (adapter.blocks, adapter.transformer) == before
    wrong = BlockAdapter(transformer=model, blocks=model.blocks, forward_pattern=P0, stream_names=("x", "y"))
    assert not BlockAdapter.check_block_adapter(wrong)
    assert not BlockAdapter.check_block_adapter(BlockAdapter(transformer=model, forward_pattern=P0))
    assert not BlockAdapter.is_parallelized(adapter)
    names = [name for names in BlockAdapter.unique(adapter).unique_blocks_name for name in names]
    assert len(set(names)) == 2


# -- what it shows


@pytest.mark.parametrize("normalized", [False, True])
def test_an_adapter_shows_blocks_by_number_and_class_and_no_module(normalized: bool) -> None:
    model = Toy("0", (3, 4))
    described = BlockAdapter(transformer=model, blocks=model.lists, forward_pattern=P0)
    if normalized:
        described.targets()
    shown = repr(described)
    block = type(model.blocks[0]).__name__
    for part in ("transformer=", "Toy", f"[3 × {block}, 4 × {block}]", "['blocks', 'blocks_1']", "Pattern_0"):
        assert part in shown
    assert "\n" not in shown and len(shown) < 400
    assert "allow_prefixes" not in shown
