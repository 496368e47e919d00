"""The 2x2 max pooling between VGG's blocks, equal to `nnx.max_pool(x, (2, 2), (2, 2))`.

On CPUs XLA (jax 0.10.2) undoes the pooling on one thread: of 64 channels at 200x200 px that took
71 ms an image, more than block1's convolutions. There each window's four pixels are compared as
four maps. The gradient goes to the first of equal pixels, as lax sends it.
"""

import jax
import jax.numpy as jnp
from flax import nnx


def max_pool(x: jax.Array) -> jax.Array:
    """Halves a map (N, H, W, C); an odd last row or column is left out."""
    if jax.default_backend() == "cpu":
        return _max_pool(x)
    return nnx.max_pool(x, (2, 2), (2, 2))


@jax.custom_vjp
def _max_pool(x: jax.Array) -> jax.Array:
    first, second, third, fourth = _corners(x)
    return jnp.maximum(jnp.maximum(first, second), jnp.maximum(third, fourth))


def _forward(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    y = _max_pool(x)
    return y, (x, y)


def _backward(saved: tuple[jax.Array, jax.Array], grad: jax.Array) -> tuple[jax.Array]:
    x, y = saved
    left, grads = jnp.ones(y.shape, bool), []
    for corner in _corners(x):
        chosen = left & (corner == y)
        grads.append(jnp.where(chosen, grad, jnp.zeros_like(grad)))
        left &= ~chosen
    rows = [jnp.stack(grads[i : i + 2], 3) for i in (0, 2)]  # (N, H/2, W/2, 2, C)
    n, height, width, channels = x.shape
    even = jnp.stack(rows, 2).reshape(n, height // 2 * 2, width // 2 * 2, channels)
    return (jnp.pad(even, ((0, 0), (0, height % 2), (0, width % 2), (0, 0))),)


_max_pool.defvjp(_forward, _backward)


def _corners(x: jax.Array) -> list[jax.Array]:
    """Gives each window's four pixels, row by row, as four maps (N, H/2, W/2, C)."""
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    return [x[:, i:height:2, j:width:2] for i in (0, 1) for j in (0, 1)]
