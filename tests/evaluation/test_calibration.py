"""Calibration against a hand calculation, scikit-learn, and known temperatures."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.calibration import calibration_curve

from vggjax.evaluation.calibration import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    at_temperature,
    chance_ece,
    fit_temperature,
    reliability,
)


def overconfident(count, *, temperature=1.0, classes=5, seed=0):
    """Return labels, and probabilities that are calibrated once divided by the temperature."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (count, classes))
    draws = rng.random((count, 1))
    labels = (softmax(logits, 1).cumsum(1) < draws).sum(1).clip(max=classes - 1)
    return softmax(logits * temperature, 1).astype(np.float32), labels


def test_the_ece_is_that_of_a_hand_calculation():
    # Bin (0.6, 0.8]: two, mean 0.7, half correct. Bin (0.8, 1]: three, mean 0.9, all correct.
    result = reliability([0.65, 0.75, 0.85, 0.9, 0.95], [1, 0, 1, 1, 1], num_bins=5)
    assert result.counts == (2, 3)
    assert result.accuracy == (0.5, 1.0)
    np.testing.assert_allclose(result.confidence, (0.7, 0.9))
    np.testing.assert_allclose(result.edges, ((0.6, 0.8), (0.8, 1.0)))
    assert result.ece == pytest.approx((2 * 0.2 + 3 * 0.1) / 5)
    assert result.mean_confidence == pytest.approx(0.82)


def test_the_bins_are_those_of_scikit_learn():
    rng = np.random.default_rng(1)
    confidence = rng.random(500)
    correct = rng.random(500) < confidence**2
    accuracy, mean = calibration_curve(correct, confidence, n_bins=15)
    result = reliability(confidence, correct)
    np.testing.assert_allclose(result.accuracy, accuracy)
    np.testing.assert_allclose(result.confidence, mean)


def test_a_confidence_on_an_edge_is_in_the_bin_below_and_none_is_lost():
    result = reliability([0.0, 0.2, 0.4, 1.0], [1, 1, 1, 1], num_bins=5)
    assert result.counts == (2, 1, 1)
    assert [low for low, _ in result.edges] == pytest.approx([0.0, 0.2, 0.8])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_a_known_temperature_is_found(temperature):
    probs, labels = overconfident(20_000, temperature=temperature)
    assert fit_temperature(probs, labels) == pytest.approx(temperature, rel=0.03)


def test_the_fitted_temperature_calibrates_an_overconfident_model():
    probs, labels = overconfident(20_000, temperature=3.0)
    calibrated = at_temperature(probs, fit_temperature(probs, labels))
    before = reliability(probs.max(1), probs.argmax(1) == labels)
    after = reliability(calibrated.max(1), calibrated.argmax(1) == labels)
    assert before.ece > 0.1 and after.ece < 0.015
    assert (calibrated.argmax(1) == probs.argmax(1)).all()


def test_a_model_that_is_never_or_always_wrong_has_a_temperature_at_the_bound():
    probs = np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)
    assert fit_temperature(probs, np.array([0, 1])) == MIN_TEMPERATURE
    assert fit_temperature(probs, np.array([1, 0])) == MAX_TEMPERATURE


def test_probabilities_rounded_to_0_have_a_temperature_too():
    probs, labels = overconfident(2000, temperature=60.0)
    assert (probs == 0).any()
    assert 1 < fit_temperature(probs, labels) <= MAX_TEMPERATURE
    assert np.isfinite(at_temperature(probs, 2.0)).all()


def test_the_ece_by_chance_falls_with_the_number_of_images():
    confidence = overconfident(4000)[0].max(1)
    few, many = chance_ece(confidence[:100]), chance_ece(confidence)
    assert many < 0.02 < few < 0.15
    probs, labels = overconfident(4000)
    assert reliability(probs.max(1), probs.argmax(1) == labels).ece < 2 * many
