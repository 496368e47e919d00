"""RandAugment: its color operations are Pillow's, the others matrices, its draws uniform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from support.pixels import jit_quickly

from vggjax.data.augment import randaugment
from vggjax.data.augment.randaugment import OPERATIONS, Operation, operation_matrix
from vggjax.data.augment.rng import draw_numbers
from vggjax.data.augment.warp import affine_matrix, matrix

recolor = jit_quickly(randaugment.recolor)


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
def test_each_row_has_its_own_operation_pillow_s_within_one_gray_level(level):
    images = make_images()
    which = np.repeat(np.arange(len(OPERATIONS), dtype=np.int32), len(images))
    rows = np.tile(images, (len(OPERATIONS), 1, 1, 1))
    recolored = recolor(rows, Operation(which, np.full(len(rows), level, np.float32)))
    for i, image, out in zip(which, rows, np.asarray(recolored).astype(int), strict=True):
        operation = PILLOW.get(OPERATIONS[i], PILLOW["identity"])  # the others are geometric
        expected = np.asarray(operation(Image.fromarray(image), level)).astype(int)
        assert np.abs(out - expected).max() <= (1 if OPERATIONS[i] in PILLOW else 0), OPERATIONS[i]


def test_a_geometric_operation_is_one_affine_matrix_and_the_others_the_identity():
    expected = {
        "rotate": affine_matrix(theta=15.0),
        "shear-x": matrix(1, 0.15, 0, 0, 1, 0),
        "shear-y": matrix(1, 0, 0, 0.15, 1, 0),
        "translate-x": matrix(1, 0, 22.5, 0, 1, 0),
        "translate-y": matrix(1, 0, 0, 0, 1, 22.5),
    }
    which = jnp.arange(len(OPERATIONS))
    matrices = operation_matrix(Operation(which, jnp.full(len(OPERATIONS), 0.5)), size=100)
    for i, name in enumerate(OPERATIONS):
        np.testing.assert_allclose(matrices[i], expected.get(name, np.eye(3)), atol=1e-5)


def test_operations_and_signs_are_drawn_uniformly():
    numbers = jit_quickly(draw_numbers)(jax.random.split(jax.random.key(0), 4200))
    first, second = randaugment.choose_operations(numbers, num_ops=2, magnitude=5)
    for operation in (first, second):
        counts = np.bincount(operation.which, minlength=14)
        assert len(counts) == 14 and abs(counts - 300).max() < 85  # five standard deviations
        assert set(np.unique(operation.level)) == {-0.5, 0.5}
        assert 1900 < (operation.level > 0).sum() < 2300
    assert 200 < (first.which == second.which).sum() < 400
