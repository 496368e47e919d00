"""Winograd's convolution, by each kind of kernels of this machine, against lax."""

import functools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vggjax.errors import ConfigError
from vggjax.models.kernels import library, winograd
from vggjax.models.kernels.library import kernel_choices, kernels_in_use
from vggjax.models.kernels.pooling import max_pool
from vggjax.models.kernels.primitives import conv3x3, conv3x3_relu

SHAPES = [
    (1, 1, 1, 1, 1),
    (2, 1, 9, 3, 5),
    (3, 2, 2, 8, 24),
    (2, 13, 9, 17, 33),
    (1, 31, 6, 70, 131),  # more than one block of input and of output channels
    (5, 22, 21, 64, 64),  # 180 tiles: more than one block of tiles
]
"""(N, H, W, C, D): one tile and many, and channels that are no multiple of a vector."""

COMPILED = kernel_choices()[1:]


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def make_problem(n, height, width, channels, outputs):
    x, kernel = random(n, height, width, channels), random(3, 3, channels, outputs, seed=1)
    return x, kernel, random(n, height, width, outputs, seed=2)


def lax_convolve(x, kernel):
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@functools.partial(jax.jit, static_argnums=0)
def results(convolve, x, kernel, grad):
    """Return the output, the gradient of the map and that of the kernel."""
    y, pullback = jax.vjp(convolve, x, kernel)
    return y, *pullback(grad)


@functools.cache
def lax_results(shape):
    return results(lax_convolve, *make_problem(*shape))


def assert_close(received, expected, num_terms):
    """Compare sums of `num_terms` random products each.

    Rounding errors of a sum grow like the square root of its length; Winograd's transforms
    multiply them by at most a few tens (Lavin and Gray, section 6).
    """
    scale = float(jnp.abs(expected).max())
    bound = 30 * np.finfo(np.float32).eps * max(num_terms, 16) ** 0.5
    np.testing.assert_allclose(received, expected, rtol=0, atol=bound * scale)


# One function for jax.numpy and one for all compiled kernels: they differ in nothing that jax
# traces, so each shape is compiled twice, not once per instruction set.
TRACED = {
    True: lambda x, kernel: conv3x3(x, kernel, method="winograd"),
    False: lambda x, kernel: conv3x3(x, kernel, method="winograd"),
}


@pytest.fixture(params=kernel_choices())
def convolve(request, monkeypatch):
    """Return the convolution by each kind of kernels that this machine has."""
    monkeypatch.setenv("VGGJAX_KERNELS", request.param)
    assert winograd.is_compiled() == (request.param != "numpy")
    assert kernels_in_use() == request.param
    return TRACED[winograd.is_compiled()]


compiled_only = pytest.mark.parametrize("convolve", COMPILED, indirect=True)
"""For what is XLA's own in jax.numpy: threads and devices."""


@pytest.mark.parametrize(
    ("convolve", "shape"),
    [(kind, s) for kind in kernel_choices() for s in (SHAPES if kind in COMPILED else SHAPES[2:4])],
    indirect=["convolve"],
    ids=str,
)
def test_output_and_gradients_equal_lax_s_for_maps_of_any_size(convolve, shape):
    n, height, width, channels, outputs = shape
    num_terms = (9 * channels, 9 * outputs, n * height * width)
    received = results(convolve, *make_problem(*shape))
    for array, expected, terms in zip(received, lax_results(shape), num_terms, strict=True):
        assert_close(array, expected, terms)


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("shape", [(2, 13, 9, 17, 33), (2, 6, 11, 3, 40)], ids=str)
def test_bias_relu_and_pooling_in_one_pass_equal_lax_s_and_so_do_the_gradients(
    convolve, shape, pool
):
    n, height, width, _, outputs = shape
    x, kernel, _ = make_problem(*shape)
    bias = random(outputs, seed=3)

    def expected_of(x, kernel, bias):
        y = jax.nn.relu(lax_convolve(x, kernel) + bias.reshape(1, 1, 1, -1))
        return max_pool(y) if pool else y

    def one_pass(x, kernel, bias):
        return conv3x3_relu(x, kernel, bias, method="auto", pool=pool)

    grad = random(*jax.eval_shape(expected_of, x, kernel, bias).shape, seed=4)
    results = []
    for function in (one_pass, expected_of):
        y, pullback = jax.vjp(function, x, kernel, bias)
        results.append((jax.jit(function)(x, kernel, bias), y, *pullback(grad)))
    for received, expected in zip(*results, strict=True):
        assert_close(received, expected, n * height * width)
    x[1, 4, 4, 1] = np.nan
    y = one_pass(x, kernel, bias)
    np.testing.assert_array_equal(np.isnan(y[1]).any(), True)
    np.testing.assert_array_equal(y[0], results[0][0][0])


@compiled_only
def test_512_channels_give_what_sums_in_float64_give(convolve):
    x, kernel, grad = make_problem(1, 6, 6, 512, 512)
    padded = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifts = [padded[:, i : i + 6, j : j + 6].reshape(36, 512) for i in range(3) for j in range(3)]
    taps = kernel.reshape(9, 512, 512)
    y = sum(shift @ tap for shift, tap in zip(shifts, taps, strict=True))
    dkernel = np.stack([shift.T @ grad.reshape(36, 512) for shift in shifts])
    received = results(convolve, x, kernel, grad)
    assert_close(received[0].reshape(36, 512), y, 9 * 512)
    assert_close(received[2].reshape(9, 512, 512), dkernel, 36)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_stays_in_its_image(convolve, value):
    x, kernel, grad = make_problem(3, 9, 9, 8, 8)
    before = results(convolve, x, kernel, grad)[:2]
    x[1, 4, 4, 3] = grad[1, 4, 4, 3] = value
    after = results(convolve, x, kernel, grad)[:2]
    for finite, spoiled in zip(before, after, strict=True):
        assert not np.isfinite(spoiled[1]).all()
        np.testing.assert_array_equal(spoiled[::2], finite[::2])


@compiled_only
def test_repeated_runs_and_many_threads_give_the_same_bits(convolve):
    args = make_problem(4, 26, 26, 16, 40)
    first = results(convolve, *args)
    again = [None] * 4

    def run(i):
        again[i] = results(convolve, *args)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(again))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for arrays in again:
        for array, expected in zip(arrays, first, strict=True):
            np.testing.assert_array_equal(array, expected)


@compiled_only
def test_a_mesh_splits_the_batch_without_gathering_it(convolve):
    args = make_problem(8, 9, 9, 8, 16)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    split, replicated = (NamedSharding(mesh, PartitionSpec(*s)) for s in (("data",), ()))
    shardings = (split, replicated, split)
    placed = [jax.device_put(a, s) for a, s in zip(args, shardings, strict=True)]
    compiled = results.lower(convolve, *placed).compile()
    assert "all-gather" not in compiled.as_text()
    on_mesh = compiled(*placed)
    assert on_mesh[0].sharding.spec == PartitionSpec("data")
    on_one_device = results(convolve, *args)
    for array, expected, terms in zip(on_mesh, on_one_device, (72, 144, 648), strict=True):
        assert_close(array, expected, terms)


@compiled_only
def test_pmap_checkpoint_and_eval_shape_accept_it(convolve):
    x, kernel, _ = make_problem(4, 6, 6, 4, 8)
    function = jax.checkpoint(convolve)

    def loss(x, kernel):
        return (function(x, kernel) ** 2).sum()

    grads = jax.pmap(jax.grad(loss, argnums=1), in_axes=(0, None))(x[:, None], kernel)
    expected = jax.grad(lambda k: (lax_convolve(x, k) ** 2).sum())(kernel)
    assert_close(grads.sum(0), expected, 4 * 36 * 36)  # 36 terms of y in each of 144 products
    assert jax.eval_shape(function, x, kernel).shape == (4, 6, 6, 8)


def test_an_empty_batch_gives_an_empty_map_and_a_zero_gradient(convolve):
    y, dx, dkernel = results(convolve, *make_problem(0, 8, 8, 4, 8))
    assert (y.shape, dx.shape) == ((0, 8, 8, 8), (0, 8, 8, 4))
    assert not dkernel.any()


def test_kernels_that_this_machine_lacks_are_refused_with_the_choices(monkeypatch):
    monkeypatch.setenv("VGGJAX_KERNELS", "avx1024")
    with pytest.raises(ConfigError, match=f"Choices: {', '.join(kernel_choices())}"):
        winograd.convolve(np.ones((1, 4, 4, 8), np.float32), np.ones((3, 3, 8, 8), np.float32))


@pytest.mark.skipif(not COMPILED, reason="nothing is compiled")
def test_a_library_of_another_interface_is_not_called(monkeypatch):
    assert library._open.__wrapped__() is not None
    monkeypatch.setattr(library, "INTERFACE", library.INTERFACE + 1)
    assert library._open.__wrapped__() is None
