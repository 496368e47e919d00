"""Batch normalization that counts each example once, whatever the padding and the devices.

Ioffe and Szegedy (arXiv:1502.03167). `nnx.BatchNorm` averages the devices' means under pmap, which
is wrong where a padded last batch gives them unequal numbers of examples, and NaN where one device
has none; here sums are reduced, and divided once.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

EPSILON = 1e-5
MOMENTUM = 0.9
"""As torchvision's vgg*_bn were trained with (its momentum 0.1 is the share of the new value)."""


class BatchNorm(nnx.Module):
    """Normalizes (N, H, W, C) by channel; running statistics are in `mean` and `var`.

    `use_running_average` and `axis_name` are plain attributes: `model.train()`, `model.eval()` and
    the training step set them.
    """

    def __init__(self, width: int):
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))
        self.mean = nnx.BatchStat(jnp.zeros(width))
        self.var = nnx.BatchStat(jnp.ones(width))
        self.use_running_average = True
        self.axis_name: str | None = None

    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Gives x normalized, in its own dtype.

        In training the batch's statistics are used and the running ones updated; examples whose
        `mask` (N,) is 0 are left out of both.
        """
        mean, var = self.mean[...], self.var[...]
        if not self.use_running_average:
            mean, var = self._batch_statistics(x.astype(jnp.float32), mask)
            self.mean[...] = MOMENTUM * self.mean[...] + (1 - MOMENTUM) * lax.stop_gradient(mean)
            self.var[...] = MOMENTUM * self.var[...] + (1 - MOMENTUM) * lax.stop_gradient(var)
        factor = self.scale[...] * lax.rsqrt(var + EPSILON)
        offset = self.bias[...] - mean * factor
        return (x * factor.reshape(1, 1, 1, -1) + offset.reshape(1, 1, 1, -1)).astype(x.dtype)

    def _batch_statistics(self, x, mask):
        weights = jnp.ones(x.shape[0]) if mask is None else (mask > 0).astype(jnp.float32)
        kept = jnp.where(weights.reshape(-1, 1, 1, 1) > 0, x, 0.0)
        sums = (kept.sum((0, 1, 2)), jnp.square(kept).sum((0, 1, 2)), weights.sum())
        if self.axis_name is not None:
            sums = lax.psum(sums, self.axis_name)
        total, total_squares, examples = sums
        count = jnp.maximum(examples, 1) * x.shape[1] * x.shape[2]
        mean = total / count
        # Rounding may leave a constant channel's variance below 0.
        return mean, jnp.maximum(total_squares / count - jnp.square(mean), 0)
