"""Pooling and batch normalization against flax's and the formula."""

import jax
import numpy as np
import pytest
from flax import nnx

from vggjax.models.arch import EPSILON
from vggjax.models.kernels.pooling import max_pool
from vggjax.models.layers import MOMENTUM, BatchNorm


@pytest.mark.parametrize("size", [(2, 2), (5, 4), (7, 9), (1, 6)])
def test_max_pool_and_its_gradient_equal_nnx_s_also_with_ties(size):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, *size, 3), np.float32)
    grad = rng.standard_normal((2, size[0] // 2, size[1] // 2, 3), np.float32)

    @jax.jit
    def run(x, grad):
        pools = (max_pool, lambda x: nnx.max_pool(x, (2, 2), (2, 2)))
        return [(y, *pullback(grad)) for y, pullback in (jax.vjp(pool, x) for pool in pools)]

    for array in (x, np.round(x)):  # of equal pixels, the first gets the gradient
        for received, expected in zip(*run(array, grad), strict=True):
            np.testing.assert_array_equal(received, expected)


def test_batch_norm_trains_on_the_masked_batch_and_evaluates_on_running_statistics():
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (3, 4, 5, 2)).astype(np.float32)
    scale, bias = np.float32([0.5, 2]), np.float32([1, -1])
    layer = BatchNorm(2)
    layer.scale[...], layer.bias[...] = scale, bias

    layer.train()
    y = layer(x, mask=np.float32([1, 0, 1]))
    kept = x[::2].astype(np.float64)
    mean, var = kept.mean((0, 1, 2)), kept.var((0, 1, 2))
    expected = (kept - mean) / np.sqrt(var + EPSILON) * scale + bias
    np.testing.assert_allclose(y[::2], expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(layer.mean[...], (1 - MOMENTUM) * mean, rtol=1e-5)
    np.testing.assert_allclose(layer.var[...], MOMENTUM + (1 - MOMENTUM) * var, rtol=1e-5)

    layer.eval()
    running = np.asarray(layer.mean[...]), np.asarray(layer.var[...])
    expected = (x - running[0]) / np.sqrt(running[1] + EPSILON) * scale + bias
    np.testing.assert_allclose(layer(x), expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(layer.mean[...], running[0])


def test_batch_norm_of_padding_alone_is_finite():
    layer = BatchNorm(2)
    layer.train()
    assert np.isfinite(layer(np.ones((2, 2, 2, 2), np.float32), mask=np.zeros(2))).all()
    assert np.isfinite(layer.var[...]).all()
