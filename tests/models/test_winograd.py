"""Winograd's convolution, compiled and in jax.numpy, against lax.conv_general_dilated."""

import functools
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vggjax.errors import ConfigError
from vggjax.models.kernels import conv, winograd

RELATIVE = 2e-5  # of the largest value; the paths are held to 1e-4

SHAPES = [
    (1, 1, 1, 1, 1),
    (2, 1, 9, 3, 5),
    (3, 2, 2, 8, 24),
    (1, 4, 4, 16, 16),
    (2, 13, 9, 17, 33),
    (1, 31, 6, 70, 131),  # more than one block of each kind of channel
    (5, 22, 21, 64, 64),  # 180 tiles: more than one block of tiles
]
"""(N, H, W, C, D): one tile and many, and channels that no vector divides."""


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def problem(n, height, width, channels, outputs):
    x, kernel = random(n, height, width, channels), random(3, 3, channels, outputs, seed=1)
    return x, kernel, random(n, height, width, outputs, seed=2)


def lax_convolve(x, kernel):
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@functools.partial(jax.jit, static_argnums=0)
def results(convolve, x, kernel, grad):
    """The output, the map's gradient and the kernel's."""
    y, pullback = jax.vjp(convolve, x, kernel)
    return y, *pullback(grad)


@functools.cache
def expected(shape):
    return results(lax_convolve, *problem(*shape))


@pytest.fixture(params=["native", "numpy"])
def path(request, monkeypatch):
    """Each path in turn; CI compiles the kernel and so leaves none of this out."""
    if request.param == "numpy":
        monkeypatch.setattr(winograd, "LIBRARY", Path("no/such/library"))
    winograd.native.cache_clear()
    if winograd.native() != (request.param == "native"):
        pytest.skip("the compiled kernel is not installed: pip install -e .")
    yield request.param
    monkeypatch.undo()
    winograd.native.cache_clear()


def fresh(path):
    """The convolution under a new name, so that no other path's trace is found."""
    return lambda x, kernel: winograd.convolve(x, kernel)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_size_gives_what_lax_gives_with_the_same_gradients(path, shape):
    ours = results(fresh(path), *problem(*shape))
    for got, want in zip(ours, expected(shape), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=RELATIVE * float(jnp.abs(want).max()))


def test_both_paths_agree_where_lax_would_take_minutes():
    x, kernel, grad = problem(1, 14, 14, 512, 512)
    if not winograd.native():
        pytest.skip("the compiled kernel is not installed: pip install -e .")
    pairs = [
        (winograd._native_convolve, winograd._numpy_convolve, (x, kernel)),
        (winograd._native_gradient, winograd._numpy_gradient, (x, grad)),
    ]
    for native, numpy, args in pairs:
        got, want = jax.jit(native)(*args), jax.jit(numpy)(*args)
        # Each is 1e-5 off the truth.
        np.testing.assert_allclose(got, want, rtol=0, atol=5e-5 * float(jnp.abs(want).max()))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_image(path, value):
    x, kernel, grad = problem(3, 9, 9, 8, 8)
    want = results(fresh(path), x, kernel, grad)[:2]
    x[1, 4, 4, 3] = grad[1, 4, 4, 3] = value
    got = results(fresh(path), x, kernel, grad)[:2]
    for before, after in zip(want, got, strict=True):
        assert not np.isfinite(after[1]).all()
        np.testing.assert_array_equal(after[::2], before[::2])


def test_the_same_bits_come_run_after_run_and_from_many_threads(path):
    args, function = problem(4, 26, 26, 16, 40), fresh(path)
    first = results(function, *args)
    again = [None] * 4

    def run(i):
        again[i] = results(function, *args)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(again))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in again:
        for got, want in zip(one, first, strict=True):
            np.testing.assert_array_equal(got, want)


def test_a_mesh_splits_the_batch_and_gathers_nothing(path):
    args, function = problem(8, 9, 9, 8, 16), fresh(path)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    split, same = (NamedSharding(mesh, PartitionSpec(*s)) for s in (("data",), ()))
    placed = [jax.device_put(a, s) for a, s in zip(args, (split, same, split), strict=True)]
    compiled = results.lower(function, *placed).compile()
    assert "all-gather" not in compiled.as_text()
    got = compiled(*placed)
    assert got[0].sharding.spec == PartitionSpec("data")
    for on_four, on_one in zip(got, results(function, *args), strict=True):
        scale = float(jnp.abs(on_one).max())
        np.testing.assert_allclose(on_four, on_one, rtol=0, atol=RELATIVE * scale)


def test_pmap_checkpoint_and_eval_shape_take_it(path):
    x, kernel, _ = problem(4, 6, 6, 4, 8)
    function = jax.checkpoint(fresh(path))

    def loss(x, kernel):
        return (function(x, kernel) ** 2).sum()

    grads = jax.pmap(jax.grad(loss, argnums=1), in_axes=(0, None))(x[:, None], kernel)
    want = jax.grad(lambda k: (lax_convolve(x, k) ** 2).sum())(kernel)
    np.testing.assert_allclose(grads.sum(0), want, rtol=0, atol=1e-4 * float(jnp.abs(want).max()))
    assert jax.eval_shape(function, x, kernel).shape == (4, 6, 6, 8)


def test_an_empty_batch_gives_an_empty_map_and_no_gradient(path):
    y, dx, dkernel = results(fresh(path), *problem(0, 8, 8, 4, 8))
    assert (y.shape, dx.shape) == ((0, 8, 8, 8), (0, 8, 8, 4))
    assert not dkernel.any()


@pytest.mark.parametrize(
    ("method", "side", "channels", "way"),
    [
        ("auto", 224, 3, "few_channels"),
        ("auto", 14, 512, "winograd"),
        ("auto", 2, 512, "patches"),
        ("winograd", 2, 3, "winograd"),
        ("direct", 224, 64, "direct"),
        ("direct", 4, 512, "patches"),
    ],
)
def test_each_method_chooses_its_way(method, side, channels, way):
    shapes = (1, side, side, channels), (3, 3, channels, 64)
    assert conv.choose_path(*shapes, method=method) == way


def test_an_unknown_method_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'winograd'"):
        conv.make_convolve("vinograd")
