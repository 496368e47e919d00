"""Batch normalization for padded and sharded batches.

Maps are (N, H, W, C), float32 or bfloat16.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from vggjax.models.arch import EPSILON

MOMENTUM = 0.9
"""The share of the old running statistics: torchvision's default, whose `momentum=0.1` is the share
of the new ones."""


class BatchNorm(nnx.Module):
    """Batch normalization by channel (Ioffe and Szegedy, arXiv:1502.03167).

    Sums are reduced over the devices and divided once. `nnx.BatchNorm` averages the devices' means
    instead, which is wrong for a padded last batch and NaN on a device without examples.

    `model.train()`, `model.eval()` and the training step set `use_running_average` and `axis_name`.
    `scale`, `bias`, `mean` and `var` have shape (C,).
    """

    def __init__(self, width: int):
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))
        self.mean = nnx.BatchStat(jnp.zeros(width))
        self.var = nnx.BatchStat(jnp.ones(width))
        self.use_running_average = True
        self.axis_name: str | None = None

    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Normalize x (N, H, W, C) and return it in its own dtype.

        Training mode uses the batch's statistics and updates the running ones in place; examples
        whose `mask` (N,) is 0 are excluded from both.
        """
        mean, var = self.mean[...], self.var[...]
        if not self.use_running_average:
            mean, var, count = self._batch_statistics(x.astype(jnp.float32), mask)
            share = jnp.where(count > 0, 1 - MOMENTUM, 0.0)  # of a batch that is all padding
            self.mean[...] = (1 - share) * self.mean[...] + share * lax.stop_gradient(mean)
            self.var[...] = (1 - share) * self.var[...] + share * lax.stop_gradient(var)
        factor = self.scale[...] * lax.rsqrt(var + EPSILON)
        offset = self.bias[...] - mean * factor
        return (x * factor.reshape(1, 1, 1, -1) + offset.reshape(1, 1, 1, -1)).astype(x.dtype)

    def _batch_statistics(
        self, x: jax.Array, mask: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        weights = jnp.ones(x.shape[0]) if mask is None else (mask > 0).astype(jnp.float32)
        kept = jnp.where(weights.reshape(-1, 1, 1, 1) > 0, x, 0.0)
        sums = (kept.sum((0, 1, 2)), jnp.square(kept).sum((0, 1, 2)), weights.sum())
        if self.axis_name is not None:
            sums = lax.psum(sums, self.axis_name)
        total, total_squares, num_examples = sums
        count = jnp.maximum(num_examples, 1) * x.shape[1] * x.shape[2]
        mean = total / count
        # Rounding may leave a constant channel's variance below 0.
        return mean, jnp.maximum(total_squares / count - jnp.square(mean), 0), num_examples


def pool_map(x: jax.Array) -> jax.Array:
    """Return the mean and the maximum of x (N, H, W, C) over the map, each of unit length: (N, 2C).

    Of unit length, layers of any scale have the same weight, and a brighter image the same features
    (Chatfield et al., arXiv:1405.3531, section 2.2).
    """
    x = x.astype(jnp.float32)

    def unit(rows: jax.Array) -> jax.Array:
        return rows * lax.rsqrt(jnp.square(rows).sum(-1, keepdims=True) + 1e-12)

    return jnp.concatenate([unit(x.mean((1, 2))), unit(x.max((1, 2)))], axis=-1)
