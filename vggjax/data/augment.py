"""Random changes to training pictures, on the device, inside the jitted step.

In and out: (N, S, S, 3), uint8 or float, the dtype and value range kept. Every picture has its own
PRNG key: what happens to it depends on neither its place in the batch nor on its neighbours.
"""

import jax
import jax.numpy as jnp

from vggjax.errors import ConfigError, unknown

AUGMENTATIONS = ("none", "flip")


def augment(keys: jax.Array, images: jax.Array, kind: str) -> jax.Array:
    """Applies the augmentation named `kind`; `keys` is (N,), one key for each picture."""
    if kind not in AUGMENTATIONS:
        raise ConfigError(unknown("augmentation", kind, AUGMENTATIONS))
    return random_flip(keys, images) if kind == "flip" else images


def random_flip(keys: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors each picture left to right with probability one half."""
    flipped = jax.vmap(jax.random.bernoulli)(keys)  # (N,)
    return jnp.where(flipped[:, None, None, None], images[:, :, ::-1], images)
