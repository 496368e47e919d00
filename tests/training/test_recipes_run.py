"""Every recipe from its own dataset to its report, on few and small images.

tfds prepares the lessons' datasets from archives that tfds_archives.py writes; flags replace VGG by
the network "tiny" and cut what is large.
"""

import dataclasses
import html

import pytest
from support import tfds_archives
from support.tiny_run import make_images
from support.training_runs import pretend_pretrained

from vggjax.cli.main import main
from vggjax.errors import with_flags
from vggjax.models.convnets import find_arch
from vggjax.training.config import Config
from vggjax.training.recipes import RECIPES
from vggjax.weights.weight_file import read_weights

CUTS = {
    "cats_vs_dogs": ["--split", "train[:10],train[10:15],train[15:]", "--image-size", "32"],
    "tf_flowers": ["--image-size", "64", "--epoch-images", "8"],
    "mnist": [],
    "cifar10": [],
    "digits": ["--split", "0.04,0.03,0.93"],
    "images": ["--image-size", "32"],
}
"""Dataset -> the flags that make it small."""

TEN_THOUSAND = ["--split", "train[:150],train[150:],test"]

RUN_ELSEWHERE = {
    "flowers-augmented", "flowers-finetune",  # below, one after the other
    "fruits",  # above
    "digits", "probe", "finetune", "scratch",  # what test_cli_run.py and test_trainer.py run
}  # fmt: skip


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Prepare each dataset as tfds does, with few images."""
    folder = tmp_path_factory.mktemp("tfds")
    cifar10, _ = tfds_archives.cifar10(train=40, test=20)
    tfds_archives.prepare("cifar10", folder, cifar10)
    tfds_archives.prepare("cats_vs_dogs", folder, tfds_archives.cats_vs_dogs(each=10))
    tfds_archives.prepare_flowers(folder, each=8)
    digits = tfds_archives.digits(train=100)
    with tfds_archives.fewer_digits(digits):
        tfds_archives.prepare("mnist", folder, tfds_archives.mnist(digits))
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("own") / "images", ("a", "b", "c"), each=10)


def run_recipe(name, folder, images, *flags):
    """Run a recipe as the command line does; return its folder."""
    settings = RECIPES[name].settings
    model, dataset = settings.get("model", "vgg16"), settings.get("dataset", str(images))
    words = ["--recipe", name, "--workdir", str(folder / name), "--devices", "1"]
    words += ["--dataset", dataset, *CUTS.get(dataset, CUTS["images"]), *flags]
    if settings.get("split", "").startswith("train[:10000]"):
        words += TEN_THOUSAND
    if model.startswith("vgg"):
        words += ["--model", "tiny_bn" if model.endswith("_bn") else "tiny"]
        if settings.get("weights") != "none" and name != "flowers-finetune":
            words += ["--weights", str(pretend_pretrained(folder, find_arch("tiny")))]
    if "stages" in settings:
        words += ["--stages", "head:1", "block5:1", "all:1"]
    else:
        words += ["--epochs", "2" if settings.get("patience") else "1"]
    assert main(["train", *words]) == 0
    return folder / name


def assert_finished(workdir, name):
    page = html.unescape((workdir / "report.html").read_text(encoding="utf-8"))
    assert RECIPES[name].title in page
    settings = [field.name for field in dataclasses.fields(Config)]
    assert with_flags(RECIPES[name].teaches, settings) in page
    assert (workdir / "model.json").exists()


def test_a_recipe_runs_from_a_folder_to_a_report_that_teaches(images, tmp_path):
    assert_finished(run_recipe("fruits", tmp_path, images), "fruits")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [n for n, r in RECIPES.items() if r.trains and not r.chooses and n not in RUN_ELSEWHERE],
)
def test_every_recipe_runs_and_its_report_teaches(data_dir, images, tmp_path, name):
    workdir = run_recipe(name, tmp_path, images, "--data-dir", str(data_dir))
    assert_finished(workdir, name)


@pytest.mark.slow
def test_flowers_are_augmented_and_then_fine_tuned_from_there(data_dir, images, tmp_path):
    flags = ("--data-dir", str(data_dir))
    augmented = run_recipe("flowers-augmented", tmp_path, images, *flags)
    assert_finished(augmented, "flowers-augmented")
    start = ("--start-from", str(augmented))
    tuned = run_recipe("flowers-finetune", tmp_path, images, *flags, *start)
    assert_finished(tuned, "flowers-finetune")
    before, after = (read_weights(folder / "model.safetensors") for folder in (augmented, tuned))
    changed = {name for name in before if (before[name]["kernel"] != after[name]["kernel"]).any()}
    assert changed == {"block5_conv1", "block5_conv2", "fc1", "predictions"}
