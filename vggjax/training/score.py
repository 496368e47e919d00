"""What a batch's logits are worth: sums over its examples, of loss, right answers and their number.

The loss is cross-entropy in nats: softmax over (N, C) logits, or of one sigmoid unit (N, 1). Sums
are divided once, at the end, so that padded rows (`mask` 0) and uneven batches count as they are.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

Metrics = dict[str, jax.Array]
"""Sums over the examples of a batch: `loss`, `correct`, `top5`, `count`."""


def score(
    logits: jax.Array,
    batch: dict[str, jax.Array],
    *,
    class_weights: np.ndarray | None = None,
    label_smoothing: float = 0.0,
) -> Metrics:
    """Sums a batch's scores: a mixed row's loss is its soft label's, the rest the heavier one's.

    `class_weights` (C,) and `label_smoothing` change the loss alone, as Keras' arguments do.
    """
    label, mask = batch["label"], batch["mask"]
    options = {"class_weights": class_weights, "label_smoothing": label_smoothing}
    loss = _cross_entropy(logits, label, **options)
    if "share" in batch:  # cross-entropy is linear in the label: the mean of two is the soft one's
        other, share = batch["other"], batch["share"]
        loss = share * loss + (1 - share) * _cross_entropy(logits, other, **options)
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
    logits: jax.Array,
    label: jax.Array,
    *,
    class_weights: np.ndarray | None,
    label_smoothing: float,
) -> jax.Array:
    one_unit = logits.shape[-1] == 1
    if one_unit:
        loss = optax.sigmoid_binary_cross_entropy(logits[:, 0], label.astype(jnp.float32))
    else:
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    if label_smoothing:  # the mean over the labels, for the share that all of them have
        if one_unit:
            spread = optax.sigmoid_binary_cross_entropy(logits[:, 0], 0.5)
        else:
            spread = jax.nn.logsumexp(logits, axis=-1) - logits.mean(-1)
        loss = (1 - label_smoothing) * loss + label_smoothing * spread
    return loss if class_weights is None else loss * jnp.asarray(class_weights)[label]
