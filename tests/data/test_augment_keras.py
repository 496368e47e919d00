"""Keras' ImageDataGenerator itself against this package: pixels, levels and draws."""

import jax
import numpy as np
import pytest
from PIL import Image

from vggjax.data.augment.augment import adjust_brightness, augment, make_transform, shift_channels
from vggjax.data.augment.rng import draw_numbers, per_example_keys
from vggjax.data.augment.settings import Augmentation

pytestmark = [
    pytest.mark.slow,
    # Keras' legacy module calls scipy by a deprecated name.
    pytest.mark.filterwarnings("ignore:Please import `affine_transform`"),
]


@pytest.fixture(scope="module")
def legacy(keras):
    from keras.src.legacy.preprocessing import image

    return image


def make_images(count=6, size=64):
    """Return smooth images, then random ones: uint8 (2 * count, S, S, 3)."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 6, 6, 3), np.uint8)
    smooth = [np.asarray(Image.fromarray(c).resize((size, size), 3)) for c in coarse]
    return np.concatenate([smooth, rng.integers(0, 256, (count, size, size, 3), np.uint8)])


def test_channel_shift_and_brightness_are_keras_within_one_gray_level(legacy):
    images = make_images(3)[:5]
    amounts = np.array([-60, -3.3, 0, 20.5, 90], np.float32)
    factors = np.array([0, 0.35, 1, 1.2, 2.5], np.float32)
    shifted = np.asarray(shift_channels(images, amounts))
    brightened = np.asarray(adjust_brightness(images, factors))
    for i, image in enumerate(images.astype(np.float32)):
        expected = legacy.apply_channel_shift(image, amounts[i], channel_axis=2)
        np.testing.assert_allclose(shifted[i], expected, atol=1e-3)
        expected = legacy.apply_brightness_shift(image, factors[i], scale=False)
        np.testing.assert_allclose(brightened[i], expected, atol=1)


CALLS = {
    "everything": dict(
        rotation_range=30, width_shift_range=0.2, height_shift_range=0.1, shear_range=20.0,
        zoom_range=0.3, horizontal_flip=True, vertical_flip=True, channel_shift_range=20.0,
        brightness_range=(0.5, 1.2),
    ),
    "pixels": dict(width_shift_range=2.5, height_shift_range=1.0, zoom_range=(0.7, 1.0)),
    "whole pixels": dict(width_shift_range=4, height_shift_range=2),
}  # fmt: skip

KERAS_NAMES = {"channel_shift": "channel_shift_intensity", "tx": "ty", "ty": "tx"}
"""This package's names -> Keras'. Its generator swaps the shifts (keras issue 17398): those of the
width's range move images vertically."""


@pytest.mark.parametrize("call", CALLS)
def test_the_draws_are_distributed_as_keras_draws(legacy, call):
    from scipy.stats import ks_2samp

    settings, count = CALLS[call], 3000
    generator = legacy.ImageDataGenerator(**settings)
    np.random.seed(0)
    rows = [generator.get_random_transform((100, 100, 3)) for _ in range(count)]
    keys = jax.random.split(jax.random.key(0), count)
    transform = make_transform(draw_numbers(keys), Augmentation(**settings), size=100)._asdict()
    for name, values in transform.items():
        other = [row[KERAS_NAMES.get(name, name)] for row in rows]
        if values is None:
            assert set(other) == {None}, name
            continue
        values = np.broadcast_to(np.asarray(values, float), (count,))
        other = np.asarray(other, float)
        # Equal distributions exceed this with probability 0.001 (Kolmogorov-Smirnov).
        assert ks_2samp(values, other).statistic < 1.95 * np.sqrt(2 / count), name
        if call == "whole pixels":
            assert set(np.unique(values)) == set(np.unique(other)), name


def test_augment_is_keras_transform_with_the_same_parameters(legacy):
    settings = CALLS["everything"] | {"fill_mode": "reflect"}
    images, key = make_images(4), jax.random.key(5)
    compiled = jax.jit(augment, static_argnums=2)
    out = np.asarray(compiled(key, images, Augmentation(**settings))).astype(float)
    numbers = draw_numbers(per_example_keys(key, len(images)))
    transform = make_transform(numbers, Augmentation(**settings), size=64)._asdict()
    generator = legacy.ImageDataGenerator(**settings)
    for i, image in enumerate(images):
        values = {KERAS_NAMES.get(name, name): v[i].item() for name, v in transform.items()}
        values["tx"], values["ty"] = values["ty"], values["tx"]  # of apply_affine_transform
        expected = generator.apply_transform(image.astype(np.float32), values)
        # Pillow truncates levels before and after it brightens: up to two of them.
        assert np.mean(np.abs(out[i] - expected) <= 2.5) >= 0.999
