"""Everything before the first step: data, splits, model with its weights, run folder, plan.

What can be refused is refused here; nothing is written.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from vggjax import __version__
from vggjax.data.pipeline import Examples
from vggjax.data.source import Source
from vggjax.data.sources import open_source
from vggjax.data.splits import make_splits, parse_split
from vggjax.models.head import Head
from vggjax.models.vgg import VGG
from vggjax.training.checkpoint import ModelInfo
from vggjax.training.config import Config
from vggjax.training.freezing import Stage, plan_stages
from vggjax.training.run_folder import check_data, find_workdir
from vggjax.training.sharding import Placement
from vggjax.weights.load import load_base, resolve_weights


@dataclass(frozen=True)
class Setup:
    """A run that is ready to go."""

    config: Config
    workdir: Path
    placement: Placement
    source: Source
    splits: dict[str, np.ndarray]
    examples: dict[str, Examples]
    model: VGG
    info: ModelInfo
    stages: tuple[Stage, ...]
    steps_per_epoch: int


def set_up(config: Config) -> Setup:
    """Opens the data, builds the model and finds the run folder.

    Raises:
        VggjaxError: settings, data or weights that cannot be used; nothing was written then.
    """
    config = _with_absolute_paths(config)
    placement = Placement(config.parallel)
    placement.check_batch_size(config.batch_size)
    source = open_source(config.dataset, data_dir=config.data_dir)
    splits = make_splits(source, parse_split(config.split), config.seed)
    head = Head.parse(config.head).for_classes(len(source.class_names))
    model = build_model(config, head)
    workdir = find_workdir(config)
    check_data(workdir, source, splits)
    provenance = {
        "vggjax": __version__,
        "weights": config.weights,
        "dataset": config.dataset,
        "seed": str(config.seed),
    }
    classes, preprocessing = source.class_names, config.preprocessing
    info = ModelInfo(config.model, str(head), classes, preprocessing, config.dtype, provenance)
    # The test split is not opened here: nothing of it is seen before the final evaluation.
    examples = {
        name: Examples(
            source,
            splits[name],
            preprocessing,
            cache_mb=config.cache_mb,
            num_threads=config.num_threads,
            max_unreadable=config.max_unreadable,
        )
        for name in ("train", "val")
    }
    stages = plan_stages(config)
    steps_per_epoch = examples["train"].num_batches(config.batch_size)
    return Setup(
        config, workdir, placement, source, splits, examples, model, info, stages, steps_per_epoch
    )


def _with_absolute_paths(config: Config) -> Config:
    """Makes `config.json` mean the same from any working directory."""
    changes = {
        name: str(Path(value).absolute())
        for name, value in (("dataset", config.dataset), ("weights", config.weights))
        if value not in ("digits", "imagenet", "none") and Path(value).exists()
    }
    return dataclasses.replace(config, **changes)


def build_model(config: Config, head: Head) -> VGG:
    """Makes the model with a new head, its base from random numbers or from the weights.

    Raises:
        WeightsError: the weights cannot be found or do not fit.
    """
    path = None
    if config.pretrained:
        path = resolve_weights(config.weights, config.model, include_top=False)
    model = VGG(
        config.model,
        head=head,
        image_size=config.image_size,
        dtype=jnp.dtype(config.dtype),
        rngs=nnx.Rngs(config.seed),
    )
    if path is not None:
        load_base(model, path)
    return model
