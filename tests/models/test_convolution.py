"""The fast path of convolution.py against lax.conv_general_dilated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from vggjax.models.kernels import conv

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def _layer(conv, channels, padding="SAME"):
    kwargs = dict(padding=padding, conv_general_dilated=conv, rngs=nnx.Rngs(0))
    return nnx.Conv(channels, 5, (3, 3), **kwargs)


@pytest.mark.parametrize(
    ("size", "padding"),
    [
        *((size, "SAME") for size in [(1, 1), (2, 2), (4, 4), (5, 3), (13, 9)]),
        ((13, 9), "VALID"),
    ],
)
@pytest.mark.parametrize(("batch", "channels"), [(1, 3), (2, 8)])
@pytest.mark.parametrize("method", ["auto", "direct"])
def test_maps_of_any_size_give_what_lax_gives_with_the_same_gradients(
    size, padding, batch, channels, method
):
    x = jax.random.normal(jax.random.key(0), (batch, *size, channels))

    def loss(layer, x):
        return (layer(x) ** 2).sum()

    def run(conv):
        layer = _layer(conv, channels, padding)
        grads = nnx.jit(nnx.grad(loss, argnums=(0, 1)))(layer, x)
        return jax.tree.leaves((layer(x), grads))

    convolve = conv.make_convolve(method)
    for ours, theirs in zip(run(convolve), run(lax.conv_general_dilated), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * float(jnp.abs(theirs).max()))


@pytest.mark.parametrize("method", conv.METHODS)
def test_nnx_conv_reaches_the_way_that_was_chosen(monkeypatch, method):
    calls = []
    for name, path in conv._PATHS.items():
        noted = lambda x, k, name=name, path=path: calls.append((x.shape[1], name)) or path(x, k)  # noqa: E731
        monkeypatch.setitem(conv._PATHS, name, noted)
    layer = _layer(conv.make_convolve(method), 3)
    for side in (2, 5):
        layer(jnp.ones((1, side, side, 3)))
    assert calls == [
        (side, conv.choose_path((1, side, side, 3), (3, 3, 3, 5), method=method)) for side in (2, 5)
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"strides": 2},
        {"kernel_dilation": 2},
        {"padding": ((0, 1), (1, 0))},
        {"feature_group_count": 4},
        {"dtype": jnp.float16},
    ],
)
def test_other_convolutions_are_left_to_lax(options):
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 4))
    make = dict(kernel_size=(3, 3), rngs=nnx.Rngs(0), **options)
    ours = nnx.Conv(4, 8, conv_general_dilated=conv.convolve, **make)
    make["rngs"] = nnx.Rngs(0)
    np.testing.assert_array_equal(ours(x), nnx.Conv(4, 8, **make)(x))


def test_bfloat16_maps_are_convolved_in_float32_and_rounded_once():
    x = jax.random.normal(jax.random.key(0), (2, 9, 9, 16)).astype(jnp.bfloat16)
    layer = _layer(conv.convolve, 16)
    layer.dtype = jnp.bfloat16
    layer.kernel[...] = layer.kernel[...].astype(jnp.bfloat16).astype(jnp.float32)
    assert layer(x).dtype == jnp.bfloat16
    exact = conv.convolve(
        x.astype(jnp.float32), layer.kernel[...], (1, 1), "SAME",
        dimension_numbers=lax.conv_dimension_numbers(x.shape, layer.kernel.shape, _LAYOUT),
    )  # fmt: skip
    np.testing.assert_array_equal(layer(x), exact.astype(jnp.bfloat16))
