"""The warp is scipy's affine transform, with the matrices that Keras composes."""

from typing import get_args

import numpy as np
import pytest
from scipy import ndimage
from support.pixels import jit_quickly

from vggjax.data.augment.settings import FillMode
from vggjax.data.augment.warp import affine_matrix, compose, in_box, matrix
from vggjax.data.augment.warp import warp as warp_eagerly

warp = jit_quickly(warp_eagerly, static_argnames=("fill_mode", "cval"))


def make_images(count=4, size=40):
    """Return half smooth, half random images: uint8 (count, S, S, 3)."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count // 2, 5, 5, 3))
    smooth = np.clip(ndimage.zoom(coarse, (1, size / 5, size / 5, 1), order=1), 0, 255)
    texture = rng.integers(0, 256, (count - count // 2, size, size, 3))
    return np.concatenate([smooth, texture]).astype(np.uint8)


def draw_parameters(count, size):
    """Return rotations by any angle, and shifts that move images out of sight: borders matter."""
    rng = np.random.default_rng(1)
    return {
        "theta": rng.uniform(-180, 180, count),
        "tx": rng.uniform(-2 * size, 2 * size, count),
        "ty": rng.uniform(-2 * size, 2 * size, count),
        "shear": rng.uniform(-40, 40, count),
        "zx": rng.uniform(0.5, 1.6, count),
        "zy": rng.uniform(0.5, 1.6, count),
    }


def keras_matrix(theta, tx, ty, shear, zx, zy):
    """Return the float64 matrix of (x, y, 1) that Keras' apply_affine_transform composes."""
    theta, shear = np.deg2rad(theta), np.deg2rad(shear)
    rotation = [[np.cos(theta), -np.sin(theta), 0], [np.sin(theta), np.cos(theta), 0], [0, 0, 1]]
    shift = [[1, 0, tx], [0, 1, ty], [0, 0, 1]]
    sheared = [[1, -np.sin(shear), 0], [0, np.cos(shear), 0], [0, 0, 1]]
    return np.array(rotation) @ shift @ sheared @ np.diag([zx, zy, 1])


def scipy_warp(image, transform, fill_mode, cval):
    """Resample one image with `transform` about its center, by scipy, channel by channel."""
    center = np.array(image.shape[:2]) / 2 - 0.5
    swapped = transform[[1, 0, 2]][:, [1, 0, 2]]  # from (x, y) to (row, column)
    linear, shift = swapped[:2, :2], swapped[:2, 2]
    offset = center - linear @ center + shift
    options = dict(order=1, mode=fill_mode, cval=cval)
    channels = [
        ndimage.affine_transform(image[..., c].astype(np.float64), linear, offset, **options)
        for c in range(3)
    ]
    return np.stack(channels, -1)


@pytest.mark.parametrize("fill_mode", get_args(FillMode))
def test_a_warp_has_scipy_s_pixels_with_keras_matrices(fill_mode):
    images = make_images()
    parameters = draw_parameters(len(images), 40)
    given = {name: values.astype(np.float32) for name, values in parameters.items()}
    warped = np.asarray(warp(images, affine_matrix(**given), fill_mode=fill_mode, cval=77.0))
    for i, image in enumerate(images):
        transform = keras_matrix(*(values[i] for values in parameters.values()))
        expected = scipy_warp(image, transform, fill_mode, 77.0)
        # float32 coordinates of up to 200 px are off by 1e-4 px at most, of slopes up to 255.
        assert np.mean(np.abs(warped[i] - expected) <= 0.05) >= 0.999


@pytest.mark.parametrize("fill_mode", get_args(FillMode))
def test_shifts_by_whole_pixels_are_exact_also_past_the_border(fill_mode):
    images = make_images(2, size=24)
    for name in ("tx", "ty"):
        for shift in (1.0, -5.0, 30.0, -49.0):
            moves = affine_matrix(**{name: np.full(2, shift, np.float32)})
            warped = warp(images, moves, fill_mode=fill_mode, cval=9.0)
            zeros = dict.fromkeys(("theta", "tx", "ty", "shear"), 0.0)
            transform = keras_matrix(**zeros | {name: shift}, zx=1.0, zy=1.0)
            for image, moved in zip(images, warped, strict=True):
                expected = scipy_warp(image, transform, fill_mode, 9.0)
                np.testing.assert_allclose(moved, expected, atol=1e-3)


def test_what_is_composed_later_is_applied_later():
    images = make_images()
    parameters = draw_parameters(len(images), 10)
    given = {name: values.astype(np.float32) for name, values in parameters.items()}
    first = affine_matrix(**given)
    flipped = warp(images, compose(first, matrix(-1, 0, 0, 0, -1, 0)), fill_mode="reflect")
    expected = np.asarray(warp(images, first, fill_mode="reflect"))[:, ::-1, ::-1]
    np.testing.assert_allclose(flipped, expected, atol=0.05)


def test_an_image_that_is_wider_than_high_rotates_about_its_own_center():
    image = np.zeros((1, 5, 9, 3), np.uint8)
    image[0, 2, 6] = 200
    warped = warp(image, affine_matrix(theta=np.array([90.0], np.float32)), fill_mode="constant")
    assert np.argwhere(np.asarray(warped)[0, :, :, 0] > 100).tolist() == [[0, 4]]


def test_a_box_holds_the_pixels_whose_center_lies_in_it():
    sides = {name: np.array([value]) for name, value in zip(
        ("top", "left", "height", "width"), (0.6, 1.5, 2.0, 1.0), strict=True
    )}  # fmt: skip
    (box,) = np.asarray(in_box((4, 5), **sides))
    assert np.argwhere(box).tolist() == [[1, 1], [2, 1]]
