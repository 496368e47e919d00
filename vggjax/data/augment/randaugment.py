"""RandAugment (Cubuk et al., 2020): N of 14 operations for each image, at one magnitude.

Magnitude 10 is the strongest: 30 degrees, a shear of 0.3, a shift by 45 % of the side, factors of
0.1 or 1.9, 4 bits, full inversion. The geometric operations join the one affine matrix of all
others and precede the changes of color; the paper's code resamples for each operation. The color
operations are Pillow's, on uint8, as lookup tables (N, 3, 256) where only the level matters.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vggjax.data.augment.warp import affine_matrix, compose, matrix

OPERATIONS = (
    "identity", "autocontrast", "equalize", "posterize", "solarize", "contrast", "brightness",
    "color", "sharpness", "rotate", "shear-x", "shear-y", "translate-x", "translate-y",
)  # fmt: skip

_GRAY = (19595, 38470, 7471)
"""Pillow's weights of red, green and blue in a gray image, of 65,536."""


class Operation(NamedTuple):
    """One operation for each image of a batch."""

    which: jax.Array
    """int32 (N,), into `OPERATIONS`."""
    level: jax.Array
    """float32 (N,): the magnitude, 0 to 1, with a drawn sign."""

    def level_of(self, name: str) -> jax.Array:
        """Return the level of the rows whose operation is `name`, and 0 for the others."""
        return jnp.where(self.which == OPERATIONS.index(name), self.level, 0.0)


def choose_operations(
    numbers: dict[str, jax.Array], *, num_ops: int, magnitude: float
) -> list[Operation]:
    """Return `num_ops` operations, in their order, from the rows of `draw_numbers`."""
    which = jnp.floor(numbers["randaugment"] * len(OPERATIONS)).astype(jnp.int32)
    level = jnp.where(numbers["randaugment signs"] < 0.5, -1.0, 1.0) * (magnitude / 10)
    return [Operation(which[:, i], level[:, i]) for i in range(num_ops)]


def operation_matrix(operation: Operation, *, size: int) -> jax.Array:
    """Return an operation's affine matrices (N, 3, 3) for images of `size` px."""
    rotation = affine_matrix(theta=30 * operation.level_of("rotate"))
    tx = 0.45 * size * operation.level_of("translate-x")
    ty = 0.45 * size * operation.level_of("translate-y")
    shear_x, shear_y = (0.3 * operation.level_of(f"shear-{axis}") for axis in "xy")
    # At most one of the matrices is not the identity.
    return compose(rotation, matrix(1, shear_x, tx, shear_y, 1, ty))


def recolor(images: jax.Array, operation: Operation) -> jax.Array:
    """Apply an operation to the uint8 images whose operation is one of color."""
    images = _apply_tables(images, _tables(images, operation))
    images = _adjust_saturation(images, 1 + 0.9 * operation.level_of("color"))
    return _adjust_sharpness(images, 1 + 0.9 * operation.level_of("sharpness"))


def _tables(images: jax.Array, operation: Operation) -> jax.Array:
    """Return the lookup tables, uint8 (N, 3, 256); the identity for other operations."""
    counts = _histograms(images)
    levels = jnp.arange(256)[None, None]
    level = jnp.abs(operation.level)[:, None, None]
    lost_bits = jnp.round(4 * level).astype(jnp.int32)
    scaled = (1 + 0.9 * operation.level[:, None, None]) * levels.astype(jnp.float32)
    tables = {
        "autocontrast": _autocontrast_tables(counts),
        "equalize": _equalize_tables(counts),
        "posterize": (levels >> lost_bits) << lost_bits,
        "solarize": jnp.where(levels >= 255 * (1 - level), 255 - levels, levels),
        "contrast": _contrast_tables(counts, 1 + 0.9 * operation.level),
        "brightness": jnp.clip(scaled, 0, 255),
    }
    result = jnp.broadcast_to(levels, counts.shape).astype(jnp.uint8)
    for name, table in tables.items():
        is_chosen = (operation.which == OPERATIONS.index(name))[:, None, None]
        result = jnp.where(is_chosen, table.astype(jnp.uint8), result)
    return result


def _apply_tables(images: jax.Array, tables: jax.Array) -> jax.Array:
    def look_up(image: jax.Array, table: jax.Array) -> jax.Array:
        return table.reshape(-1).at[_table_index(image)].get(mode="clip")

    return jax.vmap(look_up)(images, tables)


def _table_index(image: jax.Array) -> jax.Array:
    """Return each level's place in three tables of 256 levels, one after the other: (H, W, 3)."""
    return image.astype(jnp.int32) + (jnp.arange(3) * 256)[None, None]


def _histograms(images: jax.Array) -> jax.Array:
    """Count the levels of uint8 images: int32 (N, 3, 256)."""

    def count(image: jax.Array) -> jax.Array:
        counts = jnp.zeros(3 * 256, jnp.int32).at[_table_index(image)].add(1, mode="clip")
        return counts.reshape(3, 256)

    return jax.vmap(count)(images)


def _equalize_tables(counts: jax.Array) -> jax.Array:
    """Make all levels of a channel equally frequent, from histograms (N, 3, 256)."""
    levels = jnp.arange(256)
    present = counts > 0
    last = jnp.max(jnp.where(present, levels[None, None], 0), -1, keepdims=True)
    in_last = jnp.take_along_axis(counts, last, axis=-1)
    step = (counts.sum(-1, keepdims=True) - in_last) // 255
    before = jnp.cumsum(counts, -1) - counts
    table = jnp.minimum((before + step // 2) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, table, levels[None, None]).astype(jnp.uint8)


def _autocontrast_tables(counts: jax.Array) -> jax.Array:
    """Stretch each channel to 0-255, from histograms (N, 3, 256)."""
    levels = jnp.arange(256)[None, None]
    present = counts > 0
    low = jnp.min(jnp.where(present, levels, 255), -1, keepdims=True)
    high = jnp.max(jnp.where(present, levels, 0), -1, keepdims=True)
    table = (levels - low) * (255.0 / jnp.maximum(high - low, 1)) + 1e-4  # 254.99998 is 255
    return jnp.where(high > low, jnp.clip(table, 0, 255), levels).astype(jnp.uint8)


def _contrast_tables(counts: jax.Array, factor: jax.Array) -> jax.Array:
    """Scale the distance from each image's mean gray level by (N,) factors."""
    levels = jnp.arange(256, dtype=jnp.float32)[None, None]
    means = (counts * levels).sum(-1) / counts.sum(-1)  # (N, 3)
    mean = jnp.floor((means * (jnp.array(_GRAY) / 65536)[None]).sum(-1) + 0.5)[:, None, None]
    return _truncate(mean + factor[:, None, None] * (levels - mean))


def _adjust_saturation(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Scale the distance from the grayscale image by (N,) factors."""
    red, green, blue = (images[..., i].astype(jnp.int32) * _GRAY[i] for i in range(3))
    gray = ((red + green + blue + 0x8000) >> 16).astype(jnp.uint8)
    return _blend(jnp.broadcast_to(gray[..., None], images.shape), images, factor)


def _adjust_sharpness(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Scale the distance from the smoothed image by (N,) factors; the border is unchanged."""
    pixels = images.astype(jnp.int32)
    # A window, not nine shifted images: XLA would compute all that comes before it nine times.
    sums = lax.reduce_window(pixels, 0, lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "VALID")
    sums += 4 * pixels[:, 1:-1, 1:-1]
    smooth = images.at[:, 1:-1, 1:-1].set(((2 * sums + 13) // 26).astype(jnp.uint8))  # sums / 13
    return _blend(smooth, images, factor)


def _blend(first: jax.Array, second: jax.Array, factor: jax.Array) -> jax.Array:
    first, second = first.astype(jnp.float32), second.astype(jnp.float32)
    return _truncate(first + factor[:, None, None, None] * (second - first))


def _truncate(levels: jax.Array) -> jax.Array:
    return jnp.clip(levels, 0, 255).astype(jnp.uint8)  # as Pillow's blend does it
