"""An image's augmentation depends on its key alone; what is off changes nothing; ranges hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.pixels import assert_same_pixels, jit_quickly

from vggjax.data.augment import augment as module
from vggjax.data.augment.augment import draw_flips, flip, make_transform, random_erasing, to_dtype
from vggjax.data.augment.rng import draw_numbers
from vggjax.data.augment.settings import PRESETS, Augmentation, finite_views

augment = jit_quickly(module.augment, static_argnums=2)
erase = jit_quickly(random_erasing)
draw = jit_quickly(draw_numbers)

GEOMETRY = Augmentation(
    rotation_range=30, width_shift_range=0.2, height_shift_range=0.2, shear_range=20.0,
    zoom_range=(0.8, 1.2), horizontal_flip=True, channel_shift_range=20.0,
    brightness_range=(0.5, 1.5),
)  # fmt: skip
EVERYTHING = Augmentation(
    rotation_range=30, zoom_range=(0.2,), vertical_flip=True, crop_range=(0.3, 1.0),
    channel_shift_range=9.0, brightness_range=(0.8, 1.2), randaugment=(2, 9), random_erasing=0.5,
)  # fmt: skip


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
@pytest.mark.parametrize("axis", [0, 1])
def test_each_image_is_itself_or_its_mirror_image(keys, images, dtype, axis):
    images = images.astype(dtype)
    mirroring = Augmentation(horizontal_flip=axis == 1, vertical_flip=axis == 0)
    out = np.asarray(augment(keys, images, mirroring))
    assert out.dtype == dtype
    mirrored = [np.array_equal(o, np.flip(i, axis)) for o, i in zip(out, images, strict=True)]
    same = [np.array_equal(o, i) for o, i in zip(out, images, strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True))
    assert 16 < sum(mirrored) < 48  # half of 64, plus or minus four standard deviations


@pytest.mark.parametrize("numbers", [(0,), (0, 1), (0, 2), (0, 1, 2, 3)])
def test_flips_have_numbers_and_each_image_gets_that_of_the_flip_it_draws(keys, images, numbers):
    a = Augmentation(horizontal_flip=1 in numbers, vertical_flip=2 in numbers)
    assert finite_views(a) == numbers
    drawn = np.asarray(draw_flips(keys, a, rows=64))
    assert set(drawn) == set(numbers)
    views = np.stack([flip(images, np.int32(number)) for number in range(4)])
    expected = augment(keys, images, a) if len(numbers) > 1 else images
    np.testing.assert_array_equal(views[drawn, np.arange(64)], expected)
    assert finite_views(Augmentation(vertical_flip=True, random_erasing=0.1)) == ()
    assert finite_views(Augmentation(horizontal_flip=True, mixup=0.1)) == ()


def test_what_is_off_returns_the_same_array(key):
    images = jnp.zeros((2, 4, 4, 3), jnp.uint8)
    assert module.augment(key, images, Augmentation()) is images
    assert module.augment(key, images, Augmentation(mixup=0.2)) is images  # `mix` does it
    assert module.augment(key, images, Augmentation(zoom_range=(1, 1), fill_mode="wrap")) is images


def test_flips_alone_resample_nothing_and_are_the_flips_of_a_warp(key, images):
    text = str(jax.make_jaxpr(lambda k, x: module.augment(k, x, PRESETS["flip"]))(key, images))
    assert "gather" not in text and "f32[64,16" not in text
    warped = augment(key, images, Augmentation(horizontal_flip=True, zoom_range=(1, 1.0000001)))
    np.testing.assert_array_equal(warped, augment(key, images, PRESETS["flip"]))


@pytest.mark.parametrize(
    ("augmentation", "dtype"),
    [(EVERYTHING, np.uint8), (GEOMETRY, np.float32), (PRESETS["crop-flip"], np.uint8)],
    ids=["everything", "geometry", "crop-flip"],
)
def test_range_and_dtype_are_kept_and_the_order_of_a_batch_changes_nothing(
    keys, images, augmentation, dtype
):
    images = images.astype(dtype)
    out = np.asarray(augment(keys, images, augmentation))
    assert (out.dtype, out.shape) == (dtype, images.shape)
    assert out.min() >= 0 and out.max() <= 255 and np.isfinite(out).all()
    changed = [not np.array_equal(o, i) for o, i in zip(out, images, strict=True)]
    assert np.mean(changed) > 0.9
    order = np.random.default_rng(1).permutation(64)
    assert_same_pixels(augment(keys[order], images[order], augmentation), out[order], share=0.99)


def test_the_size_of_the_batch_changes_nothing_and_one_key_is_a_key_per_row(key, images):
    turn = Augmentation(rotation_range=90, horizontal_flip=True)
    whole = augment(key, images, turn)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(64))
    assert_same_pixels(augment(keys[:16], images[:16], turn), whole[:16])
    assert_same_pixels(augment(jax.random.PRNGKey(3), images, turn), whole)
    assert not np.array_equal(augment(jax.random.key(4), images, turn), whole)


def test_one_more_augmentation_changes_no_other_draw(keys, images):
    alone = augment(keys, images, PRESETS["flip"])
    dimmed = Augmentation(horizontal_flip=True, brightness_range=(0.9999999, 1))
    np.testing.assert_array_equal(augment(keys, images, dimmed), alone)


def test_an_image_of_one_color_is_unchanged_by_any_geometry(key):
    images = np.broadcast_to(np.array([9, 90, 200], np.uint8), (32, 20, 20, 3))
    moves = Augmentation(
        rotation_range=180, width_shift_range=0.9, shear_range=50.0, zoom_range=(0.5, 2.0),
        crop_range=(0.1, 0.5), vertical_flip=True,
    )  # fmt: skip
    np.testing.assert_array_equal(augment(key, images, moves), images)


def test_a_crop_has_the_drawn_area_and_shows_nothing_outside_the_image(key):
    # An image whose levels are its own coordinates: they show where each pixel comes from.
    rows, columns = np.meshgrid(np.arange(64.0), np.arange(64.0), indexing="ij")
    image = np.stack([rows, columns, rows], -1).astype(np.float32)
    images = np.broadcast_to(image, (200, 64, 64, 3))
    crop = Augmentation(crop_range=(0.2, 0.6), fill_mode="constant", cval=255)
    out = np.asarray(augment(key, images, crop))
    assert out.max() <= 63 and out.min() >= 0
    height, width = np.ptp(out[..., 0], (1, 2)) / 63, np.ptp(out[..., 1], (1, 2)) / 63
    area, aspect = height * width, width / height
    assert 0.2 - 1e-3 <= area.min() < 0.24 and 0.56 < area.max() <= 0.6 + 1e-3
    assert abs(area.mean() - 0.4) < 0.03  # 200 draws: the mean's standard deviation is 0.008
    assert 0.75 - 1e-3 <= aspect.min() < 0.8 and 1.25 < aspect.max() <= 4 / 3 + 1e-3
    assert out[:, 0, 0, 0].max() > 18 and out[:, 0, 0, 0].min() < 5  # anywhere, not the center


def test_a_crop_of_everything_changes_nothing(key, images):
    # No other aspect ratio fits into the whole image: torchvision's fallback.
    crop = Augmentation(crop_range=(0.9999999, 1))
    np.testing.assert_array_equal(augment(key, images, crop), images)


def test_erasing_fills_one_box_of_the_stated_size_with_noise(keys):
    images = np.full((64, 100, 100, 3), 7, np.uint8)
    out = np.asarray(erase(keys, images, probability=0.75))
    changed = (out != 7).any(-1)
    shares = changed.mean((1, 2))
    assert 36 < np.count_nonzero(shares) < 60  # 3/4 of 64, plus or minus four standard deviations
    assert 0.01 < shares[shares > 0].min() and shares.max() < 0.34
    for i in np.flatnonzero(shares):
        rows, columns = changed[i].any(1), changed[i].any(0)
        box = out[i][np.ix_(rows, columns)]
        assert np.mean((box == 7).all(-1)) < 0.01  # the whole box, and nothing else
        assert abs(box.mean() - 127.5) < 15
    np.testing.assert_array_equal(erase(keys, images, probability=0.0), images)


def test_each_axis_is_scaled_by_its_own_factor():
    numbers = draw(jax.random.split(jax.random.key(0), 500))
    transform = make_transform(numbers, Augmentation(zoom_range=0.3), size=50)
    assert abs(np.corrcoef(transform.zx, transform.zy)[0, 1]) < 0.15


def test_shifts_are_fractions_pixels_or_whole_pixels():
    numbers = draw(jax.random.split(jax.random.key(0), 500))
    for span, largest in ((0.2, 10.0), (7.5, 7.5), (1.0, 1.0)):
        transform = make_transform(numbers, Augmentation(width_shift_range=span), size=50)
        assert 0.9 * largest < np.abs(transform.tx).max() <= largest
        assert not np.any(transform.ty)
    whole = make_transform(numbers, Augmentation(height_shift_range=3), size=50)
    assert set(np.unique(whole.ty)) == {-2, -1, 0, 1, 2}


def test_rounding_to_uint8_clips_and_does_not_wrap():
    levels = jnp.array([-3.0, 0.4, 0.6, 254.6, 300.0])
    np.testing.assert_array_equal(to_dtype(levels, jnp.uint8), [0, 0, 1, 255, 255])
