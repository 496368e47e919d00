"""Every recipe whole, from its own dataset to its report, with small VGGs and few images.

tfds prepares the lessons' sets from archives that tfds_archives.py makes; flags cut what is large.
"""

import functools
import html

import jax
import numpy as np
import pytest
from support import tfds_archives
from support.tiny_run import make_images
from test_loop import pretend_pretrained

from vggjax.cli.main import main
from vggjax.data.sources.open import open_source
from vggjax.models import arch as arch_table
from vggjax.models.arch import ARCHS, Arch
from vggjax.training.recipes import RECIPES
from vggjax.weights.weight_file import read_weights

WIDTHS = (2, 4, 4, 8, 8)

CUTS = {
    "cats_vs_dogs": ["--split", "train[:10],train[10:15],train[15:]", "--image-size", "32"],
    "tf_flowers": ["--image-size", "64", "--epoch-images", "8"],
    "mnist": [],
    "cifar10": [],
    "digits": ["--split", "0.04,0.03,0.93"],
    "images": ["--image-size", "32"],
}
"""Dataset -> the flags that make it small; epochs come beside them."""

QUICKLY_COMPILED = {"xla_backend_optimization_level": 0}
"""A third of the time: the programs are many, and run for milliseconds."""

TEN_THOUSAND = ["--split", "train[:150],train[150:],test"]

RUN_ELSEWHERE = {
    "flowers-augmented", "flowers-finetune",  # below, one after the other
    "digits", "probe", "finetune", "scratch",  # what test_cli_run.py and test_loop.py run
}  # fmt: skip

NEEDS_RUN = ("flowers-finetune",)
"""Goes on from a run, whose weights it takes."""


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Prepares each dataset as tfds does, some twenty images a class at most."""
    from tensorflow_datasets.image_classification import mnist

    folder = tmp_path_factory.mktemp("tfds")
    tfds_archives.place_cifar10(folder, train=40, test=20)
    tfds_archives.place_cats_vs_dogs(folder, each=10)
    tfds_archives.prepare_flowers(folder, each=8)
    rng = np.random.default_rng(0)
    digits = {name: rng.integers(0, 255, (n, 28, 28), np.uint8)
              for name, n in (("train", 100), ("t10k", 20))}  # fmt: skip
    tfds_archives.place_mnist(folder, digits)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(mnist, "_TRAIN_EXAMPLES", 100)  # 60,000 would be of the same format
        patched.setattr(mnist, "_TEST_EXAMPLES", 20)
        for name in ("cifar10", "cats_vs_dogs", "mnist"):
            open_source(name, data_dir=str(folder))
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("own") / "images", ("a", "b", "c"), each=10)


@pytest.fixture
def run(data_dir, images, tmp_path, monkeypatch):
    """Runs a recipe as the command line does, and gives its folder."""
    for name, arch in list(ARCHS.items()):
        small = Arch(name, (1, 1, 1, 1, 1), WIDTHS, arch.batch_norm)  # compiles in a third
        monkeypatch.setitem(arch_table.ARCHS, name, small)
    monkeypatch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options=QUICKLY_COMPILED))

    def run_recipe(name, *flags):
        settings = RECIPES[name].settings
        dataset = settings.get("dataset", str(images))
        words = [
            "--recipe",
            name,
            "--workdir",
            str(tmp_path / name),
            "--data-dir",
            str(data_dir),
            "--devices",
            "1",
        ]
        words += ["--dataset", dataset, *CUTS.get(dataset, CUTS["images"]), *flags]
        if settings.get("split", "").startswith("train[:10000]"):
            words += TEN_THOUSAND
        if settings.get("weights", "imagenet") == "imagenet" and name not in NEEDS_RUN:
            arch = arch_table.ARCHS[settings.get("model", "vgg16")]
            words += ["--weights", str(pretend_pretrained(tmp_path, arch))]
        if "stages" in settings:
            words += ["--stages", "head:1", "block5:1", "all:1"]
        else:
            words += ["--epochs", "2" if settings.get("patience") else "1"]
        assert main(["train", *words]) == 0
        return tmp_path / name

    return run_recipe


def assert_finished(workdir, name):
    page = html.unescape((workdir / "report.html").read_text(encoding="utf-8"))
    assert RECIPES[name].title in page
    assert RECIPES[name].teaches in page
    assert (workdir / "model.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in RECIPES if RECIPES[name].trains and name not in RUN_ELSEWHERE]
)
def test_every_recipe_runs_whole_and_its_report_teaches(run, name):
    assert_finished(run(name), name)


@pytest.mark.slow
def test_flowers_are_augmented_and_then_fine_tuned_from_there(run):
    augmented = run("flowers-augmented")
    assert_finished(augmented, "flowers-augmented")
    tuned = run("flowers-finetune", "--start-from", str(augmented))
    assert_finished(tuned, "flowers-finetune")
    before, after = (read_weights(folder / "model.safetensors") for folder in (augmented, tuned))
    changed = {name for name in before if (before[name]["kernel"] != after[name]["kernel"]).any()}
    assert changed == {"block5_conv1", "fc1", "predictions"}
