"""Calibration against a hand calculation, scikit-learn, and temperatures that are known."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from vggjax.evaluation.calibration import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    at_temperature,
    chance_ece,
    fit_temperature,
    reliability,
)


def softmax(logits):
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


def honest(count, *, temperature=1.0, classes=5, seed=0):
    """Gives probabilities and labels drawn from them; then the model claims them at a temperature.

    Logits times the temperature are too sure by just that: dividing by it makes them honest.
    """
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (count, classes))
    draws = rng.random((count, 1))
    labels = (softmax(logits).cumsum(1) < draws).sum(1).clip(max=classes - 1)
    return softmax(logits * temperature).astype(np.float32), labels


def test_the_error_is_that_of_a_hand_calculation():
    # Bin (0.6, 0.8]: two guesses, 0.7 sure, half right. Bin (0.8, 1]: three, 0.9 sure, all right.
    found = reliability([0.65, 0.75, 0.85, 0.9, 0.95], [1, 0, 1, 1, 1], num_bins=5)
    assert found.counts == (2, 3)
    assert found.accuracy == (0.5, 1.0)
    np.testing.assert_allclose(found.confidence, (0.7, 0.9))
    np.testing.assert_allclose(found.edges, ((0.6, 0.8), (0.8, 1.0)))
    assert found.ece == pytest.approx((2 * 0.2 + 3 * 0.1) / 5)
    assert found.mean_confidence == pytest.approx(0.82)


def test_the_bins_are_those_of_scikit_learn():
    rng = np.random.default_rng(1)
    confidence = rng.random(500)
    correct = rng.random(500) < confidence**2
    theirs, sure = calibration_curve(correct, confidence, n_bins=15)
    found = reliability(confidence, correct)
    np.testing.assert_allclose(found.accuracy, theirs)
    np.testing.assert_allclose(found.confidence, sure)


def test_a_guess_on_an_edge_counts_below_it_and_none_is_lost():
    found = reliability([0.0, 0.2, 0.4, 1.0], [1, 1, 1, 1], num_bins=5)
    assert found.counts == (2, 1, 1)
    assert [low for low, _ in found.edges] == pytest.approx([0.0, 0.2, 0.8])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_a_known_temperature_is_found(temperature):
    probs, labels = honest(20_000, temperature=temperature)
    assert fit_temperature(probs, labels) == pytest.approx(temperature, rel=0.03)


def test_the_fitted_temperature_mends_what_was_too_sure():
    probs, labels = honest(20_000, temperature=3.0)
    mended = at_temperature(probs, fit_temperature(probs, labels))
    before = reliability(probs.max(1), probs.argmax(1) == labels)
    after = reliability(mended.max(1), mended.argmax(1) == labels)
    assert before.ece > 0.1 and after.ece < 0.015
    assert (mended.argmax(1) == probs.argmax(1)).all()


def test_a_model_that_is_never_or_always_wrong_ends_the_search():
    probs = np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)
    assert fit_temperature(probs, np.array([0, 1])) == MIN_TEMPERATURE
    assert fit_temperature(probs, np.array([1, 0])) == MAX_TEMPERATURE


def test_probabilities_that_were_rounded_to_0_have_a_temperature_too():
    probs, labels = honest(2000, temperature=60.0)
    assert (probs == 0).any()
    assert 1 < fit_temperature(probs, labels) <= MAX_TEMPERATURE
    assert np.isfinite(at_temperature(probs, 2.0)).all()


def test_chance_alone_shows_less_error_on_more_images():
    confidence = honest(4000)[0].max(1)
    few, many = chance_ece(confidence[:100]), chance_ece(confidence)
    assert many < 0.02 < few < 0.15
    probs, labels = honest(4000)
    assert reliability(probs.max(1), probs.argmax(1) == labels).ece < 2 * many


def test_what_does_not_fit_together_is_refused():
    for confidence, correct in (([], []), ([0.5], [1, 0]), ([[0.5]], [[1]])):
        with pytest.raises(ValueError, match=r"must both be \(N,\)"):
            reliability(np.array(confidence), np.array(correct))
