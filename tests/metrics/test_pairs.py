"""Which file is compared with which."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cache_dit
from cache_dit.metrics import pairs
from cache_dit.metrics.pairs import find_pictures, find_videos, natural_key, picture_pairs, video_pairs


def made(folder: Path, *names: str) -> Path:
    """A folder with empty files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_files_are_paired_by_name_and_the_rest_is_counted(tmp_path: Path) -> None:
    true = made(tmp_path / "true", "a_1.png", "a_2.png", "a_10.png", "only.jpg", "notes.txt")
    test = made(tmp_path / "test", "a_10.png", "a_2.png", "a_1.png", "other.png", "another.png")
    found = picture_pairs(true, test)
    assert [(one.name, other.name) for one, other in found.pairs] == [
        (n, n) for n in ("a_1.png", "a_2.png", "a_10.png")
    ]
    assert [path.name for path in found.only_true] == ["only.jpg"]
    assert [path.name for path in found.only_test] == ["another.png", "other.png"]
    assert found.left_out == 3


def test_a_file_missing_in_the_middle_does_not_cost_the_pairs_after_it(tmp_path: Path) -> None:
    true = made(tmp_path / "true", *(f"{i}.png" for i in range(9)))
    test = made(tmp_path / "test", *(f"{i}.png" for i in range(9) if i != 4))
    assert len(picture_pairs(true, test).pairs) == 8


def test_the_path_below_the_folder_goes_before_the_bare_name(tmp_path: Path) -> None:
    true = made(tmp_path / "true", "a/0.png", "b/0.png", "c/7.png")
    test = made(tmp_path / "test", "a/0.png", "b/0.png", "elsewhere/7.png")
    found = picture_pairs(true, test)
    below = [(str(one.relative_to(true)), str(other.relative_to(test))) for one, other in found.pairs]
    assert below == [("a/0.png", "a/0.png"), ("b/0.png", "b/0.png"), ("c/7.png", "elsewhere/7.png")]


def test_a_name_that_several_files_have_is_not_guessed_at(tmp_path: Path) -> None:
    true = made(tmp_path / "true", "a/0.png", "1.png")
    test = made(tmp_path / "test", "x/0.png", "y/0.png", "1.png")
    found = picture_pairs(true, test)
    assert [one.name for one, _ in found.pairs] == ["1.png"]
    assert (len(found.only_true), len(found.only_test)) == (1, 2)


def test_two_files_are_a_pair_whatever_they_are_called(tmp_path: Path) -> None:
    folder = made(tmp_path, "a.png", "b.jpg")
    assert picture_pairs(folder / "a.png", folder / "b.jpg").pairs == ((folder / "a.png", folder / "b.jpg"),)


@pytest.mark.parametrize(
    ("true", "test", "said"),
    [
        ("true", "nowhere", "nowhere does not exist"),
        ("true", "true/1.png", "is a folder and .*1.png a file"),
        ("true", "empty", "empty has no pictures in it: expected files that end in .bmp"),
        ("true", "other", r"no file in .*true \(2 pictures\) has a partner .*other \(1 pictures\).* 1.png and 8.png"),
    ],
)
def test_what_cannot_be_paired_is_refused(true: str, test: str, said: str, tmp_path: Path) -> None:
    made(tmp_path / "true", "1.png", "2.png")
    made(tmp_path / "other", "8.png")
    made(tmp_path / "empty", "1.txt")
    with pytest.raises(cache_dit.ConfigError, match=said):
        picture_pairs(tmp_path / true, tmp_path / test)


def test_pictures_and_videos_are_told_apart_by_their_endings(tmp_path: Path) -> None:
    folder = made(tmp_path / "mixed", "a.PNG", "b.webp", "c.mp4", "d.MOV", "e.json")
    assert {path.name for path in find_pictures(folder)} == {"a.PNG", "b.webp"}
    assert {path.name for path in find_videos(folder)} == {"c.mp4", "d.MOV"}
    assert {one.name for one, _ in video_pairs(folder, folder).pairs} == {"c.mp4", "d.MOV"}


def test_order_is_by_the_last_number_in_the_name() -> None:
    names = ["s2_step10.png", "s10_step9.png", "title.png", "7.png"]
    assert sorted(map(Path, names), key=natural_key) == [
        *(Path(name) for name in ("title.png", "7.png", "s10_step9.png", "s2_step10.png"))
    ]


NAMES = st.lists(st.tuples(st.sampled_from("ab."), st.integers(0, 5)), unique=True, min_size=1)


@settings(max_examples=100)
@given(NAMES, NAMES)
def test_counts_add_up_and_no_file_is_used_twice(ours: list[tuple[str, int]], theirs: list[tuple[str, int]]) -> None:
    one = [Path("one", folder, f"{number}.png") for folder, number in ours]
    other = [Path("other", folder, f"{number}.png") for folder, number in theirs]
    partner = pairs._partners(one, other, Path("one"), Path("other"))
    assert len(set(partner.values())) == len(partner)
    assert set(partner) <= set(one)
    assert set(partner.values()) <= set(other)
    assert all(true.name == test.name for true, test in partner.items())
    for true in one:
        same = Path("other") / true.relative_to("one")
        assert same not in other or partner[true] == same
