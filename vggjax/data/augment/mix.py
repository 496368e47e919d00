"""Mix images with one another, labels included: mixup and CutMix.

The partner of a row is the next row whose mask is 1, the last one's the first: the epoch's order is
random already. A row of mask 0, padding or unreadable, is never mixed into another. Rows are those
of the global batch, which pmap gathers along `axis_name`: four devices mix what one would.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vggjax.data.augment.augment import to_dtype
from vggjax.data.augment.rng import beta, draw_numbers, per_example_keys
from vggjax.data.augment.warp import in_box


class Mixed(NamedTuple):
    """A mixed batch; a row with `share` 1 is unchanged."""

    images: jax.Array
    """(N, S, S, 3), the dtype kept."""
    other: jax.Array
    """int32 (N,): the partner's label."""
    share: jax.Array
    """float32 (N,): the weight, 0 to 1, of the row's own label."""


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
    """Mix each row with its partner by mixup or CutMix with these alphas; 0 is off.

    If both are on, each row draws one of them. `key` is one key, or (N,) keys of the local rows.
    """
    images, label, mask = map(jnp.asarray, (images, label, mask))
    height, width = images.shape[1:3]
    keys = per_example_keys(key, len(images))
    numbers = draw_numbers(keys)
    partners, other = find_partners(images, label, mask, axis_name)
    shares, results = [], []
    if mixup:
        share = beta(keys, mixup)
        weight = share[:, None, None, None]
        blended = images.astype(jnp.float32) * weight + partners.astype(jnp.float32) * (1 - weight)
        shares.append(share)
        results.append(to_dtype(blended, images.dtype))
    if cutmix:
        center, side = numbers["cutmix box"], jnp.sqrt(1 - beta(keys, cutmix))
        tall, wide = side * height, side * width
        top, left = center[:, 0] * height - tall / 2, center[:, 1] * width - wide / 2
        box = in_box((height, width), top=top, left=left, height=tall, width=wide)
        shares.append(1 - box.mean((1, 2), dtype=jnp.float32))
        results.append(jnp.where(box[..., None], partners, images))
    takes_last = (numbers["mixup or cutmix"][:, 0] < 0.5) & (len(results) == 2)
    share = jnp.where(takes_last, shares[-1], shares[0])
    mixed = jnp.where(takes_last[:, None, None, None], results[-1], results[0])
    return Mixed(mixed, other, share)


def find_partners(
    images: jax.Array, label: jax.Array, mask: jax.Array, axis_name: str | None
) -> tuple[jax.Array, jax.Array]:
    """Return the partners' images and labels; a row of mask 0 is its own partner."""
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
