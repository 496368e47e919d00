"""Makes a finished run of a network small enough for milliseconds, on pictures made here."""

from pathlib import Path

import numpy as np
from flax import nnx
from PIL import Image

from vggjax.data.sources import open_source
from vggjax.data.splits import make_splits, parse_split
from vggjax.models import arch as arch_table
from vggjax.models.arch import Arch
from vggjax.models.head import Head
from vggjax.models.vgg import VGG
from vggjax.training.checkpoint import ModelInfo, save_model
from vggjax.training.config import Config
from vggjax.training.run_folder import check_data

CLASSES = ("daisy", "<i>rose & co", "薔薇")


def add_tiny_arch(monkeypatch, arch: Arch) -> None:
    monkeypatch.setitem(arch_table.ARCHS, arch.name, arch)


def make_pictures(root: Path, class_names=CLASSES, *, each: int = 10) -> Path:
    rng = np.random.default_rng(0)
    for label, name in enumerate(class_names):
        (root / name).mkdir(parents=True)
        for i in range(each):
            image = rng.integers(0, 120, (40, 48, 3), dtype=np.uint8)
            image[..., label % 3] += 120
            Image.fromarray(image).save(root / name / f"{i:02}.png")
    return root


def make_run(workdir: Path, dataset: Path | str, *, head: str = "gap-classes", **settings) -> Path:
    """Writes what a training leaves, with a model that is random but far from indifferent."""
    settings = dict(model="tiny", image_size=32, weights="none", split="0.4,0.2,0.4") | settings
    config = Config(dataset=str(dataset), head=head, **settings)
    source = open_source(config.dataset)
    workdir.mkdir(parents=True)
    (workdir / "config.json").write_text(config.to_json())
    check_data(workdir, source, make_splits(source, parse_split(config.split), config.seed))
    spec = Head.parse(head).for_classes(len(source.class_names))
    model = VGG(config.model, head=spec, image_size=config.image_size, rngs=nnx.Rngs(1))
    model.predictions.kernel.set_value(model.predictions.kernel.get_value() * 100)
    info = ModelInfo(config.model, str(spec), source.class_names, config.preprocessing)
    save_model(workdir, model, info)
    return workdir
