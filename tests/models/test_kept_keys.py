"""What is special in Cosmos 3, GLM-Image, Kandinsky 6 and Qwen-Image 2.1: keys that are kept, and several outputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import cache_dit
from tests.kit.claims import LINE, ONE_BRANCH
from tests.kit.equality import close, same, unlike
from tests.kit.row import normal
from tests.kit.tiny_models import inputs, tiny
from tests.kit.toys import counted, dynamic, lines, loop, static
from tests.models.test_single_stream_images import CONFIGS, VARIANTS, made, once, repeated

# -- keys and values that are kept


def glm_picture() -> dict[str, Any]:
    """The call that keeps a picture's keys and values, as GLM-Image's pipeline makes it before the loop."""
    given = inputs("GlmImageTransformer2DModel", side=3, timestep=0.0)
    return {**given, "hidden_states": normal(1, 4, 6, 6, seed=9), "encoder_hidden_states": torch.zeros(1, 0, 12)}


@pytest.mark.parametrize(("front", "back"), [(1, 0), (0, 0), (1, 1)])
def test_glm_image_keeps_keys_in_calls_that_run_every_block_and_are_no_step(front: int, back: int) -> None:
    name = "GlmImageTransformer2DModel"
    model = tiny(name)
    kept = pytest.importorskip("diffusers.models.transformers.transformer_glm_image").GlmImageKVCache
    plain, cached = kept(5), kept(5)

    def write(caches: Any) -> None:
        caches.set_mode("write")
        once(model, {**glm_picture(), "kv_caches": caches})

    write(plain)
    plain.set_mode("read")
    read = once(model, {**inputs(name), "kv_caches": plain})
    plain.set_mode("skip")
    skipped = once(model, {**inputs(name), "kv_caches": plain})
    assert unlike(read, skipped, by=1e-3)
    cache_dit.enable_cache(model, static(LINE, Fn_compute_blocks=front, Bn_compute_blocks=back))
    for _ in range(2):
        cached.clear()
        cache_dit.refresh_context(model)
        with counted(model.transformer_blocks) as fired:
            write(cached)
        assert fired == dict.fromkeys(range(5), 1)
        for layer, other in zip(cached.caches, plain.caches, strict=True):
            assert same(layer.k_caches + layer.v_caches, other.k_caches + other.v_caches)
        for _ in LINE:
            for mode, expected in (("read", read), ("skip", skipped)):
                cached.set_mode(mode)
                assert close([once(model, {**inputs(name), "kv_caches": cached})], expected)
        assert lines(model) == {"cond": LINE, "uncond": LINE}


@pytest.mark.parametrize(("front", "back"), [(1, 0), (0, 0), (1, 1)])
def test_qwen_image21_decodes_from_its_key_value_cache(front: int, back: int) -> None:
    module = pytest.importorskip("diffusers.models.transformers.transformer_qwenimage21")
    variant = VARIANTS["Qwen-Image 2.1, picture"]
    model, given = made(variant), variant.given()
    kept = module.QwenImage21KVCache(5)
    expected = once(model, given)
    cache_dit.enable_cache(model, static("CCCFCC", Fn_compute_blocks=front, Bn_compute_blocks=back, **ONE_BRANCH))
    with counted(model.transformer_blocks) as fired:
        assert close([once(model, {**given, "kv_cache": kept, "kv_cache_mode": "extract"})], expected)
        decoded = repeated(model, {**given, "kv_cache": kept, "kv_cache_mode": "cached"}, 5)
    assert close(decoded, expected[:, -16:])
    # The second step has other tokens than the first, which kept the prefix's: nothing to reuse yet.
    assert lines(model) == {"default": "FFCFCC"}
    assert fired[2] == 3


def test_qwen_image21_computes_the_step_that_fills_its_key_value_cache() -> None:
    module = pytest.importorskip("diffusers.models.transformers.transformer_qwenimage21")
    name = "QwenImage21Transformer2DModel"
    model = tiny(name)
    cache_dit.enable_cache(model, static("FCCCCC", **ONE_BRANCH))
    for step, timestep in enumerate(loop(6)):
        mode = {"kv_cache": module.QwenImage21KVCache(5), "kv_cache_mode": "extract"} if step == 3 else {}
        once(model, {**inputs(name, timestep=timestep), **mode})
    assert lines(model) == {"default": "FCCFCC"}


# -- more than one output


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.strify())
def test_kandinsky6_gives_video_and_audio(config: Any) -> None:
    name = "Kandinsky6Transformer3DModel"
    model = tiny(name)
    with torch.no_grad():
        expected = model(**inputs(name), return_dict=False)
        cache_dit.enable_cache(model, config)
        for _ in LINE:
            video, audio = model(**inputs(name), return_dict=False)
            assert close([video], expected[0]) and close([audio], expected[1])


def cosmos3_with_sound_and_action() -> tuple[nn.Module, dict[str, Any]]:
    """Cosmos 3 for a video with four tokens of sound and three of action, the first of which is given."""
    name = "Cosmos3OmniTransformer"
    model = tiny(name, sound_gen=True, sound_dim=3, action_gen=True, action_dim=2, num_embodiment_domains=2)
    given = inputs(name)
    begin = given["sequence_length"]
    return model, {
        **given,
        "position_ids": torch.arange(begin + 7).expand(3, -1),
        "sequence_length": begin + 7,
        "sound_tokens": [normal(3, 4, seed=4)],
        "sound_token_shapes": [(4, 1, 1)],
        "sound_sequence_indexes": begin + torch.arange(4),
        "sound_mse_loss_indexes": begin + torch.arange(4),
        "sound_timesteps": torch.full((4,), 600.0),
        "sound_noisy_frame_indexes": [torch.arange(4)],
        "action_tokens": [normal(3, 2, seed=5)],
        "action_token_shapes": [(3, 1, 1)],
        "action_sequence_indexes": begin + 4 + torch.arange(3),
        "action_mse_loss_indexes": begin + 5 + torch.arange(2),
        "action_timesteps": torch.full((2,), 600.0),
        "action_noisy_frame_indexes": [torch.arange(1, 3)],
        "action_domain_ids": [torch.tensor(1)],
    }


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.strify())
def test_cosmos3_gives_video_sound_and_action(config: Any) -> None:
    model, given = cosmos3_with_sound_and_action()
    with torch.no_grad():
        expected = model(**given, return_dict=False)
        cache_dit.enable_cache(model, config)
        for _ in LINE:
            outputs = model(**given, return_dict=False)
            assert all(close(one, other) for one, other in zip(outputs, expected, strict=True))


def test_cosmos3_is_measured_by_what_it_generates() -> None:
    name = "Cosmos3OmniTransformer"
    model = tiny(name)
    for line, moves in (("FCCC", 0), ("FFFF", 1)):
        cache_dit.enable_cache(model, dynamic(residual_diff_threshold=0.01, **ONE_BRANCH))
        for step, timestep in enumerate(loop(4)):
            given = inputs(name, timestep=timestep if moves else 0.6)
            given["vision_tokens"] = [given["vision_tokens"][0] + moves * step * normal(1, 4, 2, 8, 8, seed=7)]
            once(model, given)
        assert lines(model) == {"default": line}


def test_cosmos3_is_skipped_by_what_its_latent_does() -> None:
    name = "Cosmos3OmniTransformer"
    model = tiny(name)
    for threshold, line in ((10.0, "FFCC"), (0.0, "FFFF")):
        config = dynamic(policy="easycache", residual_diff_threshold=threshold, **ONE_BRANCH)
        cache_dit.enable_cache(model, config)
        for step, timestep in enumerate(loop(4)):
            given = inputs(name, timestep=timestep)
            given["vision_tokens"] = [one + step * normal(*one.shape, seed=7) for one in given["vision_tokens"]]
            once(model, given)
        assert lines(model) == {"default": line}


def test_cosmos3_begins_anew_where_its_timesteps_do() -> None:
    name = "Cosmos3OmniTransformer"
    model = tiny(name)
    cache_dit.enable_cache(model, static("FCFCC", **ONE_BRANCH))
    for _ in range(2):
        for timestep in loop(3):
            once(model, inputs(name, timestep=timestep))
        assert lines(model) == {"default": "FCF"}


def test_kandinsky6_super_resolution_begins_anew_with_each_tile() -> None:
    name = "Kandinsky6SRTransformer3DModel"
    model = tiny(name)
    cache_dit.enable_cache(model, static("FCCF"))
    with counted(model.visual_transformer_blocks) as fired:
        for _ in range(2):
            for timestep in loop(4):
                once(model, inputs(name, timestep=timestep))
            assert lines(model) == {"default": "FCCF"}
    assert (fired[0], fired[1]) == (8, 4)
