"""ImageReward, with random weights in the layout of the published file."""

import numpy as np
import pytest
import torch
from PIL import Image

from cache_dit.errors import ConfigError, MissingModelError
from cache_dit.metrics import compute_image_reward
from cache_dit.metrics.image_reward import (
    ImageReward,
    ImageRewardScore,
    compute_reward_score,
    compute_reward_score_img,
    load_network,
    prepare,
)

from .media import picture, save_folder
from .weights import isolate, random_reward

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *"abcdefghijklmnopqrstuvwxyz",
    *(f"##{c}" for c in "abcdefghijklm"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reward")
    random_reward(folder / "ImageReward.pt")
    (folder / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    return folder


@torch.no_grad()
def test_the_network_gives_what_the_authors_code_gives_with_the_same_weights(model):
    network = load_network(model / "ImageReward.pt")
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    tokens = torch.randint(1, 60, (3, 35), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(tokens)
    mask[0, 9:] = mask[1, 20:] = 0
    # of the modules in the package image-reward 1.5, with these weights and inputs
    expected = [-4.0723519, -8.4657993, -10.9914131]
    assert network(pixels, tokens, mask).tolist() == pytest.approx(expected, rel=1e-4)


def test_what_fills_a_prompt_up_does_not_count(model):
    reward = ImageReward(model, "cpu")
    full = reward("a b c", picture())
    reward._tokenizer.no_padding()
    assert reward("a b c", picture()) == pytest.approx(full, rel=1e-5)
    assert reward("a b d", picture()) != pytest.approx(full, rel=1e-3)


def test_a_prompt_of_more_than_35_tokens_is_cut_and_case_does_not_matter(model):
    reward = ImageReward(model, "cpu")
    assert reward("a " * 33, picture()) == reward("A " * 60, picture())
    assert reward("a " * 32, picture()) != reward("a " * 33, picture())


@pytest.mark.parametrize(("height", "width"), [(32, 32), (40, 71), (71, 40), (16, 23)])
def test_pictures_are_resized_by_the_shorter_side_cut_to_the_middle_and_normalised(height, width):
    pixels = picture(0, height, width)
    prepared = prepare(pixels, 32)
    assert prepared.shape == (3, 32, 32)
    scale = 32 / min(height, width)
    whole = np.asarray(
        Image.fromarray(pixels).resize((int(width * scale), int(height * scale)), Image.Resampling.BICUBIC)
    )
    top, left = round((whole.shape[0] - 32) / 2), round((whole.shape[1] - 32) / 2)
    middle = torch.from_numpy(whole[top : top + 32, left : left + 32].copy()).permute(2, 0, 1) / 255
    back = prepared * torch.tensor([0.2686, 0.2613, 0.2758]).view(3, 1, 1) + torch.tensor(
        [0.4815, 0.4578, 0.4082]
    ).view(3, 1, 1)
    assert float((back - middle).abs().max()) < 1e-3  # mean and deviation are written here to four digits


def test_the_mean_is_over_pairs_and_the_order_of_arguments_does_not_matter(model, tmp_path, monkeypatch):
    pictures, prompts = [picture(seed) for seed in range(3)], ["a cat", "a dog", "a boat"]
    mean = sum(map(ImageReward(model, "cpu"), prompts, pictures)) / 3
    folder = save_folder(tmp_path / "pictures", pictures)
    assert compute_image_reward(prompts, folder, model, device="cpu") == (pytest.approx(mean), 3)
    assert compute_image_reward(folder, prompts, imagereward_model_path=model / "ImageReward.pt") == (
        pytest.approx(mean),
        3,
    )
    monkeypatch.setenv("IMAGEREWARD_MODEL_DIR", str(model))
    assert compute_image_reward(prompts, folder) == (pytest.approx(mean), 3)


def test_a_file_that_lacks_weights_or_holds_others_is_refused(model, tmp_path):
    state = torch.load(model / "ImageReward.pt", weights_only=True)
    del state["blip.text_encoder.encoder.layer.1.crossattention.self.query.weight"]
    torch.save(state, tmp_path / "less.pt")
    with pytest.raises(ConfigError, match=r"it lacks text\.encoder\.layer\.1\.crossattention"):
        load_network(tmp_path / "less.pt")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ConfigError, match="does not hold the model of ImageReward"):
        load_network(tmp_path / "other.pt")


def test_missing_weights_and_a_missing_tokenizer_are_named_and_nothing_is_downloaded(model, monkeypatch, tmp_path):
    isolate(monkeypatch, tmp_path)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("something was downloaded"))
    with pytest.raises(MissingModelError, match=r"ImageReward\.pt.*IMAGEREWARD_MODEL_DIR"):
        compute_image_reward(["a"], [picture()])
    (tmp_path / "ImageReward.pt").write_bytes((model / "ImageReward.pt").read_bytes())
    with pytest.raises(MissingModelError, match=r"tokenizer of ImageReward.*vocab\.txt"):
        ImageReward(tmp_path / "ImageReward.pt")
    monkeypatch.setenv("CACHE_DIT_BERT_MODEL_DIR", str(model))
    assert ImageReward(tmp_path / "ImageReward.pt", "cpu")("a", picture()) == ImageReward(model, "cpu")("a", picture())


def test_the_reward_of_one_picture_is_that_of_a_loaded_model(model):
    assert (ImageRewardScore, compute_reward_score) == (ImageReward, compute_image_reward)
    expected = ImageReward(model, "cpu")("a cat", picture())
    assert compute_reward_score_img(picture(), "a cat", model, device="cpu") == expected
