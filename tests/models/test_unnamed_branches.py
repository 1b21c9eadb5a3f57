"""Models whose pipelines name no branch: Sana, sounds, priors, classes and tokens; what they are called with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import cache_dit
from cache_dit import DBPruneConfig
from tests.kit.claims import (
    LINE,
    ONE_BRANCH,
    Variant,
    another_condition_is_obeyed_at_once,
    blocks_of,
    call,
    moving,
    repeated,
    samples_decide_for_themselves,
    skipped_steps_give_the_true_output,
)
from tests.kit.equality import close, same
from tests.kit.row import normal
from tests.kit.tiny_models import inputs, tiny
from tests.kit.toys import counted, dynamic, lines, loop, static
from tests.models.test_conditioned_video import alone

CLASSES = [
    "AceStepTransformer1DModel",
    "DiTTransformer2DModel",
    "LongCatAudioDiTTransformer",
    "MiniMaxMusic3Transformer1DModel",
    "PRXTransformer2DModel",
    "SanaTransformer2DModel",
    "SanaVideoTransformer3DModel",
    "SanaWMTransformer3DModel",
    "StableAudio3DiTModel",
    "StableAudioDiTModel",
]
ALL = [
    *CLASSES,
    "MiniMaxH3Transformer3DModel",
    "PriorTransformer",
    "SanaWMLTX2RefinerTransformer3DModel",
    "T5FilmDecoder",
    "Transformer2DModel",
    "UVit2DModel",
]

PRUNE = DBPruneConfig(Fn_compute_blocks=1, max_warmup_steps=1, residual_diff_threshold=0.5, **ONE_BRANCH)


@pytest.mark.parametrize("name", ALL)
def test_pruned_blocks_give_the_true_output(name: str) -> None:
    model = tiny(name)
    (expected,) = repeated(model, inputs(name, timestep=0.6), 1)
    cache_dit.enable_cache(model, PRUNE)
    blocks = blocks_of(model)
    with counted(blocks) as fired:
        assert close(repeated(model, inputs(name, timestep=0.6)), expected)
    assert fired[0] == len(LINE)
    assert all(fired[place] < len(LINE) for place in range(1, len(blocks)))


# -- what conditions a model


def _shap_e(seed: int) -> dict[str, Any]:
    return {
        "hidden_states": normal(1, 6, 8),
        "proj_embedding": normal(1, 10, seed=seed),
        "encoder_hidden_states": None,
        "attention_mask": None,
    }


VARIANTS = {
    "ACE-Step, audio to repaint": Variant(
        "AceStepTransformer1DModel", {}, lambda seed: {"context_latents": normal(1, 33, 6, seed=seed)}
    ),
    "aMUSEd, downsampling": Variant(
        "UVit2DModel", {"downsample": True, "upsample": True}, lambda seed: {}, conditioned=False
    ),
    "LongCat-Audio, audio to follow": Variant(
        "LongCatAudioDiTTransformer", {}, lambda seed: {"latent_cond": normal(1, 16, 4, seed=seed)}
    ),
    "LongCat-Audio, modulated by time alone": Variant(
        "LongCatAudioDiTTransformer",
        {"adaln_type": "local", "adaln_use_text_cond": False, "long_skip": False},
        lambda seed: {},
        conditioned=False,
    ),
    "PRX, resolution": Variant(
        "PRXTransformer2DModel", {"resolution_embeds": True}, lambda seed: {}, conditioned=False
    ),
    "Sana, ControlNet": Variant(
        "SanaTransformer2DModel",
        {},
        lambda seed: {"controlnet_block_samples": tuple(normal(1, 16, 16, seed=seed + place) for place in range(2))},
    ),
    "Sana Sprint": Variant(
        "SanaTransformer2DModel",
        {"guidance_embeds": True, "qk_norm": "rms_norm_across_heads"},
        lambda seed: {"guidance": torch.tensor([0.45])},
        conditioned=False,
    ),
    "Sana-Video, ControlNet": Variant(
        "SanaVideoTransformer3DModel",
        {},
        lambda seed: {"controlnet_block_samples": tuple(normal(1, 32, 16, seed=seed + place) for place in range(3))},
    ),
    "Sana-Video, first frame": Variant(
        "SanaVideoTransformer3DModel",
        {},
        lambda seed: {"timestep": torch.tensor([0.0, 600.0])[:, None, None].expand(1, 1, 2, 4, 4)},
        conditioned=False,
    ),
    "Sana-WM, camera": Variant(
        "SanaWMTransformer3DModel", {}, lambda seed: {"chunk_plucker": normal(1, 6, 2, 4, 4, seed=seed)}
    ),
    "Shap-E": Variant(
        "PriorTransformer",
        {
            "num_embeddings": 6,
            "additional_embeddings": 0,
            "norm_in_type": "layer",
            "encoder_hid_proj_type": None,
            "added_emb_type": None,
            "time_embed_dim": 12,
            "embedding_proj_dim": 10,
            "embedding_proj_norm_type": "layer",
            "clip_embed_dim": 16,
        },
        _shap_e,
    ),
    "Stable Audio 3, audio to fill in": Variant(
        "StableAudio3DiTModel", {}, lambda seed: {"local_add_cond": normal(1, 5, 16, seed=seed)}
    ),
}

CONFIGS = [
    static(LINE, Fn_compute_blocks=0, **ONE_BRANCH),
    static(LINE, Fn_compute_blocks=1, Bn_compute_blocks=1, **ONE_BRANCH),
    PRUNE,
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.strify())
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_skipped_steps_give_the_true_output_however_the_model_is_called(variant: Variant, config: Any) -> None:
    skipped_steps_give_the_true_output(variant.model(), variant.given(), config)


@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if variant.conditioned])
def test_another_condition_in_mid_run_is_obeyed_at_once(name: str) -> None:
    variant = VARIANTS[name]
    another_condition_is_obeyed_at_once(variant.model(), variant.given(), variant.given(seed=20))


def test_minimax_h3_gives_video_and_audio() -> None:
    name = "MiniMaxH3Transformer3DModel"
    model = tiny(name)
    with torch.no_grad():
        expected = model(**inputs(name), return_dict=False)
        cache_dit.enable_cache(model, static(LINE))
        for _ in LINE:
            assert close(model(**inputs(name), return_dict=False), expected)
    assert lines(model) == {"default": LINE}


# -- keys and values that are kept


@pytest.mark.parametrize(("front", "back"), [(1, 0), (0, 0), (1, 1)])
def test_the_refiner_of_sana_wm_keeps_keys_in_calls_that_run_every_block_and_are_no_step(front: int, back: int) -> None:
    name = "SanaWMLTX2RefinerTransformer3DModel"
    model = tiny(name)
    plain, cached = inputs(name, timestep=0.6), inputs(name, timestep=0.6)
    (expected,) = repeated(model, plain, 1)

    def capture(given: dict[str, Any]) -> list[Tensor]:
        """Both calls that keep keys and values, as the refiner makes them: before the loop, and after it."""
        modes = {"capture_pre_rope": "get_captured_pre_rope", "inject_and_capture_post_rope": "get_captured_post_rope"}
        found = []
        for mode, getter in modes.items():
            repeated(model, {**given, "timestep": torch.zeros(1, 32), "kv_cache_mode": mode}, 1)
            found += [tensor for layer in given["kv_cache"].layer_caches for tensor in getattr(layer, getter)()]
        return found

    written = capture(plain)
    cache_dit.enable_cache(model, static("FCCFCC", Fn_compute_blocks=front, Bn_compute_blocks=back))
    assert close(repeated(model, cached, 2), expected)
    with counted(model.transformer_blocks) as fired:
        assert same(capture(cached), written)
    assert fired == dict.fromkeys(range(5), 2)
    assert close(repeated(model, cached, 4), expected)
    assert lines(model) == {"default": "FCCFCC"}


# -- where a run begins


@pytest.mark.parametrize("name", ["MiniMaxMusic3Transformer1DModel", "T5FilmDecoder"])
def test_each_stretch_of_music_is_a_run_of_its_own(name: str) -> None:
    model = tiny(name)
    first = {"MiniMaxMusic3Transformer1DModel": "encoder_hidden_states", "T5FilmDecoder": "encodings_and_masks"}[name]
    stretches = [inputs(name)[first], inputs(name)[first] if name == "T5FilmDecoder" else -inputs(name)[first]]
    outputs = []
    for stretch in stretches:
        cache_dit.enable_cache(model, static("FCFC", **ONE_BRANCH))
        with torch.no_grad():
            outputs += [call(model, {**inputs(name, timestep=timestep), first: stretch}) for timestep in loop(4)]
    cache_dit.enable_cache(model, static("FCFC", **ONE_BRANCH))
    for stretch, expected in zip(stretches, (outputs[:4], outputs[4:]), strict=True):
        with torch.no_grad():
            assert same([call(model, {**inputs(name, timestep=t), first: stretch}) for t in loop(4)], expected)
        assert lines(model) == {"default": "FCFC"}


def test_a_run_of_minimax_h3_begins_where_its_noisy_rows_do() -> None:
    name = "MiniMaxH3Transformer3DModel"
    model = tiny(name)
    cache_dit.enable_cache(model, static("FCFCCC"))
    for _ in range(2):
        with torch.no_grad():
            for timestep in loop(4):
                assert inputs(name, timestep=timestep)["timestep"].max() == 1
                call(model, inputs(name, timestep=timestep))
        assert lines(model) == {"default": "FCFC"}


@pytest.mark.parametrize("front", [0, 1])
def test_each_window_of_the_refiner_of_sana_wm_is_a_run_of_its_own(front: int) -> None:
    name = "SanaWMLTX2RefinerTransformer3DModel"
    model = tiny(name)
    cache_dit.enable_cache(model, static("FCFCCC", Fn_compute_blocks=front))
    for _ in range(2):
        with torch.no_grad():
            for timestep in loop(4):
                call(model, inputs(name, timestep=timestep))
            call(model, {**inputs(name, timestep=0.0), "kv_cache_mode": "inject_and_capture_post_rope"})
        assert lines(model) == {"default": "FCFC"}


@pytest.mark.parametrize("name", ["LongCatAudioDiTTransformer", "MiniMaxMusic3Transformer1DModel"])
def test_two_calls_of_a_step_are_those_of_guidance(name: str) -> None:
    model = tiny(name)
    cache_dit.enable_cache(model, static("FCFC"))
    with torch.no_grad():
        for timestep in loop(4):
            for sign in (1, -1):
                given = inputs(name, timestep=timestep)
                call(model, {**given, "encoder_hidden_states": sign * given["encoder_hidden_states"]})
    assert lines(model) == {"cond": "FCFC", "uncond": "FCFC"}


# -- each sample by itself


@pytest.mark.parametrize("name", CLASSES)
def test_samples_that_decide_for_themselves_give_what_they_give_alone(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    # Sana-WM's linear attention divides by a sum that may be small.
    samples_decide_for_themselves(name, caplog, alone=alone, growth=10 if name.startswith("SanaWM") else 1)


def changing(name: str, step: int) -> dict[str, Any]:
    """The same for models whose latent is no first argument, or made of tokens."""
    given = inputs(name, batch=2, timestep=0.6)
    if name == "T5FilmDecoder":
        given["decoder_input_tokens"][1] += step * normal(16, 8, seed=7)
    else:
        given[next(iter(given))][1] = step  # one token everywhere
    return given


@pytest.mark.parametrize("name", ["T5FilmDecoder", "Transformer2DModel", "UVit2DModel"])
def test_samples_of_sounds_and_tokens_decide_for_themselves(name: str, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny(name)
    with torch.no_grad():
        plain = [call(model, changing(name, step)) for step in range(4)]
        cache_dit.enable_cache(model, dynamic(decision="sample", residual_diff_threshold=1e-4))
        assert close([call(model, changing(name, step)) for step in range(len(plain))], plain)
    assert lines(model) == {"default[0]": "FCCC", "default[1]": "FFFF"}
    assert "all samples are computed" not in caplog.text


@pytest.mark.parametrize(
    ("name", "why"),
    [("PriorTransformer", "a tensor of shape (4, 9, 9)"), ("SanaWMLTX2RefinerTransformer3DModel", "a key-value cache")],
)
def test_samples_that_cannot_be_told_apart_are_computed_together(
    name: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny(name)
    with torch.no_grad():
        plain = [call(model, moving(name, step)) for step in range(3)]
        cache_dit.enable_cache(model, dynamic(decision="sample", residual_diff_threshold=0.01))
        assert close([call(model, moving(name, step)) for step in range(len(plain))], plain)
    assert lines(model)["default[1]"] == "FFF"
    assert f"{why}: all samples are computed" in caplog.text
