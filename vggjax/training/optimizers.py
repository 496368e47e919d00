"""Adam, Nadam, RMSprop and SGD as Keras 3 computes them, so that results can be compared.

Optax's own differ: its Adam adds epsilon 1e-8 after the bias correction of the moments, where Keras
adds 1e-7 before it, and its Nadam lacks Dozat's momentum schedule. Each rule returns a direction
for the gradients of the trainable parameters; the learning rate is applied after it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

EPSILON = 1e-7
"""Keras' default for every optimizer."""


def scale_by_optimizer(
    name: str, *, beta1: float = 0.9, beta2: float = 0.999
) -> optax.GradientTransformation:
    """Return the update rule `name` without its learning rate; adam and nadam use the betas."""
    rules = {
        "adam": _scale_by_adam(beta1, beta2),
        "nadam": _scale_by_nadam(beta1, beta2),
        "rmsprop": optax.scale_by_rms(decay=0.9, eps=EPSILON),
        "sgd": optax.trace(decay=0.9),
    }
    return rules[name]


def scale_by_rate(schedule: optax.Schedule) -> optax.GradientTransformationExtraArgs:
    """Multiply the updates by minus the schedule's rate times `factor`, an argument of `update`.

    `factor` () lowers the rates during training; see `TrainProgress.factor`.
    """

    def init(params):
        return optax.ScaleByScheduleState(jnp.zeros([], jnp.int32))

    def update(updates, state, params=None, *, factor, **_):
        rate = -schedule(state.count) * factor
        updates = jax.tree.map(lambda update: rate * update, updates)
        return updates, optax.ScaleByScheduleState(state.count + 1)

    return optax.GradientTransformationExtraArgs(init, update)


def _scale_by_adam(beta1: float, beta2: float) -> optax.GradientTransformation:
    """Kingma and Ba (arXiv:1412.6980), in the form at the end of their section 2."""

    def update(grads, state, params=None):
        mean, square, count = _update_moments(grads, state, beta1, beta2)
        correction = jnp.sqrt(1 - beta2**count) / (1 - beta1**count)
        updates = jax.tree.map(lambda m, v: correction * m / (jnp.sqrt(v) + EPSILON), mean, square)
        return updates, optax.ScaleByAdamState(state.count + 1, mean, square)

    return optax.GradientTransformation(_init_moments, update)


class _NadamState(NamedTuple):
    count: jax.Array  # type: ignore[assignment]  # the checkpoint's name; hides tuple.count
    mu: optax.Updates
    nu: optax.Updates
    product: jax.Array
    """Of the momenta of all steps so far."""


def _scale_by_nadam(beta1: float, beta2: float) -> optax.GradientTransformation:
    """Dozat, "Incorporating Nesterov Momentum into Adam" (2016), algorithm 8."""

    def momentum(count):
        return beta1 * (1 - 0.5 * 0.96**count)

    def init(params):
        moments = _init_moments(params)
        return _NadamState(moments.count, moments.mu, moments.nu, jnp.ones([], jnp.float32))

    def update(grads, state, params=None):
        mean, square, count = _update_moments(grads, state, beta1, beta2)
        current, following = momentum(count), momentum(count + 1)
        product = state.product * current
        mean_weight = following / (1 - product * following)
        grad_weight = (1 - current) / (1 - product)
        correction = 1 - beta2**count

        def direction(g, m, v):
            return (mean_weight * m + grad_weight * g) / (jnp.sqrt(v / correction) + EPSILON)

        updates = jax.tree.map(direction, grads, mean, square)
        return updates, _NadamState(state.count + 1, mean, square, product)

    return optax.GradientTransformation(init, update)


def _init_moments(params: optax.Params) -> optax.ScaleByAdamState:
    # Separate arrays, because the train step donates both.
    mean, square = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
    return optax.ScaleByAdamState(jnp.zeros([], jnp.int32), mean, square)


def _update_moments(
    grads: optax.Updates, state: Any, beta1: float, beta2: float
) -> tuple[optax.Updates, optax.Updates, jax.Array]:
    """Return the means of the gradients and of their squares, and the step's number from 1.

    The number is a float: `beta**count` with an integer exponent is computed differently.
    """
    mean = jax.tree.map(lambda m, g: m + (1 - beta1) * (g - m), state.mu, grads)
    square = jax.tree.map(lambda v, g: v + (1 - beta2) * (g * g - v), state.nu, grads)
    return mean, square, (state.count + 1).astype(jnp.float32)
