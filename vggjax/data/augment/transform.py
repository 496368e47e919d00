"""Random numbers to the parameters that ImageDataGenerator draws, distributed as it draws them.

Its quirks are kept: a shift below 1 is a fraction and from 1 on pixels, whole pixels where it is a
whole number; shear is in degrees; each axis is stretched by itself. One is not: it crosses the two
shifts (keras issue 17398), so that its `width_shift_range` moves images up and down.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vggjax.data.augment.rng import between
from vggjax.data.augment.settings import Augmentation, zoom_bounds


class Transform(NamedTuple):
    """The parameters of a batch, (N,) each, with Keras' names; None is off."""

    theta: jax.Array
    tx: jax.Array
    """In px along the width, as `apply_affine_transform` understands it."""
    ty: jax.Array
    shear: jax.Array
    zx: jax.Array
    zy: jax.Array
    flip_horizontal: jax.Array
    flip_vertical: jax.Array
    channel_shift: jax.Array | None
    brightness: jax.Array | None


def make_transform(
    numbers: dict[str, jax.Array], augmentation: Augmentation, *, size: int
) -> Transform:
    """Makes the parameters for images of `size` px from `draw_numbers`' rows."""
    a = augmentation
    level = a.channel_shift_range

    def one(name: str, low: float, high: float) -> jax.Array:
        return between(numbers[name][:, 0], low, high)

    def flip(name: str, is_on: bool) -> jax.Array:
        return (numbers[name][:, 0] < 0.5) & is_on

    zoom = between(numbers["zoom"], *zoom_bounds(a))
    return Transform(
        theta=one("rotation", -a.rotation_range, a.rotation_range),
        tx=_shift(numbers["width"], a.width_shift_range, size),
        ty=_shift(numbers["height"], a.height_shift_range, size),
        shear=one("shear", -a.shear_range, a.shear_range),
        zx=zoom[:, 0],
        zy=zoom[:, 1],
        flip_horizontal=flip("horizontal", a.horizontal_flip),
        flip_vertical=flip("vertical", a.vertical_flip),
        channel_shift=one("channels", -level, level) if level else None,
        brightness=one("brightness", *a.brightness_range) if a.brightness_range else None,
    )


def _shift(numbers: jax.Array, span: int | float, size: int) -> jax.Array:
    if isinstance(span, int) and span:  # numpy.random.choice(span), times -1 or 1
        return jnp.floor(numbers[:, 0] * span) * jnp.where(numbers[:, 1] < 0.5, -1.0, 1.0)
    span = span * size if span < 1 else span
    return between(numbers[:, 0], -span, span)
