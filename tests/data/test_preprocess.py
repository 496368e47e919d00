"""Resizing as Pillow and Keras do, and the numbers that the weights expect."""

import json

import jax
import numpy as np
import pytest
from PIL import Image
from support.image_files import noise

from vggjax.data.images.preprocess import MODES, Preprocessing, preprocess, resize_image
from vggjax.errors import ConfigError


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest", "bicubic"])
@pytest.mark.parametrize("shape", [(48, 64), (200, 30), (32, 32), (1, 500), (1, 1), (17, 9)])
def test_squash_is_pillow_s_resize_of_the_whole_image(interpolation, shape):
    image = noise(*shape)
    resample = Image.Resampling[interpolation.upper()]
    expected = np.asarray(Image.fromarray(image).resize((32, 32), resample))
    p = Preprocessing(image_size=32, interpolation=interpolation)
    np.testing.assert_array_equal(resize_image(image, p), expected)


@pytest.mark.parametrize("resize", ["squash", "crop"])
@pytest.mark.parametrize("shape", [(48, 64), (32, 32), (20, 9)])
def test_an_image_is_resized_into_the_given_array_and_nothing_beside_it(shape, resize):
    p, batch = Preprocessing(image_size=32, resize=resize), np.zeros((3, 32, 32, 3), np.uint8)
    assert np.shares_memory(resize_image(noise(*shape), p, out=batch[1]), batch[1])
    np.testing.assert_array_equal(batch[1], resize_image(noise(*shape), p))
    assert not batch[[0, 2]].any()


@pytest.mark.parametrize("shape", [(375, 500), (500, 375), (256, 256), (224, 300), (90, 61)])
def test_crop_is_the_center_of_the_image_with_its_short_side_at_256(shape):
    image = noise(*shape)
    height, width = shape
    scale = 256 / min(shape)
    full = max(256, int(width * scale)), max(256, int(height * scale))
    resized = Image.fromarray(image).resize(full, Image.Resampling.BICUBIC)
    left, top = round((full[0] - 224) / 2), round((full[1] - 224) / 2)
    expected = np.asarray(resized.crop((left, top, left + 224, top + 224))).astype(int)
    cropped = resize_image(image, Preprocessing(resize="crop", interpolation="bicubic"))
    # Pillow's box is in float32, so that a coefficient may round the other way: one or two levels.
    assert np.abs(cropped - expected).max() <= 2 and np.abs(cropped - expected).mean() < 0.02


def test_crop_of_a_strip_allocates_nothing_for_what_is_cut_off():
    strip = np.full((1, 20_000, 3), 77, np.uint8)
    assert (resize_image(strip, Preprocessing(resize="crop")) == 77).all()


def test_caffe_is_bgr_minus_the_means_and_nothing_else():
    pixel = np.array([[[[255, 128, 0]]]], np.uint8)
    expected = np.float32([0, 128, 255]) - np.float32([103.939, 116.779, 123.68])
    np.testing.assert_array_equal(np.asarray(preprocess(pixel))[0, 0, 0], expected)


def test_torch_is_rgb_by_imagenet_s_mean_and_standard_deviation():
    pixel = np.array([[[[255, 128, 0]]]], np.uint8)
    expected = (np.array([1, 128 / 255, 0]) - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    # 128/255 - 0.456 = 0.046 loses a digit: float32's 1.2e-7 of 0.5, divided by 0.046.
    np.testing.assert_allclose(np.asarray(preprocess(pixel, "torch"))[0, 0, 0], expected, rtol=3e-6)


def test_unit_is_rgb_from_0_to_1():
    pixel = np.array([[[[255, 51, 0]]]], np.uint8)
    np.testing.assert_allclose(
        np.asarray(preprocess(pixel, "unit"))[0, 0, 0], [1, 0.2, 0], rtol=1e-6
    )


@pytest.mark.parametrize("mode", MODES)
def test_preprocess_is_the_same_in_jit_and_for_floats(mode):
    images = np.stack([noise(8, 8, seed) for seed in range(3)])
    before = images.copy()
    plain = np.asarray(preprocess(images, mode))
    assert plain.dtype == np.float32
    jitted = jax.jit(preprocess, static_argnames="mode")(images, mode=mode)
    # A compiler may multiply by 1/255: 1.2e-7 of 1, divided by torch's deviation of 0.22.
    np.testing.assert_allclose(np.asarray(jitted), plain, rtol=1e-6, atol=2e-6)
    np.testing.assert_array_equal(np.asarray(preprocess(images.astype(np.float32), mode)), plain)
    np.testing.assert_array_equal(images, before)


def test_floats_from_0_to_1_are_warned_of_outside_jit():
    images = np.random.default_rng(0).random((2, 4, 4, 3), np.float32)
    with pytest.warns(UserWarning, match="from 0 to 255.*multiply by 255"):
        preprocess(images)
    for quiet in (255 * images, np.zeros_like(images), images[:0], images.astype(np.uint8)):
        preprocess(quiet)
    jax.jit(preprocess)(images)  # warnings are errors


def test_a_preprocessing_survives_json():
    p = Preprocessing("torch", 96, "crop", "bicubic")
    assert Preprocessing.from_json(json.loads(json.dumps(p.to_json()))) == p


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"mode": "cafe"}, "Did you mean 'caffe'"),
        ({"resize": "squish"}, "Did you mean 'squash'"),
        ({"interpolation": "lanczos"}, "bilinear, nearest, bicubic"),
        ({"image_size": 0}, "above 0; got 0"),
        ({"image_size": 224.0}, "got 224.0"),
    ],
)
def test_an_impossible_field_is_refused_with_the_choices(fields, words):
    with pytest.raises(ConfigError, match=words):
        Preprocessing(**fields)


def test_a_saved_preprocessing_with_other_fields_is_refused():
    with pytest.raises(ConfigError, match="sharpen"):
        Preprocessing.from_json(Preprocessing().to_json() | {"sharpen": 1})


def test_preprocess_refuses_gray_images_and_unknown_modes():
    with pytest.raises(ConfigError, match="RGB"):
        preprocess(np.zeros((2, 8, 8, 1), np.uint8))
    with pytest.raises(ConfigError, match="torch"):
        preprocess(np.zeros((2, 8, 8, 3), np.uint8), "torhc")
