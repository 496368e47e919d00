"""Make a finished run of the network "tiny", on images made here."""

import os
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from PIL import Image

from support.pixels import jit_quickly
from vggjax.data.images.preprocess import preprocess, resize_image
from vggjax.data.sources.open import open_source
from vggjax.data.splits.splits import make_splits, parse_split
from vggjax.models.head import Head
from vggjax.models.network import VGG
from vggjax.models.params import assign, extract, shapes
from vggjax.training.config import Config
from vggjax.training.run_dir.folder import make_workdir
from vggjax.training.run_dir.run_result import ModelInfo, save_model
from vggjax.weights.weight_file import write_weights

PASS_RTOL = 1e-4
"""How far two float32 passes of "tiny" over the same image may differ, relative to a probability.

Each of its 8 layers sums at most 72 products of relative error 6e-8: 3.5e-5 for a logit of size 1,
and `spread` makes logits of about 2 of it.
"""

CLASSES = ("daisy", "<i>rose & co", "薔薇")


def make_images(root: Path, class_names=CLASSES, *, each: int = 10) -> Path:
    rng = np.random.default_rng(6)
    for label, name in enumerate(class_names):
        (root / name).mkdir(parents=True)
        for i in range(each):
            image = rng.integers(0, 120, (40, 48, 3), dtype=np.uint8)
            image[..., label % 3] += 120
            Image.fromarray(image).save(root / name / f"{i:02}.png")
    return root


def make_run(workdir: Path, dataset: Path | str, *, head: str = "gap-classes", **settings) -> Path:
    """Write what a training leaves, with a random model whose predictions vary."""
    defaults = dict(model="tiny", image_size=32, weights="none", split="0.4,0.2,0.4")
    settings = defaults | {"dtype": "float32"} | settings  # as a run resolves it
    config = Config(dataset=str(dataset), head=head, **settings)
    source = open_source(config.dataset, options=config)
    splits = make_splits(source, parse_split(config.split), config.seed)
    make_workdir(workdir, config, source, splits)
    names = source.class_names
    spec = Head.parse(head).for_classes(len(names), multilabel=source.targets is not None)
    thresholds = () if source.targets is None else (0.5,) * len(names)
    info = ModelInfo(
        config.model, str(spec), names, config.preprocessing, task=config.task,
        thresholds=thresholds,
    )  # fmt: skip
    model = random_model(config.model, head=spec, image_size=config.image_size)
    images = [resize_image(source.read(i).pixels, config.preprocessing) for i in range(len(source))]
    spread(model, preprocess(np.stack(images), config.preprocessing.mode))
    save_model(workdir, model, info)
    return workdir


def write_base(path: str | os.PathLike) -> None:
    """Write the weights of `random_model("tiny")`, which expect the preprocessing `torch`."""
    write_weights(path, extract(random_model("tiny")), metadata={"preprocess": "torch"})


def random_model(name: str, **settings) -> VGG:
    """Return a VGG with numpy's random weights: flax would compile its own, shape by shape."""
    rng = np.random.default_rng(6)
    model = nnx.eval_shape(lambda: VGG(name, **settings))
    weights = {}
    for layer, params in shapes(model).items():
        kernel = params["kernel"]
        scale = np.sqrt(2 / np.prod(kernel[:-1]))
        weights[layer] = {"kernel": rng.normal(0, scale, kernel), "bias": np.zeros(kernel[-1])}
    assign(model, weights)
    model.eval()
    return model


def spread(model: VGG, images: jax.Array) -> None:
    """Scale the last layer so that the model's probabilities vary over these images."""
    logits = np.asarray(jit_quickly(lambda images: model(images))(images))
    scale = 2 / logits.std(0)
    weights = extract(model)
    weights["predictions"]["kernel"] = weights["predictions"]["kernel"] * scale
    weights["predictions"]["bias"] = -logits.mean(0) * scale
    assign(model, weights)
