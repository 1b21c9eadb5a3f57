"""The CLIP score, with a model of random weights in the form of the published ones."""

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from cache_dit.errors import ConfigError, MissingModelError
from cache_dit.metrics import compute_clip_score
from cache_dit.metrics.clip_score import CLIPScore, ClipScore, compute_clip_score_img

from .media import picture, save_folder
from .weights import isolate, random_clip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return random_clip(tmp_path_factory.mktemp("clip"))


@torch.no_grad()
def test_the_score_is_the_scaled_cosine_of_the_two_embeddings(model):
    from transformers import CLIPModel, CLIPProcessor

    network, processor = CLIPModel.from_pretrained(model).eval(), CLIPProcessor.from_pretrained(model)
    inputs = processor(text=["a cat"], images=Image.fromarray(picture(0, 40, 50)), return_tensors="pt")
    output = network(**inputs)
    cosine = torch.cosine_similarity(output.text_embeds, output.image_embeds)
    expected = float(cosine * network.logit_scale.exp())
    assert ClipScore(model, "cpu")("a cat", picture(0, 40, 50)) == pytest.approx(expected, rel=1e-5)


def test_the_mean_is_over_pairs_and_the_order_of_arguments_does_not_matter(model, tmp_path):
    pictures, prompts = [picture(seed) for seed in range(3)], ["a cat", "a dog", "a boat"]
    score = ClipScore(model, "cpu")
    mean = sum(map(score, prompts, pictures)) / 3
    folder = save_folder(tmp_path / "pictures", pictures)
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(prompts))
    assert compute_clip_score(file, folder, model, device="cpu") == (pytest.approx(mean), 3)
    assert compute_clip_score(str(folder), str(file), clip_model_path=str(model)) == (pytest.approx(mean), 3)
    assert compute_clip_score(prompts, pictures, model) == (pytest.approx(mean), 3)


def test_a_prompt_longer_than_the_model_takes_is_cut(model):
    score = ClipScore(model, "cpu")
    assert score("a" * 20, picture()) == score("a" * 40, picture()) != score("a" * 10, picture())


def test_the_variable_of_the_reference_is_read(model, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(model))
    assert ClipScore(device="cpu")("a", picture()) == ClipScore(model, "cpu")("a", picture())


def test_a_missing_model_is_not_replaced_and_not_downloaded(monkeypatch, tmp_path):
    isolate(monkeypatch, tmp_path)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("something was downloaded"))
    with pytest.raises(MissingModelError, match="CLIP_MODEL_DIR"):
        compute_clip_score(["a"], [picture()])


def test_a_model_that_lacks_weights_is_refused(model, tmp_path):
    for file in model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    del state["visual_projection.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"no complete CLIP model: it lacks \['visual_projection"):
        ClipScore(tmp_path)


def test_a_folder_with_another_configuration_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot be loaded as a CLIP model"):
        ClipScore(tmp_path)


def test_the_score_of_one_picture_is_that_of_a_loaded_model(model):
    assert CLIPScore is ClipScore
    assert compute_clip_score_img(picture(0), "a cat", model, device="cpu") == ClipScore(model, "cpu")(
        "a cat", picture(0)
    )
