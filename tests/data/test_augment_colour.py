"""RandAugment's operations are Pillow's, its movements the one warp's, and its draws even."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from vggjax.data.augment import randaugment
from vggjax.data.augment.augment import to_dtype
from vggjax.data.augment.randaugment import OPERATIONS, Operation, operation_matrix
from vggjax.data.augment.rng import draw_numbers
from vggjax.data.augment.warp import affine_matrix, matrix

recolor = jax.jit(randaugment.recolor)


def make_images():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (4, 5, 5, 3), np.uint8)
    smooth = [np.asarray(Image.fromarray(c).resize((40, 40), 3)) for c in coarse]
    dull = rng.integers(90, 140, (1, 40, 40, 3), np.uint8)
    flat = np.full((1, 40, 40, 3), 77, np.uint8)
    texture = rng.integers(0, 256, (2, 40, 40, 3), np.uint8)
    return np.concatenate([smooth, dull, flat, texture])


def solarize(image, level):
    return ImageOps.solarize(image, 255 * (1 - abs(level)))


PILLOW = {
    "identity": lambda image, level: image,
    "autocontrast": lambda image, level: ImageOps.autocontrast(image),
    "equalize": lambda image, level: ImageOps.equalize(image),
    "posterize": lambda image, level: ImageOps.posterize(image, 8 - round(4 * abs(level))),
    "solarize": solarize,
    "contrast": lambda image, level: ImageEnhance.Contrast(image).enhance(1 + 0.9 * level),
    "brightness": lambda image, level: ImageEnhance.Brightness(image).enhance(1 + 0.9 * level),
    "color": lambda image, level: ImageEnhance.Color(image).enhance(1 + 0.9 * level),
    "sharpness": lambda image, level: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * level),
}


@pytest.mark.parametrize("level", [-0.9, 0.3, 1.0])
@pytest.mark.parametrize("name", PILLOW)
def test_an_operation_is_pillow_s_within_one_gray_level(name, level):
    images = make_images()
    which = np.full(len(images), OPERATIONS.index(name), np.int32)
    found = recolor(images, Operation(which, np.full(len(images), level, np.float32)))
    for image, out in zip(images, np.asarray(found).astype(int), strict=True):
        expected = np.asarray(PILLOW[name](Image.fromarray(image), level)).astype(int)
        assert np.abs(out - expected).max() <= 1


def test_every_row_does_its_own_operation_and_no_other_s():
    images = np.broadcast_to(make_images()[:1], (len(OPERATIONS), 40, 40, 3))
    which = np.arange(len(OPERATIONS), dtype=np.int32)
    level = np.full(len(OPERATIONS), 0.9, np.float32)
    together = np.asarray(recolor(images, Operation(which, level)))
    for i, name in enumerate(OPERATIONS):
        if name in PILLOW:
            expected = np.asarray(PILLOW[name](Image.fromarray(images[i]), 0.9)).astype(int)
            assert np.abs(together[i] - expected).max() <= 1, name
        else:
            np.testing.assert_array_equal(together[i], images[i])


def test_a_movement_is_one_affine_matrix_and_the_rest_move_nothing():
    expected = {
        "rotate": affine_matrix(theta=15.0),
        "shear-x": matrix(1, 0.15, 0, 0, 1, 0),
        "shear-y": matrix(1, 0, 0, 0.15, 1, 0),
        "translate-x": matrix(1, 0, 22.5, 0, 1, 0),
        "translate-y": matrix(1, 0, 0, 0, 1, 22.5),
    }
    which = jnp.arange(len(OPERATIONS))
    found = operation_matrix(Operation(which, jnp.full(len(OPERATIONS), 0.5)), size=100)
    for i, name in enumerate(OPERATIONS):
        np.testing.assert_allclose(found[i], expected.get(name, np.eye(3)), atol=1e-5)


def test_each_operation_is_drawn_as_often_and_to_both_sides():
    numbers = draw_numbers(jax.random.split(jax.random.key(0), 4200))
    first, second = randaugment.choose_operations(numbers, num_ops=2, magnitude=5)
    for drawn in (first, second):
        counts = np.bincount(drawn.which, minlength=14)
        assert len(counts) == 14 and abs(counts - 300).max() < 85  # five deviations
        assert set(np.unique(drawn.level)) == {-0.5, 0.5}
        assert 1900 < (drawn.level > 0).sum() < 2300
    assert 200 < (first.which == second.which).sum() < 400


def test_rounding_to_bytes_clips_and_does_not_wrap():
    levels = jnp.array([-3.0, 0.4, 0.6, 254.6, 300.0])
    np.testing.assert_array_equal(to_dtype(levels, jnp.uint8), [0, 0, 1, 255, 255])
