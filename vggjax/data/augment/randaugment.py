"""RandAugment (Cubuk et al., 2020): so many operations of 14, drawn for each image, one strength.

Magnitude 10 is the strongest: 30 degrees, a shear of 0.3, a shift by 45 % of the side, factors of
0.1 or 1.9, 4 bits, everything inverted. The movements go into the one affine matrix that everything
else goes into, so that they come before the changes of color, in the order in which they are drawn
among themselves. There the paper's code does one operation after the other, and resamples for each.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vggjax.data.augment import color
from vggjax.data.augment.warp import affine_matrix, compose, matrix

OPERATIONS = (
    "identity",
    "autocontrast",
    "equalize",
    "posterize",
    "solarize",
    "contrast",
    "brightness",
    "color",
    "sharpness",
    "rotate",
    "shear-x",
    "shear-y",
    "translate-x",
    "translate-y",
)


class Operation(NamedTuple):
    """One operation for each image of a batch."""

    which: jax.Array
    """int32 (N,), into `OPERATIONS`."""
    level: jax.Array
    """float32 (N,): the magnitude, 0 to 1, its sign drawn."""

    def level_of(self, name: str) -> jax.Array:
        """Gives the level where the operation is `name`, and 0 elsewhere."""
        return jnp.where(self.which == OPERATIONS.index(name), self.level, 0.0)


def choose_operations(
    numbers: dict[str, jax.Array], *, ops: int, magnitude: float
) -> list[Operation]:
    """Makes `ops` operations, one after the other, from `draw_numbers`' rows; none for 0."""
    which = jnp.floor(numbers["randaugment"] * len(OPERATIONS)).astype(jnp.int32)
    level = jnp.where(numbers["randaugment signs"] < 0.5, -1.0, 1.0) * (magnitude / 10)
    return [Operation(which[:, i], level[:, i]) for i in range(ops)]


def movement(operation: Operation, *, size: int) -> jax.Array:
    """Gives the affine matrices (N, 3, 3) of an operation on images of `size` px."""
    turned = affine_matrix(theta=30 * operation.level_of("rotate"))
    right = 0.45 * size * operation.level_of("translate-x")
    down = 0.45 * size * operation.level_of("translate-y")
    shear_x, shear_y = (0.3 * operation.level_of(f"shear-{axis}") for axis in "xy")
    return compose(turned, matrix(1, shear_x, right, shear_y, 1, down))  # one of the two at most


def recolor(images: jax.Array, operation: Operation) -> jax.Array:
    """Does the operation to uint8 images where it is one of color."""
    images = color.apply_tables(images, _tables(images, operation))
    images = color.saturate(images, 1 + 0.9 * operation.level_of("color"))
    return color.sharpen(images, 1 + 0.9 * operation.level_of("sharpness"))


def _tables(images: jax.Array, operation: Operation) -> jax.Array:
    counts = color.histograms(images)
    levels = jnp.arange(256)[None, None]
    level = jnp.abs(operation.level)[:, None, None]
    lost_bits = jnp.round(4 * level).astype(jnp.int32)
    scaled = (1 + 0.9 * operation.level[:, None, None]) * levels.astype(jnp.float32)
    tables = {
        "autocontrast": color.stretch_tables(counts),
        "equalize": color.equalize_tables(counts),
        "posterize": (levels >> lost_bits) << lost_bits,
        "solarize": jnp.where(levels >= 255 * (1 - level), 255 - levels, levels),
        "contrast": color.contrast_tables(counts, 1 + 0.9 * operation.level),
        "brightness": jnp.clip(scaled, 0, 255),
    }
    table = jnp.broadcast_to(levels, counts.shape).astype(jnp.uint8)
    for name, other in tables.items():
        chosen = (operation.which == OPERATIONS.index(name))[:, None, None]
        table = jnp.where(chosen, other.astype(jnp.uint8), table)
    return table
