"""A change of what conditions a run is noticed: by identity and version first, by a sample where tensors are made anew.

One that is noticed computes the step in which it comes.
"""

from __future__ import annotations

import gc
import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

import diffusers.models.transformers
import pytest
import torch
from diffusers import ModelMixin, WanVACETransformer3DModel
from torch import Tensor, nn

import cache_dit
from cache_dit import DBCacheConfig, DBPruneConfig
from cache_dit.engine.adapters.rules import CallRules
from cache_dit.engine.forward.conditioning import SAMPLE, ConditioningMonitor, conditions_of, is_condition
from cache_dit.engine.sessions.call_reader import CallReader
from tests.engine.policies.test_policies_in_engine import counted_reads
from tests.kit.equality import same
from tests.kit.tiny_flux import DOUBLE, SINGLE, flux_inputs, tiny_transformer
from tests.kit.toys import line, lines, normal

# Which tensors condition a run

#: Of the arguments of all transformers in diffusers: those that hold tensors and condition a run, besides control and
#: image inputs. They are looked at because nothing says that they are anything else.
OTHERS = {
    "attention_kwargs",
    "class_labels",
    "cross_attention_kwargs",
    "joint_attention_kwargs",
    "original_size",
    "target_size",
}


@pytest.mark.parametrize(
    "name",
    [
        "control_hidden_states",  # Wan VACE
        "controlnet_block_samples",
        "controlnet_single_block_samples",
        "block_controlnet_hidden_states",  # Stable Diffusion 3
        "encoder_hidden_states_image",  # Wan I2V
        "image_embeds",
        "added_cond_kwargs",
        "id_cond",
        "siglip_feats",
        "pose_hidden_states",
        "face_pixel_values",
        "context_latents",
        "inpaint_latents",
        "camera_conditions",
        "anything_unheard_of",
        *sorted(OTHERS),
    ],
)
def test_what_conditions_a_run(name: str) -> None:
    assert is_condition(name)


@pytest.mark.parametrize(
    "name",
    [
        *("hidden_states", "x", "audio_hidden_states", "vision_tokens"),  # latents
        *("timestep", "t", "timesteps", "timestep_r", "sigma", "guidance", "timestep_cond", "additional_t_cond"),
        *("encoder_hidden_states", "encoder_hidden_states_mask", "encoder_attention_mask", "attention_mask"),
        *("pooled_projections", "encoder_hidden_states_llama3", "text_embedding_mask_t5", "cap_feats", "context"),
        *("img_ids", "txt_ids", "image_cond_ids", "image_rotary_emb", "rotary_embedding", "video_coords", "kv_cache"),
    ],
)
def test_what_does_not(name: str) -> None:
    assert not is_condition(name)


def transformer_arguments() -> Iterator[tuple[str, str]]:
    """(class, argument) of all transformers of the installed diffusers, without the first one, the latent."""
    package = diffusers.models.transformers
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        loaded = importlib.import_module(module.name)
        for name, cls in vars(loaded).items():
            if inspect.isclass(cls) and issubclass(cls, ModelMixin) and cls.__module__ == module.name:
                yield from ((name, argument) for argument in [*inspect.signature(cls.forward).parameters][2:])


def test_no_transformer_of_diffusers_has_a_time_a_place_or_a_text_that_is_taken_for_a_condition() -> None:
    words = ("timestep", "sigma", "guidance", "rotary", "rope", "_ids", "encoder_attention", "prompt", "txt", "text_")
    allowed = {"context_latents"}
    taken = {argument for _, argument in transformer_arguments() if is_condition(argument)} - allowed
    assert not [argument for argument in taken if any(word in argument for word in words)]


def test_no_control_or_image_of_a_transformer_of_diffusers_is_overlooked() -> None:
    overlooked = {argument for _, argument in transformer_arguments() if not is_condition(argument)}
    places_and_times = ("_ids", "rotary", "timestep_cond", "additional_t_cond")
    found = [name for name in overlooked if any(word in name for word in ("control", "image", "cond", "pose"))]
    assert not [name for name in found if not any(word in name for word in places_and_times)]


def test_tensors_in_lists_and_dicts_are_found_by_their_place() -> None:
    one, two, three = torch.ones(1), torch.ones(2), torch.ones(3)
    given = {
        "hidden_states": one,
        "controlnet_block_samples": [one, (two, None)],
        "joint_attention_kwargs": {"scale": 0.5, "ip_adapter_image_embeds": [three], "temb": one, "mask": None},
        "encoder_hidden_states": two,
        "image_rotary_emb": (one, two),
        "return_dict": False,
    }
    found = conditions_of(given, filter(is_condition, given))
    assert {path: len(tensor) for path, tensor in found.items()} == {
        "controlnet_block_samples.0": 1,
        "controlnet_block_samples.1.0": 2,
        "joint_attention_kwargs.ip_adapter_image_embeds.0": 3,
    }


def test_the_first_argument_is_the_latent_whatever_its_name() -> None:
    class Model(nn.Module):
        def forward(self, image: Tensor, hint: Tensor) -> None:
            """Nothing."""

    given = {"image": torch.ones(1), "hint": torch.ones(2)}
    conditions, _ = CallReader(Model, CallRules()).conditions(given)
    assert list(conditions) == ["hint"]


def test_the_texts_of_a_call_stay_its_own_when_another_thread_calls_with_other_arguments() -> None:
    reader = CallReader(nn.Identity, CallRules())
    _, texts = reader.conditions({"encoder_hidden_states": torch.ones(1)})
    _, others = reader.conditions({"pooled_projections": torch.ones(1)})
    assert (texts, others) == (["encoder_hidden_states"], ["pooled_projections"])
    assert reader.conditions({"encoder_hidden_states": torch.ones(1)})[1] is texts


# The tensors of one branch, call by call


def watched(*calls: dict[str, Tensor]) -> list[bool]:
    seen = ConditioningMonitor()
    return [seen.changed(call) for call in calls]


def test_the_same_object_is_the_same_and_another_one_after_it_is_a_change() -> None:
    one, other = torch.ones(4), torch.ones(4)
    assert watched(*[{"hint": one}] * 3, {"hint": other}, {"hint": other}, {"hint": one}) == [
        *(False, False, False),
        *(True, False, True),
    ]


def test_what_is_made_anew_at_each_call_is_no_change_by_itself() -> None:
    assert watched(*({"hint": torch.ones(4)} for _ in range(5))) == 5 * [False]


@pytest.mark.parametrize(
    "other", [torch.ones(5), torch.ones(1, 4), torch.ones(4, dtype=torch.float64), torch.ones(4, device="meta")]
)
def test_another_shape_dtype_or_device_is_a_change(other: Tensor) -> None:
    assert watched({"hint": torch.ones(4)}, {"hint": other}) == [False, True]


def test_one_that_appears_disappears_or_moves_is_a_change() -> None:
    one, two = torch.ones(4), torch.ones(4)
    assert watched({}, {"a": one}, {"a": one}, {"a": one, "b": two}, {"b": two}, {"c": two}, {}, {}) == [
        *(False, True, False, True),
        *(True, True, True, False),
    ]


@pytest.mark.parametrize(
    "write",
    [lambda tensor: tensor.mul_(2), lambda tensor: tensor[1:].zero_(), lambda tensor: tensor.copy_(torch.zeros(4))],
)
def test_what_is_written_into_one_is_a_change(write: Callable[[Tensor], Any]) -> None:
    hint, seen = torch.ones(4), ConditioningMonitor()
    assert not seen.changed({"hint": hint})
    assert not seen.changed({"hint": hint})
    write(hint)
    assert seen.changed({"hint": hint})
    assert not seen.changed({"hint": hint})


def test_an_inference_tensor_has_no_version_and_its_sample_tells() -> None:
    with torch.inference_mode():
        hint = torch.ones(4)
        seen = ConditioningMonitor()
        assert not seen.changed({"hint": hint})
        seen.computed({"hint": hint})
        assert not seen.changed({"hint": hint})
        assert float(seen.jump({"hint": hint})) == 0
        hint[2] += 1e-3
        assert not seen.changed({"hint": hint})
        assert float(seen.jump({"hint": hint})) == math.inf
        seen.computed({"hint": hint})
        assert not seen.changed({"hint": hint})
        assert float(seen.jump({"hint": hint})) == 0


def test_nothing_is_kept_alive_and_little_is_kept() -> None:
    seen = ConditioningMonitor()
    for _ in range(2):
        hints = {str(place): torch.ones(64, 300) for place in range(3)}
        seen.changed(hints)
        seen.computed(hints)
    assert 0 < seen.nbytes <= 3 * SAMPLE * 4
    alive = [weak() for weak in [one.tensor for one in seen.seen.values()]]
    assert None not in alive
    del hints, alive
    gc.collect()
    assert [one.tensor() for one in seen.seen.values()] == [None] * 3


def test_of_what_stays_no_sample_is_kept() -> None:
    seen, hint = ConditioningMonitor(), {"hint": torch.ones(64)}
    for _ in range(3):
        seen.changed(hint)
        seen.computed(hint)
    assert seen.nbytes == 0
    assert seen.jump(hint) is None


# How far one that is made anew has gone


def jump(before: dict[str, Tensor], now: dict[str, Tensor], samples: int | None = None) -> Tensor | None:
    seen = ConditioningMonitor()
    seen.changed(before)
    seen.computed(before)
    seen.changed(now)
    return seen.jump(now, samples)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.complex64, torch.int64])
def test_the_jump_is_the_largest_relative_distance_from_the_last_computed_step(dtype: torch.dtype) -> None:
    one = torch.tensor([1.0, -3.0]).to(dtype)
    other = torch.tensor([2.0, -3.0]).to(dtype)
    assert float(jump({"a": one, "b": one}, {"a": one.clone(), "b": other})) == pytest.approx(0.25)
    assert float(jump({"a": one}, {"a": one.clone()})) == 0


def test_the_jump_of_each_sample_is_its_own() -> None:
    before = {"batch": torch.ones(3, 8), "all": torch.full((1, 8), 2.0)}
    now = {"batch": before["batch"] * torch.tensor([[1.0], [1.5], [3.0]]), "all": torch.full((1, 8), 2.5)}
    assert jump(before, now, samples=3).tolist() == pytest.approx([0.25, 0.5, 2.0])
    assert float(jump(before, now)) == pytest.approx(2.5 / 3)


def test_from_nothing_to_something_is_far_and_from_nothing_to_nothing_is_not() -> None:
    assert float(jump({"a": torch.zeros(4)}, {"a": torch.ones(4)})) > 1e6
    assert float(jump({"a": torch.zeros(4)}, {"a": torch.zeros(4)})) == 0
    assert not math.isfinite(jump({"a": torch.ones(4)}, {"a": torch.full((4,), math.nan)}))


@pytest.mark.parametrize("nothing", [torch.ones(0, 4), torch.ones(4, device="meta"), torch.ones(4, 4).to_sparse()])
def test_what_has_no_values_at_hand_is_not_compared(nothing: Tensor) -> None:
    assert jump({"a": nothing}, {"a": nothing.clone()}) is None


def test_a_sample_sees_every_part_of_a_tensor() -> None:
    large = normal(2, 3000, 500)
    for place in ((0, slice(0, 100)), (1, slice(2900, 3000)), (slice(None), slice(None), slice(0, 8))):
        other = large.clone()
        other[place] += 50
        assert float(jump({"a": large}, {"a": other})) > 0.1
    transposed = large.transpose(1, 2)  # no copy of it is made to look at it
    assert float(jump({"a": transposed}, {"a": transposed * 1.5})) == pytest.approx(0.5, rel=1e-3)


# In a run: FLUX with the residuals of a ControlNet

STEPS = 8


def residuals(*scales: float) -> dict[str, list[Tensor]]:
    """Residuals for all blocks, made anew; one scale for the double blocks and one for the single ones."""
    double, single = scales if len(scales) == 2 else scales * 2
    return {
        "controlnet_block_samples": [double * normal(1, 16, 32, seed=20 + place) for place in range(DOUBLE)],
        "controlnet_single_block_samples": [single * normal(1, 16, 32, seed=30 + place) for place in range(SINGLE)],
    }


def caching(**options: Any) -> DBCacheConfig:
    """Computes the first step, and none that is not made to."""
    defaults = {"Fn_compute_blocks": 1, "max_warmup_steps": 1, "residual_diff_threshold": 0.99}
    return DBCacheConfig(**{**defaults, "num_inference_steps": STEPS, **options})


@torch.no_grad()
def run(model: nn.Module, at: Callable[[int], dict[str, Any]], *, steps: int = STEPS) -> list[Tensor]:
    """A run whose step gets what ``at`` gives for it beside the rest, which never changes."""
    outputs = []
    for step in range(steps):
        timestep = torch.tensor([1 - 0.01 * step])
        outputs.append(model(**flux_inputs(), timestep=timestep, return_dict=False, **at(step))[0])
    return outputs


def plan(at: Callable[[int], dict[str, Any]], **options: Any) -> str:
    model = tiny_transformer()
    cache_dit.enable_cache(model, caching(**options))
    run(model, at)
    return line(model)


def test_without_conditions_and_with_the_same_ones_decisions_are_the_same() -> None:
    hint = residuals(1.0)
    assert plan(lambda step: {}) == plan(lambda step: hint) == "FCCCCCCC"


def test_the_same_one_is_cached_bit_for_bit_as_if_nobody_looked() -> None:
    hint, outputs = residuals(1.0), []
    for threshold in (0.25, None):
        model = tiny_transformer()
        cache_dit.enable_cache(model, caching(conditioning_diff_threshold=threshold, residual_diff_threshold=0.05))
        outputs.append(run(model, lambda step: hint))
    assert same(*outputs)


@pytest.mark.parametrize("threshold", [0.25, None])
def test_another_one_in_the_place_of_one_that_had_stayed_is_computed(threshold: float | None) -> None:
    hints = [residuals(1.0), residuals(1.0)]
    assert plan(lambda step: hints[step >= 4], conditioning_diff_threshold=threshold) == "FCCCFCCC"


def test_residuals_that_change_a_little_at_each_step_still_hit() -> None:
    assert plan(lambda step: residuals(1 + 0.02 * step)) == "FCCCCCCC"
    assert plan(lambda step: residuals(1 + 0.1 * step)) == "FCCFCCCF"  # 0.3 from the first one, then 0.4 of 1.3
    assert plan(lambda step: residuals(1 + 0.1 * step), conditioning_diff_threshold=math.inf) == "FCCCCCCC"
    assert plan(lambda step: residuals(1 + 0.1 * step), conditioning_diff_threshold=0.05) == "FFFFFFFF"


@pytest.mark.parametrize("part", [(1.0, 2.0), (2.0, 1.0), (0.0, 1.0), (math.nan, 1.0)])
def test_a_jump_of_any_of_them_is_computed(part: tuple[float, float]) -> None:
    outcome = plan(lambda step: residuals(*(part if step == 4 else (1.0, 1.0))))
    assert outcome[:5] == "FCCCF"


def test_residuals_that_are_remade_and_equal_are_no_change_even_to_the_strictest() -> None:
    assert plan(lambda step: residuals(1.0), conditioning_diff_threshold=0.0) == "FCCCCCCC"


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (lambda step: residuals(1.0) if step < 4 else {}, "FCCCFCCC"),
        (lambda step: residuals(1.0) if step >= 4 else {}, "FCCCFCCC"),
        (lambda step: residuals(1.0) if step == 4 else {}, "FCCCFFCC"),
        (
            lambda step: {name: value[: 1 + (step < 4)] for name, value in residuals(1.0).items()},
            "FCCCFCCC",
        ),
    ],
    ids=["ends", "begins", "for a step", "fewer"],
)
def test_one_that_comes_or_goes_is_computed(at: Any, expected: str) -> None:
    assert plan(at) == expected
    assert plan(at, residual_diff_threshold=1.0) == expected  # also where nothing is measured


def test_what_is_written_into_one_in_mid_run_is_computed() -> None:
    hint = residuals(1.0)

    def at(step: int) -> dict[str, list[Tensor]]:
        if step == 5:
            hint["controlnet_block_samples"][1].mul_(1.001)
        return hint

    assert plan(at) == "FCCCCFCC"


def test_the_reason_is_told() -> None:
    model = tiny_transformer()
    cache_dit.enable_cache(model, caching())
    run(model, lambda step: residuals(2.0**step))
    stats = cache_dit.summary(model, logging=False)[0]
    assert stats.steps_line["default"] == "FFFFFFFF"
    assert stats.reason is not None
    assert "What the pipeline conditions on changed before 7 of 8 steps" in stats.reason


@pytest.mark.parametrize("policy", ["dbcache", "easycache"])
def test_a_jump_is_read_with_the_diff(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_transformer()
    moving = normal(1, 16, 16, seed=9)
    cache_dit.enable_cache(model, caching(policy=policy, max_warmup_steps=2, residual_diff_threshold=0.9))
    with counted_reads(monkeypatch) as reads, torch.no_grad():
        for step in range(STEPS):
            given = {**flux_inputs(), **residuals(1.0 if step < 5 else 2.0)}
            given["hidden_states"] = given["hidden_states"] + 1e-3 * step * moving
            model(**given, timestep=torch.tensor([1 - 0.01 * step]), return_dict=False)
    assert line(model) == "FFCCCFCC"
    assert len(reads) == 7  # the diff and the jump together, and in the second step of the warm-up the jump alone


def test_a_static_mask_looks_at_what_is_made_anew_and_reads_nothing_where_objects_tell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    static = {"steps_computation_mask": [1] + 7 * [0], "steps_computation_policy": "static"}
    with counted_reads(monkeypatch) as reads:
        assert plan(lambda step: residuals(2.0 if step >= 4 else 1.0), **static) == "FCCCFCCC"
        assert reads == 7 * [1]
        reads.clear()
        assert plan(lambda step: residuals(1.0 + step), conditioning_diff_threshold=None, **static) == "FCCCCCCC"
        hints = [residuals(1.0), residuals(1.0)]
        assert plan(lambda step: hints[step >= 4], **static) == "FCCCFCCC"
    assert not reads


def test_no_samples_are_kept_where_nothing_can_be_skipped() -> None:
    model = tiny_transformer()
    peaks = []
    for at in (lambda step: {}, lambda step: residuals(1.0)):
        cache_dit.enable_cache(model, caching(steps_computation_mask=8 * [1], steps_computation_policy="static"))
        run(model, at)
        peaks.append(cache_dit.summary(model, logging=False)[0].peak_bytes)
    assert peaks[0] == peaks[1]


def test_samples_count_among_the_bytes_and_go_with_the_request() -> None:
    model: Any = tiny_transformer()
    peaks = []
    for at in (lambda step: {}, lambda step: residuals(1.0)):
        cache_dit.enable_cache(model, caching())
        run(model, at)
        peaks.append(cache_dit.summary(model, logging=False)[0].peak_bytes)
    assert peaks[1] - peaks[0] == (DOUBLE + SINGLE) * 16 * 32 * 4


def test_dbprune_notices_a_jump_too() -> None:
    model = tiny_transformer()
    options = DBPruneConfig(
        Fn_compute_blocks=1, max_warmup_steps=1, residual_diff_threshold=0.9, num_inference_steps=STEPS
    )
    cache_dit.enable_cache(model, options)
    run(model, lambda step: residuals(1.0 if step < 4 else 2.0))
    assert line(model) == "FPPPFPPP"


# Guidance


@torch.no_grad()
def guided(model: Any, at: Callable[[int, str], dict[str, Any]]) -> dict[str, str]:
    for step in range(STEPS):
        for branch in ("cond", "uncond"):
            with model.cache_context(branch):
                timestep = torch.tensor([1 - 0.01 * step])
                model(**flux_inputs(), timestep=timestep, return_dict=False, **at(step, branch))
    return lines(model)


def test_the_first_call_of_each_branch_is_no_change_and_each_has_conditions_of_its_own() -> None:
    model = tiny_transformer()
    cache_dit.enable_cache(model, caching())
    hints = {"cond": residuals(1.0), "uncond": residuals(-1.0)}
    assert guided(model, lambda step, branch: hints[branch]) == {"cond": "FCCCCCCC", "uncond": "FCCCCCCC"}
    late = {"cond": residuals(1.0), "uncond": residuals(3.0)}
    plans = guided(model, lambda step, branch: late[branch] if step > 3 and branch == "uncond" else hints[branch])
    assert plans == {"cond": "FCCCCCCC", "uncond": "FCCCFCCC"}


@pytest.mark.parametrize("separate", [True, False])
def test_a_jump_computes_the_branches_that_it_is_in_also_where_one_measures_for_both(separate: bool) -> None:
    model = tiny_transformer()
    cache_dit.enable_cache(model, caching(cfg_diff_compute_separate=separate))
    plans = guided(model, lambda step, branch: residuals(1.0 if step < 4 else 2.0))
    assert plans == {"cond": "FCCCFCCC", "uncond": "FCCCFCCC"}


def test_where_one_branch_measures_for_both_a_jump_of_the_other_alone_is_seen() -> None:
    model = tiny_transformer()
    cache_dit.enable_cache(model, caching(cfg_diff_compute_separate=False))
    plans = guided(model, lambda step, branch: residuals(2.0 if step >= 4 and branch == "uncond" else 1.0))
    assert plans == {"cond": "FCCCCCCC", "uncond": "FCCCFCCC"}


def test_guidance_in_one_batch() -> None:
    model = tiny_transformer()
    cache_dit.enable_cache(model, caching())
    for step in range(STEPS):
        hint = {name: [torch.cat([one, 0.5 * one]) for one in value] for name, value in residuals(1.0).items()}
        with torch.no_grad():
            if step >= 5:  # the second half jumps
                for one in hint["controlnet_block_samples"]:
                    one[1] *= 4
            model(**flux_inputs(batch=2), timestep=torch.full((2,), 1 - 0.01 * step), return_dict=False, **hint)
    assert line(model) == "FCCCCFCC"


def test_samples_that_decide_for_themselves_jump_for_themselves() -> None:
    model = tiny_transformer()
    cache_dit.enable_cache(model, caching(decision="sample"))
    for step in range(STEPS):
        hint = {name: [torch.cat([one, one]) for one in value] for name, value in residuals(1.0).items()}
        if step >= 5:
            hint["controlnet_single_block_samples"][0][1] *= 4
        with torch.no_grad():
            model(**flux_inputs(batch=2), timestep=torch.full((2,), 1 - 0.01 * step), return_dict=False, **hint)
    assert lines(model) == {"default[0]": "FCCCCCCC", "default[1]": "FCCCCFCC"}


def test_the_next_request_knows_nothing_of_the_last_ones_conditions() -> None:
    model = tiny_transformer()
    cache_dit.enable_cache(model, caching())
    for scale in (1.0, 5.0):
        hint = residuals(scale)
        run(model, lambda step, hint=hint: hint)
        assert line(model) == "FCCCCCCC"


# Other models


def test_a_dict_that_the_model_changes_itself_does_not_look_like_a_change() -> None:
    """FLUX takes ``ip_adapter_image_embeds`` out of its dict and puts ``ip_hidden_states`` in."""
    model = tiny_transformer()
    model.encoder_hid_proj = nn.Module()
    model.encoder_hid_proj.forward = lambda embeds: [normal(1, 4, 32, seed=40)]
    kwargs: dict[str, Any] = {}
    embeds = [normal(1, 4, 8)]

    def at(step: int) -> dict[str, Any]:
        kwargs["ip_adapter_image_embeds"] = embeds
        return {"joint_attention_kwargs": kwargs}

    cache_dit.enable_cache(model, caching(max_warmup_steps=2))
    run(model, at)
    assert line(model) == "FFCCCCCC"


def test_hints_of_wan_vace() -> None:
    torch.manual_seed(0)
    heads = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4}
    model = WanVACETransformer3DModel(
        **heads, text_dim=16, freq_dim=16, ffn_dim=32, num_layers=4, vace_layers=[0, 2], vace_in_channels=6
    ).eval()
    given = {"hidden_states": normal(1, 4, 1, 4, 4), "encoder_hidden_states": normal(1, 5, 16, seed=1)}
    hints = [normal(1, 6, 1, 4, 4, seed=2), normal(1, 6, 1, 4, 4, seed=3)]
    adapter = cache_dit.BlockAdapter(
        transformer=model, blocks=model.blocks, forward_pattern=cache_dit.ForwardPattern.Pattern_2
    )
    cache_dit.enable_cache(adapter, caching())
    with torch.no_grad():
        for step in range(STEPS):
            timestep = torch.tensor([1000.0 - step])
            model(**given, timestep=timestep, control_hidden_states=hints[step >= 3], return_dict=False)
    assert line(model) == "FCCFCCCC"
