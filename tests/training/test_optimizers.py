"""Optimizers, clipping, plateaus and label smoothing compute what Keras computes."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vggjax.training.config import Config
from vggjax.training.optimizers import scale_by_optimizer, scale_by_rate
from vggjax.training.progress import TrainProgress
from vggjax.training.step import metric_sums

SETTINGS = {
    "adam": ("Adam", {}),
    "nadam": ("Nadam", {"beta_1": 0.8, "beta_2": 0.99}),
    "rmsprop": ("RMSprop", {}),
}


def make_gradients(steps=30):
    rng = np.random.default_rng(0)
    # From large to as small as epsilon, where the formulas differ.
    sizes = np.logspace(2, -9, 12).astype(np.float32)
    return [sizes * rng.normal(1, 1, 12).astype(np.float32) for _ in range(steps)]


def optax_path(tx, gradients):
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
def test_an_optimizer_steps_as_in_keras(keras, name):
    class_name, betas = SETTINGS[name]
    gradients = make_gradients()
    rule = scale_by_optimizer(name, **{key.replace("_", ""): beta for key, beta in betas.items()})
    tx = optax.chain(rule, scale_by_rate(optax.constant_schedule(1e-2)))
    expected = keras_path(keras, getattr(keras.optimizers, class_name)(1e-2, **betas), gradients)
    path = optax_path(tx, gradients)
    # A step is about 1e-2, and another epsilon would change it by a thousandth or more; rounding
    # is 30 additions to values near 1, of 6e-8 each.
    np.testing.assert_allclose(path, expected, rtol=0, atol=4e-6)
    assert np.abs(path[-1] - 1).max() > 0.05


def test_gradients_are_clipped_as_by_global_clipnorm_in_keras(keras):
    gradients = make_gradients()
    sgd = scale_by_rate(optax.constant_schedule(1e-2))
    path = optax_path(optax.chain(optax.clip_by_global_norm(2.0), sgd), gradients)
    expected = keras_path(keras, keras.optimizers.SGD(1e-2, global_clipnorm=2.0), gradients)
    np.testing.assert_allclose(path, expected, rtol=0, atol=4e-6)


def test_the_factor_multiplies_the_rate_and_one_changes_no_bit():
    tx = optax.chain(scale_by_optimizer("sgd"), scale_by_rate(lambda count: 0.1 / (count + 1)))
    params, gradient = jnp.ones(3), jnp.arange(3.0)
    state = tx.init(params)
    whole, _ = tx.update(gradient, state, params, factor=jnp.float32(1))
    np.testing.assert_array_equal(whole, -jnp.float32(0.1) * gradient)
    tenth, _ = tx.update(gradient, state, params, factor=jnp.float32(0.1))
    np.testing.assert_allclose(tenth, 0.1 * whole, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras' own
def test_a_plateau_lowers_the_rates_as_reducelronplateau_in_keras(keras):
    losses = [2.0, 1.5, 1.49995, 1.6, 1.5, 1.2, 1.2, 1.2, 1.2, 1.2, 1.2, float("nan"), 1.0, 1.1]
    config = Config(schedule="plateau", plateau_factor=0.5, plateau_patience=2)
    progress, factors = TrainProgress(), []
    for loss in losses:
        progress.reduce_on_plateau(config, loss)
        factors.append(progress.factor)

    model = keras.Sequential([keras.layers.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(1.0), "mse")
    callback = keras.callbacks.ReduceLROnPlateau(factor=0.5, patience=2)
    callback.set_model(model)
    callback.on_train_begin()
    expected = []
    for epoch, loss in enumerate(losses):
        callback.on_epoch_end(epoch, {"val_loss": loss})
        expected.append(float(model.optimizer.learning_rate))
    assert factors == expected and factors[-1] < 0.3


@pytest.mark.parametrize("outputs", [3, 1], ids=["softmax", "sigmoid"])
def test_labels_are_smoothed_as_in_keras(keras, outputs):
    logits = np.random.default_rng(0).normal(0, 3, (6, outputs)).astype(np.float32)
    label = (np.arange(6) % max(outputs, 2)).astype(np.int32)
    kind = "CategoricalCrossentropy" if outputs > 1 else "BinaryCrossentropy"
    options = dict(from_logits=True, label_smoothing=0.2, reduction="sum")
    loss = getattr(keras.losses, kind)(**options)
    target = np.eye(3, dtype=np.float32)[label] if outputs > 1 else label[:, None].astype(float)
    batch = {"label": label, "mask": np.ones(6, np.float32)}
    sums = metric_sums(jnp.asarray(logits), batch, label_smoothing=0.2)
    assert float(sums["loss"]) == pytest.approx(float(loss(target, logits)), rel=1e-5)
