"""Picture models of double-stream, then single-stream blocks, and their kin of one list: what is special in them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import cache_dit
from cache_dit import DBPruneConfig
from tests.kit.claims import LINE, ONE_BRANCH, blocks_of, once, repeated, samples_decide_for_themselves
from tests.kit.equality import close, unlike
from tests.kit.row import TEXT, normal
from tests.kit.tiny_models import inputs, tiny
from tests.kit.toys import counted, dynamic, lines, static

DUAL = [
    "AuraFlowTransformer2DModel",
    "BriaFiboTransformer2DModel",
    "BriaTransformer2DModel",
    "ChromaTransformer2DModel",
    "HiDreamImageTransformer2DModel",
    "HunyuanImageTransformer2DModel",
    "LongCatImageTransformer2DModel",
    "OvisImageTransformer2DModel",
]
SINGLE = [
    "BriaFibo2Transformer2DModel",
    "Ideogram4Transformer2DModel",
    "Krea2Transformer2DModel",
    "NucleusMoEImageTransformer2DModel",
]
CONTROLLED = ["BriaTransformer2DModel", "ChromaTransformer2DModel"]


# -- two lists, one chain


@pytest.mark.parametrize(("front", "back"), [(3, 0), (4, 1), (0, 3), (1, 4)])
@pytest.mark.parametrize("name", DUAL)
def test_what_is_skipped_may_lie_in_one_of_the_two_lists(name: str, front: int, back: int) -> None:
    model = tiny(name)
    expected = once(model, inputs(name))
    cache_dit.enable_cache(model, static(LINE, Fn_compute_blocks=front, Bn_compute_blocks=back, **ONE_BRANCH))
    blocks = blocks_of(model)
    with counted(blocks) as fired:
        assert close(repeated(model, inputs(name)), expected)
    skipped = range(front, len(blocks) - back)
    assert all(fired[place] == (LINE.count("F") if place in skipped else len(LINE)) for place in range(len(blocks)))


@pytest.mark.parametrize(("front", "back"), [(1, 0), (0, 1), (2, 2)])
@pytest.mark.parametrize("name", [*DUAL, *SINGLE])
def test_blocks_that_add_nothing_are_skipped_without_a_trace(name: str, front: int, back: int) -> None:
    model = tiny(name)
    blocks = blocks_of(model)
    for block in blocks[front : len(blocks) - back]:
        for parameter in block.parameters():
            parameter.data.zero_()
    given = inputs(name, timestep=0.3)
    given["hidden_states"] = given["hidden_states"].flip(1)
    expected = once(model, given)
    assert unlike(expected, once(model, inputs(name)), by=0.01)
    cache_dit.enable_cache(model, static("FC", Fn_compute_blocks=front, Bn_compute_blocks=back, **ONE_BRANCH))
    once(model, inputs(name))
    assert close([once(model, given)], expected)
    assert lines(model) == {"default": "FC"}


# -- ControlNet: after the single-stream blocks the loop writes into what they returned


def residuals(name: str, *, seed: int = 10) -> dict[str, list[Tensor]]:
    """A ControlNet's residuals for both lists. In the second Bria's loop leaves out as many tokens as the text has."""
    tokens = 16 - TEXT if name.startswith("Bria") else 16
    return {
        "controlnet_block_samples": [normal(1, 16, 16, seed=seed + place) for place in range(2)],
        "controlnet_single_block_samples": [normal(1, tokens, 16, seed=seed + 5 + place) for place in range(3)],
    }


PRUNE = DBPruneConfig(Fn_compute_blocks=1, max_warmup_steps=1, residual_diff_threshold=0.5, **ONE_BRANCH)
CONFIGS = [
    *(
        static(LINE, Fn_compute_blocks=f, Bn_compute_blocks=b, **ONE_BRANCH)
        for f, b in ((1, 0), (0, 0), (2, 2), (4, 0), (0, 4))
    ),
    dynamic(**ONE_BRANCH),
    dynamic(decision="sample", **ONE_BRANCH),
    PRUNE,
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.strify())
@pytest.mark.parametrize("name", CONTROLLED)
def test_a_controlnets_residuals_are_added_on_skipped_steps_too(name: str, config: Any) -> None:
    model = tiny(name)
    given = {**inputs(name), **residuals(name)}
    expected = once(model, given)
    assert unlike(expected, once(model, inputs(name)), by=0.01)
    cache_dit.enable_cache(model, config)
    with counted(blocks_of(model)) as fired:
        assert close(repeated(model, given), expected)
    assert fired.total() < len(LINE) * 6


@pytest.mark.parametrize("name", CONTROLLED)
def test_another_control_picture_in_mid_run_is_obeyed_at_once(name: str) -> None:
    model = tiny(name)
    first, second = ({**inputs(name), **residuals(name, seed=seed)} for seed in (10, 20))
    expected = once(model, second)
    cache_dit.enable_cache(model, static("FCCCCC", **ONE_BRANCH))
    for _ in range(3):
        once(model, first)
    assert close([once(model, second) for _ in range(3)], expected)
    assert lines(model) == {"default": "FCCFCC"}


# -- other ways in which pipelines call these models


def hidream_oblong() -> tuple[str, dict[str, Any], dict[str, Any]]:
    name = "HiDreamImageTransformer2DModel"
    return name, {}, {**inputs(name), "hidden_states": normal(1, 4, 8, 4)}


def hunyuan_refiner() -> tuple[str, dict[str, Any], dict[str, Any]]:
    name = "HunyuanImageTransformer2DModel"
    given = {key: value for key, value in inputs(name).items() if not key.endswith("_2")}
    changes = {"patch_size": (1, 1, 1), "rope_axes_dim": (2, 2, 4), "text_embed_2_dim": None, "guidance_embeds": True}
    return name, changes, {**given, "hidden_states": normal(1, 4, 1, 4, 4), "guidance": torch.full((1,), 3250.0)}


def hunyuan_distilled() -> tuple[str, dict[str, Any], dict[str, Any]]:
    name = "HunyuanImageTransformer2DModel"
    given = {**inputs(name), "guidance": torch.full((1,), 3250.0), "timestep_r": torch.full((1,), 500.0)}
    return name, {"guidance_embeds": True, "use_meanflow": True}, given


def fibo_2_edit() -> tuple[str, dict[str, Any], dict[str, Any]]:
    name = "BriaFibo2Transformer2DModel"
    return name, {}, {**inputs(name), "context_latents": [normal(1, 4, 4, 6, seed=5), normal(1, 4, 2, 2, seed=6)]}


def fibo_2_prompts_of_unlike_length() -> tuple[str, dict[str, Any], dict[str, Any]]:
    name = "BriaFibo2Transformer2DModel"
    given = inputs(name, batch=2)
    return name, {}, {**given, "encoder_attention_mask": torch.arange(TEXT) < torch.tensor([[2], [TEXT]])}


def ideogram_without_a_prompt() -> tuple[str, dict[str, Any], dict[str, Any]]:
    name = "Ideogram4Transformer2DModel"
    return name, {}, {key: value if key == "timestep" else value[:, TEXT:] for key, value in inputs(name).items()}


def nucleus_with_all_experts() -> tuple[str, dict[str, Any], dict[str, Any]]:
    name = "NucleusMoEImageTransformer2DModel"
    return name, {"dense_moe_strategy": "all_moe", "use_sigmoid": True, "num_key_value_heads": 1}, inputs(name)


@pytest.mark.parametrize(("front", "back"), [(1, 1), (0, 0)])
@pytest.mark.parametrize(
    "case",
    [
        hidream_oblong,
        hunyuan_refiner,
        hunyuan_distilled,
        fibo_2_edit,
        fibo_2_prompts_of_unlike_length,
        ideogram_without_a_prompt,
        nucleus_with_all_experts,
    ],
)
def test_frozen_inputs_give_the_true_output(case: Any, front: int, back: int) -> None:
    name, changes, given = case()
    model = tiny(name, **changes)
    expected = once(model, given)
    assert expected.isfinite().all()
    cache_dit.enable_cache(model, static(LINE, Fn_compute_blocks=front, Bn_compute_blocks=back, **ONE_BRANCH))
    assert close(repeated(model, given), expected)
    assert lines(model) == {"default": LINE}


def test_another_picture_to_edit_in_mid_run_is_obeyed_at_once() -> None:
    name, _, first = fibo_2_edit()
    model = tiny(name)
    second = {**first, "context_latents": [-picture for picture in first["context_latents"]]}
    expected = once(model, second)
    assert unlike(expected, once(model, first), by=0.01)
    cache_dit.enable_cache(model, static("FCCCCC", **ONE_BRANCH))
    for _ in range(3):
        once(model, first)
    assert close([once(model, second) for _ in range(3)], expected)
    assert lines(model) == {"default": "FCCFCC"}


# -- each sample by itself


def alone(value: Any, sample: int) -> Any:
    """A sample's part of the arguments for a batch of two: of the first dimension of that length, and of lists."""
    if isinstance(value, dict):
        return {key: alone(item, sample) for key, item in value.items()}
    if isinstance(value, list):
        tensors = all(isinstance(item, Tensor) for item in value)
        return [alone(item, sample) for item in value] if tensors else value[sample : sample + 1]
    if isinstance(value, Tensor) and 2 in value.shape:
        return value.narrow(value.shape.index(2), sample, 1)
    return value


@pytest.mark.parametrize("name", [*DUAL, *SINGLE])
def test_samples_that_decide_for_themselves_give_what_they_give_alone(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    samples_decide_for_themselves(name, caplog, alone=alone)


# -- each block by itself


@pytest.mark.parametrize("name", [*DUAL, *SINGLE])
def test_each_pruned_block_gives_what_it_gave(name: str) -> None:
    model = tiny(name)
    expected = once(model, inputs(name))
    cache_dit.enable_cache(model, PRUNE)
    blocks = blocks_of(model)
    with counted(blocks) as fired:
        assert close(repeated(model, inputs(name)), expected)
    assert fired == {place: 1 if place else len(LINE) for place in range(len(blocks))}
