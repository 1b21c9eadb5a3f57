"""The demo model as a pipeline: its defaults, and what stays plain diffusers about it."""

import inspect
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FluxPipeline

import cache_dit
from cache_dit.demo import MODEL_FOLDER, DemoPipeline, load_pipeline

TRAINED = pytest.mark.skipif(
    not (MODEL_FOLDER / "model_index.json").is_file(), reason="the trained model is not in this copy"
)


def test_a_prompt_alone_gives_a_picture_of_the_models_own_size(tiny_folder: Path):
    picture = load_pipeline(tiny_folder, progress=False)("noto emoji of owl", num_inference_steps=2).images[0]
    assert picture.size == (64, 64)


def test_everything_computes_in_float32_though_weights_are_stored_in_bfloat16(tiny_folder: Path):
    pipe = load_pipeline(tiny_folder, progress=False)
    stored = DiffusionPipeline.from_pretrained(tiny_folder, local_files_only=True, use_safetensors=True)
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    assert {part.dtype for part in parts.values()} == {torch.float32}
    for name, part in parts.items():
        for key, value in part.state_dict().items():
            assert torch.equal(value, stored.components[name].state_dict()[key].float())


def test_the_recommended_arguments_are_defaults_and_can_be_overridden(tiny_folder: Path):
    seen = {}

    class Noting(DemoPipeline):
        def encode_prompt(self, **kwargs):
            seen.update(kwargs)
            return super().encode_prompt(**kwargs)

    pipe = load_pipeline(tiny_folder, progress=False)
    pipe.__class__ = Noting
    pipe("owl", num_inference_steps=1)
    assert seen["max_sequence_length"] == pipe.call_defaults["max_sequence_length"] == 20
    pipe("owl", num_inference_steps=1, max_sequence_length=8)
    assert seen["max_sequence_length"] == 8


def test_stock_diffusers_loads_the_folder_and_draws_the_same_picture(tiny_folder: Path):
    def drawn(pipe: FluxPipeline, **arguments: object) -> np.ndarray:
        generator = torch.Generator().manual_seed(0)
        output = pipe("owl", num_inference_steps=2, generator=generator, output_type="np", **arguments)
        return output.images[0]

    stock = DiffusionPipeline.from_pretrained(tiny_folder, local_files_only=True)
    for part in stock.components.values():
        if isinstance(part, torch.nn.Module):
            part.float()
    stock.set_progress_bar_config(disable=True)
    assert type(stock) is FluxPipeline
    own = drawn(load_pipeline(tiny_folder, progress=False))
    assert np.array_equal(drawn(stock, height=64, width=64, max_sequence_length=20), own)


def test_a_saved_demo_pipeline_is_a_plain_flux_pipeline(tiny_folder: Path, tmp_path: Path):
    load_pipeline(tiny_folder, progress=False).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == "FluxPipeline"


def test_one_negative_prompt_serves_several_prompts(tiny_folder: Path):
    pipe = load_pipeline(tiny_folder, progress=False)
    pipe.call_defaults = {**pipe.call_defaults, "negative_prompt": "", "true_cfg_scale": 2.0}
    assert len(pipe(["owl", "rocket"], num_inference_steps=1).images) == 2


def test_the_cache_counts_the_default_number_of_steps(tiny_folder: Path):
    pipe = load_pipeline(tiny_folder, progress=False)
    mask = cache_dit.steps_mask(total_steps=28)
    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=0, steps_computation_mask=mask, steps_computation_policy="static"
    )
    cache_dit.enable_cache(pipe, config)
    pipe("owl")
    stats = cache_dit.summary(pipe, logging=False)[0]
    assert list(stats.steps_line.values()) == ["".join("CF"[bit] for bit in mask)]


def test_a_missing_model_is_a_typed_error_that_names_the_folder(tmp_path: Path):
    with pytest.raises(cache_dit.MissingModelError, match=r"no model in .*nowhere"):
        load_pipeline(tmp_path / "nowhere")


def test_a_recommended_argument_that_the_pipeline_does_not_have_is_refused(tiny_folder: Path, tmp_path: Path):
    folder = shutil.copytree(tiny_folder, tmp_path / "wrong")
    (folder / "cache_dit_demo.json").write_text('{"guidance": 3.0}')
    with pytest.raises(cache_dit.ConfigError, match="'guidance'"):
        load_pipeline(folder)


@TRAINED
def test_the_packages_own_model_recommends_the_number_of_steps_that_is_the_default():
    steps = inspect.signature(DemoPipeline.__call__).parameters["num_inference_steps"].default
    assert load_pipeline(progress=False).call_defaults.get("num_inference_steps", steps) == steps


@TRAINED
def test_the_packages_own_model_draws(seed: int):
    picture = load_pipeline(progress=False)("glossy 3d emoji of rocket", num_inference_steps=2).images[0]
    assert picture.size == (64, 64)
