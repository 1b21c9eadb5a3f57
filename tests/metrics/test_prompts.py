"""Which prompt belongs to which picture."""

import numpy as np
import pytest

from cache_dit.errors import ConfigError
from cache_dit.metrics.prompts import mean_over_prompts, read_both, read_prompts

from .media import picture, save, save_folder


@pytest.fixture
def folder(tmp_path):
    return save_folder(tmp_path / "pictures", [picture(seed) for seed in range(12)])


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("".join(f"prompt {number}\n" for number in range(12)), encoding="utf-8")
    return path


def test_the_nth_line_belongs_to_the_nth_picture_in_natural_order(folder, prompts):
    texts, sources = read_both(prompts, folder)
    assert [(text, path.name) for text, path in zip(texts, sources, strict=True)] == [
        (f"prompt {number}", f"{number}.png") for number in range(12)
    ]


def test_the_two_may_be_passed_the_other_way_round(folder, prompts, tmp_path):
    assert read_both(folder, prompts) == read_both(prompts, folder)
    one = folder / "3.png"
    assert read_both(one, ["a cat"]) == read_both(["a cat"], one) == (["a cat"], [one])
    pixels = picture()
    assert read_both([pixels], ["a cat"]) == read_both(["a cat"], [pixels]) == (["a cat"], [pixels])


def test_empty_lines_at_the_end_are_no_prompts_but_others_are(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeffa cat \n\na dög\n\n \n", encoding="utf-8")
    assert read_prompts(path) == ["a cat", "", "a dög"]


def test_the_mean_is_over_all_pictures(folder, prompts):
    value = mean_over_prompts(lambda text, pixels: float(text[7:]) + pixels.mean(), prompts, folder, name="SCORE")
    assert value == (pytest.approx(5.5 + np.mean([picture(seed).mean() for seed in range(12)])), 12)


def test_a_prompt_too_few_is_refused(folder):
    with pytest.raises(ConfigError, match="11 prompts and 12 pictures"):
        mean_over_prompts(lambda *_: 0.0, ["a"] * 11, folder, name="SCORE")


@pytest.mark.parametrize(
    ("given", "message"),
    [("a cat", "is no file: pass a text file"), ([], "there is no prompt"), ([1], "prompts are strings")],
)
def test_what_is_no_prompts_is_refused(given, message, folder):
    with pytest.raises(ConfigError, match=message):
        read_both(given, folder)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"caf\xe9")
    with pytest.raises(ConfigError, match="not a text file in UTF-8"):
        read_prompts(path)


def test_a_picture_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "0.png").write_bytes(b"no picture")
    save(tmp_path / "1.png", picture())
    with pytest.raises(ConfigError, match=r"0\.png"):
        mean_over_prompts(lambda *_: 0.0, ["a", "b"], tmp_path, name="SCORE")
