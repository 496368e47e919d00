"""Random numbers, a row of them for each image's key.

Everything that is drawn has a place of its own in the row: switching one thing on changes no
other's draws. One row for all keeps the compiled step small: the generator stands in it once.
"""

import itertools

import jax
import jax.numpy as jnp

_COUNTS = {
    "rotation": 1,
    "width": 2,
    "height": 2,
    "shear": 1,
    "zoom": 2,
    "horizontal": 1,
    "vertical": 1,
    "channels": 1,
    "brightness": 1,
    "crop area": 10,
    "crop aspect": 10,
    "crop place": 2,
    "erasing": 5,
    "mixup or cutmix": 1,
    "cutmix box": 2,
    "randaugment": 10,
    "randaugment signs": 10,
}
"""Name -> numbers; new names go to the end, so that a seed goes on drawing what it drew."""

_ENDS = dict(zip(_COUNTS, itertools.accumulate(_COUNTS.values()), strict=True))


def per_example_keys(key: jax.Array, rows: int) -> jax.Array:
    """Gives (rows,) keys: those given, or one key folded with each row's number."""
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)  # jax.random.PRNGKey's, of the older kind
    if key.ndim:
        return key
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))


def draw_numbers(key: jax.Array) -> dict[str, jax.Array]:
    """Draws from 0 to below 1 for each of (N,) keys: name -> (N, numbers)."""
    total = sum(_COUNTS.values())
    rows = jax.vmap(lambda k: jax.random.uniform(k, (total,)))(key)
    return {name: rows[:, end - _COUNTS[name] : end] for name, end in _ENDS.items()}


def between(numbers: jax.Array, low: float, high: float) -> jax.Array:
    """Stretches numbers from 0 to 1 to lie from `low` to `high`."""
    return low + (high - low) * numbers


def fold_in_keys(key: jax.Array, number: int) -> jax.Array:
    """Gives each of (N,) keys another one, for what needs more than a row has."""
    return jax.vmap(jax.random.fold_in, (0, None))(key, number)


def noise(key: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Draws uint8 RGB noise for each of (N,) keys: (N, *size, 3)."""
    bits = jax.vmap(lambda k: jax.random.bits(k, size, jnp.uint32))(fold_in_keys(key, 1))
    return jax.lax.bitcast_convert_type(bits, jnp.uint8)[..., :3]  # three of each word's bytes


def beta(key: jax.Array, alpha: float) -> jax.Array:
    """Draws from Beta(alpha, alpha) for each of (N,) keys: (N,)."""
    return jax.vmap(lambda k: jax.random.beta(k, alpha, alpha))(fold_in_keys(key, 2))
