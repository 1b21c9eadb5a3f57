"""Models of one block list, most over all tokens in one sequence: what conditions them, and how samples decide."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cache_dit
from cache_dit import DBPruneConfig
from tests.kit.claims import (
    LINE,
    ONE_BRANCH,
    Variant,
    another_condition_is_obeyed_at_once,
    blocks_of,
    once,
    repeated,
    samples_decide_for_themselves,
    skipped_steps_give_the_true_output,
)
from tests.kit.equality import close, same, unlike
from tests.kit.row import TEXT, normal
from tests.kit.tiny_models import inputs, tiny
from tests.kit.toys import counted, dynamic, lines, loop, static

BATCHED = [
    "Flux3Transformer2DModel",
    "GlmImageTransformer2DModel",
    "JoyImageEditPlusTransformer3DModel",
    "JoyImageEditTransformer3DModel",
    "Kandinsky5Transformer3DModel",
    "Kandinsky6SRTransformer3DModel",
    "Kandinsky6Transformer3DModel",
    "Lumina2Transformer2DModel",
    "LuminaNextDiT2DModel",
    "OmniGenTransformer2DModel",
    "ZImageTransformer2DModel",
]
UNBATCHED = ["Cosmos3OmniTransformer", "ErnieImageTransformer2DModel"]
ALL = [*BATCHED, *UNBATCHED, "QwenImage21Transformer2DModel"]

PRUNE = DBPruneConfig(Fn_compute_blocks=1, max_warmup_steps=1, residual_diff_threshold=0.5, **ONE_BRANCH)


def made(variant: Variant) -> nn.Module:
    """A variant's model; the test is skipped where this diffusers does not call it so."""
    model = variant.model()
    if missing := variant.given().keys() - inspect.signature(type(model).forward).parameters.keys():
        pytest.skip(f"{variant.name} of this diffusers takes no {', '.join(missing)}")
    return model


# -- what conditions a model, and other ways in which pipelines call it


def _z_image_omni(seed: int) -> dict[str, Any]:
    clean, noisy = normal(2, 4, 1, 8, 8)
    return {
        "x": [[clean, noisy]],
        "cap_feats": [[normal(TEXT, 12, seed=1), normal(3, 12, seed=2)]],
        "siglip_feats": [[normal(2, 3, 6, seed=seed), None]],
        "image_noise_mask": [[0, 1]],
    }


def _qwen_image21_edit(seed: int) -> dict[str, Any]:
    slots = torch.tensor([[False, True, True, False, False, False, False] + [True] * 4])
    return {
        "hidden_states": normal(1, 8 + 16, 8),
        "encoder_hidden_states": normal(1, 7, 12, seed=1),
        "encoder_hidden_states_mask": torch.arange(7)[None] < 6,
        "img_shapes": [[(1, 2, 4), (1, 4, 4)]],
        "img_mask": slots,
    }


def _kandinsky6_first_frame(seed: int) -> dict[str, Any]:
    return {
        "hidden_states": normal(1, 3, 8, 8, 9),
        "visual_token_type_ids": torch.tensor([[0, 0, 1]]),
        "visual_rope_pos": (torch.tensor([0, 1, 0]), torch.arange(4), torch.arange(4)),
    }


def _lumina2_unlike_prompts(seed: int) -> dict[str, Any]:
    given = inputs("Lumina2Transformer2DModel", batch=2)
    return {**given, "encoder_attention_mask": torch.arange(TEXT) < torch.tensor([[2], [TEXT]])}


VARIANTS = {
    "FLUX.3, pictures": Variant(
        "Flux3Transformer2DModel",
        {},
        lambda seed: {"image_cond_hidden_states": normal(1, 6, 8, seed=seed), "image_cond_ids": torch.ones(6, 4)},
    ),
    "FLUX.3, flow map": Variant(
        "Flux3Transformer2DModel", {"flow_map": True}, lambda seed: {"target_timestep": torch.full((1,), 0.5)}, False
    ),
    "GLM-Image, prior": Variant(
        "GlmImageTransformer2DModel", {}, lambda seed: {"prior_token_id": (normal(1, 16, seed=seed) > 0).long()}
    ),
    "JoyImage, no picture": Variant(
        "JoyImageEditTransformer3DModel",
        {"rope_type": "mrope"},
        lambda seed: {"hidden_states": normal(1, 4, 1, 8, 8)},
        False,
    ),
    "Kandinsky 5, first frame": Variant(
        "Kandinsky5Transformer3DModel",
        {"visual_cond": True},
        lambda seed: {"hidden_states": normal(1, 2, 8, 8, 9), "scale_factor": (1.0, 2.0, 2.0)},
        False,
    ),
    "Kandinsky 6, no audio": Variant(
        "Kandinsky6Transformer3DModel", {}, lambda seed: {"audio_hidden_states": None}, False
    ),
    "Kandinsky 6, first frame": Variant(
        "Kandinsky6Transformer3DModel", {"visual_token_type_num_embeddings": 2}, _kandinsky6_first_frame, False
    ),
    "Lumina 2, unlike prompts": Variant("Lumina2Transformer2DModel", {}, _lumina2_unlike_prompts, False),
    "OmniGen, pictures": Variant(
        "OmniGenTransformer2DModel", {}, lambda seed: {"input_img_latents": [normal(1, 4, 4, 4, seed=seed)]}
    ),
    "OmniGen, no prompt": Variant(
        "OmniGenTransformer2DModel",
        {},
        lambda seed: {
            "input_ids": None,
            "input_img_latents": None,
            "input_image_sizes": {},
            "attention_mask": torch.ones(1, 17, 17),
            "position_ids": torch.arange(17)[None],
        },
        False,
    ),
    "Qwen-Image, ControlNet": Variant(
        "QwenImageTransformer2DModel",
        {},
        lambda seed: {"controlnet_block_samples": [normal(1, 16, 16, seed=seed + place) for place in range(2)]},
    ),
    "Qwen-Image 2.1, picture": Variant("QwenImage21Transformer2DModel", {}, _qwen_image21_edit, False),
    "Qwen-Image 2.1, one time for all": Variant(
        "QwenImage21Transformer2DModel", {"causal_condition": False}, _qwen_image21_edit, False
    ),
    "Z-Image, ControlNet": Variant(
        "ZImageTransformer2DModel",
        {},
        lambda seed: {"controlnet_block_samples": {place: normal(1, 64, 16, seed=seed + place) for place in (0, 2, 4)}},
    ),
    "Z-Image, Omni": Variant("ZImageTransformer2DModel", {"siglip_feat_dim": 6}, _z_image_omni),
}

CONFIGS = [
    static(LINE, Fn_compute_blocks=0, **ONE_BRANCH),
    static(LINE, Fn_compute_blocks=1, Bn_compute_blocks=1, **ONE_BRANCH),
    PRUNE,
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.strify())
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_skipped_steps_give_the_true_output_however_the_model_is_called(variant: Variant, config: Any) -> None:
    skipped_steps_give_the_true_output(made(variant), variant.given(), config)


@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if variant.conditioned])
def test_another_condition_in_mid_run_is_obeyed_at_once(name: str) -> None:
    variant = VARIANTS[name]
    another_condition_is_obeyed_at_once(made(variant), variant.given(), variant.given(seed=20))


@pytest.mark.parametrize(("front", "back"), [(0, 1), (2, 0)])
@pytest.mark.parametrize("name", ALL)
def test_blocks_that_add_nothing_are_skipped_without_a_trace(name: str, front: int, back: int) -> None:
    model = tiny(name)
    blocks = blocks_of(model)
    for block in blocks[front : len(blocks) - back]:
        for parameter in block.parameters():
            parameter.data.zero_()
    given = inputs(name, timestep=0.3)
    latent = next(iter(given))
    if name == "Cosmos3OmniTransformer":
        latent = "vision_tokens"
    given[latent] = [-one for one in given[latent]] if isinstance(given[latent], list) else -given[latent]
    expected = once(model, given)
    assert unlike(expected, once(model, inputs(name)), by=0.01)
    cache_dit.enable_cache(model, static("FC", Fn_compute_blocks=front, Bn_compute_blocks=back, **ONE_BRANCH))
    once(model, inputs(name))
    assert close([once(model, given)], expected)
    assert lines(model) == {"default": "FC"}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.strify())
def test_kandinsky5_attends_sparsely_to_tokens_in_another_order(config: Any) -> None:
    name = "Kandinsky5Transformer3DModel"
    model = tiny(name)
    for block in model.visual_transformer_blocks:
        block.self_attention.processor._attention_backend = "flex"
    given = {
        **inputs(name),
        "hidden_states": normal(1, 2, 16, 32, 4),
        "visual_rope_pos": [torch.arange(2), torch.arange(8), torch.arange(16)],
        "sparse_params": {"to_fractal": True, "P": 0.8, "sta_mask": torch.eye(4, dtype=torch.bool)[None, None]},
    }
    expected = once(model, given)
    cache_dit.enable_cache(model, config)
    with counted(model.visual_transformer_blocks) as fired:
        assert close(repeated(model, given), expected)
    assert fired.total() < len(LINE) * 5


# -- each sample by itself


def alone(value: Any, sample: int) -> Any:
    """A sample's part of the arguments for a batch of two."""
    if isinstance(value, dict) and value.keys() == {0, 1}:
        return {0: value[sample]}
    if isinstance(value, dict):
        return {key: alone(item, sample) for key, item in value.items()}
    if isinstance(value, Tensor):
        return value[sample : sample + 1] if value.shape[:1] == (2,) else value
    return value[sample : sample + 1] if isinstance(value, list) and len(value) == 2 else value


def moving(name: str, step: int) -> dict[str, Any]:
    """Arguments for a batch of two whose second sample alone moves from step to step."""
    given = inputs(name, batch=2, timestep=0.6)
    latent = given[next(iter(given))]
    latent[1] = latent[1] + step * normal(*latent[1].shape, seed=7)
    return given


@torch.no_grad()
def samples(model: nn.Module, given: dict[str, Any]) -> Tensor:
    """One call, for all samples of a model that gives a bare tensor too."""
    output = model(**given).sample
    return torch.stack(output) if isinstance(output, list) else output


@pytest.mark.parametrize("name", BATCHED)
def test_samples_that_decide_for_themselves_give_what_they_give_alone(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    samples_decide_for_themselves(name, caplog, moving=moving, alone=alone, once=samples)


@pytest.mark.parametrize("name", UNBATCHED)
def test_models_whose_samples_do_not_come_first_are_computed_as_a_whole(name: str) -> None:
    model = tiny(name)
    plain = [once(model, inputs(name, batch=2, timestep=timestep)) for timestep in loop(4)]
    cache_dit.enable_cache(model, dynamic(decision="sample", residual_diff_threshold=1.0, **ONE_BRANCH))
    assert same([once(model, inputs(name, batch=2, timestep=timestep)) for timestep in loop(4)], plain)
    assert "samples along the first dimension" in cache_dit.summary(model, logging=False)[0].reason


@pytest.mark.parametrize(
    ("name", "changes"),
    [("QwenImage21Transformer2DModel", {}), ("QwenImageTransformer2DModel", {"zero_cond_t": True})],
)
def test_samples_that_share_the_time_of_clean_tokens_are_computed_together(
    name: str, changes: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    variant = Variant(name, changes, lambda seed: {}, False)
    model = made(variant)
    plain = [samples(model, moving(name, step)) for step in range(4)]
    cache_dit.enable_cache(model, dynamic(decision="sample", residual_diff_threshold=0.01, **ONE_BRANCH))
    together = [samples(model, moving(name, step)) for step in range(4)]
    assert lines(model) == {"default[0]": "FCCC", "default[1]": "FFFF"}
    assert close(together, plain)
    assert "a tensor of shape" in caplog.text


# -- each block by itself


@pytest.mark.parametrize("name", ALL)
def test_each_pruned_block_gives_what_it_gave(name: str) -> None:
    model = tiny(name)
    expected = once(model, inputs(name))
    cache_dit.enable_cache(model, PRUNE)
    blocks = blocks_of(model)
    with counted(blocks) as fired:
        assert close(repeated(model, inputs(name)), expected)
    assert fired == {place: 1 if place else len(LINE) for place in range(len(blocks))}
