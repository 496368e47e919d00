"""The compiled steps: learn from a batch, score a batch, predict a batch.

A batch is pipeline.py's: images uint8 (N, S, S, 3), label int32 (N,), mask float32 (N,), index.
Randomness is a function of (seed, step, row), so a resumed run draws what it would have drawn, and
one device draws what four draw. Metrics are masked sums: divide once, at the end.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax

from vggjax.data.augment import augment
from vggjax.data.augmentation import Augmentation
from vggjax.data.mix import mix
from vggjax.data.preprocess import preprocess
from vggjax.models.vgg import VGG
from vggjax.training.freezing import Labels, set_training_mode, trainable
from vggjax.training.sharding import Placement


class TrainState(NamedTuple):
    """All that changes while training; everything else is a function of Config."""

    step: jax.Array
    params: nnx.State
    batch_stats: nnx.State
    opt_state: optax.OptState


Metrics = dict[str, jax.Array]
"""Sums over the examples of a batch: `loss`, `correct`, `top5`, `count`."""


def make_state(
    model: VGG, tx: optax.GradientTransformation, labels: Labels, *, step: int = 0
) -> TrainState:
    """Starts a stage from the model's present parameters, at a step of the whole run."""
    _, params, batch_stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    opt_state = tx.init(nnx.filter_state(params, trainable(labels)))
    return TrainState(jnp.asarray(step, jnp.int32), params, batch_stats, opt_state)


def make_train_step(
    model: VGG,
    tx: optax.GradientTransformation,
    labels: Labels,
    *,
    placement: Placement,
    mode: str,
    augmentation: Augmentation | None = None,
    class_weights: np.ndarray | None = None,
    seed: int = 0,
    after: str | None = None,
    in_chunks: bool = False,
    donate: bool = True,
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, Metrics]]:
    """Compiles one stage's step: (state, batch) -> (state, metrics); the state is overwritten.

    Args:
        model: gives the structure; its parameters are not read.
        tx: what make_optimizer made for these labels.
        labels: of label_layers.
        placement: jit or pmap, and the devices.
        mode: of preprocess.
        augmentation: of the training pictures; None is none.
        class_weights: (C,), what an example of each class counts in the loss; None is 1 for each.
        seed: of augmentation and dropout.
        after: the layer whose outputs the batches bring as "features", in place of "images".
        in_chunks: the batches come as chunks.py makes them, and so the metrics, (size,).
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

        def loss_fn(model: VGG) -> tuple[jax.Array, Metrics]:
            logits = model(inputs, after=after, dropout_keys=key_dropout, mask=batch["mask"])
            metrics = _score(logits, batch, class_weights)
            return metrics["loss"] / jnp.maximum(count, 1), metrics

        model = nnx.merge(graphdef, state.params, state.batch_stats)
        learned = nnx.DiffState(0, trainable(labels))
        (_, metrics), grads = nnx.value_and_grad(loss_fn, argnums=learned, has_aux=True)(model)
        grads, metrics = reduce(grads), reduce(metrics)

        training = nnx.filter_state(state.params, trainable(labels))
        updates, opt_state = tx.update(grads, state.opt_state, training)
        params = nnx.merge_state(state.params, optax.apply_updates(training, updates))
        batch_stats = nnx.state(model, nnx.BatchStat)
        return TrainState(state.step + 1, params, batch_stats, opt_state), metrics

    function = _one_by_one(train_step, placement.axis_name) if in_chunks else train_step
    return placement.compile(function, donate_state=donate)


def _one_by_one(train_step: Callable, axis_name: str | None) -> Callable:
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
    model: VGG, *, placement: Placement, mode: str, after: str | None = None
) -> Callable[[tuple[nnx.State, nnx.State], dict[str, jax.Array]], Metrics]:
    """Compiles ((params, batch_stats), batch) -> metrics; nothing random, nothing learned.

    `after` is make_train_step's.
    """
    model.eval()
    graphdef = nnx.graphdef(model)

    def eval_step(state: tuple[nnx.State, nnx.State], batch: dict[str, jax.Array]) -> Metrics:
        logits = nnx.merge(graphdef, *state)(_inputs(batch, mode, after), after=after)
        metrics = _score(logits, batch)
        return lax.psum(metrics, placement.axis_name) if placement.axis_name else metrics

    return placement.compile(eval_step)


def make_feature_step(
    model: VGG,
    cut: str,
    *,
    placement: Placement,
    mode: str,
    augmentation: Augmentation | None = None,
    seed: int = 0,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> Callable[[tuple[nnx.State, nnx.State, jax.Array], dict[str, jax.Array]], Metrics]:
    """Compiles ((params, batch_stats, view), batch) -> what train_step's `after` takes.

    That is `features`, the output of the layer `cut`, and `mask`, of the whole global batch, on
    every process. What is drawn is a function of (seed, picture, view).
    """
    model.eval()
    graphdef = nnx.graphdef(model)

    def feature_step(
        state: tuple[nnx.State, nnx.State, jax.Array], batch: dict[str, jax.Array]
    ) -> dict[str, jax.Array]:
        *state, view = state
        images = batch["images"]
        if augmentation is not None:
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _VIEWS), view)
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["index"])
            images = augment(keys, images, augmentation)
        prefix = nnx.merge(graphdef, *state)
        features = few_at_a_time(
            lambda x: prefix(preprocess(x, mode), until=cut), images, placement=placement
        )
        return {"features": features.astype(dtype), "mask": batch["mask"]}

    return placement.compile(feature_step, gather=True)


_VIEWS = 2**32 - 1
"""Where a step's number stands in the keys of what is drawn anew at every step."""


def make_predict_step(model: VGG, mode: str) -> Callable[[np.ndarray], jax.Array]:
    """Compiles images uint8 (N, S, S, 3) -> probabilities float32 (N, C).

    The model is held by reference, not copied. One sigmoid unit gives two columns, (1 - p, p).
    """
    model.eval()
    graphdef, state = nnx.split(model)

    @jax.jit
    def predict_step(state: nnx.State, images: jax.Array) -> jax.Array:
        network = nnx.merge(graphdef, state)
        logits = few_at_a_time(lambda x: network(preprocess(x, mode)), images)
        if logits.shape[-1] == 1:
            return jnp.concatenate([jax.nn.sigmoid(-logits), jax.nn.sigmoid(logits)], axis=-1)
        return jax.nn.softmax(logits)

    return lambda images: predict_step(state, images)


FEW_PIXELS = 2**17
"""What a forward pass takes at a time on a CPU, where more is no faster: two pictures of 200 px."""


def few_at_a_time(
    forward: Callable[[jax.Array], jax.Array],
    images: jax.Array,
    *,
    placement: Placement | None = None,
) -> jax.Array:
    """Runs a forward pass over (N, S, S, 3), on a CPU a few pictures at a time.

    The maps of block1 are the largest of all: at 200 px and 32 pictures two of them take 655 MB.
    """
    is_shared = placement is not None and len(placement.devices) > 1
    count, height, width = images.shape[:3]
    few = 2 ** int(math.log2(max(1, FEW_PIXELS // (height * width))))
    if jax.default_backend() != "cpu" or is_shared or count <= few:
        return forward(images)
    padded = jnp.pad(images, ((0, -count % few), (0, 0), (0, 0), (0, 0)))
    outputs = lax.map(forward, padded.reshape(-1, few, *images.shape[1:]))
    return outputs.reshape(-1, *outputs.shape[2:])[:count]


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
    """Changes a batch's pictures; mixed ones add `other`, a second label, and `share`, the first's.

    Every row is drawn from its own key, and partners are rows of the global batch (mix.py).
    """
    images, a = augment(key, batch["images"], augmentation), augmentation
    if not (a.mixup or a.cutmix):
        return batch | {"images": images}
    options = {"mixup": a.mixup, "cutmix": a.cutmix, "axis_name": axis_name}
    return batch | mix(key, images, batch["label"], batch["mask"], **options)._asdict()


def _score(
    logits: jax.Array, batch: dict[str, jax.Array], class_weights: np.ndarray | None = None
) -> Metrics:
    """Sums a batch's scores: a mixed row's loss is its soft label's, the rest the heavier one's."""
    label, mask = batch["label"], batch["mask"]
    loss = _cross_entropy(logits, label, class_weights)
    if "share" in batch:  # cross-entropy is linear in the label: the mean of two is the soft one's
        other, share = batch["other"], batch["share"]
        loss = share * loss + (1 - share) * _cross_entropy(logits, other, class_weights)
        label = jnp.where(share >= 0.5, label, other)
    if logits.shape[-1] == 1:
        guess = (logits[:, 0] > 0).astype(label.dtype)
        top5 = jnp.ones_like(mask)
    else:
        guess = logits.argmax(-1)
        best = lax.top_k(logits, min(5, logits.shape[-1]))[1]
        top5 = (best == label[:, None]).any(-1)
    # where, not a product: a padded row may hold anything, also NaN.
    sums = {"loss": loss, "correct": guess == label, "top5": top5, "count": jnp.ones_like(mask)}
    return {name: jnp.where(mask > 0, values, 0.0).sum() for name, values in sums.items()}


def _cross_entropy(
    logits: jax.Array, label: jax.Array, class_weights: np.ndarray | None
) -> jax.Array:
    if logits.shape[-1] == 1:
        loss = optax.sigmoid_binary_cross_entropy(logits[:, 0], label.astype(jnp.float32))
    else:
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    return loss if class_weights is None else loss * jnp.asarray(class_weights)[label]
