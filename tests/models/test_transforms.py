"""JAX's transforms of a whole network and of its convolution, with the kernels of this machine."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from support.networks import random_network

from vggjax.models.head import Head
from vggjax.models.kernels.paths import lax_convolve
from vggjax.models.kernels.pooling import max_pool
from vggjax.models.kernels.primitives import conv3x3


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def assert_close(received, expected, *, tolerance=1e-4):
    """Compare trees, each array relative to its largest value."""
    for array, other in zip(jax.tree.leaves(received), jax.tree.leaves(expected), strict=True):
        scale = float(jnp.abs(other).max())
        np.testing.assert_allclose(array, other, rtol=0, atol=tolerance * scale)


# The network: `tiny` has layers for three of the convolution's paths.


@pytest.fixture(scope="module")
def model():
    return random_network("tiny", head=Head("gap", outputs=3), image_size=32)


@pytest.fixture(scope="module")
def images():
    return random(3, 32, 32, 3)


@pytest.fixture(scope="module")
def loss(model, images):
    apply, params = model.to_pure()
    scale = 2 * jnp.abs(apply(params, images)).max()  # where tanh is neither linear nor flat
    return lambda params, image: jnp.tanh(apply(params, image[None])[0] / scale).sum()


@pytest.fixture(scope="module")
def grads(loss, model, images):
    """Return each image's gradient of the parameters, by a loop."""
    grad = jax.jit(jax.grad(loss))
    return [grad(model.to_pure()[1], image) for image in images]


def direction(params, seed=5):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(x * rng.standard_normal(x.shape), jnp.float32), params
    )


def dot(a, b):
    return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, a, b)))


def test_vmap_over_images_and_over_models_is_the_loop(model, images):
    apply, params = model.to_pure()
    models, jitted = [params, direction(params)], jax.jit(apply)
    each = jnp.stack([jitted(params, images) for params in models])
    assert_close(jax.vmap(lambda image: model(image[None])[0])(images), each[0])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)
    assert_close(jax.jit(jax.vmap(apply, (0, None)))(stacked, images), each)


def test_per_example_gradients_are_those_of_the_loop(model, loss, images, grads):
    params = model.to_pure()[1]
    received = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(params, images)
    assert_close(received, jax.tree.map(lambda *leaves: jnp.stack(leaves), *grads))


def test_jvp_and_linearize_agree_with_finite_differences_and_the_gradient(
    model, loss, images, grads
):
    params = model.to_pure()[1]
    tangent, function = direction(params), jax.jit(lambda params: loss(params, images[0]))
    _, slope = jax.jvp(function, (params,), (tangent,))
    assert_close(slope, dot(grads[0], tangent))
    assert_close(jax.linearize(function, params)[1](tangent), slope)
    step = 1e-2
    ahead, behind = (
        function(jax.tree.map(lambda x, t: x + sign * step * t, params, tangent))  # noqa: B023
        for sign in (1, -1)
    )
    assert_close((ahead - behind) / (2 * step), slope, tolerance=0.02)


def test_hessian_products_agree_forward_over_reverse_and_reverse_over_reverse(model, loss, images):
    params = model.to_pure()[1]
    tangent = direction(params)

    @jax.jit
    def products(params, tangent):
        gradient = jax.grad(lambda params: loss(params, images[0]))
        forward = jax.jvp(gradient, (params,), (tangent,))[1]
        return forward, jax.grad(lambda params: dot(gradient(params), tangent))(params)

    forward, reverse = products(params, tangent)
    assert float(jnp.abs(forward["block4_conv1"]["kernel"]).max()) > 0
    assert_close(forward, reverse, tolerance=1e-3)


def test_remat_and_scan_change_no_gradient(model, loss, images, grads):
    def total(params):
        def body(total, image):
            return total + jax.checkpoint(loss)(params, image), None

        return lax.scan(body, 0.0, images)[0]

    expected = jax.tree.map(lambda *leaves: sum(leaves), *grads)
    assert_close(jax.jit(jax.grad(total))(model.to_pure()[1]), expected)


def test_nnx_differentiates_the_model_itself(model, loss, images, grads):
    @nnx.jit
    def gradient(model):
        return nnx.grad(lambda model: loss(model.to_pure()[1], images[0]))(model)

    assert_close(nnx.to_pure_dict(gradient(model)), grads[0])


def test_an_exported_model_runs_any_batch_and_size_on_any_platform(model, images):
    @jax.jit
    def function(x):
        return jax.value_and_grad(lambda x: model(x).sum())(x)

    batch, height, width = jax.export.symbolic_shape("batch, 32*height, 32*width")
    shape = jax.ShapeDtypeStruct((batch, height, width, 3), jnp.float32)
    jax.export.export(function)(images)  # refuses calls of compiled code
    exported = jax.export.export(function, platforms=("cpu", "cuda", "tpu"))(shape)
    loaded = jax.export.deserialize(exported.serialize())
    assert_close(loaded.call(images), function(images))


# The convolution against lax's, whose rules are jax's own.

X, KERNEL, GRAD = random(2, 5, 6, 8), random(3, 3, 8, 9, seed=1), random(2, 5, 6, 9, seed=2)


def derivatives(conv, x, kernel):
    """Return a convolution's pullback, and a function's gradients and their own derivatives."""

    def loss(x, kernel):
        return (jnp.tanh(conv(x, kernel) / 10) ** 2).sum()

    gradient = jax.grad(loss, (0, 1))
    squares = jax.grad(lambda *args: sum((g**2).sum() for g in gradient(*args)), (0, 1))
    hessian_product = jax.jvp(gradient, (x, kernel), (x, kernel))[1]
    pullback = jax.vjp(conv, x, kernel)[1]
    return pullback(GRAD), gradient(x, kernel), squares(x, kernel), hessian_product


@pytest.mark.parametrize("axes", [(None, None), (1, None), (None, 3), (0, 2)], ids=str)
def test_derivatives_of_mapped_convolutions_are_lax_s(axes):
    x, kernel = (
        array if axis is None else np.stack([array, array[::-1]], axis)
        for array, axis in zip((X, KERNEL), axes, strict=True)
    )

    @functools.partial(jax.jit, static_argnums=0)
    def run(conv, x, kernel):
        function = functools.partial(derivatives, conv)
        mapped = function if axes == (None, None) else jax.vmap(function, axes)
        return mapped(x, kernel)

    assert_close(run(conv3x3, x, kernel), run(lax_convolve, x, kernel))


def test_shard_map_sums_the_gradient_of_a_replicated_kernel():
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    split, whole = PartitionSpec("data"), PartitionSpec()

    @jax.jit
    def gradients(x, kernel):
        return jax.grad(lambda *args: (conv3x3(*args) ** 2).sum(), (0, 1))(x, kernel)

    shard = jax.shard_map(gradients, mesh=mesh, in_specs=(split, whole), out_specs=(split, whole))
    assert_close(jax.jit(shard)(X, KERNEL), gradients(X, KERNEL))


def test_max_pool_has_every_derivative_of_the_windows_first_largest_pixels():
    x, tangent = np.round(random(3, 2, 5, 4, 2)), random(3, 2, 5, 4, 2, seed=1)

    def loss(x):
        return (max_pool(x) ** 3).sum()

    @jax.jit
    @jax.vmap
    def run(x, t):
        y, dy = jax.jvp(max_pool, (x,), (t,))
        pullback = jax.vjp(max_pool, x)[1]
        hessian_product = jax.jvp(jax.grad(loss), (x,), (t,))[1]
        return (dy * y).sum(), (pullback(y)[0] * t).sum(), hessian_product, pullback(6 * y * dy)[0]

    forward, reverse, hessian_product, expected = run(x, tangent)
    assert_close(forward, reverse)  # each is the transpose of the other
    assert_close(hessian_product, expected)
