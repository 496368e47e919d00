"""Recipes: named settings, each with what it teaches. Default < recipe < flag.

`figure` is what the lesson's own author reports, on the real data; what this package measured is in
docs/lessons.md, beside the command.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from vggjax.data.splits.slices import looks_like_slices
from vggjax.errors import ConfigError, unknown_name
from vggjax.models.convnets import find_arch
from vggjax.training.config import Config
from vggjax.training.settings.best import choose_recipe
from vggjax.training.settings.config_file import merge, read_settings


@dataclass(frozen=True)
class Recipe:
    """Named settings, and the lesson that they teach."""

    title: str
    teaches: str
    """One paragraph, for the report and `vggjax recipes`."""
    source: str
    figure: str = ""
    """The figure of the lesson's author; empty if the recipe is this package's."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Fields of Config."""
    needs: tuple[str, str, str] | None = None
    """A field that the recipe cannot set: its name, an example, and what it is."""
    trains: bool = True
    chooses: bool = False
    """Whether it stands for another recipe, which depends on the data; see `choose_recipe`."""


# As Keras' fit does by default: a constant rate without warmup, and no augmentation.
_PLAIN = dict(schedule="constant", warmup_epochs=0.0, augment="none")

_FROZEN = _PLAIN | dict(unfreeze=("none",))

# tfds has shuffled this dataset, so slices of it are balanced up to chance.
_FOUR_THOUSAND = "train[:2000],train[2000:3000],train[3000:4000]"

_FLOWERS = _FROZEN | dict(
    dataset="tf_flowers", model="vgg16", image_size=200, head="avg2-128-0.4-classes",
    split="0.5,0.2,0.3", optimizer="nadam", learning_rate=1e-3, beta1=0.9, beta2=0.99,
    batch_size=32, epoch_images=640, epochs=100,
)  # fmt: skip

_FLOWERS_AUGMENTED = _FLOWERS | dict(
    augment=None, rotation_range=30.0, width_shift_range=0.2, height_shift_range=0.2,
    shear_range=0.2, zoom_range=(0.2,), horizontal_flip=True, fill_mode="nearest", epochs=250,
)  # fmt: skip

_CIFAR = _PLAIN | dict(
    dataset="cifar10", model="vgg16", image_size=32, head="flatten-64-classes",
    optimizer="rmsprop", learning_rate=1e-3, batch_size=16,
)  # fmt: skip


def _convnet(model: str, **settings: Any) -> dict[str, Any]:
    """Return the settings of a small convnet from random weights, with its lesson's head."""
    spec = find_arch(model)
    head = f"{str(spec.top).rpartition('-')[0]}-classes"
    fixed = dict(
        dataset="cifar10", model=model, head=head, image_size=spec.image_size, weights="none",
        unfreeze=("all",), preprocess="unit", optimizer="adam", learning_rate=1e-3, batch_size=20,
    )  # fmt: skip
    return _PLAIN | fixed | settings


_TEN_THOUSAND = dict(split="train[:10000],train[10000:12000],test", batch_size=32)

_OWN = "this package"
_CATS = "a Keras lesson on Kaggle's cats and dogs"
_LECTURE = "a lecture's three lessons on the flowers of tf_flowers"
_CIFAR_LESSON = "a Keras lesson on VGG16 and CIFAR-10"
_CONVNETS = "Keras lessons on small convnets"
_STEPS = "a lesson that builds a convnet step by step on 10,000 images of CIFAR-10"
_STEPS_FIGURE = "57 to 69 % (the four convnets of this lesson)"

RECIPES: dict[str, Recipe] = {
    "classify": Recipe(
        "Classify a photograph with ImageNet's classes",
        "A network trained on ImageNet knows 1,000 classes. It returns a probability for each, and "
        "the top five are worth reading: a high first probability means that the photograph "
        "resembles the training images, a low one that it does not, and the others show why. "
        "Pixels must be preprocessed as the weights expect, or the predictions are wrong without "
        "any error.",
        "Keras' documentation of VGG16 and VGG19",
        "99.8 % for an eagle",
        trains=False,
    ),
    "cats-vs-dogs": Recipe(
        "Cats and dogs from 2,000 photographs",
        "2,000 photographs are too few to learn features from scratch, and enough to train a "
        "classifier on features that exist already. All of VGG16 is frozen, so the features of "
        "each photograph are computed once and cached; the small head on top then trains in "
        "seconds per epoch. Nearly all of the time goes into the features.",
        _CATS,
        "91.2 % on test; 1,006 s for the features and 67 s for the head",
        _FROZEN | dict(
            dataset="cats_vs_dogs", split=_FOUR_THOUSAND, model="vgg16", image_size=224,
            head="flatten-256-0.5-1", optimizer="rmsprop", learning_rate=2e-5, batch_size=20,
            epochs=20,
        ),
    ),
    "cats-vs-dogs-vgg19": Recipe(
        "One sigmoid unit on VGG19",
        "On good features a linear classifier is enough: the head is a single unit on the "
        "flattened feature map, without a hidden layer, and four epochs suffice. The features of a "
        "deeper pretrained network count for more than the classifier on top.",
        _CATS,
        "97.3 %",
        # The lesson does not state its learning rate.
        _FROZEN | dict(
            dataset="cats_vs_dogs", split=_FOUR_THOUSAND, model="vgg19", image_size=224,
            head="flatten-1", learning_rate=1e-4, batch_size=20, epochs=4,
        ),
    ),
    "fruits": Recipe(
        "131 fruits with early stopping",
        "Features transfer far from ImageNet's photographs: to fruits on a white background, at "
        "100 px, in 131 classes. Only 603,779 of 15,318,467 parameters train. Training stops after "
        "two epochs without a lower validation loss, and the best weights are restored.",
        "a Keras lesson on Fruits 360",
        "96.8 %; 603,779 of 15,318,467 parameters train",
        _FROZEN | dict(
            model="vgg16", image_size=100, head="flatten-classes", optimizer="adam", batch_size=32,
            monitor="val/loss", patience=2, epochs=20,
        ),
        needs=("dataset", "path/to/fruits-360", "the unpacked folder of Fruits 360"),
    ),
    "flowers": Recipe(
        "Five flowers with a frozen VGG16",
        "The first of three steps. The backbone keeps its ImageNet weights, and a head of 128 "
        "units learns five flowers on top. Training accuracy soon exceeds validation accuracy: "
        "with few photographs the head overfits, which the next step addresses.",
        _LECTURE,
        "85.4 %",
        _FLOWERS,
    ),
    "flowers-augmented": Recipe(
        "The same flowers with augmentation",
        "The second step rotates, shifts, shears, zooms and flips each photograph anew at every "
        "step, so that none can be memorized. Training becomes harder and slower, the gap to "
        "validation closes, and more epochs keep helping. Features cannot be cached, because every "
        "augmented image is new.",
        _LECTURE,
        "88.3 %",
        _FLOWERS_AUGMENTED,
    ),
    "flowers-finetune": Recipe(
        "Fine-tune block5 on the flowers",
        "The third step starts from the finished second one. The last block's features were "
        "learned for ImageNet's classes and now adapt to flowers, at a learning rate of one "
        "millionth. The head is trained already, so its gradients are small and do not destroy the "
        "layers below.",
        _LECTURE,
        "92.6 %",
        _FLOWERS_AUGMENTED | dict(
            unfreeze=("block5",), head_epochs=0, learning_rate=1e-6, backbone_learning_rate=1e-6,
        ),
        needs=("start_from", "runs/flowers-augmented", "the folder of a flowers-augmented run"),
    ),
    "cifar10-frozen": Recipe(
        "A frozen VGG16 on 32 px images",
        "At 32 px five poolings leave a single position with 512 channels, and features learned at "
        "224 px see little. A frozen backbone is fast, and here it is not enough: compare it with "
        "the small convnets, which are trained on CIFAR-10 alone, and with cifar10-finetune.",
        _CIFAR_LESSON,
        "55.8 %",
        _CIFAR | dict(unfreeze=("none",), epochs=5),
    ),
    "cifar10-collapse": Recipe(
        "How to destroy a pretrained network",
        "cifar10-frozen with all layers unfrozen at once, at a learning rate of 1e-3. The head is "
        "random, and RMSprop's first step moves every weight by three times the rate, however "
        "small its gradient: that one step overwrites the pretrained filters. ReLUs that no image "
        "activates pass no gradient, the output hardly depends on the image, and the loss is "
        "ln 10 = 2.303, which is chance for ten classes. It may crawl out of it after an epoch, "
        "but without ImageNet's features; at 1e-2 it does not.",
        _CIFAR_LESSON,
        "10 %: chance",
        _CIFAR | dict(unfreeze=("all",), head_epochs=0, backbone_learning_rate=1e-3, epochs=5),
    ),
    "cifar10-finetune": Recipe(
        "VGG16 on CIFAR-10, unfrozen gradually",
        "The cure of cifar10-collapse: train the head alone first, until its gradients carry "
        "information; then unfreeze block5, then all. The learning rates warm up, are at most a "
        "tenth of the head's, and fall with depth (a general edge detector needs less change than "
        "a late feature); gradients are clipped to a norm of 1. The network is the same: only the "
        "order and the rates differ.",
        "the cure is this package's",
        "better than cifar10-frozen",
        _CIFAR | dict(
            stages=("head:2", "block5:3", "all:10"), schedule="cosine", warmup_epochs=1.0,
            backbone_learning_rate=1e-4, layer_decay=0.65, clip_norm=1.0,
        ),
    ),
    "cifar10-scratch": Recipe(
        "No transfer: 45,000 images from scratch",
        "With enough images and epochs VGG16 needs no ImageNet: batch normalization lets it train "
        "from random weights, momentum and a high learning rate on a cosine schedule take it far, "
        "and random shifts and flips with weight decay limit overfitting. It takes hundreds of "
        "times the compute of a frozen backbone.",
        "published figures of VGG16 with batch normalization on CIFAR-10",
        "93 to 94 %",
        # Shifts of up to 4 px with a black border: the random crop of a padded image.
        dict(
            dataset="cifar10", model="vgg16_bn", weights="none", unfreeze=("all",), image_size=32,
            head="flatten-classes", optimizer="sgd", learning_rate=0.05, schedule="cosine",
            weight_decay=5e-4, batch_size=128, epochs=200, horizontal_flip=True,
            width_shift_range=5, height_shift_range=5, fill_mode="constant",
        ),
    ),
    "mnist-cnn": Recipe(
        "Handwritten digits with a small convnet",
        "Two convolutions and a pooling, with 258,090 parameters, nearly all of them in the one "
        "dense layer. Gray digits at 28 px are easy: five epochs suffice, and no pretrained "
        "network is needed.",
        _CONVNETS,
        settings=_convnet(
            "mnist-cnn", dataset="mnist", optimizer="rmsprop", batch_size=16, epochs=5
        ),
    ),
    "cifar10-cnn": Recipe(
        "The tutorial's convnet on CIFAR-10",
        "Three convolutions with poolings between them, 122,570 parameters. Ten kinds of objects "
        "at 32 px are much harder than digits: training accuracy keeps rising while validation "
        "accuracy stalls. The variants change one thing each.",
        "TensorFlow's tutorial Convolutional Neural Network (CNN), and lessons based on it",
        settings=_convnet("cifar10-cnn", epochs=10),
    ),
    "cifar10-cnn-dropout": Recipe(
        "The tutorial's convnet with dropout",
        "cifar10-cnn with dropout, which zeroes random units so that none can rely on a single "
        "other. The network learns more slowly, and training and validation stay closer together; "
        "within a few epochs it may not be ahead yet.",
        _CONVNETS,
        settings=_convnet("cifar10-cnn-dropout", epochs=10),
    ),
    "cifar10-cnn-wide": Recipe(
        "The tutorial's convnet, twice as wide",
        "cifar10-cnn with four times the parameters in the same shape. More parameters fit the "
        "training images faster, and help on new images less than one would expect: width is not "
        "what is missing.",
        _CONVNETS,
        "61 %",
        _convnet("cifar10-cnn-wide", epochs=10),
    ),
    "cifar10-cnn-deep-bn": Recipe(
        "Deeper, with batch normalization",
        "Six convolutions in the style of VGG, two before each pooling. Batch normalization keeps "
        "each layer's inputs in range, so that the deeper network trains at the same learning "
        "rate, and faster. Depth with normalization helps where width alone does not.",
        _CONVNETS,
        settings=_convnet("cifar10-cnn-deep-bn", epochs=10),
    ),
    "cnn-conv": Recipe(
        "Convolutions alone",
        "Three convolutions and a dense layer, without pooling: the feature map stays large, so "
        "nearly all of the 2.8 million parameters are in the dense layer, which memorizes 10,000 "
        "images. Compare the training and validation curves.",
        _STEPS,
        _STEPS_FIGURE,
        _convnet("cnn-conv", **_TEN_THOUSAND, epochs=20),
    ),
    "cnn-pool-bn": Recipe(
        "Convolutions, pooling and batch normalization",
        "Pooling keeps what was detected and discards exactly where: 23 times fewer parameters "
        "than cnn-conv, and better on new images. Batch normalization speeds up training. In the "
        "end it still overfits.",
        _STEPS,
        _STEPS_FIGURE,
        _convnet("cnn-pool-bn", **_TEN_THOUSAND, epochs=20),
    ),
    "cnn-dropout": Recipe(
        "Pooling, batch normalization and dropout",
        "cnn-pool-bn with dropout after each block and before the output. It takes more epochs, "
        "and the validation loss starts to rise later.",
        _STEPS,
        _STEPS_FIGURE,
        _convnet("cnn-dropout", **_TEN_THOUSAND, epochs=60),
    ),
    "cnn-early-stopping": Recipe(
        "Dropout and early stopping",
        "cnn-dropout again. The right number of epochs is unknown beforehand: training stops when "
        "the validation loss has not fallen for five epochs, and the best weights are restored. "
        "That saves half of the epochs or more; where the loss fluctuates, a small patience costs "
        "a little accuracy, and a larger one more time.",
        _STEPS,
        _STEPS_FIGURE,
        _convnet("cnn-dropout", **_TEN_THOUSAND, epochs=60, monitor="val/loss", patience=5),
    ),
    "digits": Recipe(
        "VGG11 from scratch on handwritten digits",
        "The run that needs no network connection: 1,797 digits of 8x8 px come with vggjax. "
        "It shows every step from images to report within a minute or two, and that a large "
        "network can learn a small task from random weights.",
        _OWN,
        settings=dict(
            dataset="digits", model="vgg11", weights="none", head="flatten-classes", image_size=32,
            unfreeze=("all",), augment="none", epochs=5, batch_size=32, learning_rate=3e-4,
        ),
    ),
    "probe": Recipe(
        "The head alone on the published features",
        "Measure what the features already know: everything is frozen and only the head trains. It "
        "is fast, because features are computed once, it cannot collapse, and it is the baseline "
        "that any fine-tuning has to beat.",
        _OWN,
        settings=dict(unfreeze=("none",), augment="none"),
    ),
    "probe-knn": Recipe(
        "The same features with nothing to train, beside the head",
        "The trained head has to beat two classifiers that are there as soon as the features are: "
        "the k most similar training images vote, or a linear head is solved at once. All three "
        "see the same features of the same images. If neighbors are as good as the head, the "
        "features separate the classes already; if none is good, they do not, and the way on is "
        "to unfreeze or to look at the data. `baselines` adds the two to any run whose head "
        "trains first.",
        _OWN,
        settings=dict(
            unfreeze=("none",), augment="none", head="convs3-256-0.5-classes", baselines=True
        ),
    ),
    "linear": Recipe(
        "A regularized linear head on the features of three blocks, solved at once",
        "A linear classifier on frozen features has one best solution, so it can be computed and "
        "needs neither a learning rate nor epochs; validation decides only how much it is "
        "regularized. Where the photographs are not like ImageNet's, or small, the textures of "
        "the middle layers say more than the last block, so every convolution of the last three "
        "blocks is averaged and its maximum taken. It takes seconds after the features, and is the "
        "figure that any fine-tuning has to beat.",
        _OWN,
        settings=dict(
            unfreeze=("none",), head="convs3-classes", head_solver="lbfgs", label_smoothing=0.1
        ),
    ),
    "best": Recipe(
        "The recipe that did best on data like these",
        "The recipe, its head and the image size are chosen by the number of training images and "
        "by their size, from what was measured on flowers and on CIFAR-10: up to 50,000 images it "
        "is linear; where `unfreeze` names layers of small images, they are tuned with random "
        "crops and a rate per block. The first line says what was chosen and why.",
        _OWN,
        chooses=True,
    ),
    "finetune": Recipe(
        "The head first, then pretrained layers with it",
        "A random head would send meaningless gradients into the pretrained layers, so it trains "
        "alone first. Then the last block joins in, or what `unfreeze` names, at a small learning "
        "rate: adjusted, not relearned.",
        _OWN,
        settings=dict(unfreeze=("block5",)),
    ),
    "scratch": Recipe(
        "Everything from random weights",
        "What transfer saves: the same kind of network without pretrained weights. Batch "
        "normalization makes training possible; compare its curves and its time with probe and "
        "finetune on the same images.",
        _OWN,
        settings=dict(model="vgg11_bn", weights="none", unfreeze=("all",)),
    ),
}  # fmt: skip


def make_config(recipe: str | None = None, **settings: Any) -> Config:
    """Return the Config of a recipe, of the file `config`, and of the settings given, which win.

    Without a recipe, the dataset `digits`, which is the default, uses its own. Of `best`, the
    Config has what was chosen.

    Raises:
        ConfigError: an unknown recipe, one without the setting that it needs, a file that cannot be
            read, or settings that cannot be run.
    """
    path = settings.get("config")
    file = read_settings(path) if path is not None else {}
    fields = default_fields(recipe, file, settings, dataset="digits")
    check_needs(fields.get("recipe"), set_names(file, settings))
    config = Config(**(fields | settings))
    if fields.get("recipe") != "best":
        return config
    choice = choose_recipe(config)
    fields = default_fields(choice.recipe, file, settings, dataset="digits", chosen=choice.settings)
    return Config(**(fields | settings))


def default_fields(
    recipe: str | None,
    file: Mapping[str, Any],
    given: Mapping[str, Any],
    *,
    dataset: str,
    chosen: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the fields that a recipe sets, under those that a file sets.

    Args:
        recipe: the recipe; None is the file's, or the dataset's own.
        file: the fields of a file.
        given: the fields that are set beside both, and win.
        dataset: what is trained on if neither names it.
        chosen: what is set beside the recipe where `best` chose it.

    Raises:
        ConfigError: an unknown recipe, or one that does not train.
    """
    own = merge(file, given)
    known = {name: own.get(name) for name in set_names(own)} | dict(given)
    recipe = recipe or file.get("recipe")
    fields = recipe_fields(recipe, str(known.get("dataset", dataset)), known)
    return fields | dict(chosen or {}) | own | ({"recipe": recipe} if recipe else {})


def set_names(*fields: Mapping[str, Any]) -> set[str]:
    """Return the names that have a value in any of the mappings."""
    return {name for part in fields for name, value in part.items() if value not in (None, ())}


def recipe_fields(recipe: str | None, dataset: str, given: Collection[str] = ()) -> dict[str, Any]:
    """Return the fields that a recipe sets, or the dataset by itself.

    `given` are the names of the fields set beside it: `stages` replaces a recipe's `unfreeze` and
    epochs, and `unfreeze` its stages. Slices, which count the images of one dataset, are left out
    for any other.

    Raises:
        ConfigError: an unknown recipe, or one that does not train.
    """
    if recipe is None and dataset != "digits":
        return {}
    recipe = recipe or "digits"
    if recipe not in RECIPES:
        trained = [name for name, known in RECIPES.items() if known.trains]
        raise ConfigError(unknown_name("recipe", recipe, trained))
    if not RECIPES[recipe].trains:
        raise ConfigError(f"The recipe {recipe} trains nothing; run it as: {command_of(recipe)}")
    replaced: tuple[str, ...] = ()
    if "unfreeze" in given:
        replaced = ("stages",)
    elif "stages" in given:
        replaced = ("unfreeze", "head_epochs", "epochs")
    settings = RECIPES[recipe].settings
    own, split = settings.get("dataset"), settings.get("split", "")
    is_other = dataset.split(":")[0] != own and ("dataset" in given or dataset != Config.dataset)
    if is_other and looks_like_slices(split):
        replaced += ("split",)
    fields = {name: value for name, value in settings.items() if name not in replaced}
    return fields | {"recipe": recipe}


def check_needs(recipe: str | None, given: Collection[str]) -> None:
    """Raise ConfigError unless a recipe's needed field is among `given`, as in `recipe_fields`."""
    needs = RECIPES[recipe].needs if recipe in RECIPES else None
    if needs and needs[0] not in given:
        name, example, meaning = needs
        raise ConfigError(f"The recipe {recipe} needs {meaning}: give `{name}`, as in {example}.")


def lesson_of(config: Config) -> Recipe | None:
    """Return the recipe of a run; None without one."""
    return RECIPES.get(config.recipe or "")


def command_of(recipe: str) -> str:
    """Return the command that runs a recipe."""
    if not RECIPES[recipe].trains:
        return "vggjax predict PHOTO.jpg --weights imagenet --model vgg16"
    name, example, _ = RECIPES[recipe].needs or ("", "", "")
    needed = f" --{name.replace('_', '-')} {example}" if name else ""
    return f"vggjax train --recipe {recipe}{needed}"
