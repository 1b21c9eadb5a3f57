"""Video models, CogView, and what conditions them: frames, faces, control videos, keys and values of earlier chunks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from torch import Tensor

import cache_dit
from cache_dit import DBPruneConfig
from tests.kit.claims import (
    LINE,
    Variant,
    another_condition_is_obeyed_at_once,
    call,
    moving,
    repeated,
    samples_decide_for_themselves,
    skipped_steps_give_the_true_output,
)
from tests.kit.equality import close, same
from tests.kit.row import normal
from tests.kit.tiny_models import inputs, tiny
from tests.kit.toys import counted, dynamic, lines, static

CLASSES = [
    "AllegroTransformer3DModel",
    "AnyFlowTransformer3DModel",
    "ChronoEditTransformer3DModel",
    "CogVideoXTransformer3DModel",
    "CogView3PlusTransformer2DModel",
    "CogView4Transformer2DModel",
    "ConsisIDTransformer3DModel",
    "CosmosTransformer3DModel",
    "EasyAnimateTransformer3DModel",
    "HeliosTransformer3DModel",
    "MochiTransformer3DModel",
]

#: Unnamed calls are all of one branch: the tests call a transformer once per step.
ONE_BRANCH: dict[str, Any] = {"enable_separate_cfg": False}


# -- what conditions a model


def _cogvideox_15(seed: int) -> dict[str, Any]:
    rotary = get_3d_rotary_pos_embed(16, ((0, 0), (4, 4)), grid_size=(4, 4), temporal_size=1)
    video, image = normal(1, 2, 4, 8, 8), normal(1, 2, 4, 8, 8, seed=seed)
    return {"hidden_states": torch.cat([video, image], 2), "ofs": torch.full((1,), 2.0), "image_rotary_emb": rotary}


def _cosmos_transfer(seed: int) -> dict[str, Any]:
    return {
        "encoder_hidden_states": (normal(1, 5, 6, seed=1), normal(1, 3, 6, seed=2)),
        "block_controlnet_hidden_states": [normal(1, 32, 32, seed=seed + place) for place in range(3)],
        "condition_mask": torch.tensor([1.0, 0.0])[None, None, :, None, None].expand(1, 1, 2, 8, 8),
        "timestep": torch.tensor([0.1, 0.6]).reshape(1, 1, 2, 1, 1),
    }


VARIANTS = {
    "AnyFlow, image": Variant(
        "AnyFlowTransformer3DModel",
        {"image_dim": 10},
        lambda seed: {"encoder_hidden_states_image": normal(1, 3, 10, seed=seed)},
    ),
    "ChronoEdit, image": Variant(
        "ChronoEditTransformer3DModel", {}, lambda seed: {"encoder_hidden_states_image": normal(1, 3, 10, seed=seed)}
    ),
    "CogVideoX 1.5, image": Variant(
        "CogVideoXTransformer3DModel",
        {
            "attention_head_dim": 16,
            "in_channels": 8,
            "patch_size_t": 2,
            "ofs_embed_dim": 8,
            "use_rotary_positional_embeddings": True,
            "patch_bias": False,
        },
        _cogvideox_15,
        conditioned=False,  # the image is a part of the latent, which moves
    ),
    "ConsisID, face": Variant(
        "ConsisIDTransformer3DModel",
        {},
        lambda seed: {"id_cond": normal(1, 6, seed=seed), "id_vit_hidden": [normal(1, 4, 8, seed=seed)] * 2},
    ),
    "ConsisID, no face": Variant("ConsisIDTransformer3DModel", {"is_train_face": False}, lambda seed: {}, False),
    "Cosmos, first frames": Variant(
        "CosmosTransformer3DModel",
        {"in_channels": 5},
        lambda seed: {"condition_mask": (normal(1, 1, 2, 8, 8, seed=seed) > 0).float()},
    ),
    "Cosmos, ControlNet and picture": Variant(
        "CosmosTransformer3DModel",
        {
            "in_channels": 5,
            "controlnet_block_every_n": 2,
            "use_crossattn_projection": True,
            "crossattn_proj_in_channels": 6,
            "encoder_hidden_states_channels": 12,
            "img_context_dim_in": 6,
            "img_context_dim_out": 32,
        },
        _cosmos_transfer,
    ),
    "EasyAnimate, control video": Variant(
        "EasyAnimateTransformer3DModel",
        {"in_channels": 8},
        lambda seed: {"control_latents": normal(1, 4, 2, 8, 8, seed=seed)},
    ),
    "EasyAnimate, inpainting and T5": Variant(
        "EasyAnimateTransformer3DModel",
        {"in_channels": 9, "text_embed_dim_t5": 6},
        lambda seed: {
            "inpaint_latents": normal(1, 5, 2, 8, 8, seed=seed),
            "encoder_hidden_states_t5": normal(1, 3, 6, seed=1),
        },
    ),
    "Helios, amplified history": Variant(
        "HeliosTransformer3DModel",
        {"is_amplify_history": True},
        lambda seed: {"latents_history_short": normal(1, 4, 2, 8, 8, seed=seed)},
    ),
}

CONFIGS = [
    static(LINE, Fn_compute_blocks=0, **ONE_BRANCH),
    static(LINE, Fn_compute_blocks=1, Bn_compute_blocks=1, **ONE_BRANCH),
    DBPruneConfig(Fn_compute_blocks=1, max_warmup_steps=1, residual_diff_threshold=0.5, **ONE_BRANCH),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.strify())
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_skipped_steps_give_the_true_output_however_the_model_is_conditioned(variant: Variant, config: Any) -> None:
    skipped_steps_give_the_true_output(variant.model(), variant.given(), config)


@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if variant.conditioned])
def test_another_condition_in_mid_run_is_obeyed_at_once(name: str) -> None:
    variant = VARIANTS[name]
    another_condition_is_obeyed_at_once(variant.model(), variant.given(), variant.given(seed=20))


@pytest.mark.parametrize(("front", "back", "idle"), [(1, 0, (1, 2)), (1, 1, (1,)), (0, 2, (0, 1)), (3, 1, ())])
def test_consisid_attends_to_the_face_only_where_it_matters(front: int, back: int, idle: tuple[int, ...]) -> None:
    model = tiny("ConsisIDTransformer3DModel")
    given = inputs("ConsisIDTransformer3DModel")
    (expected,) = repeated(model, given, 1)
    cache_dit.enable_cache(model, static(LINE, Fn_compute_blocks=front, Bn_compute_blocks=back))
    with counted(model.perceiver_cross_attention) as fired:
        assert close(repeated(model, given), expected)
    assert fired == {place: LINE.count("F") if place in idle else len(LINE) for place in range(3)}


# -- keys and values of chunks that are done


def writing(given: dict[str, Any]) -> dict[str, Any]:
    """The call that writes keys and values of the first frame, as AnyFlow's pipeline makes it when a chunk is done."""
    done = {name: given[name][:, :1] for name in ("hidden_states", "timestep", "r_timestep")}
    return {**given, **done, "chunk_partition": [1], "kv_cache_flag": {"num_cached_chunks": 0, "is_cache_step": True}}


@pytest.mark.parametrize(("front", "back"), [(1, 0), (0, 0)])
def test_anyflow_writes_keys_in_calls_that_run_every_block_and_are_no_step(front: int, back: int) -> None:
    name = "AnyFlowFARTransformer3DModel"
    model = tiny(name)
    plain, cached = inputs(name, timestep=0.6), inputs(name, timestep=0.6)
    with torch.no_grad():
        model(**writing(plain), return_dict=False)
    (expected,) = repeated(model, plain, 1)
    cache_dit.enable_cache(model, static("FCCFCC", Fn_compute_blocks=front, Bn_compute_blocks=back))
    repeated(model, cached, 2)
    with counted(model.blocks) as fired, torch.no_grad():
        sample, written = model(**writing(cached), return_dict=False)
    assert sample is None
    assert fired == dict.fromkeys(range(5), 1)
    assert all(same([*plain["kv_cache"][layer].values()], [*written[layer].values()]) for layer in range(5))
    assert close(repeated(model, cached, 4)[1:], expected)
    assert lines(model) == {"default": "FCCFCC"}


# -- each sample by itself


def alone(value: Any, sample: int) -> Any:
    """A sample's part of the arguments for a batch of two."""
    if isinstance(value, Tensor) and value.shape[:1] == (2,):
        return value[sample : sample + 1]
    if isinstance(value, dict) and "full_cache" in value:
        return {name: cache[:, sample : sample + 1] for name, cache in value.items()}
    return {name: alone(item, sample) for name, item in value.items()} if isinstance(value, dict) else value


@pytest.mark.parametrize("name", CLASSES)
def test_samples_that_decide_for_themselves_give_what_they_give_alone(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    samples_decide_for_themselves(name, caplog, alone=alone)


def test_samples_that_share_a_key_value_cache_are_computed_together(caplog: pytest.LogCaptureFixture) -> None:
    name = "AnyFlowFARTransformer3DModel"
    model = tiny(name)
    with torch.no_grad():
        plain = [call(model, moving(name, step)) for step in range(3)]
        cache_dit.enable_cache(model, dynamic(decision="sample", residual_diff_threshold=0.01))
        assert close([call(model, moving(name, step)) for step in range(len(plain))], plain)
    assert lines(model)["default[1]"] == "FFF"
    assert "a key-value cache: all samples are computed" in caplog.text
