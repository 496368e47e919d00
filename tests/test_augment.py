"""Flips are numpy's flips, and a picture's fate depends on its own key alone."""

import jax
import numpy as np
import pytest

from vggjax.data.augment import augment, random_flip
from vggjax.errors import ConfigError


@pytest.fixture
def keys():
    return jax.random.split(jax.random.key(3), 64)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (64, 6, 5, 3), np.uint8)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_each_picture_is_itself_or_numpy_s_mirror_image_of_it(keys, images, dtype):
    images = images.astype(dtype)
    out = np.asarray(random_flip(keys, images))
    assert out.dtype == dtype
    mirrored = [np.array_equal(o, np.flip(i, axis=1)) for o, i in zip(out, images, strict=True)]
    same = [np.array_equal(o, i) for o, i in zip(out, images, strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True))
    assert 16 < sum(mirrored) < 48  # a half of 64, five deviations either way


def test_the_grouping_into_batches_changes_nothing(keys, images):
    whole = np.asarray(random_flip(keys, images))
    order = np.random.default_rng(1).permutation(64)
    parts = [np.asarray(random_flip(keys[o], images[o])) for o in np.split(order, [7, 8, 40])]
    np.testing.assert_array_equal(np.concatenate(parts), whole[order])


def test_flips_are_the_same_in_jit(keys, images):
    np.testing.assert_array_equal(jax.jit(random_flip)(keys, images), random_flip(keys, images))


def test_none_changes_nothing_and_flip_flips(keys, images):
    np.testing.assert_array_equal(augment(keys, images, "none"), images)
    np.testing.assert_array_equal(augment(keys, images, "flip"), random_flip(keys, images))


def test_an_unknown_augmentation_is_refused_with_the_nearest_one(keys, images):
    with pytest.raises(ConfigError, match="Did you mean 'flip'"):
        augment(keys, images, "flips")
