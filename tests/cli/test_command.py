"""The command printed in a report reproduces the run's Config."""

import dataclasses
import shlex

import pytest

from vggjax.cli.main import main
from vggjax.report.facts import train_command
from vggjax.training.config import Config
from vggjax.training.recipes import RECIPES, make_config


@pytest.fixture
def typed(monkeypatch):
    """Return a function from a command line to its Config."""
    found = []

    def fit(config):
        found.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr("vggjax.api.fit", fit)

    def type_it(command):
        program, *words = shlex.split(command)
        assert program == "vggjax"
        main(words)
        return found.pop()

    return type_it


@pytest.mark.parametrize(
    "config",
    [
        Config(dataset="my photos/a'b"),
        make_config("digits"),
        make_config("digits", epochs=2, workdir="runs/x"),
        make_config(
            "flowers", dataset="photos", model="vgg19", unfreeze=("block5", "block4_conv1")
        ),
        make_config("finetune", dataset="photos", unfreeze=("none",), learning_rate=3e-5),
        make_config("flowers", dataset="digits", weights="none"),
        Config(dataset="photos", augment="none", split="train[:80%],train[80%:90%],train[90%:]"),
        Config(dataset="photos", zoom_range=(0.8, 1.2), horizontal_flip=True, randaugment=(2, 9)),
        Config(dataset="photos", stages=("head:1", "block5:2"), layer_decay=0.65),
        Config(dataset="photos", cross_validate=3, data_dir="/data/tfds", num_threads=2),
    ],
    ids=lambda config: config.recipe or config.dataset,
)
def test_the_printed_command_gives_the_same_config(config, typed):
    found = typed(train_command(config))
    assert dataclasses.replace(found, workdir=None) == dataclasses.replace(config, workdir=None)


TRAINED = [name for name, recipe in RECIPES.items() if recipe.trains and not recipe.chooses]


@pytest.mark.parametrize("recipe", TRAINED)
def test_the_printed_command_of_every_recipe_gives_the_same_config(recipe, typed):
    given = {"dataset": "photos"}
    if RECIPES[recipe].needs:
        field, example, _ = RECIPES[recipe].needs
        given[field] = example
    config = make_config(recipe, **given, learning_rate=3e-5)
    found = typed(train_command(config))
    assert dataclasses.replace(found, workdir=None) == config


def test_only_changed_settings_are_printed():
    assert train_command(make_config("digits")) == "vggjax train"
    assert train_command(make_config("digits", epochs=2)) == "vggjax train --epochs 2"
    config = make_config("flowers", dataset="photos", epochs=2, workdir="runs/x")
    assert train_command(config) == "vggjax train --recipe flowers --dataset photos --epochs 2"
