"""The paths of conv.py against lax.conv_general_dilated, and the choice among them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from vggjax.errors import ConfigError
from vggjax.models.kernels import winograd
from vggjax.models.kernels.conv import convolve, make_convolve
from vggjax.models.kernels.library import kernel_choices
from vggjax.models.kernels.paths import METHODS, choose_path

LAYOUT = ("NHWC", "HWIO", "NHWC")
ZEROS = nnx.initializers.zeros
CASES = [
    # (N, H, W, C), padding, the paths of `auto` (compiled or not) and of `direct`
    ((2, 1, 1, 8), "SAME", ("patches",), "patches"),
    ((2, 4, 3, 8), "SAME", ("patches", "winograd"), "patches"),
    ((1, 5, 3, 3), "SAME", ("few_channels",), "direct"),
    ((2, 13, 9, 8), "SAME", ("winograd",), "direct"),
    ((2, 13, 9, 8), "VALID", ("winograd",), "direct"),
]


@functools.partial(jax.jit, static_argnums=(0, 3))
def run(conv, x, kernel, padding):
    """Return the output of a convolution and the gradients of half its squares' sum."""

    def function(x, kernel):
        numbers = lax.conv_dimension_numbers(x.shape, kernel.shape, LAYOUT)
        return conv(x, kernel, (1, 1), padding, dimension_numbers=numbers)

    y, pullback = jax.vjp(function, x, kernel)
    return y, *pullback(y)


def make_operands(shape, outputs=5):
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((3, 3, shape[3], outputs), np.float32)
    return rng.standard_normal(shape, np.float32), kernel


@pytest.mark.parametrize(("shape", "padding", "auto", "direct"), CASES, ids=str)
def test_every_path_gives_what_lax_gives_with_the_same_gradients(shape, padding, auto, direct):
    x, kernel = make_operands(shape)
    expected = run(lax.conv_general_dilated, x, kernel, padding)
    assert choose_path(shape, kernel.shape) in auto
    assert choose_path(shape, kernel.shape, method="direct") == direct
    for method in ("auto", "direct"):
        received = run(make_convolve(method), x, kernel, padding)
        for array, reference in zip(received, expected, strict=True):
            # float32 sums of up to 9 * C or N * H * W terms, in another order (see test_winograd)
            np.testing.assert_allclose(
                array, reference, rtol=0, atol=4e-5 * float(jnp.abs(reference).max())
            )


def test_nnx_conv_takes_each_method_s_path():
    for method in METHODS:
        conv = make_convolve(method)
        layer = nnx.Conv(
            8, 5, (3, 3), conv_general_dilated=conv, kernel_init=ZEROS, rngs=nnx.Rngs(0)
        )
        traced = str(jax.make_jaxpr(layer)(jnp.ones((1, 14, 14, 8))))
        assert ("conv_general_dilated" in traced) == (method == "direct"), method


@pytest.mark.parametrize(
    ("method", "side", "channels", "path"),
    [
        ("auto", 224, 3, "few_channels"),
        ("auto", 14, 512, "winograd"),
        ("auto", 2, 512, "patches"),
        ("winograd", 2, 3, "winograd"),
        ("direct", 224, 64, "direct"),
        ("direct", 4, 512, "patches"),
    ],
)
def test_each_method_chooses_its_path(method, side, channels, path):
    assert choose_path((1, side, side, channels), (3, 3, channels, 64), method=method) == path


def test_jax_numpy_leaves_more_small_maps_to_patches(monkeypatch):
    monkeypatch.setenv("VGGJAX_KERNELS", "numpy")
    assert choose_path((1, 4, 4, 512), (3, 3, 512, 64)) == "patches"
    monkeypatch.delenv("VGGJAX_KERNELS")
    if winograd.is_compiled():
        assert choose_path((1, 4, 4, 512), (3, 3, 512, 64)) == "winograd"


def test_an_unknown_method_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'winograd'"):
        make_convolve("vinograd")


@pytest.mark.parametrize(
    "options",
    [
        {"strides": 2},
        {"kernel_dilation": 2},
        {"padding": ((0, 1), (1, 0))},
        {"feature_group_count": 4},
        {"dtype": jnp.float16},
    ],
    ids=str,
)
def test_other_convolutions_are_left_to_lax(options):
    x = jnp.ones((2, 4, 4, 4))

    def trace(conv):
        layer = nnx.Conv(
            4, 8, (3, 3), conv_general_dilated=conv, kernel_init=ZEROS, rngs=nnx.Rngs(0), **options
        )  # fmt: skip
        return str(jax.make_jaxpr(layer)(x))

    assert trace(convolve) == trace(lax.conv_general_dilated)


@pytest.mark.parametrize("kernels", kernel_choices())
@pytest.mark.parametrize(("shape", "outputs"), [((3, 13, 9, 17), 40), ((2, 6, 5, 3), 9)], ids=str)
def test_bfloat16_maps_give_what_float32_gives_within_their_rounding(
    monkeypatch, kernels, shape, outputs
):
    monkeypatch.setenv("VGGJAX_KERNELS", kernels)
    x, kernel = (jnp.asarray(a, jnp.bfloat16) for a in make_operands(shape, outputs))
    received = run(convolve, x, kernel, "SAME")
    expected = run(lax.conv_general_dilated, *(a.astype(jnp.float32) for a in (x, kernel)), "SAME")
    # Rounding a number to bfloat16 changes it by 2^-8 at most, by 0.0016 in the mean (RMS). Of
    # products in bfloat16 two transformed factors are rounded, which Winograd's sums of random
    # numbers amplify 4.8 times: 0.011 with the rounding of the result. A quarter more, because here
    # are few numbers.
    bound = 1.25 * 0.011 if kernels == "avx512_bf16" else 2**-8
    for array, exact in zip(received, expected, strict=True):
        assert array.dtype == jnp.bfloat16
        error = jnp.linalg.norm((array.astype(jnp.float32) - exact).ravel())
        assert error < bound * jnp.linalg.norm(exact.ravel())
