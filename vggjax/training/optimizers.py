"""The optimizers as Keras 3 computes them, so that a lesson's numbers can be learned again.

Optax' own forms differ: its Adam adds epsilon 1e-8 behind the correction of the moments, where
Keras adds 1e-7 before it; its Nadam lacks Dozat's schedule of the momentum. RMSprop is the same.
Each gives a direction, gradients of the trainable parameters in; rates come behind it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

EPSILON = 1e-7
"""Keras' default, of every optimizer."""


def scale_by_optimizer(
    name: str, *, beta1: float = 0.9, beta2: float = 0.999
) -> optax.GradientTransformation:
    """Makes the update rule of a name, without its rate; the betas are adam's and nadam's."""
    rules = {
        "adam": lambda: _scale_by_adam(beta1, beta2),
        "nadam": lambda: _scale_by_nadam(beta1, beta2),
        "rmsprop": lambda: optax.scale_by_rms(decay=0.9, eps=EPSILON),
        "sgd": lambda: optax.trace(decay=0.9),
    }
    return rules[name]()


def _scale_by_adam(beta1: float, beta2: float) -> optax.GradientTransformation:
    """Kingma and Ba (arXiv:1412.6980), the form at the end of their section 2."""

    def update(grads, state, params=None):
        mean, square, count = _move(grads, state, beta1, beta2)
        correction = jnp.sqrt(1 - beta2**count) / (1 - beta1**count)
        updates = jax.tree.map(lambda m, v: correction * m / (jnp.sqrt(v) + EPSILON), mean, square)
        return updates, optax.ScaleByAdamState(state.count + 1, mean, square)

    return optax.GradientTransformation(_start, update)


class _NadamState(NamedTuple):
    count: jax.Array
    mu: optax.Updates
    nu: optax.Updates
    product: jax.Array
    """Of the momenta of all steps so far."""


def _scale_by_nadam(beta1: float, beta2: float) -> optax.GradientTransformation:
    """Dozat, "Incorporating Nesterov Momentum into Adam" (2016), algorithm 8."""

    def momentum(count: jax.Array) -> jax.Array:
        return beta1 * (1 - 0.5 * 0.96**count)

    def init(params):
        return _NadamState(*_start(params), jnp.ones([], jnp.float32))

    def update(grads, state, params=None):
        mean, square, count = _move(grads, state, beta1, beta2)
        now, later = momentum(count), momentum(count + 1)
        product = state.product * now
        of_mean, of_gradient = later / (1 - product * later), (1 - now) / (1 - product)
        correction = 1 - beta2**count
        updates = jax.tree.map(
            lambda g, m, v: (of_mean * m + of_gradient * g) / (jnp.sqrt(v / correction) + EPSILON),
            grads,
            mean,
            square,
        )
        return updates, _NadamState(state.count + 1, mean, square, product)

    return optax.GradientTransformation(init, update)


def _start(params: optax.Params) -> optax.ScaleByAdamState:
    # Arrays of their own for each: the step overwrites both.
    mean, square = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
    return optax.ScaleByAdamState(jnp.zeros([], jnp.int32), mean, square)


def _move(grads, state, beta1, beta2):
    """Moves the means of the gradients and of their squares; gives the step's number from 1, too.

    As a float: a power with a whole number's type would be computed by another rule.
    """
    mean = jax.tree.map(lambda m, g: m + (1 - beta1) * (g - m), state.mu, grads)
    square = jax.tree.map(lambda v, g: v + (1 - beta2) * (g * g - v), state.nu, grads)
    return mean, square, (state.count + 1).astype(jnp.float32)


def scale_by_rate(schedule: optax.Schedule) -> optax.GradientTransformationExtraArgs:
    """Multiplies by -rate: the schedule's times `factor`, which each update is given.

    `factor` () is 1 but where the training itself lowers the rates: see TrainProgress.
    """

    def update(updates, state, params=None, *, factor, **extra):
        rate = -schedule(state.count) * factor
        updates = jax.tree.map(lambda update: rate * update, updates)
        return updates, optax.ScaleByScheduleState(state.count + 1)

    def init(params):
        return optax.ScaleByScheduleState(jnp.zeros([], jnp.int32))

    return optax.GradientTransformationExtraArgs(init, update)
