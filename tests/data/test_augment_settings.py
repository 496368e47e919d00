"""The settings of augmentation: bounds, presets and their description."""

import pytest

from vggjax.data.augment.settings import PRESETS, Augmentation, describe, is_on, resolve
from vggjax.errors import ConfigError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rotation_range": -5}, "`rotation_range` must be from 0 to 360; got -5"),
        ({"rotation_range": "30"}, "`rotation_range` takes float; got '30'"),
        ({"rotation_range": True}, "`rotation_range` takes float; got True"),
        ({"shear_range": 90}, "from 0 to below 90; got 90"),
        ({"width_shift_range": -0.1}, "`width_shift_range` must be at least 0; got -0.1"),
        ({"height_shift_range": float("inf")}, "finite"),
        ({"zoom_range": (0.8, 1.0, 1.2)}, "two as in 0.8 1.2; got 0.8 1.0 1.2"),
        ({"zoom_range": 1.5}, "`zoom_range` must be below 1, or two factors; got 1.5"),
        ({"zoom_range": (1.2, 0.8)}, "the lower one first; got 1.2 0.8"),
        ({"zoom_range": (0, 1.2)}, "above 0; got 0 1.2"),
        ({"zoom_range": ("a", 1)}, "`zoom_range` takes float"),
        ({"brightness_range": 0.2}, "two factors, as in 0.8 1.2; got 0.2"),
        ({"crop_range": (0.5, 2)}, "above 0 and at most 1; got 0.5 2"),
        ({"channel_shift_range": 300}, "from 0 to 255; got 300"),
        ({"fill_mode": "nearst"}, "Unknown `fill_mode` 'nearst'. Did you mean 'nearest'?"),
        ({"horizontal_flip": 1}, "`horizontal_flip` takes bool; got 1"),
        ({"randaugment": 11}, "a magnitude from 0 to 10"),
        ({"randaugment": (2.5, 9)}, "as in 2 9; got 2.5 9"),
        ({"randaugment": (1, 2, 9)}, "got 1 2 9"),
        ({"cutmix": None}, "`cutmix` takes float; got None"),
    ],
)
def test_a_value_out_of_bounds_is_refused_with_them(settings, message):
    with pytest.raises(ConfigError) as caught:
        Augmentation(**settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_arguments_of_keras_imagedatagenerator_have_the_same_names():
    augmentation = Augmentation(
        rotation_range=40, width_shift_range=0.2, height_shift_range=0.2, shear_range=0.2,
        zoom_range=0.2, horizontal_flip=True, fill_mode="nearest",
    )  # fmt: skip
    expected = "rotation 40, shifts 0.2, shear 0.2, zoom 0.8-1.2, flip, fill nearest"
    assert describe(augmentation) == expected


@pytest.mark.parametrize(
    "off",
    [
        {},
        {"zoom_range": 0},
        {"zoom_range": (1, 1)},
        {"randaugment": 0},
        {"randaugment": (2, 0)},
        {"brightness_range": (1, 1)},
        {"crop_range": (1, 1)},
        {"fill_mode": "wrap", "cval": 9},
    ],
)
def test_a_setting_that_changes_nothing_is_off(off):
    assert not is_on(Augmentation(**off))
    assert describe(resolve(Augmentation(**off), "none")) == "none"


def test_without_a_preset_images_are_flipped_unless_something_is_set():
    assert resolve(Augmentation()) == PRESETS["flip"]
    assert resolve(Augmentation(fill_mode="wrap")).horizontal_flip
    rotated = Augmentation(rotation_range=9)
    assert resolve(rotated) == rotated


def test_what_is_set_wins_over_the_preset():
    resolved = resolve(Augmentation(rotation_range=9, crop_range=(0.5, 1)), "crop-flip")
    assert resolved == Augmentation(rotation_range=9, crop_range=(0.5, 1), horizontal_flip=True)


def test_an_unknown_preset_is_refused_with_the_nearest_one():
    with pytest.raises(ConfigError, match="Did you mean 'crop-flip'"):
        resolve(Augmentation(), "cropflip")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"width_shift_range": 0.1}, "width shift 0.1, fill nearest"),
        ({"vertical_flip": True, "horizontal_flip": True}, "flips both ways"),
        ({"shear_range": 5, "fill_mode": "constant", "cval": 128}, "shear 5, fill constant 128"),
        ({"randaugment": 7, "random_erasing": 0.3}, "RandAugment 2 x 7, fill nearest, erasing 0.3"),
        ({"mixup": 0.2, "cutmix": 1.0}, "mixup 0.2, CutMix 1"),
    ],
)  # fmt: skip
def test_the_description_lists_what_is_on(settings, text):
    assert describe(Augmentation(**settings)) == text
