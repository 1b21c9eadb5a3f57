"""Video models of two streams (video and text, audio or control), HunyuanDiT, Latte: what is special in them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cache_dit
from cache_dit import ConfigError
from tests.kit.claims import (
    LINE,
    ONE_BRANCH,
    Variant,
    another_condition_is_obeyed_at_once,
    blocks_of,
    call,
    moving,
    once,
    repeated,
    samples_decide_for_themselves,
    skipped_steps_give_the_true_output,
)
from tests.kit.equality import close, same, unlike
from tests.kit.row import TEXT, normal
from tests.kit.tiny_models import inputs, tiny
from tests.kit.toys import counted, dynamic, lines, static
from tests.models.test_conditioned_video import CONFIGS, alone

#: Those whose blocks have the batch as their first dimension, and no key-value cache.
CLASSES = [
    "HunyuanDiT2DModel",
    "HunyuanVideo15Transformer3DModel",
    "HunyuanVideoFramepackTransformer3DModel",
    "HunyuanVideoTransformer3DModel",
    "LTX2VideoTransformer3DModel",
    "LTXVideoTransformer3DModel",
    "MotifVideoTransformer3DModel",
    "SkyReelsV2Transformer3DModel",
    "WanAnimateTransformer3DModel",
    "WanVACETransformer3DModel",
]


# -- what conditions a model


def _token_times(seed: int) -> dict[str, Any]:
    """Each token's timestep, 0 for those of the frame that is given."""
    return {"timestep": torch.cat([torch.zeros(1, 16), torch.full((1, 16), 600.0)], 1)}


def _frame_times(seed: int) -> dict[str, Any]:
    """Each frame's timestep; the first is further on."""
    return {"timestep": torch.tensor([[300, 600]]), "enable_diffusion_forcing": True, "fps": [1]}


VARIANTS = {
    "HunyuanVideo, not distilled": Variant(
        "HunyuanVideoTransformer3DModel", {"guidance_embeds": False}, lambda seed: {"guidance": None}, False
    ),
    "HunyuanVideo, image beside the latent": Variant(
        "HunyuanVideoTransformer3DModel",
        {"in_channels": 9, "image_condition_type": "latent_concat"},
        lambda seed: {"hidden_states": normal(1, 9, 2, 8, 8, seed=seed)},
        conditioned=False,  # the image is a part of the latent, which moves
    ),
    "HunyuanVideo, image in place of the first frame": Variant(
        "HunyuanVideoTransformer3DModel", {"image_condition_type": "token_replace"}, lambda seed: {}, conditioned=False
    ),
    "HunyuanVideo 1.5, image": Variant(
        "HunyuanVideo15Transformer3DModel", {}, lambda seed: {"image_embeds": normal(1, 3, 10, seed=seed)}
    ),
    "HunyuanVideo 1.5, distilled": Variant(
        "HunyuanVideo15Transformer3DModel",
        {"use_meanflow": True},
        lambda seed: {"timestep_r": torch.full((1,), 500.0)},
        conditioned=False,
    ),
    "Framepack, image": Variant(
        "HunyuanVideoFramepackTransformer3DModel", {}, lambda seed: {"image_embeds": normal(1, 3, 10, seed=seed)}
    ),
    "Framepack, history": Variant(
        "HunyuanVideoFramepackTransformer3DModel", {}, lambda seed: {"latents_clean": normal(1, 4, 2, 8, 8, seed=seed)}
    ),
    "HunyuanDiT 1.2": Variant(
        "HunyuanDiT2DModel",
        {"use_style_cond_and_image_meta_size": False, "num_layers": 8},
        lambda seed: {"image_meta_size": None, "style": None},
        conditioned=False,
    ),
    "LTX, first frame": Variant("LTXVideoTransformer3DModel", {}, _token_times, conditioned=False),
    "LTX-2, first frame": Variant(
        "LTX2VideoTransformer3DModel",
        {},
        lambda seed: {**_token_times(seed), "audio_timestep": torch.full((1,), 600.0)},
        conditioned=False,
    ),
    "LTX-2.3, guides for the video": Variant(
        "LTX2VideoTransformer3DModel",
        {
            "cross_attn_mod": True,
            "audio_cross_attn_mod": True,
            "gated_attn": True,
            "audio_gated_attn": True,
            "perturbed_attn": True,
            "rope_type": "split",
        },
        lambda seed: {
            "video_self_attention_mask": (normal(1, 32, 32, seed=seed) > 0).float(),
            "use_cross_timestep": True,
        },
    ),
    "Motif, image": Variant(
        "MotifVideoTransformer3DModel", {}, lambda seed: {"image_embeds": normal(1, 3, 10, seed=seed)}
    ),
    "Motif, decoder": Variant("MotifVideoTransformer3DModel", {"num_decoder_layers": 2}, lambda seed: {}, False),
    "SkyReels-V2, image": Variant(
        "SkyReelsV2Transformer3DModel",
        {"image_dim": 10, "added_kv_proj_dim": 16},
        lambda seed: {
            "encoder_hidden_states": normal(1, 512, 12, seed=1),
            "encoder_hidden_states_image": normal(1, 3, 10, seed=seed),
        },
    ),
    "SkyReels-V2, diffusion forcing": Variant(
        "SkyReelsV2Transformer3DModel",
        {"inject_sample_info": True, "num_frame_per_block": 2},
        _frame_times,
        conditioned=False,
    ),
    "VACE, control video": Variant(
        "WanVACETransformer3DModel", {}, lambda seed: {"control_hidden_states": normal(1, 6, 2, 8, 8, seed=seed)}
    ),
    "VACE, scales": Variant(
        "WanVACETransformer3DModel", {}, lambda seed: {"control_hidden_states_scale": normal(3, seed=seed)}
    ),
    "Wan-Animate, pose": Variant(
        "WanAnimateTransformer3DModel", {}, lambda seed: {"pose_hidden_states": normal(1, 4, 2, 8, 8, seed=seed)}
    ),
    "Wan-Animate, face": Variant(
        "WanAnimateTransformer3DModel", {}, lambda seed: {"face_pixel_values": normal(1, 3, 5, 16, 16, seed=seed)}
    ),
    "Wan-Animate 2, picture": Variant(
        "WanAnimate2Transformer3DModel", {}, lambda seed: {"condition_latents": [normal(8, 2, 8, 8, seed=seed)]}
    ),
}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.strify())
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_skipped_steps_give_the_true_output_however_the_model_is_conditioned(variant: Variant, config: Any) -> None:
    skipped_steps_give_the_true_output(variant.model(), variant.given(), config)


@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if variant.conditioned])
def test_another_condition_in_mid_run_is_obeyed_at_once(name: str) -> None:
    variant = VARIANTS[name]
    another_condition_is_obeyed_at_once(variant.model(), variant.given(), variant.given(seed=20))


@pytest.mark.parametrize("name", ["HunyuanVideoTransformer3DModel", "HunyuanVideoFramepackTransformer3DModel"])
@pytest.mark.parametrize(("front", "back"), [(3, 0), (4, 1), (0, 3), (1, 4)])
def test_what_is_skipped_may_lie_in_one_of_the_two_lists(name: str, front: int, back: int) -> None:
    model, given = tiny(name), inputs(name)
    (expected,) = repeated(model, given, 1)
    cache_dit.enable_cache(model, static(LINE, Fn_compute_blocks=front, Bn_compute_blocks=back))
    with counted(blocks_of(model)) as fired:
        assert close(repeated(model, given), expected)
    middle = range(front, 6 - back)
    assert fired == {place: LINE.count("F") if place in middle else len(LINE) for place in range(6)}


# -- modules between the blocks


@pytest.mark.parametrize(("front", "back", "idle"), [(1, 0, (1, 2)), (1, 1, (1,)), (0, 2, (0, 1)), (5, 0, ())])
def test_wan_animate_attends_to_the_face_only_where_it_matters(front: int, back: int, idle: tuple[int, ...]) -> None:
    model, given = tiny("WanAnimateTransformer3DModel"), inputs("WanAnimateTransformer3DModel")
    (expected,) = repeated(model, given, 1)
    cache_dit.enable_cache(model, static(LINE, Fn_compute_blocks=front, Bn_compute_blocks=back, **ONE_BRANCH))
    with counted(model.face_adapter) as fired:
        assert close(repeated(model, given), expected)
    assert fired == {place: LINE.count("F") if place in idle else len(LINE) for place in range(3)}


def test_vace_makes_its_hints_at_every_step() -> None:
    model = tiny("WanVACETransformer3DModel")
    cache_dit.enable_cache(model, static(LINE, **ONE_BRANCH))
    with counted(model.vace_blocks) as fired:
        repeated(model, inputs("WanVACETransformer3DModel"))
    assert fired == dict.fromkeys(range(3), len(LINE))


# -- HunyuanDiT: the second half of the blocks also reads what the first half returned


@torch.no_grad()
def controlled(model: nn.Module, seed: int, steps: int = 1) -> list[Tensor]:
    """So many calls of a HunyuanDiT with a ControlNet's residuals, which it takes out of the list that it is given."""
    residuals = [normal(1, 16, 16, seed=seed + place) for place in range(2)]
    given = inputs("HunyuanDiT2DModel", timestep=0.6)
    return [call(model, {**given, "controlnet_block_samples": list(residuals)}) for _ in range(steps)]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.strify())
def test_hunyuan_dit_obeys_its_controlnet_on_skipped_steps_too(config: Any) -> None:
    model = tiny("HunyuanDiT2DModel")
    (expected,), (other,) = controlled(model, 10), controlled(model, 20)
    assert unlike(other, expected, by=1e-3)
    cache_dit.enable_cache(model, config)
    with counted(model.blocks) as fired:
        assert close(controlled(model, 10, len(LINE)), expected)
    assert fired.total() < 6 * len(LINE)


def test_hunyuan_dit_obeys_another_control_picture_in_mid_run_at_once() -> None:
    model = tiny("HunyuanDiT2DModel")
    (before,), (after,) = controlled(model, 10), controlled(model, 20)
    cache_dit.enable_cache(model, static("FCCCCC"))
    assert close(controlled(model, 10, 3), before)
    assert close(controlled(model, 20, 3), after)
    assert lines(model) == {"default": "FCCFCC"}


@pytest.mark.parametrize(("front", "back", "computed"), [(1, 2, 2), (0, 3, 0), (2, 2, 4), (2, 4, 4)])
def test_hunyuan_dit_has_no_more_back_blocks_than_front_blocks(front: int, back: int, computed: int) -> None:
    model, given = tiny("HunyuanDiT2DModel"), inputs("HunyuanDiT2DModel")
    (expected,) = repeated(model, given, 1)
    cache_dit.enable_cache(model, static("FCCCCC", Fn_compute_blocks=front, Bn_compute_blocks=back))
    with counted(model.blocks) as fired:
        assert close(repeated(model, given), expected)
    assert fired.total() == 6 + 5 * computed


# -- Latte: two lists take turns, each with a layout of its own


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.strify())
def test_latte_without_temporal_attention_is_a_branch_of_its_own(config: Any) -> None:
    model = tiny("LatteTransformer3DModel")
    given = inputs("LatteTransformer3DModel", timestep=0.6)
    flat = {**given, "enable_temporal_attentions": False}
    (whole,), (spatial,) = repeated(model, given, 1), repeated(model, flat, 1)
    cache_dit.enable_cache(model, config)
    for _ in LINE:
        assert close(repeated(model, given, 1), whole)
        assert close(repeated(model, flat, 1), spatial)
    assert {line.count("F") < len(LINE) for line in lines(model).values()} == {True}
    assert len(lines(model)) == 2


def test_latte_decides_on_a_batch_as_a_whole() -> None:
    name = "LatteTransformer3DModel"
    model = tiny(name)
    with torch.no_grad():
        plain = [call(model, moving(name, step)) for step in range(3)]
        cache_dit.enable_cache(model, dynamic(residual_diff_threshold=1e-4))
        assert close([call(model, moving(name, step)) for step in range(len(plain))], plain)
    assert lines(model) == {"default": "FFF"}
    with pytest.raises(ConfigError, match="rearranges the samples"):
        cache_dit.enable_cache(model, dynamic(decision="sample"))


# -- LTX-2: the second stream is the sound; guidance perturbs blocks or keeps the streams apart


@torch.no_grad()
def streams(model: nn.Module, given: dict[str, Any]) -> list[Tensor]:
    """Video and sound of one call."""
    return list(model(**given, return_dict=False))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.strify())
def test_ltx_2_gives_each_kind_of_guidance_a_branch_of_its_own(config: Any) -> None:
    model = tiny("LTX2VideoTransformer3DModel", perturbed_attn=True)
    given = inputs("LTX2VideoTransformer3DModel", timestep=0.6)
    calls = [
        {**given, "isolate_modalities": False, "spatio_temporal_guidance_blocks": None},
        {**given, "isolate_modalities": False, "spatio_temporal_guidance_blocks": [2]},
        {**given, "isolate_modalities": True, "spatio_temporal_guidance_blocks": None},
    ]
    expected = [streams(model, one) for one in calls]
    assert not any(close(one, expected[0]) for one in expected[1:])
    cache_dit.enable_cache(model, config)
    for _ in LINE:
        assert all(close(streams(model, one), true) for one, true in zip(calls, expected, strict=True))
    assert list(lines(model)) == ["default", "default [2]", "default True"]
    assert all(line.count("F") < len(LINE) for line in lines(model).values())


def test_ltx_2_computes_tiles_which_nothing_tells_apart() -> None:
    model = tiny("LTX2VideoTransformer3DModel", use_keyframes_abs_pos_embedding=True)
    mask = torch.zeros(1, 32, 1)
    tiles = [
        {
            **inputs("LTX2VideoTransformer3DModel"),
            "hidden_states": normal(1, 32, 8, seed=s),
            "video_keyframes_mask": mask,
        }
        for s in range(3)
    ]
    expected = [streams(model, tile) for tile in tiles]
    cache_dit.enable_cache(model, static("FCCC"))
    for _ in range(4):
        assert all(same(streams(model, tile), true) for tile, true in zip(tiles, expected, strict=True))


# -- Motif-Video: the last single-stream blocks may be a decoder


def test_motif_is_one_chain_or_with_a_decoder_two() -> None:
    given = inputs("MotifVideoTransformer3DModel")
    plain, decoding = (tiny("MotifVideoTransformer3DModel", num_decoder_layers=n, num_single_layers=5) for n in (0, 2))
    (expected,) = repeated(decoding, given, 1)
    for model in (plain, decoding):
        cache_dit.enable_cache(model, static(LINE, **ONE_BRANCH))
    repeated(plain, given)
    with counted([*decoding.transformer_blocks, *decoding.single_transformer_blocks]) as fired:
        assert close(repeated(decoding, given), expected)
    assert {place for place, times in fired.items() if times == len(LINE)} == {0, 6}
    names = [[chain.name for chain in cache_dit.summary(model, logging=False)[:-1]] for model in (plain, decoding)]
    assert names == [
        ["transformer_blocks+single_transformer_blocks"],
        ["transformer_blocks+single_transformer_blocks", "single_transformer_blocks"],
    ]


# -- Wan-Animate 2: the reference's pass, and the block that the unconditional call leaves out


def reference(cache: Any) -> dict[str, Any]:
    """The call that writes the reference's keys and values, as it is made before the loop."""
    given = inputs("WanAnimate2Transformer3DModel", timestep=1.0)
    return {
        "hidden_states": [normal(4, 1, 8, 8, seed=7)],
        "timestep": given["timestep"],
        "encoder_hidden_states": [normal(TEXT, 12, seed=8)],
        "condition_latents": [normal(8, 1, 8, 8, seed=9)],
        "kv_cache": cache,
        "kv_cache_mode": "extract",
        "seq_len": 16,
        "offset_grid_sizes": given["reference_grid_sizes"],
    }


@pytest.mark.parametrize(("front", "back"), [(1, 0), (0, 0)])
def test_wan_animate_2_takes_up_the_reference_in_a_call_that_is_no_step(front: int, back: int) -> None:
    model = tiny("WanAnimate2Transformer3DModel")
    plain, cached = (inputs("WanAnimate2Transformer3DModel", timestep=0.6) for _ in range(2))
    repeated(model, reference(plain["kv_cache"]), 1)
    (expected,) = repeated(model, plain, 1)
    cache_dit.enable_cache(model, static("FCCFCC", Fn_compute_blocks=front, Bn_compute_blocks=back))
    with counted(model.blocks) as fired:
        repeated(model, reference(cached["kv_cache"]), 1)
    assert fired == dict.fromkeys(range(5), 1)
    assert close(repeated(model, cached), expected)
    assert lines(model) == {"default": "FCCFCC"}


def test_wan_animate_2_says_why_nothing_is_cached_where_only_the_reference_is_taken_up() -> None:
    model = tiny("WanAnimate2Transformer3DModel")
    given = inputs("WanAnimate2Transformer3DModel", timestep=1.0)
    cache_dit.enable_cache(model, static("FCCF"))
    repeated(model, reference(given["kv_cache"]), 4)
    assert "in a way that is no step" in (cache_dit.summary(model, logging=False)[0].reason or "")
    repeated(model, given, 4)
    assert (lines(model), cache_dit.summary(model, logging=False)[0].reason) == ({"default": "FCCF"}, None)


@pytest.mark.parametrize(("front", "back"), [(1, 0), (0, 1), (9, 0)])
def test_wan_animate_2_leaves_out_a_block_in_a_branch_of_its_own(front: int, back: int) -> None:
    model = tiny("WanAnimate2Transformer3DModel", num_layers=11)
    given = inputs("WanAnimate2Transformer3DModel", timestep=0.6)
    calls = [{**given, "is_uncondtion": unconditional} for unconditional in (False, True)]
    expected = [once(model, one) for one in calls]
    cache_dit.enable_cache(model, static("FCCF", Fn_compute_blocks=front, Bn_compute_blocks=back))
    with counted(model.blocks) as fired:
        for _ in range(4):
            assert close([once(model, one) for one in calls], expected)
    assert lines(model) == {"default": "FCCF", "default True": "FCCF"}
    assert fired[9] == 2


# -- each sample by itself


def one_of_two(given: dict[str, Any], sample: int) -> dict[str, Any]:
    """A sample's part of the arguments for a batch of two; there may be two frames' numbers, which all share."""
    return {name: value if "indices" in name else alone(value, sample) for name, value in given.items()}


@pytest.mark.parametrize("name", CLASSES)
def test_samples_that_decide_for_themselves_give_what_they_give_alone(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    samples_decide_for_themselves(name, caplog, alone=one_of_two)
