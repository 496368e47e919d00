"""The compiled forward passes with nothing learned: frozen features, and probabilities.

Images are uint8 (N, S, S, 3), as batches bring them. On a CPU a pass runs few images at a time.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from vggjax.data.augment.augment import augment
from vggjax.data.augment.settings import Augmentation
from vggjax.data.images.preprocess import preprocess
from vggjax.models.network import Network
from vggjax.training.parallel import Placement

MAX_MICROBATCH_PIXELS = 2**17
"""What a forward pass takes at a time on a CPU, where more is no faster: two images of 200 px."""


def map_microbatches(
    forward: Callable[[jax.Array], jax.Array],
    images: jax.Array,
    *,
    placement: Placement | None = None,
) -> jax.Array:
    """Runs a forward pass over (N, S, S, 3), on a CPU a few images at a time.

    The maps of block1 are the largest of all: at 200 px and 32 images two of them take 655 MB.
    """
    is_shared = placement is not None and len(placement.devices) > 1
    count, height, width = images.shape[:3]
    few = 2 ** int(math.log2(max(1, MAX_MICROBATCH_PIXELS // (height * width))))
    if jax.default_backend() != "cpu" or is_shared or count <= few:
        return forward(images)
    padded = jnp.pad(images, ((0, -count % few), (0, 0), (0, 0), (0, 0)))
    outputs = lax.map(forward, padded.reshape(-1, few, *images.shape[1:]))
    return outputs.reshape(-1, *outputs.shape[2:])[:count]


def make_feature_step(
    model: Network,
    cut: str,
    *,
    placement: Placement,
    mode: str,
    augmentation: Augmentation | None = None,
    seed: int = 0,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> Callable[[tuple[nnx.State, nnx.State, jax.Array], dict[str, jax.Array]], dict[str, jax.Array]]:
    """Compiles ((params, batch_stats, view), batch) -> what train_step's `after` takes.

    That is `features`, the output of the layer `cut`, and `mask`, of the whole global batch, on
    every process. What is drawn is a function of (seed, image, view).
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
        features = map_microbatches(
            lambda x: prefix(preprocess(x, mode), until=cut), images, placement=placement
        )
        return {"features": features.astype(dtype), "mask": batch["mask"]}

    return placement.compile(feature_step, gather=True)


_VIEWS = 2**32 - 1
"""Where a step's number stands in the keys of what is drawn anew at every step."""


def make_predict_step(model: Network, mode: str) -> Callable[[np.ndarray], jax.Array]:
    """Makes images uint8 (N, S, S, 3) -> probabilities float32 (N, C), compiled once a shape.

    The model is held by reference, not copied. One sigmoid unit gives two columns, (1 - p, p).
    """
    model.eval()
    graphdef, state = nnx.split(model)

    return lambda images: _predict(graphdef, mode, state, images)


@partial(jax.jit, static_argnums=(0, 1))  # a second step of the same network compiles nothing
def _predict(graphdef: Any, mode: str, state: nnx.State, images: jax.Array) -> jax.Array:
    network = nnx.merge(graphdef, state)
    logits = map_microbatches(lambda x: network(preprocess(x, mode)), images)
    if logits.shape[-1] == 1:
        return jnp.concatenate([jax.nn.sigmoid(-logits), jax.nn.sigmoid(logits)], axis=-1)
    return jax.nn.softmax(logits)
