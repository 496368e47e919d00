"""Mixes pictures with one another, labels as well: mixup and CutMix.

The partner of a row is the next row whose mask is 1, the last one's the first: the order of the
epoch is random already. A row of mask 0, padding or unreadable, is never mixed into another. Rows
are those of the global batch: under jit by themselves, under pmap with `axis_name`, by gathering
the devices' rows; so four devices mix what one mixes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vggjax.data.colour import to_dtype
from vggjax.data.draws import booleans, named_keys, one_key_each, uniform
from vggjax.data.warp import in_box


class Mixed(NamedTuple):
    """A mixed batch; with `share` 1 a row is as it was."""

    images: jax.Array
    """(N, S, S, 3), the dtype kept."""
    other: jax.Array
    """int32 (N,): the partner's label."""
    share: jax.Array
    """float32 (N,): the part, 0 to 1, of the row's own label."""


def mix(
    key: jax.Array,
    images: jax.Array,
    label: jax.Array,
    mask: jax.Array,
    *,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    axis_name: str | None = None,
) -> Mixed:
    """Mixes each row with its partner by mixup or CutMix of these alphas, 0 being off.

    Where both are on, each row draws one of them. `key` is one key or (N,), of this device's rows.
    """
    rows, size = len(images), images.shape[1:3]
    keys = one_key_each(key, rows)
    theirs, other = _partners(images, label, mask, axis_name)
    shares, results = [], []
    if mixup:
        share = _beta(keys, "mixup", mixup)
        part = share[:, None, None, None]
        blended = images.astype(jnp.float32) * part + theirs.astype(jnp.float32) * (1 - part)
        shares.append(share)
        results.append(to_dtype(blended, images.dtype))
    if cutmix:
        box = _draw_box(keys, jnp.sqrt(1 - _beta(keys, "cutmix", cutmix)), size)
        shares.append(1 - box.mean((1, 2), dtype=jnp.float32))
        results.append(jnp.where(box[..., None], theirs, images))
    second = booleans(keys, "mixup or cutmix") if len(results) == 2 else jnp.zeros(rows, bool)
    share = jnp.where(second, shares[-1], shares[0])
    mixed = jnp.where(second[:, None, None, None], results[-1], results[0])
    return Mixed(mixed, other, share)


def _partners(
    images: jax.Array, label: jax.Array, mask: jax.Array, axis_name: str | None
) -> tuple[jax.Array, jax.Array]:
    """Gives the partners' pictures and labels; a row of mask 0 is its own partner."""
    first = lax.axis_index(axis_name) * len(images) if axis_name else 0
    own = first + jnp.arange(len(images))
    if axis_name:
        images, label, mask = (
            lax.all_gather(rows, axis_name, tiled=True) for rows in (images, label, mask)
        )
    valid = mask > 0
    in_order = jnp.argsort(~valid, stable=True)  # the valid rows first
    rank = jnp.cumsum(valid) - 1
    following = in_order[(rank + 1) % jnp.maximum(valid.sum(), 1)]
    partner = jnp.where(valid, following, jnp.arange(len(mask)))[own]
    return images[partner], label[partner]


def _beta(key: jax.Array, name: str, alpha: float) -> jax.Array:
    return jax.vmap(lambda k: jax.random.beta(k, alpha, alpha))(named_keys(key, name))


def _draw_box(key: jax.Array, side: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Draws boxes of (N,) shares of both sides about a centre anywhere, cut off at the border."""
    centre = uniform(key, "cutmix box", 0.0, 1.0, (2,))
    (height, width), (tall, wide) = size, (side * n for n in size)
    top, left = centre[:, 0] * height - tall / 2, centre[:, 1] * width - wide / 2
    return in_box(size, top=top, left=left, height=tall, width=wide)
