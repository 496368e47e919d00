"""The compiled steps: learn from a batch, score a batch (forward.py only computes).

A batch is pipeline.py's: images uint8 (N, S, S, 3), label int32 (N,), mask float32 (N,), index.
Randomness is a function of (seed, step, row), so a resumed run draws what it would have drawn, and
one device draws what four draw. Metrics are masked sums: divide once, at the end.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax

from vggjax.data.augment.augment import augment
from vggjax.data.augment.mix import mix
from vggjax.data.augment.settings import Augmentation
from vggjax.data.images.preprocess import preprocess
from vggjax.models.network import Network
from vggjax.training.freezing import Labels, set_training_mode, trainable
from vggjax.training.parallel import Placement
from vggjax.training.score import Metrics, score


class TrainState(NamedTuple):
    """All that changes while training; everything else is a function of Config."""

    step: jax.Array
    params: nnx.State
    batch_stats: nnx.State
    opt_state: optax.OptState
    factor: jax.Array | None = None
    """(), what every rate is multiplied by: TrainProgress's."""
    averages: tuple[nnx.State, nnx.State] | None = None
    """Moving averages of the parameters that train and of the running statistics, with --ema."""

    @property
    def eval_params(self) -> tuple[nnx.State, nnx.State]:
        """The parameters and running statistics that are judged and kept: averages where any."""
        if self.averages is None:
            return self.params, self.batch_stats
        return nnx.merge_state(self.params, self.averages[0]), self.averages[1]


def make_state(
    model: Network,
    tx: optax.GradientTransformation,
    labels: Labels,
    *,
    step: int = 0,
    factor: float = 1.0,
    ema: float = 0.0,
) -> TrainState:
    """Starts a stage from the model's present parameters, at a step of the whole run.

    With `ema`, the averages start there as well.
    """
    _, params, batch_stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    training = nnx.filter_state(params, trainable(labels))
    averages = jax.tree.map(jnp.copy, (training, batch_stats)) if ema else None
    return TrainState(
        jnp.asarray(step, jnp.int32),
        params,
        batch_stats,
        tx.init(training),
        jnp.asarray(factor, jnp.float32),
        averages,
    )


def make_train_step(
    model: Network,
    tx: optax.GradientTransformation,
    labels: Labels,
    *,
    placement: Placement,
    mode: str,
    augmentation: Augmentation | None = None,
    class_weights: np.ndarray | None = None,
    label_smoothing: float = 0.0,
    ema: float = 0.0,
    seed: int = 0,
    after: str | None = None,
    stack_batches: bool = False,
    donate: bool = True,
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, Metrics]]:
    """Compiles one stage's step: (state, batch) -> (state, metrics); the state is overwritten.

    Args:
        model: gives the structure; its parameters are not read.
        tx: what make_optimizer made for these labels.
        labels: of label_layers.
        placement: jit or pmap, and the devices.
        mode: of preprocess.
        augmentation: of the training images; None is none.
        class_weights: (C,), what an example of each class counts in the loss; None is 1 for each.
        label_smoothing: share of each label that is spread over all classes in the loss.
        ema: how much of itself the moving average of the weights keeps at a step; 0 makes none.
        seed: of augmentation and dropout.
        after: the layer whose outputs the batches bring as "features", in place of "images".
        stack_batches: the batches come as chunks.py makes them, and so the metrics, (size,).
        donate: False keeps the old state usable, for tests.
    """
    augmentation = augmentation or Augmentation()
    set_training_mode(model, labels, axis_name=placement.axis_name)
    graphdef = nnx.graphdef(model)
    model.eval()
    reduce = (
        partial(lax.psum, axis_name=placement.axis_name) if placement.axis_name else lambda x: x
    )

    def train_step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, Metrics]:
        keys = _example_keys(seed, state.step, batch["mask"].shape[0], placement.axis_name)
        key_augment, key_dropout = keys[:, 0], keys[:, 1]
        if after is None:
            batch = _augmented(key_augment, batch, augmentation, placement.axis_name)
        inputs = _inputs(batch, mode, after)
        count = reduce(batch["mask"].sum())

        def loss_fn(model: Network) -> tuple[jax.Array, Metrics]:
            logits = model(inputs, after=after, dropout_keys=key_dropout, mask=batch["mask"])
            metrics = score(
                logits, batch, class_weights=class_weights, label_smoothing=label_smoothing
            )
            return metrics["loss"] / jnp.maximum(count, 1), metrics

        model = nnx.merge(graphdef, state.params, state.batch_stats)
        learned = nnx.DiffState(0, trainable(labels))
        (_, metrics), grads = nnx.value_and_grad(loss_fn, argnums=learned, has_aux=True)(model)
        grads, metrics = reduce(grads), reduce(metrics)

        training = nnx.filter_state(state.params, trainable(labels))
        updates, opt_state = tx.update(grads, state.opt_state, training, factor=state.factor)
        training = optax.apply_updates(training, updates)
        batch_stats = nnx.state(model, nnx.BatchStat)
        averages = state.averages
        if ema:
            averages = _averaged(averages, (training, batch_stats), ema, state.step)
        params = nnx.merge_state(state.params, training)
        new = TrainState(state.step + 1, params, batch_stats, opt_state, state.factor, averages)
        return new, metrics

    function = multi_step(train_step, placement.axis_name) if stack_batches else train_step
    return placement.compile(function, donate_state=donate)


def _averaged(averages: Any, new: Any, ema: float, step: jax.Array) -> Any:
    """Moves the averages towards new values; what stays as it is they equal to the bit.

    In the first steps they keep less, (1 + t) / (10 + t) as in TensorFlow's moving averages:
    the weights that a network starts from are not worth keeping.
    """
    keeps = jnp.minimum(ema, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda old, value: old + (1 - keeps) * (value - old), averages, new)


def multi_step(train_step: Callable, axis_name: str | None) -> Callable:
    """Makes a step of as many steps as a chunk has batches."""

    def train_steps(state: TrainState, chunk: dict[str, jax.Array]) -> tuple[TrainState, Metrics]:
        is_there = (chunk["index"] >= 0).any(1)  # (size,); the first ones are
        if axis_name:
            is_there = lax.psum(is_there.astype(jnp.int32), axis_name) > 0
        first = jax.tree.map(lambda rows: rows[0], chunk)
        shapes = jax.eval_shape(train_step, state, first)[1]
        metrics = jax.tree.map(lambda x: jnp.zeros(is_there.shape, x.dtype), shapes)

        def run(i: jax.Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
            state, metrics = carry
            batch = jax.tree.map(lambda rows: rows[i], chunk)
            state, new = train_step(state, batch)
            return state, jax.tree.map(lambda all_, x: all_.at[i].set(x), metrics, new)

        return lax.fori_loop(0, is_there.sum(), run, (state, metrics))

    return train_steps


def make_eval_step(
    model: Network, *, placement: Placement, mode: str, after: str | None = None
) -> Callable[[tuple[nnx.State, nnx.State], dict[str, jax.Array]], Metrics]:
    """Compiles ((params, batch_stats), batch) -> metrics; nothing random, nothing learned.

    `after` is make_train_step's.
    """
    model.eval()
    graphdef = nnx.graphdef(model)

    def eval_step(state: tuple[nnx.State, nnx.State], batch: dict[str, jax.Array]) -> Metrics:
        logits = nnx.merge(graphdef, *state)(_inputs(batch, mode, after), after=after)
        metrics = score(logits, batch)
        return lax.psum(metrics, placement.axis_name) if placement.axis_name else metrics

    return placement.compile(eval_step)


def _inputs(batch: dict[str, jax.Array], mode: str, after: str | None) -> jax.Array:
    return batch["features"] if after else preprocess(batch["images"], mode)


def _example_keys(seed: int, step: jax.Array, rows: int, axis_name: str | None) -> jax.Array:
    """Gives each row of the global batch two keys of its own, (rows, 2)."""
    first = lax.axis_index(axis_name) * rows if axis_name else 0
    key = jax.random.fold_in(jax.random.key(seed), step)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(rows))
    return jax.vmap(jax.random.split)(keys)


def _augmented(
    key: jax.Array, batch: dict[str, jax.Array], augmentation: Augmentation, axis_name: str | None
) -> dict[str, jax.Array]:
    """Changes a batch's images; mixed ones add `other`, a second label, and `share`, the first's.

    Every row is drawn from its own key, and partners are rows of the global batch (mix.py).
    """
    images, a = augment(key, batch["images"], augmentation), augmentation
    if not (a.mixup or a.cutmix):
        return batch | {"images": images}
    options = {"mixup": a.mixup, "cutmix": a.cutmix, "axis_name": axis_name}
    return batch | mix(key, images, batch["label"], batch["mask"], **options)._asdict()
