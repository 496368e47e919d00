"""Random numbers, one row for each picture's key.

Each thing that is drawn has a name of its own: switching one on changes no other's draws.
"""

import zlib

import jax
import jax.numpy as jnp


def one_key_each(key: jax.Array, rows: int) -> jax.Array:
    """Gives (rows,) keys: those given, or one key folded with each row's number."""
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)  # jax.random.PRNGKey's, of the older kind
    if key.ndim:
        return key
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))


def named_keys(key: jax.Array, name: str) -> jax.Array:
    """Gives each of (N,) keys' own key for what is called `name`."""
    number = zlib.crc32(name.encode())  # the same in every process, as hash() is not
    return jax.vmap(jax.random.fold_in, (0, None))(key, number)


def uniform(
    key: jax.Array, name: str, low: float, high: float, shape: tuple[int, ...] = ()
) -> jax.Array:
    """Draws between `low` and `high` for each of (N,) keys: (N, *shape); `low` if they are one."""
    if low == high:
        return jnp.full((len(key), *shape), low, jnp.float32)
    draw = jax.vmap(lambda k: jax.random.uniform(k, shape, minval=low, maxval=high))
    return draw(named_keys(key, name))


def integers(key: jax.Array, name: str, count: int, shape: tuple[int, ...] = ()) -> jax.Array:
    """Draws from 0 to below `count` for each of (N,) keys: int32 (N, *shape)."""
    draw = jax.vmap(lambda k: jax.random.randint(k, shape, 0, count))
    return draw(named_keys(key, name))


def booleans(key: jax.Array, name: str, shape: tuple[int, ...] = ()) -> jax.Array:
    """Tosses a coin for each of (N,) keys: bool (N, *shape)."""
    return jax.vmap(lambda k: jax.random.bernoulli(k, shape=shape))(named_keys(key, name))


def noise(key: jax.Array, name: str, size: tuple[int, int]) -> jax.Array:
    """Draws uint8 RGB noise for each of (N,) keys: (N, *size, 3)."""
    bits = jax.vmap(lambda k: jax.random.bits(k, size, jnp.uint32))(named_keys(key, name))
    return jax.lax.bitcast_convert_type(bits, jnp.uint8)[..., :3]  # three of each word's bytes
