"""The optimizers step as Keras' own do, from the same gradients."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vggjax.training.optimizers import scale_by_optimizer, scale_by_rate

SETTINGS = {
    "adam": ("Adam", {}),
    "nadam": ("Nadam", {"beta_1": 0.8, "beta_2": 0.99}),
    "rmsprop": ("RMSprop", {}),
}


def make_gradients(steps=30):
    rng = np.random.default_rng(0)
    # From large to as small as epsilon, where the forms of the formulas part.
    sizes = np.logspace(2, -9, 12).astype(np.float32)
    return [sizes * rng.normal(1, 1, 12).astype(np.float32) for _ in range(steps)]


def our_path(tx, gradients):
    params, path = jnp.ones(12), []
    state = tx.init(params)
    for gradient in gradients:
        updates, state = tx.update(jnp.asarray(gradient), state, params, factor=1.0)
        params = optax.apply_updates(params, updates)
        path.append(params)
    return np.asarray(path)


def keras_path(keras, optimizer, gradients):
    variable, path = keras.Variable(np.ones(12, np.float32)), []
    for gradient in gradients:
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [variable])
        path.append(variable.value.numpy().copy())
    return np.asarray(path)


@pytest.mark.parametrize("name", SETTINGS)
def test_an_optimizer_steps_as_keras_own(keras, name):
    theirs, betas = SETTINGS[name]
    gradients = make_gradients()
    rule = scale_by_optimizer(name, **{key.replace("_", ""): beta for key, beta in betas.items()})
    tx = optax.chain(rule, scale_by_rate(optax.constant_schedule(1e-2)))
    expected = keras_path(keras, getattr(keras.optimizers, theirs)(1e-2, **betas), gradients)
    ours = our_path(tx, gradients)
    # Each step is some 1e-2: a thousandth of one would show another epsilon.
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-6)
    assert np.abs(ours[-1] - 1).max() > 0.05


def test_gradients_are_clipped_as_by_keras_global_clipnorm(keras):
    gradients = make_gradients()
    sgd = scale_by_rate(optax.constant_schedule(1e-2))
    ours = our_path(optax.chain(optax.clip_by_global_norm(2.0), sgd), gradients)
    theirs = keras_path(keras, keras.optimizers.SGD(1e-2, global_clipnorm=2.0), gradients)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6)


def test_the_factor_multiplies_every_rate_and_one_changes_no_bit():
    tx = optax.chain(scale_by_optimizer("sgd"), scale_by_rate(lambda count: 0.1 / (count + 1)))
    params, gradient = jnp.ones(3), jnp.arange(3.0)
    state = tx.init(params)
    whole, _ = tx.update(gradient, state, params, factor=jnp.float32(1))
    np.testing.assert_array_equal(whole, -jnp.float32(0.1) * gradient)
    tenth, _ = tx.update(gradient, state, params, factor=jnp.float32(0.1))
    np.testing.assert_allclose(tenth, 0.1 * whole, rtol=1e-6)
