"""The inner products of a run's features, streamed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cache_dit.errors import ConfigError
from cache_dit.planning import gram
from cache_dit.planning.gram import GramStream, combined


def features(branches: int, steps: int, size: int = 40, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(branches, steps, size))


def streamed(values: np.ndarray, **options: object) -> GramStream:
    stream = GramStream(values.shape[1], **options)  # type: ignore[arg-type]
    for step in range(values.shape[1]):
        for branch, rows in zip("ab", values, strict=False):
            stream.add(branch, step, torch.tensor(rows[step]).reshape(2, -1))
    return stream


def test_the_stream_gives_the_inner_products_of_all_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gram, "_TILE", 7)  # tiles that do not divide the features
    values = features(2, 5)
    flat = values.reshape(10, -1)
    assert streamed(values).gram() == pytest.approx(flat @ flat.T, rel=1e-12)


def test_sums_are_float64_whatever_the_features_are() -> None:
    rows = (1e3 + features(1, 3, size=20000)).astype(np.float32)
    stream = GramStream(3)
    for step in range(3):
        stream.add("a", step, torch.from_numpy(rows[0, step]))
    exact = rows[0].astype(np.float64)
    assert stream.gram() == pytest.approx(exact @ exact.T, rel=1e-13)


def test_beyond_the_limit_features_lie_in_a_file_and_give_the_same(tmp_path: Path) -> None:
    values = features(2, 5)
    row = values[0, 0].nbytes
    stream = streamed(values, memory_limit=3 * row, folder=tmp_path)
    assert (stream.bytes_in_memory, stream.bytes_on_disk) == (3 * row, 7 * row)
    assert stream.gram() == pytest.approx(streamed(values).gram(), rel=1e-12)
    stream.close()
    assert stream.bytes_in_memory == stream.bytes_on_disk == 0
    assert not list(tmp_path.iterdir())


def test_the_peak_counts_features_and_the_tile() -> None:
    values = features(1, 4)
    stream = streamed(values)
    held = values.nbytes
    assert stream.peak_bytes == held
    stream.gram()
    assert stream.peak_bytes >= held


def test_a_step_that_was_left_out_is_a_row_of_zeros() -> None:
    stream = GramStream(3)
    stream.add("a", 0, np.ones(4))
    stream.add("a", 2, np.ones(4))
    stream.add("a", 7, np.ones(4))  # past the end
    np.testing.assert_array_equal(stream.gram(), [[4, 0, 4], [0, 0, 0], [4, 0, 4]])


def test_chains_add_up() -> None:
    stream = GramStream(1)
    stream.add("a", 0, np.full(3, 2.0), chain=0)
    stream.add("a", 0, np.full(5, 1.0), chain=1)
    assert stream.gram().item() == 3 * 4 + 5


def test_the_mixture_of_the_branches_has_the_combined_products() -> None:
    values = features(2, 5)
    mixture = 4.5 * values[0] - 3.5 * values[1]
    assert combined(streamed(values).gram(), (4.5, -3.5)) == pytest.approx(mixture @ mixture.T, rel=1e-9)


def test_a_number_of_steps_is_needed() -> None:
    with pytest.raises(ConfigError, match="steps=0"):
        GramStream(0)
