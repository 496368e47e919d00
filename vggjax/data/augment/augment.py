"""Random changes to training images, on the device, inside the jitted step.

In and out: (N, S, S, 3) of 0-255, uint8 or float, the dtype kept: uint8 is rounded once, at the
end. `key` is one PRNG key, which gives each row a key of its own by its number, or (N,) keys. What
happens to an image depends on its own key alone, neither on its place in the batch nor on its
neighbors. What is off costs nothing. Mixing images with one another is in mix.py.
"""

import math

import jax
import jax.numpy as jnp

from vggjax.data.augment import color, randaugment
from vggjax.data.augment.rng import between, draw_numbers, noise, per_example_keys
from vggjax.data.augment.settings import Augmentation, is_affine, is_on, randaugment_of
from vggjax.data.augment.transform import Transform, make_transform
from vggjax.data.augment.warp import affine_matrix, compose, in_box, matrix, warp


def augment(key: jax.Array, images: jax.Array, augmentation: Augmentation) -> jax.Array:
    """Applies all that is on but mixup and CutMix.

    In this order: crop, rotation, shifts, shear, zoom, flips and RandAugment's movements (these as
    one matrix and one resample: a turned crop shows what lies beside the crop, not a fill), channel
    shift, brightness, RandAugment's other operations, erasing.
    """
    a, dtype = augmentation, images.dtype
    if not is_on(a):
        return images
    ops, magnitude = randaugment_of(a)
    keys, size = per_example_keys(key, len(images)), images.shape[1]
    numbers = draw_numbers(keys)
    drawn = make_transform(numbers, a, size=size)
    chosen = randaugment.choose_operations(numbers, ops=ops, magnitude=magnitude)
    if is_affine(a) or ops:
        moves = compose(
            _crop_matrix(numbers, a.crop_range, size),
            affine_matrix(
                theta=drawn.theta, tx=drawn.tx, ty=drawn.ty,
                shear=drawn.shear, zx=drawn.zx, zy=drawn.zy,
            ),
            _flip_matrix(drawn),
            *(randaugment.movement(operation, size=size) for operation in chosen),
        )  # fmt: skip
        images = warp(images, moves, fill_mode=a.fill_mode, cval=a.cval)
    else:
        images = random_flip(keys, images, horizontal=a.horizontal_flip, vertical=a.vertical_flip)
    if drawn.channel_shift is not None:
        images = color.shift_channels(images, drawn.channel_shift)
    if drawn.brightness is not None:
        images = color.brighten(images, drawn.brightness)
    if ops:
        images = color.to_dtype(images, jnp.uint8)
        for operation in chosen:
            images = randaugment.recolor(images, operation)
    images = color.to_dtype(images, dtype)
    if a.random_erasing:
        images = random_erasing(keys, images, probability=a.random_erasing)
    return images


def random_flip(
    key: jax.Array, images: jax.Array, *, horizontal: bool = True, vertical: bool = False
) -> jax.Array:
    """Mirrors each image left to right, and top to bottom, each with probability one half."""
    numbers = draw_numbers(per_example_keys(key, len(images)))
    if horizontal:
        flipped = numbers["horizontal"][:, 0] < 0.5
        images = jnp.where(flipped[:, None, None, None], images[:, :, ::-1], images)
    if vertical:
        flipped = numbers["vertical"][:, 0] < 0.5
        images = jnp.where(flipped[:, None, None, None], images[:, ::-1], images)
    return images


def random_erasing(key: jax.Array, images: jax.Array, *, probability: float = 0.5) -> jax.Array:
    """Fills a box of 2 to 33 % of the area, aspect 0.3 to 3.3, with noise (Zhong et al., 2017)."""
    keys = per_example_keys(key, len(images))
    height, width = images.shape[1:3]
    number = draw_numbers(keys)["erasing"]
    area, log_aspect = 0.02 + 0.31 * number[:, 1], jnp.log(3.3) * (2 * number[:, 2] - 1)
    tall = jnp.minimum(jnp.sqrt(area * jnp.exp(log_aspect)), 1) * height
    wide = jnp.minimum(jnp.sqrt(area / jnp.exp(log_aspect)), 1) * width
    box = in_box(
        images.shape[1:3],
        top=number[:, 3] * (height - tall),
        left=number[:, 4] * (width - wide),
        height=tall,
        width=wide,
    )
    box &= (number[:, 0] < probability)[:, None, None]
    filling = noise(keys, images.shape[1:3]).astype(images.dtype)
    return jnp.where(box[..., None], filling, images)


def _flip_matrix(drawn: Transform) -> jax.Array:
    x, y = (jnp.where(flip, -1.0, 1.0) for flip in (drawn.flip_horizontal, drawn.flip_vertical))
    return matrix(x, 0, 0, 0, y, 0)


def _crop_matrix(
    numbers: dict[str, jax.Array], crop_range: tuple[float, ...], size: int
) -> jax.Array:
    """Makes torchvision's RandomResizedCrop: the first of ten boxes that fits, else all of it."""
    if not crop_range:
        return matrix(1, 0, 0, 0, 1, 0)
    area = between(numbers["crop area"], *crop_range)  # (N, 10)
    aspect = jnp.exp(between(numbers["crop aspect"], -math.log(4 / 3), math.log(4 / 3)))
    width, height = jnp.sqrt(area * aspect), jnp.sqrt(area / aspect)
    fits = (width <= 1) & (height <= 1)
    first = jnp.argmax(fits, axis=1)[:, None]
    sides = jnp.stack([jnp.take_along_axis(s, first, 1)[:, 0] for s in (width, height)], -1)
    sides = jnp.where(fits.any(1)[:, None], sides, 1.0)  # (N, 2)
    # The outermost pixels' centers stay inside: a crop shows nothing that is not in the image.
    room = (1 - sides) * (size - 1) / 2
    at = room * between(numbers["crop place"], -1, 1)
    return matrix(sides[:, 0], 0, at[:, 0], 0, sides[:, 1], at[:, 1])
