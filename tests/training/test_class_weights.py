"""Balanced class weights are scikit-learn's; test_step.py tests what they do."""

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from vggjax.data.splits.splits import balanced_weights


def test_balanced_weights_are_scikit_learns():
    labels = np.random.default_rng(0).choice(4, 200, p=[0.7, 0.2, 0.06, 0.04])
    expected = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    np.testing.assert_allclose(balanced_weights(labels, 4), expected, rtol=1e-6)
    assert balanced_weights(labels, 4)[labels].mean() == pytest.approx(1)


def test_a_class_without_an_example_has_weight_zero():
    weights = balanced_weights(np.array([0, 0, 2, 2]), 3)
    np.testing.assert_allclose(weights, [2 / 3, 0, 2 / 3], rtol=1e-6)
