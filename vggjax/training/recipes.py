"""Recipes: named changes to Config. The precedence is default < recipe < flag.

Each says what it is for and names its source. The figures that a recipe gave stand in the README,
beside the command.
"""

from typing import Any

from vggjax.errors import ConfigError, unknown
from vggjax.training.config import Config

RECIPES: dict[str, dict[str, Any]] = {
    # VGG11 from scratch on scikit-learn's handwritten digits: the job that needs no network.
    "digits": dict(
        dataset="digits", model="vgg11", weights="none", head="flatten-classes", image_size=32,
        unfreeze=("all",), augment="none", epochs=5, batch_size=32, learning_rate=3e-4,
    ),
    # The flowers lesson, first stage: the frozen base with its own head, Nadam, half for training.
    "flowers": dict(
        model="vgg16", image_size=200, head="avg2-128-0.4-classes", unfreeze=("none",),
        split="0.5,0.2,0.3", optimizer="nadam", learning_rate=1e-3, augment="none", epochs=35,
    ),
    # The head alone on the published features.
    "probe": dict(unfreeze=("none",), augment="none"),
    # The head first, then block5 with it at a hundredth of the rate.
    "finetune": dict(unfreeze=("block5",)),
    # Everything from random numbers; batch normalisation makes it train.
    "scratch": dict(model="vgg11_bn", weights="none", unfreeze=("all",)),
}  # fmt: skip


def make_config(recipe: str | None = None, **flags: Any) -> Config:
    """Builds a Config from a recipe and what is set beside it; flags win.

    Without a recipe, `digits` (also the default data set) means its own recipe.

    Raises:
        ConfigError: no such recipe, or settings that cannot be run.
    """
    return Config(**(recipe_fields(recipe, flags.get("dataset", "digits")) | flags))


def recipe_fields(recipe: str | None, dataset: str) -> dict[str, Any]:
    """Gives the fields that a recipe, or the data set by itself, sets."""
    if recipe is None and dataset != "digits":
        return {}
    recipe = recipe or "digits"
    if recipe not in RECIPES:
        raise ConfigError(unknown("recipe", recipe, RECIPES))
    return RECIPES[recipe] | {"recipe": recipe}
