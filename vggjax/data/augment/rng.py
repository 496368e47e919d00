"""Draw random numbers, one row of them for each image's key.

Every draw has its own place in the row, so that switching one augmentation on does not change the
draws of another. One row for all keeps the compiled step small: it contains the generator once.
"""

import itertools

import jax
import jax.numpy as jnp

_COUNTS = {
    "rotation": 1, "width": 2, "height": 2, "shear": 1, "zoom": 2, "horizontal": 1, "vertical": 1,
    "channels": 1, "brightness": 1, "crop area": 10, "crop aspect": 10, "crop place": 2,
    "erasing": 5, "mixup or cutmix": 1, "cutmix box": 2, "randaugment": 10,
    "randaugment signs": 10,
}  # fmt: skip
"""Name -> numbers in the row; new names go to the end, so that a seed keeps its draws."""

_ENDS = dict(zip(_COUNTS, itertools.accumulate(_COUNTS.values()), strict=True))


def per_example_keys(key: jax.Array, rows: int) -> jax.Array:
    """Return (rows,) keys: `key` itself, or a single key with each row's number folded in."""
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)  # from jax.random.PRNGKey
    if key.ndim:
        return key
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))


def draw_numbers(key: jax.Array) -> dict[str, jax.Array]:
    """Draw uniformly from [0, 1) for each of (N,) keys: name -> (N, numbers)."""
    total = sum(_COUNTS.values())
    rows = jax.vmap(lambda k: jax.random.uniform(k, (total,)))(key)
    return {name: rows[:, end - _COUNTS[name] : end] for name, end in _ENDS.items()}


def between(numbers: jax.Array, low: float, high: float) -> jax.Array:
    """Rescale numbers in [0, 1] to [low, high]."""
    return low + (high - low) * numbers


def noise(key: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Draw uint8 RGB noise for each of (N,) keys: (N, *size, 3)."""
    bits = jax.vmap(lambda k: jax.random.bits(jax.random.fold_in(k, 1), size, jnp.uint32))(key)
    return jax.lax.bitcast_convert_type(bits, jnp.uint8)[..., :3]  # three of the four bytes


def beta(key: jax.Array, alpha: float) -> jax.Array:
    """Draw from Beta(alpha, alpha) for each of (N,) keys: (N,)."""
    return jax.vmap(lambda k: jax.random.beta(jax.random.fold_in(k, 2), alpha, alpha))(key)
