"""The pooling of pooling.py against nnx.max_pool."""

import jax
import numpy as np
import pytest
from flax import nnx

from vggjax.models.layers import max_pool


@pytest.mark.parametrize("size", [(2, 2), (5, 4), (7, 9), (1, 6)])
@pytest.mark.parametrize("ties", [False, True])
def test_it_gives_what_nnx_gives_with_the_same_gradient(size, ties):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, *size, 3), np.float32)
    if ties:
        x = np.round(x)  # the first of equal pixels takes the gradient
    grad = rng.standard_normal((2, size[0] // 2, size[1] // 2, 3), np.float32)

    @jax.jit
    def run(x, grad):
        ways = (max_pool, lambda x: nnx.max_pool(x, (2, 2), (2, 2)))
        return [(y, *pull(grad)) for y, pull in (jax.vjp(way, x) for way in ways)]

    for got, want in zip(*run(x, grad), strict=True):
        np.testing.assert_array_equal(got, want)
