"""Augment training images on the device, inside the jitted step.

In and out: (N, S, S, 3), 0-255, uint8 or float, the dtype kept: uint8 is rounded once, at the end.
`key` is one PRNG key, from which each row gets its own by its number, or (N,) keys. What happens to
an image depends on its key alone, not on its place in the batch.

The draws are distributed as ImageDataGenerator's: each axis is scaled by itself, and settings.py
has the units. Only the shifts are not swapped, as they are there (keras issue 17398).

`mix` mixes images with one another, labels included: mixup and CutMix. The partner of a row is the
next row whose mask is 1, the last one's the first: the epoch's order is random already. A row of
mask 0, padding or unreadable, is never mixed into another. Rows are those of the global batch,
which pmap gathers along `axis_name`: four devices mix what one would.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vggjax.data.augment import randaugment
from vggjax.data.augment.rng import beta, between, draw_numbers, noise, per_example_keys
from vggjax.data.augment.settings import (
    Augmentation,
    is_affine,
    is_on,
    randaugment_of,
    zoom_bounds,
)
from vggjax.data.augment.warp import affine_matrix, compose, in_box, matrix, warp


class Transform(NamedTuple):
    """The drawn parameters of a batch, (N,) each, with Keras' names; None is off."""

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


class Mixed(NamedTuple):
    """A mixed batch; a row with `share` 1 is unchanged."""

    images: jax.Array
    """(N, S, S, 3), the dtype kept."""
    other: jax.Array
    """int32 (N,): the partner's label."""
    share: jax.Array
    """float32 (N,): the weight, 0 to 1, of the row's own label."""


def augment(key: jax.Array, images: jax.Array, augmentation: Augmentation) -> jax.Array:
    """Apply every augmentation that is on except mixup and CutMix.

    In this order: crop, rotation, shifts, shear, zoom, flips and RandAugment's geometric operations
    (as one matrix and one resampling: a rotated crop shows what lies beside the crop, not a fill),
    channel shift, brightness, RandAugment's color operations, erasing.
    """
    a, dtype = augmentation, images.dtype
    if not is_on(a):
        return images
    num_ops, magnitude = randaugment_of(a)
    keys, size = per_example_keys(key, len(images)), images.shape[1]
    numbers = draw_numbers(keys)
    t = make_transform(numbers, a, size=size)
    operations = randaugment.choose_operations(numbers, num_ops=num_ops, magnitude=magnitude)
    if is_affine(a) or operations:
        matrices = compose(
            _crop_matrix(numbers, a.crop_range, size),
            affine_matrix(theta=t.theta, tx=t.tx, ty=t.ty, shear=t.shear, zx=t.zx, zy=t.zy),
            matrix(1 - 2 * t.flip_horizontal, 0, 0, 0, 1 - 2 * t.flip_vertical, 0),
            *(randaugment.operation_matrix(operation, size=size) for operation in operations),
        )
        images = warp(images, matrices, fill_mode=a.fill_mode, cval=a.cval)
    else:
        if a.horizontal_flip:
            flips = t.flip_horizontal[:, None, None, None]
            images = jnp.where(flips, images[:, :, ::-1], images)
        if a.vertical_flip:
            images = jnp.where(t.flip_vertical[:, None, None, None], images[:, ::-1], images)
    if t.channel_shift is not None:
        images = shift_channels(images, t.channel_shift)
    if t.brightness is not None:
        images = adjust_brightness(images, t.brightness)
    if operations:
        images = to_dtype(images, jnp.uint8)
        for operation in operations:
            images = randaugment.recolor(images, operation)
    images = to_dtype(images, dtype)
    if a.random_erasing:
        images = random_erasing(keys, images, probability=a.random_erasing)
    return images


def draw_flips(key: jax.Array, augmentation: Augmentation, *, rows: int) -> jax.Array:
    """Return the flips that `augment` draws for `rows` images, int32 (N,): see `finite_views`."""
    numbers = draw_numbers(per_example_keys(key, rows))
    horizontal, vertical = _flips(numbers, augmentation)
    return horizontal + 2 * vertical


def flip(images: jax.Array, view: jax.Array) -> jax.Array:
    """Flip all images by the number `view`, (): see `finite_views`."""
    images = jnp.where((view & 1) > 0, images[:, :, ::-1], images)
    return jnp.where((view & 2) > 0, images[:, ::-1], images)


def random_erasing(key: jax.Array, images: jax.Array, *, probability: float = 0.5) -> jax.Array:
    """Fill a box of 2 to 33 % of the area, aspect 0.3 to 3.3, with noise (Zhong et al., 2017)."""
    keys = per_example_keys(key, len(images))
    height, width = images.shape[1:3]
    number = draw_numbers(keys)["erasing"]
    area, log_aspect = 0.02 + 0.31 * number[:, 1], jnp.log(3.3) * (2 * number[:, 2] - 1)
    box_height = jnp.minimum(jnp.sqrt(area * jnp.exp(log_aspect)), 1) * height
    box_width = jnp.minimum(jnp.sqrt(area / jnp.exp(log_aspect)), 1) * width
    box = in_box(
        (height, width),
        top=number[:, 3] * (height - box_height),
        left=number[:, 4] * (width - box_width),
        height=box_height,
        width=box_width,
    )
    box &= (number[:, 0] < probability)[:, None, None]
    filling = noise(keys, (height, width)).astype(images.dtype)
    return jnp.where(box[..., None], filling, images)


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


def make_transform(numbers: dict[str, jax.Array], a: Augmentation, *, size: int) -> Transform:
    """Return the parameters for images of `size` px, from the rows of `draw_numbers`."""
    level = a.channel_shift_range

    def uniform(name: str, low: float, high: float) -> jax.Array:
        return between(numbers[name][:, 0], low, high)

    zoom = between(numbers["zoom"], *zoom_bounds(a))
    flip_horizontal, flip_vertical = _flips(numbers, a)
    return Transform(
        theta=uniform("rotation", -a.rotation_range, a.rotation_range),
        tx=_shift(numbers["width"], a.width_shift_range, size),
        ty=_shift(numbers["height"], a.height_shift_range, size),
        shear=uniform("shear", -a.shear_range, a.shear_range),
        zx=zoom[:, 0],
        zy=zoom[:, 1],
        flip_horizontal=flip_horizontal,
        flip_vertical=flip_vertical,
        channel_shift=uniform("channels", -level, level) if level else None,
        brightness=uniform("brightness", *a.brightness_range) if a.brightness_range else None,
    )


def shift_channels(images: jax.Array, amount: jax.Array) -> jax.Array:
    """Add (N,) levels, clipped to each image's own minimum and maximum; the result is float32."""
    # On bytes, as Pillow would see them: for floats that were just resampled XLA's min and max
    # (jax 0.10.2) take 7 ms for an image of 224 px on a CPU core, for bytes 1 ms.
    levels = to_dtype(images, jnp.uint8)
    low, high = (f(levels, axis=(1, 2, 3), keepdims=True) for f in (jnp.min, jnp.max))
    pixels = images.astype(jnp.float32) + amount[:, None, None, None]
    return jnp.clip(pixels, low.astype(jnp.float32), high.astype(jnp.float32))


def adjust_brightness(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiply by (N,) factors, clipped to 0-255; the result is float32."""
    return jnp.clip(images.astype(jnp.float32) * factor[:, None, None, None], 0, 255)


def to_dtype(images: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Cast images; floats become integers rounded and clipped to 0-255, not wrapped."""
    if images.dtype == dtype or jnp.issubdtype(dtype, jnp.floating):
        return images.astype(dtype)
    return jnp.clip(jnp.round(images), 0, 255).astype(dtype)


def _flips(numbers: dict[str, jax.Array], a: Augmentation) -> tuple[jax.Array, jax.Array]:
    pairs = (("horizontal", a.horizontal_flip), ("vertical", a.vertical_flip))
    horizontal, vertical = ((numbers[name][:, 0] < 0.5) & is_on for name, is_on in pairs)
    return horizontal, vertical


def _shift(numbers: jax.Array, span: int | float, size: int) -> jax.Array:
    if isinstance(span, int) and span:  # numpy.random.choice(span), times -1 or 1
        return jnp.floor(numbers[:, 0] * span) * jnp.where(numbers[:, 1] < 0.5, -1.0, 1.0)
    span = span * size if span < 1 else span
    return between(numbers[:, 0], -span, span)


def _crop_matrix(
    numbers: dict[str, jax.Array], crop_range: tuple[float, ...], size: int
) -> jax.Array:
    """Return torchvision's RandomResizedCrop: the first of ten boxes that fits, else everything."""
    if not crop_range:
        return matrix(1, 0, 0, 0, 1, 0)
    area = between(numbers["crop area"], crop_range[0], crop_range[1])  # (N, 10)
    aspect = jnp.exp(between(numbers["crop aspect"], -math.log(4 / 3), math.log(4 / 3)))
    width, height = jnp.sqrt(area * aspect), jnp.sqrt(area / aspect)
    fits = (width <= 1) & (height <= 1)
    first = jnp.argmax(fits, axis=1)[:, None]
    sides = jnp.stack([jnp.take_along_axis(s, first, 1)[:, 0] for s in (width, height)], -1)
    sides = jnp.where(fits.any(1)[:, None], sides, 1.0)  # (N, 2)
    # The outermost pixels' centers stay inside: a crop shows nothing that is not in the image.
    max_offset = (1 - sides) * (size - 1) / 2
    offset = max_offset * between(numbers["crop place"], -1, 1)
    return matrix(sides[:, 0], 0, offset[:, 0], 0, sides[:, 1], offset[:, 1])
