"""The Fréchet distance, against scipy and what can be known without it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg

from cache_dit.errors import ConfigError
from cache_dit.metrics.frechet import Moments, frechet_distance


def gaussian(dims, seed, rank=None):
    random = np.random.default_rng(seed)
    factor = random.normal(size=(dims, rank or dims))
    return random.normal(size=dims), factor @ factor.T


def by_definition(mean, covariance, other_mean, other_covariance, eps=0.0):
    """With scipy's root of the product itself, and `eps` on both diagonals."""
    offset = np.eye(len(mean)) * eps
    root = linalg.sqrtm((covariance + offset) @ (other_covariance + offset))
    return (
        np.sum((mean - other_mean) ** 2) + np.trace(covariance) + np.trace(other_covariance) - 2 * np.trace(root).real
    )


@pytest.mark.parametrize("dims", [1, 2, 7, 64])
def test_the_distance_is_the_one_that_scipys_root_gives(dims):
    first, second = gaussian(dims, 0), gaussian(dims, 1)
    assert frechet_distance(*first, *second) == pytest.approx(by_definition(*first, *second), rel=1e-9)


def test_singular_covariances_give_what_the_usual_rule_of_adding_1e_6_approaches():
    first, second = gaussian(40, 0, rank=5), gaussian(40, 1, rank=5)
    exact = frechet_distance(*first, *second)
    assert exact == pytest.approx(by_definition(*first, *second, eps=1e-6), rel=1e-4)


def test_covariances_that_share_their_axes_have_the_distance_of_their_deviations():
    first, second = np.array([1.0, 4, 9]), np.array([4.0, 4, 0])
    distance = frechet_distance(np.zeros(3), np.diag(first), np.ones(3), np.diag(second))
    assert distance == pytest.approx(3 + np.sum((np.sqrt(first) - np.sqrt(second)) ** 2), rel=1e-12)


@given(st.integers(1, 8), st.integers(0, 10_000))
def test_it_is_zero_for_equal_distributions_and_the_same_both_ways(dims, seed):
    first, second = gaussian(dims, seed), gaussian(dims, seed + 1)
    assert frechet_distance(*first, *first) == pytest.approx(0, abs=1e-9 * np.trace(first[1]))
    assert frechet_distance(*first, *second) == pytest.approx(frechet_distance(*second, *first), rel=1e-6)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.floats(-1e6, 1e6))
@settings(max_examples=50)
def test_moments_do_not_depend_on_how_the_vectors_are_cut_into_batches(sizes, offset):
    vectors = np.random.default_rng(0).normal(size=(sum(sizes) + 2, 3)) + offset
    gathered = Moments(3)
    for batch in np.split(vectors, np.cumsum(sizes)):
        gathered.add(batch)
    assert gathered.count == len(vectors)
    assert gathered.mean == pytest.approx(vectors.mean(axis=0), rel=1e-12, abs=1e-12)
    assert gathered.covariance == pytest.approx(np.cov(vectors, rowvar=False), rel=1e-6, abs=1e-9)


def test_float32_features_are_gathered_in_float64():
    vectors = (np.random.default_rng(0).normal(size=(1000, 2)) + 4096).astype(np.float32)
    gathered = Moments(2)
    for vector in vectors:
        gathered.add(vector[None])
    assert gathered.covariance == pytest.approx(np.cov(vectors.astype(np.float64), rowvar=False), rel=1e-9)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_vectors_have_no_covariance(count):
    gathered = Moments(3)
    gathered.add(np.ones((count, 3)))
    with pytest.raises(ConfigError, match=f"at least 2 pictures: there is {count}"):
        _ = gathered.covariance


@pytest.mark.parametrize("batch", [np.ones((2, 4)), np.ones(3), np.full((1, 3), np.nan), np.full((1, 3), np.inf)])
def test_features_of_another_shape_or_without_a_value_are_refused(batch):
    with pytest.raises(ConfigError, match=r"expected \(N, 3\)|NaN or infinite"):
        Moments(3).add(batch)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="expected"):
        frechet_distance(np.zeros(2), np.eye(2), np.zeros(3), np.eye(3))
