"""The compiled functions of a network: train, evaluate, compute features, predict.

A batch is a dict of arrays as the loader yields it: `images` uint8 (N, S, S, 3), `label` int32
(N,), or bool (N, C) of several labels per image, `mask` float32 (N,), `index` int64 (N,).
Randomness is a function of (seed, step, row): a resumed run draws what the uninterrupted run draws,
and four devices draw what one draws. Metrics are masked sums over examples, to be divided once at
the end, so that padded rows and uneven batches are weighted correctly.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax

from vggjax.data.augment.augment import augment, draw_flips, flip, mix
from vggjax.data.augment.settings import Augmentation
from vggjax.data.images.preprocess import preprocess
from vggjax.models.network import Network
from vggjax.training.batches import multi_step
from vggjax.training.devices.forward import run_pieces
from vggjax.training.freezing import Labels, set_training_mode, trainable
from vggjax.training.parallel import Placement

Arrays = dict[str, jax.Array]

Metrics = Arrays
"""Sums over the examples of a batch: `loss` (nats), `correct`, `count`, and `top5`, or of several
labels per image the numbers of labels `hits`, `predicted` and `positive`."""

ModelState = tuple[nnx.State, nnx.State]
"""The parameters and the batch normalizations' running statistics."""

MAX_MICROBATCH_PIXELS = 2**17
"""Pixels per forward pass on a CPU, beyond which it gets no faster: two images of 224 px."""

_VIEW_STREAM = 2**32 - 1
"""Takes the place of the step in the keys of cached views; no run has that many steps."""


class TrainState(NamedTuple):
    """Everything that changes while training; the rest is a function of the config."""

    step: jax.Array
    params: nnx.State
    batch_stats: nnx.State
    opt_state: optax.OptState
    factor: jax.Array | None = None
    """(), multiplies every learning rate; see `TrainProgress.factor`."""
    averages: ModelState | None = None
    """Moving averages of the trainable parameters and the running statistics, with `ema`."""

    @property
    def eval_params(self) -> ModelState:
        """The parameters and statistics to evaluate and to save: the averages, if there are any."""
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
    """Return the state of a stage that starts at `step` of the run with the model's parameters.

    With `ema`, the moving averages start from the same parameters.
    """
    params, batch_stats = nnx.state(model, nnx.Param, nnx.BatchStat)
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
    tx: optax.GradientTransformationExtraArgs,
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
    remat: bool = False,
) -> Callable[[TrainState, Arrays], tuple[TrainState, Metrics]]:
    """Compile the train step of one stage: (state, batch) -> (state, metrics).

    The memory of the state passed in is reused. Only the model's structure is read.

    Args:
        mode: the pixel mode of `preprocess`.
        class_weights: (C,), or (C, 2) of absence and presence, in the loss; None weighs all by 1.
        label_smoothing: the share of each label that the loss spreads over all classes.
        ema: the decay of the moving average of the weights, if the state has one.
        after: run only the layers after this one, on the batch's `features` instead of `images`.
        stack_batches: take the stacked batches of `stack_batches` and return metrics (size,).
        remat: keep the blocks' outputs for the backward pass, and compute the rest again.
    """
    loss_sums = partial(metric_sums, class_weights=class_weights, label_smoothing=label_smoothing)
    set_training_mode(model, labels, axis_name=placement.axis_name)
    graphdef = nnx.graphdef(model)
    model.eval()
    forward = partial(run_pieces, after=after, placement=placement, remat=remat)
    diff_state = nnx.DiffState(0, trainable(labels))

    def train_step(state: TrainState, batch: Arrays) -> tuple[TrainState, Metrics]:
        keys = _example_keys(seed, state.step, batch["mask"].shape[0], placement.axis_name)
        if after is None and augmentation is not None:
            batch = _augmented(keys[:, 0], batch, augmentation, placement.axis_name)
        count = placement.sum(batch["mask"].sum())

        def loss_fn(model: Network, batch: Arrays, keys: jax.Array) -> tuple[jax.Array, Metrics]:
            inputs = _inputs(batch, mode, after)
            metrics = loss_sums(
                forward(model, inputs, dropout_keys=keys, mask=batch["mask"]), batch
            )
            return metrics["loss"] / jnp.maximum(count, 1), metrics

        differentiate = nnx.value_and_grad(loss_fn, argnums=diff_state, has_aux=True)

        learn = partial(_learn, differentiate, graphdef, state.params)
        rows, parts = (batch, keys[:, 1]), placement.parts
        batch_stats, sums = _in_parts(learn, state.batch_stats, rows, parts)
        grads, metrics = placement.sum(sums)
        return _next_state(state, grads, batch_stats, tx, labels, ema=ema), metrics

    function = multi_step(train_step, placement) if stack_batches else train_step
    return placement.compile(function, donate_state=True)


def _learn(
    differentiate: Callable[..., Any],
    graphdef: Any,
    params: nnx.State,
    batch_stats: nnx.State,
    rows: tuple[Arrays, jax.Array],
) -> tuple[nnx.State, tuple[nnx.State, Metrics]]:
    """Return the running statistics after some rows, and their gradients and metrics."""
    model = nnx.merge(graphdef, params, batch_stats, copy=True)
    (_, metrics), grads = differentiate(model, *rows)
    return nnx.state(model, nnx.BatchStat), (grads, metrics)


def _next_state(
    state: TrainState,
    grads: nnx.State,
    batch_stats: nnx.State,
    tx: optax.GradientTransformationExtraArgs,
    labels: Labels,
    *,
    ema: float,
) -> TrainState:
    """Update what trains by its gradients, and the averages."""
    training = nnx.filter_state(state.params, trainable(labels))
    updates, opt_state = tx.update(grads, state.opt_state, training, factor=state.factor)
    training = optax.apply_updates(training, updates)
    averages = _update_averages(state.averages, (training, batch_stats), ema, state.step)
    params = nnx.merge_state(state.params, training)
    return TrainState(state.step + 1, params, batch_stats, opt_state, state.factor, averages)


def _in_parts(
    learn: Callable[[nnx.State, Any], tuple[nnx.State, Any]],
    batch_stats: nnx.State,
    rows: Any,
    parts: int,
) -> tuple[nnx.State, Any]:
    """Return `learn(batch_stats, rows)`, the sums of it over parts of the rows one after another.

    Part i has the rows i, i + parts ... so that each device's rows stay where they are.
    """
    if parts == 1:
        return learn(batch_stats, rows)

    def split(leaf: jax.Array) -> jax.Array:
        return jnp.moveaxis(leaf.reshape(-1, parts, *leaf.shape[1:]), 1, 0)

    def body(carry: tuple[nnx.State, Any], part: Any) -> tuple[tuple[nnx.State, Any], None]:
        batch_stats, sums = carry
        batch_stats, new = learn(batch_stats, part)
        return (batch_stats, jax.tree.map(jnp.add, sums, new)), None

    split_rows = jax.tree.map(split, rows)
    first = jax.tree.map(lambda leaf: leaf[0], split_rows)
    shapes = jax.eval_shape(learn, batch_stats, first)[1]
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    return lax.scan(body, (batch_stats, zeros), split_rows)[0]


def make_eval_step(
    model: Network,
    *,
    placement: Placement,
    mode: str,
    after: str | None = None,
    multilabel: bool = False,
) -> Callable[[ModelState, Arrays], Arrays]:
    """Compile ((params, batch_stats), batch) -> metrics; for `after` see `make_train_step`.

    With `multilabel` the result is `probs`, `label` and `mask` of the whole global batch, on every
    process: average precision is no sum over images.
    """
    model.eval()
    graphdef = nnx.graphdef(model)

    def eval_step(state: ModelState, batch: Arrays) -> Arrays:
        network = nnx.merge(graphdef, *state)
        logits = run_pieces(network, _inputs(batch, mode, after), after=after, placement=placement)
        if multilabel:
            return {"probs": jax.nn.sigmoid(logits), "label": batch["label"], "mask": batch["mask"]}
        return placement.sum(metric_sums(logits, batch))

    return placement.compile(eval_step, outputs="all rows" if multilabel else "any")


def make_feature_step(
    model: Network,
    cut: str,
    *,
    placement: Placement,
    mode: str,
    augmentation: Augmentation | None = None,
    seed: int = 0,
    dtype: jax.typing.DTypeLike = jnp.float32,
    after: str | None = None,
) -> Callable[[tuple, Arrays], Arrays]:
    """Compile ((params, batch_stats, view), batch) -> the frozen layers' outputs.

    The result has `features`, the output of the layer `cut`, and `mask`, each device's rows. `view`
    numbers the flips of `finite_views`; with `augmentation`, which then is a function of (seed,
    image, view), it numbers the draws. With `after` the batch has that layer's `features` instead
    of `images`, which are of one view already.
    """
    model.eval()
    graphdef = nnx.graphdef(model)

    def feature_step(state: tuple, batch: Arrays) -> Arrays:
        *model_state, view = state
        inputs = batch["features" if after else "images"]
        if augmentation is not None:
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _VIEW_STREAM), view)
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["index"])
            inputs = augment(keys, inputs, augmentation)
        elif not after:
            inputs = flip(inputs, view)
        prefix = nnx.merge(graphdef, *model_state)
        features = map_microbatches(
            lambda x: prefix(x if after else preprocess(x, mode), after=after, until=cut),
            inputs,
            placement=placement,
        )
        return {"features": features.astype(dtype), "mask": batch["mask"]}

    return placement.compile(feature_step, outputs="rows")


@partial(jax.jit, static_argnames=("augmentation", "seed", "steps", "rows"))
def draw_views(
    first_step: jax.Array, *, augmentation: Augmentation, seed: int, steps: int, rows: int
) -> jax.Array:
    """Return the flips that `make_train_step` draws in a number of steps, int32 (steps, rows)."""

    def draw(step: jax.Array) -> jax.Array:
        keys = _example_keys(seed, step, rows, None)[:, 0]
        return draw_flips(keys, augmentation, rows=rows)

    return lax.map(draw, first_step + jnp.arange(steps))


def make_predict_step(
    model: Network,
    mode: str,
    *,
    multilabel: bool = False,
    temperature: float | None = None,
    after: str | None = None,
) -> Callable[[np.ndarray], jax.Array]:
    """Return a function of images uint8 (N, S, S, 3) that returns probabilities float32 (N, C).

    It is compiled once for each shape. Each row sums to 1, one sigmoid unit yields two columns,
    (1 - p, p); with `multilabel` each column is a sigmoid unit. The `temperature` divides the
    logits; None leaves them as they are. With `after` its input is that layer's outputs.
    """
    model.eval()
    graphdef, state = nnx.split(model)
    scale = np.float32(1 / (temperature or 1))
    return lambda inputs: _predict((graphdef, mode, multilabel, after), state, inputs, scale)


@partial(jax.jit, static_argnums=0)  # module-level: equal networks share one compilation
def _predict(
    static: tuple[Any, str, bool, str | None],
    state: nnx.State,
    inputs: jax.Array,
    scale: jax.Array,
) -> jax.Array:
    graphdef, mode, multilabel, after = static
    network = nnx.merge(graphdef, state)
    if after:
        logits = network(inputs, after=after)
    else:
        logits = map_microbatches(lambda x: network(preprocess(x, mode)), inputs)
    return to_probabilities(scale * logits, multilabel=multilabel)


def to_probabilities(logits: jax.Array, *, multilabel: bool) -> jax.Array:
    """Return the probabilities (N, C) of logits (N, C), or of one sigmoid unit's (N, 1)."""
    if multilabel:
        return jax.nn.sigmoid(logits)
    if logits.shape[-1] == 1:
        return jnp.concatenate([jax.nn.sigmoid(-logits), jax.nn.sigmoid(logits)], axis=-1)
    return jax.nn.softmax(logits)


def map_microbatches(
    forward: Callable[..., jax.Array],
    *images: jax.Array,
    placement: Placement | None = None,
) -> jax.Array:
    """Apply `forward` to images (N, S, S, 3), on a single CPU device a few at a time.

    With several arrays of images, `forward` takes the same rows of each. Two activation maps of
    block1 would take 655 MB for 32 images of 200 px.
    """
    is_sharded = placement is not None and len(placement.devices) > 1
    count, height, width = images[0].shape[:3]
    size = 2 ** int(math.log2(max(1, MAX_MICROBATCH_PIXELS // (height * width))))
    if jax.default_backend() != "cpu" or is_sharded or count <= size:
        return forward(*images)
    padded = [jnp.pad(x, ((0, -count % size), (0, 0), (0, 0), (0, 0))) for x in images]
    rows = tuple(x.reshape(-1, size, *x.shape[1:]) for x in padded)
    outputs = lax.map(lambda x: forward(*x), rows)
    return outputs.reshape(-1, *outputs.shape[2:])[:count]


def metric_sums(
    logits: jax.Array,
    batch: Arrays,
    *,
    class_weights: np.ndarray | None = None,
    label_smoothing: float = 0.0,
) -> Metrics:
    """Return the metrics of a batch, summed over its unmasked examples.

    `logits` is (N, C) for a softmax or (N, 1) for one sigmoid unit; with labels bool (N, C), each
    column is a sigmoid unit, the loss is the mean of their cross-entropies and `correct` the share
    of correct labels at 0.5, as Keras' binary accuracy. `class_weights` and `label_smoothing`
    affect the loss only, as in Keras. An image mixed of two has the loss of its soft label; for
    the other metrics its label is the heavier one's.
    """
    label, mask = batch["label"], batch["mask"]
    loss = _cross_entropy(logits, label, class_weights, label_smoothing)
    if "share" in batch:  # cross-entropy is linear in the label
        other, share = batch["other"], batch["share"]
        other_loss = _cross_entropy(logits, other, class_weights, label_smoothing)
        loss = share * loss + (1 - share) * other_loss
        is_own = share >= 0.5
        label = jnp.where(is_own[:, None] if label.ndim == 2 else is_own, label, other)
    if label.ndim == 2:
        prediction = logits > 0
        numbers = {"hits": prediction & label, "predicted": prediction, "positive": label}
        others = {name: labels.sum(-1) for name, labels in numbers.items()}
    elif logits.shape[-1] == 1:
        prediction = (logits[:, 0] > 0).astype(label.dtype)
        others = {"top5": jnp.ones_like(mask)}
    else:
        prediction = logits.argmax(-1)
        others = {"top5": _rank(logits, label) < 5}
    correct = prediction == label
    correct = correct.mean(-1) if label.ndim == 2 else correct
    values = {"loss": loss, "correct": correct, **others, "count": jnp.ones_like(mask)}
    # `where`, not a product: a padded row may hold NaN.
    return {name: jnp.where(mask > 0, value, 0.0).sum() for name, value in values.items()}


def _rank(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Return the place (N,) of each label among its logits (N, C), from 0, of equals the first.

    `lax.top_k` would gather the logits of all devices.
    """
    own = jnp.take_along_axis(logits, label[:, None], axis=-1)
    is_earlier = jnp.arange(logits.shape[-1])[None] < label[:, None]
    return ((logits > own) | ((logits == own) & is_earlier)).sum(-1)


def _cross_entropy(
    logits: jax.Array, label: jax.Array, class_weights: np.ndarray | None, label_smoothing: float
) -> jax.Array:
    is_multilabel = label.ndim == 2
    if is_multilabel or logits.shape[-1] == 1:
        logits = logits if is_multilabel else logits[:, 0]
        loss = optax.sigmoid_binary_cross_entropy(logits, label.astype(jnp.float32))
        uniform = optax.sigmoid_binary_cross_entropy(logits, 0.5)
    else:
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        uniform = jax.nn.logsumexp(logits, axis=-1) - logits.mean(-1)
    if label_smoothing:  # `uniform` is the mean of the losses of all labels
        loss = (1 - label_smoothing) * loss + label_smoothing * uniform
    if class_weights is not None:
        weights = jnp.asarray(class_weights)
        if is_multilabel:
            loss *= jnp.where(label, weights[None, :, 1], weights[None, :, 0])
        else:
            loss *= weights[label]
    return loss.mean(-1) if is_multilabel else loss


def _update_averages(averages: Any, new: Any, ema: float, step: jax.Array) -> Any:
    """Move the averages, if any, to the new values; equal ones stay bit-identical."""
    if averages is None:
        return None
    # As in TensorFlow's ExponentialMovingAverage: the initial weights are soon forgotten.
    decay = jnp.minimum(ema, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda old, value: old + (1 - decay) * (value - old), averages, new)


def _inputs(batch: Arrays, mode: str, after: str | None) -> jax.Array:
    return batch["features"] if after else preprocess(batch["images"], mode)


def _example_keys(seed: int, step: jax.Array, rows: int, axis_name: str | None) -> jax.Array:
    """Return keys (rows, 2) for this device's rows, by their position in the global batch."""
    first = lax.axis_index(axis_name) * rows if axis_name else 0
    key = jax.random.fold_in(jax.random.key(seed), step)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(rows))
    return jax.vmap(jax.random.split)(keys)


def _augmented(
    key: jax.Array, batch: Arrays, augmentation: Augmentation, axis_name: str | None
) -> Arrays:
    """Return the batch with augmented images, and with `other` and `share` where they are mixed."""
    images = augment(key, batch["images"], augmentation)
    if not (augmentation.mixup or augmentation.cutmix):
        return batch | {"images": images}
    mixed = mix(
        key,
        images,
        batch["label"],
        batch["mask"],
        mixup=augmentation.mixup,
        cutmix=augmentation.cutmix,
        axis_name=axis_name,
    )
    return batch | mixed._asdict()
