"""Changes gray levels and leaves pixels where they are; nothing is drawn here.

Images are (N, H, W, 3) of 0-255. What Keras has is as Keras does it, on floats; the operations of
RandAugment are Pillow's, on uint8, as lookup tables (N, 3, 256) where the result is a function of
the level alone.
"""

import jax
import jax.numpy as jnp
from jax import lax

_GRAY = (19595, 38470, 7471)
"""Pillow's weights of red, green and blue in a gray image, of 65,536."""


def to_dtype(images: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Casts levels; to whole numbers they are rounded, and clipped to 0-255, not wrapped."""
    if images.dtype == dtype or jnp.issubdtype(dtype, jnp.floating):
        return images.astype(dtype)
    return jnp.clip(jnp.round(images), 0, 255).astype(dtype)


def shift_channels(images: jax.Array, amount: jax.Array) -> jax.Array:
    """Adds (N,) levels, within each image's own darkest and lightest one; gives floats."""
    # Of bytes, as Pillow would see them: XLA's (jax 0.10.2) extremes of floats that were just
    # resampled take 7 ms for an image of 224 px on a CPU core, these take 1.
    levels = to_dtype(images, jnp.uint8)
    low, high = (f(levels, axis=(1, 2, 3), keepdims=True) for f in (jnp.min, jnp.max))
    pixels = images.astype(jnp.float32) + amount[:, None, None, None]
    return jnp.clip(pixels, low.astype(jnp.float32), high.astype(jnp.float32))


def brighten(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiplies by (N,) factors, within 0-255; gives floats."""
    return jnp.clip(images.astype(jnp.float32) * factor[:, None, None, None], 0, 255)


def apply_tables(images: jax.Array, tables: jax.Array) -> jax.Array:
    """Looks every level of uint8 images up in its image's and channel's table."""
    channel = jnp.arange(3) * 256

    def look_up(image: jax.Array, table: jax.Array) -> jax.Array:
        index = image.astype(jnp.int32) + channel[None, None]
        return table.reshape(-1).at[index].get(mode="clip")

    return jax.vmap(look_up)(images, tables)


def histograms(images: jax.Array) -> jax.Array:
    """Counts the levels of uint8 images: int32 (N, 3, 256)."""

    def count(image: jax.Array) -> jax.Array:
        index = image.reshape(-1, 3).astype(jnp.int32) + (jnp.arange(3) * 256)[None]
        return jnp.zeros(3 * 256, jnp.int32).at[index].add(1, mode="clip").reshape(3, 256)

    return jax.vmap(count)(images)


def equalize_tables(counts: jax.Array) -> jax.Array:
    """Makes every level equally frequent, channel by channel, from histograms (N, 3, 256)."""
    levels = jnp.arange(256)
    present = counts > 0
    last = jnp.max(jnp.where(present, levels[None, None], 0), -1, keepdims=True)
    in_last = jnp.take_along_axis(counts, last, axis=-1)
    step = (counts.sum(-1, keepdims=True) - in_last) // 255
    before = jnp.cumsum(counts, -1) - counts
    table = jnp.minimum((before + step // 2) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, table, levels[None, None]).astype(jnp.uint8)


def stretch_tables(counts: jax.Array) -> jax.Array:
    """Stretches each channel to 0-255 (autocontrast), from histograms (N, 3, 256)."""
    levels = jnp.arange(256)[None, None]
    present = counts > 0
    low = jnp.min(jnp.where(present, levels, 255), -1, keepdims=True)
    high = jnp.max(jnp.where(present, levels, 0), -1, keepdims=True)
    table = (levels - low) * (255.0 / jnp.maximum(high - low, 1)) + 1e-4  # 254.99998 is 255
    return jnp.where(high > low, jnp.clip(table, 0, 255), levels).astype(jnp.uint8)


def contrast_tables(counts: jax.Array, factor: jax.Array) -> jax.Array:
    """Scales the distance from each image's mean gray by (N,) factors."""
    levels = jnp.arange(256, dtype=jnp.float32)[None, None]
    means = (counts * levels).sum(-1) / counts.sum(-1)  # (N, 3): the gray's mean is theirs
    mean = jnp.floor((means * (jnp.array(_GRAY) / 65536)[None]).sum(-1) + 0.5)[:, None, None]
    return _truncate(mean + factor[:, None, None] * (levels - mean))


def saturate(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Scales the distance from the image's own gray by (N,) factors."""
    return _blend(jnp.broadcast_to(_gray(images)[..., None], images.shape), images, factor)


def sharpen(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Scales the distance from the smoothed image by (N,) factors; the border stays."""
    pixels = images.astype(jnp.int32)
    # A window, not nine shifted images: XLA would compute all that comes before it nine times.
    sums = lax.reduce_window(pixels, 0, lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "VALID")
    sums += 4 * pixels[:, 1:-1, 1:-1]
    smooth = images.at[:, 1:-1, 1:-1].set(((2 * sums + 13) // 26).astype(jnp.uint8))  # sums / 13
    return _blend(smooth, images, factor)


def _gray(images: jax.Array) -> jax.Array:
    red, green, blue = (images[..., i].astype(jnp.int32) * _GRAY[i] for i in range(3))
    return ((red + green + blue + 0x8000) >> 16).astype(jnp.uint8)


def _blend(first: jax.Array, second: jax.Array, factor: jax.Array) -> jax.Array:
    first, second = first.astype(jnp.float32), second.astype(jnp.float32)
    return _truncate(first + factor[:, None, None, None] * (second - first))


def _truncate(levels: jax.Array) -> jax.Array:
    return jnp.clip(levels, 0, 255).astype(jnp.uint8)  # as Pillow's blend does it
