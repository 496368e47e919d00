"""Everything before the first step: data, splits, model with its weights, run folder, plan.

What can be refused is refused here; nothing is written.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from vggjax.data.loader import SplitLoader
from vggjax.data.quality.duplicates import find_duplicates
from vggjax.data.sources.open import open_source
from vggjax.data.sources.source import Source
from vggjax.data.splits.splits import balanced_weights, make_splits, parse_split, read_splits
from vggjax.errors import ConfigError
from vggjax.models.head import Head
from vggjax.models.kernels.conv import make_convolve
from vggjax.models.network import Network
from vggjax.training.cache.plan import FeaturePlan, plan_features
from vggjax.training.config import Config
from vggjax.training.freezing import plan_stages
from vggjax.training.parallel import Placement
from vggjax.training.run_dir.folder import check_data, find_workdir, read_duplicates
from vggjax.training.run_dir.saved_model import ModelInfo
from vggjax.training.stages import Stage
from vggjax.training.start_from import check_start, load_start, preprocessing_of
from vggjax.weights.load import load_base, open_weights
from vggjax.weights.weight_file import WeightFile


@dataclass(frozen=True)
class RunContext:
    """A run that is ready to go."""

    config: Config
    workdir: Path
    placement: Placement
    source: Source
    splits: dict[str, np.ndarray]
    duplicates: dict[str, int]
    """Images beyond the first of their kind, `exact` and `near`, and how many were `leaked` by
    the dataset's own splits; empty where nobody looked."""
    loaders: dict[str, SplitLoader]
    model: Network
    info: ModelInfo
    stages: tuple[Stage, ...]
    batch_size: int
    steps_per_epoch: int
    steps_per_pass: int
    """Steps in which each training image is shown once; an epoch's, without --epoch-images."""
    feature_plans: dict[str, FeaturePlan]
    """Stage's name -> what it keeps of its frozen layers' outputs; stages that keep nothing are
    left out."""
    weight_file: WeightFile | None
    """Of the pretrained weights; None where the run starts from none, or from another run."""
    class_weights: np.ndarray | None
    """float32 (C,), of the loss; None where each image counts alike."""


Progress = Callable[[int, int], None]
"""Is told (done, of) while images are compared."""


def prepare_run(config: Config, *, progress: Progress | None = None) -> RunContext:
    """Opens the data, builds the model and finds the run folder.

    Raises:
        VggjaxError: settings, data or weights that cannot be used; nothing was written then.
    """
    weight_file = _given_file(config)
    config = resolve(config, weight_file)
    placement = Placement(config.parallel)
    placement.check_batch_size(config.batch_size)
    source = open_source(config.dataset, data_dir=config.data_dir)
    head = Head.parse(config.head).for_classes(len(source.class_names))
    workdir = find_workdir(config)
    check_outside(workdir, source)
    check_data(workdir, source)
    splits, duplicates = find_splits(config, workdir, source, progress=progress)
    if config.start_from:
        check_start(config, head, source, splits)
    weight_file = find_weights(config, weight_file)
    model = build_model(config, head, weight_file)
    provenance = {
        "vggjax": version("vggjax"),
        "weights": config.start_from or config.weights,
        "dataset": config.dataset,
        "seed": str(config.seed),
    }
    if weight_file is not None:
        provenance |= weight_file.provenance
    classes, preprocessing = source.class_names, config.preprocessing
    info = ModelInfo(config.model, str(head), classes, preprocessing, config.dtype, provenance)
    loaders = _open_loaders(config, source, splits)
    # A batch larger than the data would be padding; it still divides over the devices.
    devices = len(placement.devices)
    batch_size = min(config.batch_size, -(-len(splits["train"]) // devices) * devices)
    steps_per_pass = loaders["train"].num_batches(batch_size)
    steps_per_epoch = steps_per_pass
    if config.epoch_images:
        steps_per_epoch = max(1, int(config.epoch_images / batch_size + 0.5))
    stages = plan_stages(config)
    counts = {name: len(rows) for name, rows in splits.items()}
    weights = balanced_weights(source.labels[splits["train"]], len(source.class_names))
    return RunContext(
        config=config,
        workdir=workdir,
        placement=placement,
        source=source,
        splits=splits,
        duplicates=duplicates,
        loaders=loaders,
        model=model,
        info=info,
        stages=stages,
        batch_size=batch_size,
        steps_per_epoch=steps_per_epoch,
        steps_per_pass=steps_per_pass,
        feature_plans=plan_features(
            config,
            model,
            stages,
            counts,
            workdir,
            steps_per_epoch=steps_per_epoch,
            steps_per_pass=steps_per_pass,
        ),
        weight_file=weight_file,
        class_weights=weights if config.class_weights == "balanced" else None,
    )


def _given_file(config: Config) -> WeightFile | None:
    """Open the weight file that the settings name, before anything else is done with it."""
    named = config.weights not in ("imagenet", "none") and not config.start_from
    return WeightFile(config.weights) if named and Path(config.weights).exists() else None


def resolve(config: Config, weight_file: WeightFile | None = None) -> Config:
    """Makes `config.json` mean the same from any working directory, pixels included.

    A weight file of a run of ours says which pixels it was trained on, and so do torch's names.
    """
    changes = {
        name: str(Path(value).resolve())
        for name, value in (("dataset", config.dataset), ("weights", config.weights))
        if value not in ("digits", "imagenet", "none") and Path(value).exists()
    }
    if config.data_dir:
        changes["data_dir"] = str(Path(config.data_dir).expanduser().resolve())
    if config.preprocess == "auto" and "weights" in changes:
        info = (weight_file or WeightFile(changes["weights"])).info
        changes["preprocess"] = info.preprocess if info.states_preprocess else "auto"
    if config.start_from:
        changes |= preprocessing_of(config)
    return dataclasses.replace(config, **changes)


def check_outside(workdir: Path, source: Source) -> None:
    """Refuses a run folder inside the dataset.

    Raises:
        ConfigError: it would be taken for a class.
    """
    if source.root and workdir.resolve().is_relative_to(source.root.resolve()):
        raise ConfigError(
            f"The run folder {workdir} lies inside the dataset {source.root}, and would be taken "
            "for a class; give --workdir a place outside."
        )


def find_splits(
    config: Config, workdir: Path, source: Source, *, progress: Progress | None = None
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Gives the splits and the number of duplicates: the run's own, or at its first start new ones.

    Looking for duplicates decodes every image once, which a resumed run is spared.
    """
    splits = read_splits(workdir, source)
    if splits is not None:
        return splits, read_duplicates(workdir)
    groups, counts = compare(config, source, progress=progress)
    splits = make_splits(source, parse_split(config.split), config.seed, groups)
    if groups is not None:
        counts["leaked"] = _count_leaked(groups, splits)
    return splits, counts


def compare(
    config: Config, source: Source, *, progress: Progress | None = None
) -> tuple[np.ndarray | None, dict[str, int]]:
    """Gives the groups of equal images, None where they may be parted, and their numbers."""
    if config.duplicates == "ignore":
        return None, {}
    found = find_duplicates(
        source,
        near=config.duplicates == "near",
        num_threads=config.num_threads,
        progress=progress,
    )
    return found.groups, {"exact": found.exact, "near": found.near}


def _count_leaked(groups: np.ndarray, splits: dict[str, np.ndarray]) -> int:
    """Counts the images of val and test that lie in train as well."""
    judged = np.concatenate([splits["val"], splits["test"]])
    return int(np.isin(groups[judged], groups[splits["train"]]).sum())


def _open_loaders(
    config: Config, source: Source, splits: dict[str, np.ndarray]
) -> dict[str, SplitLoader]:
    # The test split is not opened here: nothing of it is seen before the final evaluation.
    loaders, room_bytes = {}, config.cache_mb * 2**20
    for name in ("train", "val"):
        size_bytes = len(splits[name]) * 3 * config.image_size**2
        fits = size_bytes <= room_bytes
        room_bytes -= size_bytes if fits else 0
        loaders[name] = SplitLoader(
            source,
            splits[name],
            config.preprocessing,
            cache_mb=config.cache_mb if fits else 0,
            num_threads=config.num_threads,
            max_unreadable=config.max_unreadable,
        )
    return loaders


def find_weights(config: Config, given: WeightFile | None = None) -> WeightFile | None:
    """Open the file of the pretrained weights, if the run starts from some.

    Raises:
        WeightsError: it cannot be had, or is not the one expected.
    """
    if config.start_from or not config.pretrained:
        return None
    return open_weights(
        given or config.weights,
        config.model,
        include_top=False,
        expect_sha256=config.expect_sha256,
    )


def build_model(config: Config, head: Head, weight_file: WeightFile | None) -> Network:
    """Makes the model with a new head, its base from random numbers or from the weights' file.

    With --start-from, base and head are that run's.

    Raises:
        WeightsError: the weights do not fit.
    """
    model = Network(
        config.model,
        head=head,
        image_size=config.image_size,
        dtype=jnp.dtype(config.dtype),
        conv=make_convolve(config.convolution),
        rngs=nnx.Rngs(config.seed),
    )
    if weight_file is not None:
        load_base(model, weight_file)
    if config.start_from:
        load_start(model, config)
    return model
