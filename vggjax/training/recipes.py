"""Recipes: named changes to Config. The precedence is default < recipe < flag.

What each teaches, and its author's figure, is in lessons.py under the same name; the figures that
it gave here stand in the README, beside the command.
"""

from collections.abc import Collection
from typing import Any

from vggjax.errors import ConfigError, unknown_name
from vggjax.models.convnets import CNNS
from vggjax.training.config import Config
from vggjax.training.lessons import LESSONS, Lesson

# As Keras' fit does: one rate from the first step to the last, and images as they are.
_PLAIN = dict(schedule="constant", warmup_epochs=0.0, augment="none")

_FROZEN = _PLAIN | dict(unfreeze=("none",))

# tfds has shuffled this dataset: slices of it have as many cats as dogs, but for chance.
_FOUR_THOUSAND = "train[:2000],train[2000:3000],train[3000:4000]"

_FLOWERS = _FROZEN | dict(
    dataset="tf_flowers", model="vgg16", image_size=200, head="avg2-128-0.4-classes",
    split="0.5,0.2,0.3", optimizer="nadam", learning_rate=1e-3, beta1=0.9, beta2=0.99,
    batch_size=32, epoch_images=640, epochs=100,
)  # fmt: skip

_FLOWERS_DRAWN = _FLOWERS | dict(
    augment=None, rotation_range=30.0, width_shift_range=0.2, height_shift_range=0.2,
    shear_range=0.2, zoom_range=(0.2,), horizontal_flip=True, fill_mode="nearest", epochs=250,
)  # fmt: skip

_CIFAR = _PLAIN | dict(
    dataset="cifar10", model="vgg16", image_size=32, head="flatten-64-classes",
    optimizer="rmsprop", learning_rate=1e-3, batch_size=16,
)  # fmt: skip


def _convnet(model: str, **settings: Any) -> dict[str, Any]:
    """Gives the settings of a small convnet with its lesson's head, from random weights."""
    spec = CNNS[model]
    head = f"{str(spec.top).rpartition('-')[0]}-classes"
    fixed = dict(
        dataset="cifar10", model=model, head=head, image_size=spec.image_size, weights="none",
        unfreeze=("all",), preprocess="unit", optimizer="adam", learning_rate=1e-3, batch_size=20,
    )  # fmt: skip
    return _PLAIN | fixed | settings


_TEN_THOUSAND = dict(split="train[:10000],train[10000:12000],test", batch_size=32)

RECIPES: dict[str, dict[str, Any]] = {
    "cats-vs-dogs": _FROZEN | dict(
        dataset="cats_vs_dogs", split=_FOUR_THOUSAND, model="vgg16", image_size=224,
        head="flatten-256-0.5-1", optimizer="rmsprop", learning_rate=2e-5, batch_size=20,
        epochs=20,
    ),
    # The lesson does not tell its rate.
    "cats-vs-dogs-vgg19": _FROZEN | dict(
        dataset="cats_vs_dogs", split=_FOUR_THOUSAND, model="vgg19", image_size=224,
        head="flatten-1", learning_rate=1e-4, batch_size=20, epochs=4,
    ),
    "fruits": _FROZEN | dict(
        model="vgg16", image_size=100, head="flatten-classes", optimizer="adam", batch_size=32,
        monitor="val/loss", patience=2, epochs=20,
    ),
    "flowers": _FLOWERS,
    "flowers-augmented": _FLOWERS_DRAWN,
    "flowers-finetune": _FLOWERS_DRAWN | dict(
        unfreeze=("block5",), head_epochs=0, learning_rate=1e-6, backbone_learning_rate=1e-6,
    ),
    "cifar10-frozen": _CIFAR | dict(unfreeze=("none",), epochs=5),
    "cifar10-collapse": _CIFAR | dict(
        unfreeze=("all",), head_epochs=0, backbone_learning_rate=1e-3, epochs=5,
    ),
    "cifar10-finetune": _CIFAR | dict(
        stages=("head:2", "block5:3", "all:10"), schedule="cosine", warmup_epochs=1.0,
        backbone_learning_rate=1e-4, layer_decay=0.65, clip_norm=1.0,
    ),
    # 4 px to each side, the border black: the random crop of a padded image.
    "cifar10-scratch": dict(
        dataset="cifar10", model="vgg16_bn", weights="none", unfreeze=("all",), image_size=32,
        head="flatten-classes", optimizer="sgd", learning_rate=0.05, schedule="cosine",
        weight_decay=5e-4, batch_size=128, epochs=200, horizontal_flip=True, width_shift_range=5,
        height_shift_range=5, fill_mode="constant",
    ),
    "mnist-cnn": _convnet(
        "mnist-cnn", dataset="mnist", optimizer="rmsprop", batch_size=16, epochs=5
    ),
    "cifar10-cnn": _convnet("cifar10-cnn", epochs=10),
    "cifar10-cnn-dropout": _convnet("cifar10-cnn-dropout", epochs=10),
    "cifar10-cnn-wide": _convnet("cifar10-cnn-wide", epochs=10),
    "cifar10-cnn-deep-bn": _convnet("cifar10-cnn-deep-bn", epochs=10),
    "cnn-conv": _convnet("cnn-conv", **_TEN_THOUSAND, epochs=20),
    "cnn-pool-bn": _convnet("cnn-pool-bn", **_TEN_THOUSAND, epochs=20),
    "cnn-dropout": _convnet("cnn-dropout", **_TEN_THOUSAND, epochs=60),
    "cnn-early-stopping": _convnet(
        "cnn-dropout", **_TEN_THOUSAND, epochs=60, monitor="val/loss", patience=5
    ),
    # VGG11 from scratch on scikit-learn's handwritten digits: the job that needs no network.
    "digits": dict(
        dataset="digits", model="vgg11", weights="none", head="flatten-classes", image_size=32,
        unfreeze=("all",), augment="none", epochs=5, batch_size=32, learning_rate=3e-4,
    ),
    # The head alone on the published features.
    "probe": dict(unfreeze=("none",), augment="none"),
    # The head first, then block5 with it at a hundredth of the rate.
    "finetune": dict(unfreeze=("block5",)),
    # Everything from random numbers; batch normalization makes it train.
    "scratch": dict(model="vgg11_bn", weights="none", unfreeze=("all",)),
}  # fmt: skip

NEEDS = {
    "fruits": ("dataset", "path/to/fruits-360", "the unpacked folder of Fruits 360"),
    "flowers-finetune": ("start_from", "runs/flowers", "the folder of a flowers-augmented run"),
}
"""What a recipe cannot know: recipe -> (field, an example, what it is)."""


def make_config(recipe: str | None = None, **flags: Any) -> Config:
    """Builds a Config from a recipe and what is set beside it; flags win.

    Without a recipe, `digits` (also the default dataset) means its own recipe.

    Raises:
        ConfigError: no such recipe, one that lacks what it needs, or settings that cannot be run.
    """
    fields = recipe_fields(recipe, flags.get("dataset", "digits"), flags)
    check_needs(recipe, flags)
    return Config(**(fields | flags))


def recipe_fields(recipe: str | None, dataset: str, given: Collection[str] = ()) -> dict[str, Any]:
    """Gives the fields that a recipe, or the dataset by itself, sets.

    `given` are the names of the fields that are set beside it: --stages stand in place of a
    recipe's --unfreeze and epochs, and --unfreeze in place of its stages.
    """
    if recipe is None and dataset != "digits":
        return {}
    recipe = recipe or "digits"
    if recipe == "classify":
        raise ConfigError(f"--recipe classify trains nothing; run it as: {command_of(recipe)}")
    if recipe not in RECIPES:
        raise ConfigError(unknown_name("recipe", recipe, RECIPES))
    in_place = ("unfreeze", "head_epochs", "epochs") if "stages" in given else ()
    if "unfreeze" in given:
        in_place = ("stages",)
    fields = {name: value for name, value in RECIPES[recipe].items() if name not in in_place}
    return fields | {"recipe": recipe}


def check_needs(recipe: str | None, given: Collection[str]) -> None:
    """Refuses a recipe without what it needs; `given` are the names of the fields that were set.

    Raises:
        ConfigError: with the flag that is to be given.
    """
    if recipe in NEEDS and NEEDS[recipe][0] not in given:
        field, example, what = NEEDS[recipe]
        flag = f"--{field.replace('_', '-')}"
        raise ConfigError(f"--recipe {recipe} needs {what}: {flag} {example}.")


def lesson_of(config: Config) -> Lesson | None:
    """Gives what the run's recipe teaches; None where it has no recipe."""
    return LESSONS.get(config.recipe)


def command_of(recipe: str) -> str:
    """Gives the command that runs a recipe."""
    if recipe == "classify":
        return "vggjax predict PHOTO.jpg --weights imagenet --model vgg16"
    field, example, _ = NEEDS.get(recipe, ("", "", ""))
    needed = f" --{field.replace('_', '-')} {example}" if field else ""
    return f"python train.py --recipe {recipe}{needed}"
