"""An image's fate depends on its own key alone; what is off changes nothing; ranges are kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vggjax.data.augment import augment as module
from vggjax.data.augment.augment import random_erasing, random_flip
from vggjax.data.augment.settings import PRESETS, Augmentation

augment = jax.jit(module.augment, static_argnums=2)  # piece by piece it would compile for minutes

LESSON = Augmentation(
    rotation_range=30, width_shift_range=0.2, height_shift_range=0.2, shear_range=20.0,
    zoom_range=(0.8, 1.2), horizontal_flip=True, channel_shift_range=20.0,
    brightness_range=(0.5, 1.5),
)  # fmt: skip
ALL = Augmentation(
    rotation_range=30, zoom_range=(0.2,), vertical_flip=True, crop_range=(0.3, 1.0),
    channel_shift_range=9.0, brightness_range=(0.8, 1.2), randaugment=(2, 9), random_erasing=0.5,
)  # fmt: skip
SOME = {"lesson": LESSON, "all": ALL, "crop-flip": PRESETS["crop-flip"]}


@pytest.fixture
def key():
    return jax.random.key(3)


@pytest.fixture
def keys(key):
    return jax.random.split(key, 64)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3), np.uint8)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_each_image_is_itself_or_numpy_s_mirror_image_of_it(keys, images, dtype):
    images = images.astype(dtype)
    out = np.asarray(random_flip(keys, images))
    assert out.dtype == dtype
    mirrored = [np.array_equal(o, np.flip(i, axis=1)) for o, i in zip(out, images, strict=True)]
    same = [np.array_equal(o, i) for o, i in zip(out, images, strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True))
    assert 16 < sum(mirrored) < 48  # a half of 64, four deviations either way


def test_a_vertical_flip_is_numpy_s_too(keys, images):
    out = np.asarray(random_flip(keys, images, horizontal=False, vertical=True))
    upside_down = [np.array_equal(o, i[::-1]) for o, i in zip(out, images, strict=True)]
    same = [np.array_equal(o, i) for o, i in zip(out, images, strict=True)]
    assert all(a != b for a, b in zip(upside_down, same, strict=True))


def test_a_flip_that_is_part_of_a_warp_is_the_flip_alone(key, images):
    warped = augment(key, images, Augmentation(horizontal_flip=True, zoom_range=(1, 1.0000001)))
    np.testing.assert_array_equal(warped, augment(key, images, PRESETS["flip"]))


def test_off_gives_the_very_same_array_back(key):
    images = jnp.zeros((2, 4, 4, 3), jnp.uint8)
    assert module.augment(key, images, Augmentation()) is images
    assert module.augment(key, images, Augmentation(mixup=0.2)) is images  # mix.py's
    assert module.augment(key, images, Augmentation(zoom_range=(1, 1), fill_mode="wrap")) is images


def test_flips_alone_gather_nothing(key, images):
    text = str(jax.make_jaxpr(lambda k, x: module.augment(k, x, PRESETS["flip"]))(key, images))
    assert "gather" not in text and "f32[64,16" not in text


@pytest.mark.parametrize("kind", SOME)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_dtype_shape_and_range_are_kept(key, images, kind, dtype):
    out = np.asarray(augment(key, images.astype(dtype), SOME[kind]))
    assert (out.dtype, out.shape) == (dtype, images.shape)
    assert out.min() >= 0 and out.max() <= 255
    assert np.isfinite(out).all()
    changed = [not np.array_equal(o, i) for o, i in zip(out, images, strict=True)]
    assert np.mean(changed) > 0.9


@pytest.mark.parametrize("kind", SOME)
def test_the_grouping_into_batches_changes_nothing(keys, images, kind):
    whole = np.asarray(augment(keys, images, SOME[kind]))
    order = np.random.default_rng(1).permutation(64)
    groups = np.split(order, 4 if kind == "lesson" else 1)  # another size is compiled anew
    parts = [np.asarray(augment(keys[o], images[o], SOME[kind])) for o in groups]
    np.testing.assert_array_equal(np.concatenate(parts), whole[order])


def test_one_key_is_a_key_for_each_row_by_its_number(key, images):
    one = augment(key, images, LESSON)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(64))
    np.testing.assert_array_equal(one, augment(keys, images, LESSON))
    old = jax.random.PRNGKey(3)
    np.testing.assert_array_equal(one, augment(old, images, LESSON))
    assert not np.array_equal(one, augment(jax.random.key(4), images, LESSON))


def test_one_thing_more_changes_no_other_draw(keys, images):
    # A full turn and no zoom: only the flips are to be seen, whatever else is drawn.
    alone = augment(keys, images, PRESETS["flip"])
    more = augment(
        keys, images, Augmentation(horizontal_flip=True, brightness_range=(0.9999999, 1))
    )
    np.testing.assert_array_equal(alone, more)


def test_a_image_of_one_color_stays_one_however_it_is_moved(key):
    images = np.broadcast_to(np.array([9, 90, 200], np.uint8), (32, 20, 20, 3))
    moved = Augmentation(
        rotation_range=180, width_shift_range=0.9, shear_range=50.0, zoom_range=(0.5, 2.0),
        crop_range=(0.1, 0.5), vertical_flip=True,
    )  # fmt: skip
    np.testing.assert_array_equal(augment(key, images, moved), images)


def test_a_crop_shows_the_drawn_share_and_never_what_lies_outside(key):
    # An image whose levels are its own coordinates tells where each pixel comes from.
    rows, columns = np.meshgrid(np.arange(64.0), np.arange(64.0), indexing="ij")
    image = np.stack([rows, columns, rows], -1).astype(np.float32)
    images = np.broadcast_to(image, (200, 64, 64, 3))
    crop = Augmentation(crop_range=(0.2, 0.6), fill_mode="constant", cval=255)
    out = np.asarray(augment(key, images, crop))
    assert out.max() <= 63 and out.min() >= 0
    tall, wide = np.ptp(out[..., 0], (1, 2)) / 63, np.ptp(out[..., 1], (1, 2)) / 63
    area, aspect = tall * wide, wide / tall
    assert 0.2 - 1e-3 <= area.min() < 0.24 and 0.56 < area.max() <= 0.6 + 1e-3
    assert abs(area.mean() - 0.4) < 0.03  # 200 draws: the mean's deviation is 0.008
    assert 0.75 - 1e-3 <= aspect.min() < 0.8 and 1.25 < aspect.max() <= 4 / 3 + 1e-3
    assert out[:, 0, 0, 0].max() > 18 and out[:, 0, 0, 0].min() < 5  # anywhere, not the middle


def test_a_crop_of_all_is_all_of_it(key, images):
    # No other aspect fits into the whole: torchvision's last resort.
    crop = Augmentation(crop_range=(0.9999999, 1))
    np.testing.assert_array_equal(augment(key, images, crop), images)


def test_erasing_fills_one_box_of_the_stated_size_with_noise(keys):
    images = np.full((64, 100, 100, 3), 7, np.uint8)
    out = np.asarray(random_erasing(keys, images, probability=0.75))
    changed = (out != 7).any(-1)
    shares = changed.mean((1, 2))
    assert 36 < np.count_nonzero(shares) < 60  # three quarters of 64, four deviations either way
    assert 0.01 < shares[shares > 0].min() and shares.max() < 0.34
    for i in np.flatnonzero(shares):
        rows, columns = changed[i].any(1), changed[i].any(0)
        box = out[i][np.ix_(rows, columns)]
        assert np.mean((box == 7).all(-1)) < 0.01  # all of the box, and nothing but it
        assert abs(box.mean() - 127.5) < 15
    np.testing.assert_array_equal(random_erasing(keys, images, probability=0.0), images)
