"""Config refuses what cannot be run, recipes set defaults, flags win."""

import dataclasses
import json

import pytest

from vggjax.cli.main import main
from vggjax.data.augment.settings import PRESETS, Augmentation
from vggjax.errors import ConfigError
from vggjax.training.config import Config, read_config
from vggjax.training.recipes import make_config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "vgg61"}, "Did you mean 'vgg1"),
        ({"unfreeze": ("blok5",)}, "Did you mean 'block5'"),
        ({"unfreeze": ("none", "block5")}, "cannot combine none"),
        ({"image_size": 31}, "32 px or more; got 31 px"),
        ({"cross_validate": 1}, "`cross_validate` must be 0, or at least 2 folds; got 1"),
        ({"epochs": 0}, "`epochs` must be above 0; got 0"),
        ({"epochs": 2.5}, "`epochs` takes int or None; got 2.5"),
        ({"batch_size": True}, "`batch_size` takes int"),
        ({"learning_rate": float("nan")}, "finite"),
        ({"head": "gap-256-0.5"}, "POOLING"),
        ({"split": "0.5,0.5"}, "0.5,0.5"),
        ({"head_epochs": 10, "epochs": 10, "unfreeze": "block5"}, "below `epochs`, 10"),
        ({"dataset": 5}, "`dataset` takes str; got 5"),
        ({"dataset": ""}, "`dataset` is empty"),
        ({"beta2": 1.0}, "`beta2` must be from 0 to below 1; got 1.0"),
        ({"head_epochs": -1, "unfreeze": "all"}, "`head_epochs` must be at least 0; got -1"),
        ({"unfreeze": ()}, "`unfreeze` is empty"),
        ({"head_epochs": 2}, "left out if `unfreeze` is none"),
        ({"augment": "flips"}, "Unknown `augment` 'flips'. Did you mean 'flip'?"),
        ({"augment": 3}, "Unknown `augment` '3'"),
        ({"rotation_range": -1}, "`rotation_range` must be from 0 to 360; got -1"),
        ({"zoom_range": (1, 2, 3)}, "two as in 0.8 1.2; got 1 2 3"),
        ({"unfreeze": (5,)}, "`unfreeze` takes str; got (5,)"),
    ],
)
def test_invalid_settings_are_refused_with_the_fix(settings, message):
    with pytest.raises(ConfigError) as caught:
        Config(**settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


FROM_1 = "epochs batch_size num_threads devices log_every_steps plateau_patience"
FROM_0 = "seed patience epoch_images cache_mb warmup_epochs weight_decay clip_norm ema"


@pytest.mark.parametrize(
    ("field", "least"),
    [*((name, 1) for name in FROM_1.split()), *((name, 0) for name in FROM_0.split())],
)
def test_the_least_value_of_a_setting_is_accepted_and_the_next_lower_is_not(field, least):
    assert getattr(Config(**{field: least}), field) == least
    with pytest.raises(ConfigError, match=f"`{field}` must be"):
        Config(**{field: least - 1})


def test_json_gives_back_the_same_config_whole_numbers_as_whole():
    config = Config(
        unfreeze=("block4", "block5_conv3"), zoom_range=0.2, randaugment=(2, 9),
        width_shift_range=2, augment="flip",
    )  # fmt: skip
    again = Config.from_json(config.to_json())
    assert again == config
    # A whole number draws whole pixels, 2.0 any between: ImageDataGenerator's own difference.
    assert isinstance(again.width_shift_range, int)


@pytest.mark.parametrize("name", ["flip", "none"])
def test_a_config_saved_before_augmentation_had_settings_can_be_read_and_resumed(name):
    fields = json.loads(Config(dataset="photos", augment=name).to_json())
    for field in dataclasses.fields(Augmentation):
        del fields[field.name]
    old = Config.from_json(json.dumps(fields))
    assert old.augmentation == PRESETS[name]
    same = Config(dataset="photos", augment=None if name == "flip" else name)
    assert old.differences(same) == {}
    assert set(old.differences(Config(dataset="photos", augment="crop-flip"))) == {"augment"}


def test_augmentation_settings_replace_the_default_preset_and_extend_a_named_one():
    assert Config().augmentation == PRESETS["flip"]
    assert Config(rotation_range=30).augmentation == Augmentation(rotation_range=30)
    both = Config(rotation_range=30, augment="flip").augmentation
    assert both == Augmentation(rotation_range=30, horizontal_flip=True)
    assert make_config(rotation_range=30).augmentation == Augmentation(rotation_range=30)


def test_fields_are_ordered_data_augmentation_model():
    names = [field.name for field in dataclasses.fields(Config)]
    assert names[0] == "dataset"
    assert names.index("augment") + 1 == names.index("rotation_range") < names.index("model")


def test_the_command_line_takes_the_arguments_of_image_data_generator(monkeypatch, capsys):
    def refuse(config):
        raise ConfigError(f"{config.augmentation}")

    monkeypatch.setattr("vggjax.api.fit", refuse)
    line = "train --rotation-range 30 --width-shift-range 2 --height-shift-range 0.2"
    line += " --zoom-range 0.8 1.2 --shear-range 0.2 --horizontal-flip --fill-mode reflect"
    assert main(line.split()) == 2
    expected = Augmentation(
        rotation_range=30.0, width_shift_range=2, height_shift_range=0.2, zoom_range=(0.8, 1.2),
        shear_range=0.2, horizontal_flip=True, fill_mode="reflect",
    )  # fmt: skip
    assert str(expected) in capsys.readouterr().err
    assert main(["train", "--zoom-range", "0.8", "1", "2"]) == 2
    assert "two as in 0.8 1.2; got 0.8 1.0 2.0" in capsys.readouterr().err


def test_an_unknown_setting_in_a_saved_config_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"epoch": 3}')
    with pytest.raises(ConfigError, match="config.json: Unknown setting 'epoch'. Did you mean"):
        read_config(tmp_path)


@pytest.mark.parametrize("text", ["", "[1]", "null", '{"epochs": ', '{"batch_size": null}'])
def test_a_damaged_config_json_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError):
        read_config(tmp_path)


def test_the_default_is_the_recipe_of_the_digits():
    config = make_config()
    assert (config.dataset, config.model, config.weights) == ("digits", "vgg11", "none")
    assert make_config(dataset="photos").weights == "imagenet"


def test_differences_are_the_fields_that_change_the_result():
    mine = Config(epochs=3, workdir="a", num_threads=1)
    other = dataclasses.replace(mine, epochs=4, workdir="b", num_threads=2, cache_mb=0, devices=2)
    assert mine.differences(other) == {"epochs": (3, 4)}


def test_keras_weights_get_caffe_pixels_and_random_ones_torch():
    assert Config().preprocessing.mode == "caffe"
    assert Config(weights="none").preprocessing.mode == "torch"
    assert Config(weights="none", preprocess="unit").preprocessing.mode == "unit"
