"""Streamed statistics against numpy, and the Frechet distance where it has a closed form."""

import numpy as np
import pytest
from scipy import linalg

from vggjax.errors import DataError
from vggjax.features import FeatureStatistics, frechet_distance


def features(count, width=6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, width)) @ rng.standard_normal((width, width)) + 1e4


def test_batches_of_any_size_give_numpy_s_mean_and_covariance():
    data = features(200)
    for ends in ([200], [1, 2, 3, 150, 200], [0, 199, 199, 200]):
        statistics, start = FeatureStatistics(), 0
        for end in ends:
            statistics.update(data[start:end])
            start = end
        assert statistics.count == 200
        np.testing.assert_allclose(statistics.mean, data.mean(0), rtol=1e-14)
        np.testing.assert_allclose(statistics.covariance, np.cov(data, rowvar=False), rtol=1e-9)
    halves = [FeatureStatistics().update(part) for part in (data[:70], data[70:])]
    merged = halves[0].merge(FeatureStatistics()).merge(halves[1])
    np.testing.assert_allclose(merged.covariance, np.cov(data, rowvar=False), rtol=1e-9)


def test_float32_features_are_summed_in_float64():
    data = (1 + 1e-4 * np.random.default_rng(0).standard_normal((5000, 2))).astype(np.float32)
    statistics = FeatureStatistics()
    for start in range(0, 5000, 64):
        statistics.update(data[start : start + 64])
    expected = np.cov(data.astype(np.float64), rowvar=False)
    np.testing.assert_allclose(statistics.covariance, expected, rtol=1e-9)


def test_frechet_distance_is_the_formula_s_and_0_of_equal_ones():
    first, second = (FeatureStatistics().update(features(50, seed=i)) for i in (1, 2))
    one, two = first.covariance, second.covariance
    root = linalg.sqrtm(one @ two).real
    shift = first.mean - second.mean
    expected = shift @ shift + np.trace(one + two - 2 * root)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(second, first) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-5 * np.trace(one))


def test_frechet_distance_of_fewer_vectors_than_dimensions_is_that_of_a_shift():
    data = features(5, width=40)
    first, second = FeatureStatistics().update(data), FeatureStatistics().update(data + 0.5)
    assert frechet_distance(first, second) == pytest.approx(40 * 0.25, rel=1e-4)


def test_what_has_no_statistics_is_refused():
    statistics = FeatureStatistics()
    with pytest.raises(DataError, match="no features yet"):
        statistics.mean  # noqa: B018
    statistics.update(features(1))
    with pytest.raises(DataError, match="two or more features; got 1"):
        statistics.covariance  # noqa: B018
    with pytest.raises(DataError, match=r"must be \(N, 6\); got \(2, 5\)"):
        statistics.update(features(2, width=5))
    with pytest.raises(DataError, match="must be finite"):
        statistics.update(np.full((1, 6), np.nan))
    with pytest.raises(DataError, match="one length; got 6 and 5"):
        frechet_distance(statistics, FeatureStatistics().update(features(2, width=5)))
    assert statistics.count == 1
