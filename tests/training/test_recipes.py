"""Recipes: what each sets and teaches, what overrides it, and the lessons' own numbers."""

import dataclasses
import shlex

import numpy as np
import pytest
from flax import nnx
from support.tiny_run import make_images

from vggjax.cli.main import main
from vggjax.errors import ConfigError
from vggjax.models.head import Head
from vggjax.models.network import Network
from vggjax.models.params import shapes
from vggjax.training.config import Config
from vggjax.training.freezing import label_layers, peak_rates, plan_stages
from vggjax.training.prepare import prepare_run
from vggjax.training.recipes import (
    RECIPES,
    command_of,
    lesson_of,
    make_config,
    recipe_fields,
)
from vggjax.training.settings.best import choose_for

LESSON_NAMES = """cats-vs-dogs cats-vs-dogs-vgg19 fruits flowers flowers-augmented flowers-finetune
cifar10-frozen cifar10-collapse cifar10-finetune cifar10-scratch mnist-cnn cifar10-cnn
cifar10-cnn-dropout cifar10-cnn-wide cifar10-cnn-deep-bn cnn-conv cnn-pool-bn cnn-dropout
cnn-early-stopping""".split()

CLASSES = {"cats_vs_dogs": 2, "tf_flowers": 5, "cifar10": 10, "mnist": 10}


def config_of(name, **flags):
    own = RECIPES[name].settings.get("dataset", "photos")
    return Config(**(recipe_fields(name, own) | flags))


def counts(name, num_classes):
    """Count the parameters (that train in the last stage, of all) without allocating them."""
    config = config_of(name)
    head = Head.parse(config.head).for_classes(num_classes)
    model = nnx.eval_shape(lambda: Network(config.model, head=head, image_size=config.image_size))
    labels = label_layers(model, plan_stages(config)[-1].unfreeze)
    sizes = {
        layer: sum(int(np.prod(s)) for n, s in params.items() if n not in ("mean", "var"))
        for layer, params in shapes(model).items()
    }
    return sum(n for layer, n in sizes.items() if labels[layer] != "frozen"), sum(sizes.values())


@pytest.mark.parametrize(
    ("name", "num_classes", "trained", "total"),
    [
        ("fruits", 131, 603_779, 15_318_467),
        ("flowers", 5, 590_597, 15_305_285),
        ("cats-vs-dogs", 2, 6_423_041, 21_137_729),
        ("cats-vs-dogs-vgg19", 2, 25_089, 20_049_473),
        ("cifar10-frozen", 10, 33_482, 14_748_170),
        ("cifar10-collapse", 10, 14_748_170, 14_748_170),
        ("cifar10-finetune", 10, 14_748_170, 14_748_170),
        ("mnist-cnn", 10, 258_090, 258_090),
        ("cifar10-cnn", 10, 122_570, 122_570),
        ("cifar10-cnn-wide", 10, 486_794, 486_794),
    ],
)
def test_the_parameter_counts_are_those_of_the_lessons(name, num_classes, trained, total):
    assert counts(name, num_classes) == (trained, total)


def test_every_lesson_has_a_recipe_with_a_description():
    assert set(LESSON_NAMES) < set(RECIPES)
    for name, lesson in RECIPES.items():
        for text in (lesson.title, lesson.teaches, lesson.source, lesson.figure):
            assert "\n" not in text and "  " not in text, name
        assert lesson.teaches.endswith(".") and len(lesson.teaches) < 600, name
        assert lesson.title and lesson.source, name


FIXED = [name for name, recipe in RECIPES.items() if recipe.trains and not recipe.chooses]


@pytest.mark.parametrize("name", FIXED)
def test_every_recipe_is_a_valid_config_and_its_command_gives_it(name, monkeypatch):
    config = config_of(name)
    assert config.recipe == name
    assert lesson_of(config) is RECIPES[name]
    configs = []
    monkeypatch.setattr("vggjax.api.fit", lambda config: configs.append(config) or 1 / 0)
    words = shlex.split(command_of(name))
    assert words[:2] == ["vggjax", "train"]
    with pytest.raises(ZeroDivisionError):
        main(["train", *words[2:]])
    field, example, _ = RECIPES[name].needs or ("recipe", name, "")
    assert dataclasses.replace(configs[0], **{field: getattr(config, field)}) == config
    assert getattr(configs[0], field) == example


def test_a_recipe_wins_over_the_default_and_a_flag_over_the_recipe():
    assert Config().dataset == "digits"
    assert make_config("flowers").dataset == "tf_flowers"
    assert make_config("flowers", dataset="photos").dataset == "photos"
    assert make_config("mnist-cnn", epochs=1, optimizer="sgd").optimizer == "sgd"


def test_a_recipe_without_the_setting_that_it_needs_is_refused():
    with pytest.raises(ConfigError, match="unpacked folder of Fruits 360: give `dataset`"):
        make_config("fruits")
    with pytest.raises(ConfigError, match="give `start_from`, as in runs/flowers-augmented"):
        make_config("flowers-finetune", dataset="photos")
    assert make_config("flowers-finetune", start_from="run").start_from == "run"


@pytest.mark.parametrize("flag", ["--start-from", "--start_from"])
def test_a_needed_setting_is_found_on_the_command_line(monkeypatch, flag):
    monkeypatch.setattr("vggjax.api.fit", lambda config: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["train", "--recipe", "flowers-finetune", flag, "runs/one"])


def test_classify_names_the_predict_command(capsys):
    assert main(["train", "--recipe", "classify"]) == 2
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == 1
    assert "vggjax predict PHOTO.jpg --weights imagenet --model vgg16" in stderr


def test_the_flowers_are_fine_tuned_with_the_settings_that_trained_their_head():
    augmented, tuned = config_of("flowers-augmented"), config_of("flowers-finetune")
    assert augmented.differences(tuned).keys() == {
        "recipe", "unfreeze", "head_epochs", "learning_rate", "backbone_learning_rate",
    }  # fmt: skip


def test_the_collapse_and_its_cure_differ_in_order_and_rates_alone():
    frozen, collapse, cure = map(config_of, ("cifar10-frozen", "cifar10-collapse",
                                             "cifar10-finetune"))  # fmt: skip
    assert frozen.differences(collapse).keys() == {
        "recipe", "unfreeze", "head_epochs", "backbone_learning_rate",
    }  # fmt: skip
    assert [stage.name for stage in plan_stages(collapse)] == ["head+all"]
    assert set(peak_rates(collapse).values()) == {1e-3}
    assert {
        "model",
        "dataset",
        "head",
        "optimizer",
        "batch_size",
        "image_size",
        "learning_rate",
    }.isdisjoint(frozen.differences(cure))
    assert [stage.name for stage in plan_stages(cure)] == ["head", "head+block5", "head+all"]
    head, *blocks = peak_rates(cure).values()
    assert max(blocks) <= head / 10 and len(set(blocks)) == 5


def test_the_recipes_command_lists_all_or_describes_one(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    for name, lesson in RECIPES.items():
        assert name in listed and lesson.figure in listed
    assert main(["recipes", "cifar10-collapse"]) == 0
    stdout = " ".join(capsys.readouterr().out.split())
    assert RECIPES["cifar10-collapse"].teaches in stdout
    assert "vggjax train --recipe cifar10-collapse" in stdout
    assert main(["recipes", "cifar10-colapse"]) == 2
    assert "Did you mean 'cifar10-collapse'" in capsys.readouterr().err


@pytest.mark.parametrize("dataset", ["photos", "cifar10", "digits"])
def test_slices_of_a_recipe_are_for_its_own_dataset(dataset):
    slices = RECIPES["cats-vs-dogs"].settings["split"]
    assert make_config("cats-vs-dogs").split == slices
    assert make_config("cats-vs-dogs", dataset="cats_vs_dogs:4.0.1").split == slices
    assert make_config("cats-vs-dogs", dataset=dataset).split == Config.split
    assert make_config("flowers", dataset=dataset).split == "0.5,0.2,0.3", "fractions fit any"


@pytest.mark.parametrize(
    ("images", "side", "chosen"),
    [
        (2000, 161, ("linear", 224, "convs3-classes")),
        (2000, 160, ("linear", 128, "convs3-classes")),
        (50_000, 48, ("linear", 64, "convs2-classes")),
        (50_001, 48, ("finetune", 64, None)),
    ],
)
def test_best_is_chosen_by_the_number_and_the_size_of_the_images(images, side, chosen):
    choice = choose_for(images, side)
    settings = choice.settings
    assert (choice.recipe, settings["image_size"], settings.get("head")) == chosen
    assert f"{images:,} training images of about {side} px" in choice.reason
    assert choose_for(images, side, is_multilabel=True).recipe == "finetune"


def test_best_tunes_small_images_with_crops_where_layers_are_unfrozen(tmp_path):
    images = str(make_images(tmp_path / "images", ("a", "b"), each=10))
    config = make_config("best", dataset=images, unfreeze=("block4", "block5"))
    assert (config.recipe, config.head, config.image_size) == ("finetune", "gap-classes", 64)
    assert (config.crop_range, config.epochs, config.head_epochs) == ((0.5, 1.0), 10, 1)
    staged = make_config("best", dataset=images, stages=("head:2", "block5:3"))
    assert (staged.crop_range, staged.num_epochs) == ((0.5, 1.0), 5)
    medium, plain = choose_for(2000, 49, unfreezes=True), choose_for(2000, 49)
    assert (medium.recipe, medium.settings) == (plain.recipe, plain.settings)
    assert medium.reason.startswith(f"{plain.reason}; the layers of")


def test_best_without_pretrained_weights_trains_every_layer(tmp_path):
    images = str(make_images(tmp_path / "images", ("a", "b"), each=10))
    config = make_config("best", dataset=images, weights="none")
    assert (config.recipe, config.unfreeze, config.head_solver) == ("scratch", ("all",), "steps")


def test_best_becomes_the_chosen_recipe_and_a_flag_wins(tmp_path, monkeypatch, capsys):
    """The run folder names the recipe itself: its command needs no choice."""
    images = str(make_images(tmp_path / "images", ("a", "b"), each=10))
    given = {"image_size": 64, "head": "convs2-classes", "seed": 3}
    expected = make_config("linear", dataset=images, **given)
    assert make_config("best", dataset=images, seed=3) == expected
    configs = []
    monkeypatch.setattr("vggjax.api.fit", lambda config: configs.append(config) or 1 / 0)
    for flags in ([], ["--image-size", "128"]):
        with pytest.raises(ZeroDivisionError):
            main(["train", images, "--recipe", "best", "--seed", "3", *flags])
    assert configs == [expected, dataclasses.replace(expected, image_size=128)]
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("Recipe best is linear at 64 px: 16 training images of about ")
    assert second.startswith("Recipe best is linear at 128 px: ")


def test_the_recipe_of_a_lesson_takes_a_folder_that_has_splits(tmp_path):
    for split in ("train", "validation", "test"):
        make_images(tmp_path / "photos" / split, ("cat", "dog"), each=5)
    run = prepare_run(
        make_config(
            "cats-vs-dogs",
            dataset=str(tmp_path / "photos"),
            model="tiny",
            weights="none",
            image_size=32,
            workdir=str(tmp_path / "run"),
        )
    )
    assert {name: len(rows) for name, rows in run.splits.items()} == dict.fromkeys(run.splits, 10)
