"""Prepare a run: find its data, splits, model with weights, and run folder, each exactly once.

Whatever can be refused is refused here, and nothing is written.

A run with `start_from` goes on from the backbone and head of a finished run. The model and the
preprocessing are that run's, so settings that do not fit are refused, and it may not be evaluated
on images that the finished run was trained on.
"""

import dataclasses
import functools
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vggjax.data.loader import SplitLoader
from vggjax.data.multilabel import binary_weights
from vggjax.data.quality.duplicates import Duplicates, find_blank_fault, find_duplicates
from vggjax.data.sources.open import open_source
from vggjax.data.sources.rendering import render_source
from vggjax.data.sources.source import Source
from vggjax.data.splits.splits import balanced_weights, make_splits, parse_split, read_splits
from vggjax.errors import ConfigError, DataError, VggjaxError, join_names, printable
from vggjax.models.head import Head
from vggjax.models.kernels.conv import make_convolve
from vggjax.models.network import Network
from vggjax.models.params import assign
from vggjax.training.cache.plan import FeaturePlan, plan_features
from vggjax.training.config import Config, place_of, read_config
from vggjax.training.devices.memory import find_batch_size
from vggjax.training.devices.processes import num_processes, on_first
from vggjax.training.freezing import plan_stages
from vggjax.training.parallel import Placement, default_dtype
from vggjax.training.run_dir.contents import Contents, FileState
from vggjax.training.run_dir.folder import (
    check_data,
    find_workdir,
    known_data_facts,
    read_image_splits,
)
from vggjax.training.run_dir.run_result import ModelInfo, read_info
from vggjax.training.settings.stages import Stage
from vggjax.weights.hub.fetch import is_hub_address, local_path
from vggjax.weights.load import load_base, open_weights
from vggjax.weights.weight_file import WeightFile, read_weights

Progress = Callable[[int, int], None]
"""Called with (done, total) while images are compared."""


@dataclass(frozen=True)
class RunContext:
    """What a run needs, ready for its first step."""

    config: Config
    workdir: Path
    placement: Placement
    source: Source
    splits: dict[str, np.ndarray]
    """Split -> indices into the source."""
    duplicates: dict[str, int]
    """Number of images beyond the first of their kind, `exact` and `near`, and of those `leaked`
    by the dataset's own splits; empty without a search."""
    duplicate_groups: Duplicates | None
    """The result of this start's search; None if there was none."""
    contents: dict[str, FileState | None]
    """The files of a run that starts, by image id; empty if an earlier start read them."""
    loaders: dict[str, SplitLoader]
    """Of train and val: the test split stays closed until the final evaluation."""
    model: Network
    info: ModelInfo
    stages: tuple[Stage, ...]
    batch_size: int
    steps_per_epoch: int
    steps_per_pass: int
    """Steps that show each training image once: those of an epoch, without `epoch_images`."""
    feature_plans: dict[str, FeaturePlan]
    """Stage name -> what it keeps of its frozen layers' outputs; other stages are left out."""
    class_weights: np.ndarray | None
    """Weights in the loss, float32 (C,), of several labels per image (C, 2), of the absence and of
    the presence of each; None weighs every image the same."""
    weight_file: WeightFile | None
    """The pretrained weights; None from random weights and with `start_from`."""

    @property
    def is_multilabel(self) -> bool:
        """Whether images have several labels, and the head a sigmoid unit for each class."""
        return self.source.targets is not None

    def left_out(self) -> dict[str, str]:
        """Return the images of train and val that could not be read so far: id -> reason."""
        return {
            self.source.ids[i]: reason
            for loader in self.loaders.values()
            for i, reason in sorted(loader.unreadable.items())
        }

    def adapted(self) -> Counter[str]:
        """Count the images of train and val that were converted to RGB so far, by conversion."""
        return sum((loader.adapted for loader in self.loaders.values()), Counter())


def prepare_run(config: Config, *, progress: Progress | None = None) -> RunContext:
    """Open the data, build the model with its weights, and find the run folder.

    Raises:
        VggjaxError: settings, data or weights that cannot be used; nothing was written.
    """
    weight_file = _open_given(config)
    config = resolve(config, weight_file)
    placement = Placement.of(config)
    config, source = open_rendered(config)
    multilabel = source.targets is not None
    head = Head.parse(config.head).for_classes(len(source.class_names), multilabel=multilabel)
    workdir = on_first(lambda: find_workdir(config))
    check_outside(workdir, source)
    check_same_data(source)
    on_first(lambda: check_data(workdir, source))
    contents = Contents(source)
    splits, counts, duplicates = on_first(
        lambda: _find_splits(config, workdir, source, contents, progress=progress)
    )
    if config.start_from:
        _check_start(config, head, source, splits)
    weight_file = _open_base(config, weight_file)
    model = build_model(config, head, weight_file)
    loaders = _open_loaders(config, source, splits)
    sizes = {name: len(indices) for name, indices in splits.items()}
    config = _with_batch_size(config, workdir, model, placement, num_train=sizes["train"])
    batch_size = min(int(config.batch_size), len(splits["train"]))  # a larger one would be padding
    steps_per_epoch = steps_per_pass = loaders["train"].num_batches(batch_size)
    if config.epoch_images:
        steps_per_epoch = max(1, int(config.epoch_images / batch_size + 0.5))
    stages = plan_stages(config)
    return RunContext(
        config=config,
        workdir=workdir,
        placement=placement,
        source=source,
        splits=splits,
        duplicates=counts,
        duplicate_groups=duplicates,
        contents=contents.states(),
        loaders=loaders,
        model=model,
        info=_describe_model(config, head, source, weight_file),
        stages=stages,
        batch_size=batch_size,
        steps_per_epoch=steps_per_epoch,
        steps_per_pass=steps_per_pass,
        feature_plans=on_first(
            functools.partial(
                plan_features,
                *(config, model, stages, sizes, workdir),
                steps_per_epoch=steps_per_epoch,
                steps_per_pass=steps_per_pass,
            )
        ),
        class_weights=_class_weights(config, source, splits["train"]),
        weight_file=weight_file,
    )


def check_same_data(source: Source) -> None:
    """Raise DataError if the processes of a run read different datasets."""
    first = on_first(lambda: source.fingerprint)
    if source.fingerprint != first:
        raise DataError(
            f"The dataset {printable(source.name)} of process {jax.process_index()} differs from "
            "the first process' one. Give every host the same files."
        )


def _with_batch_size(
    config: Config, workdir: Path, model: Network, placement: Placement, *, num_train: int
) -> Config:
    """Return the settings with the number of images that `batch_size` auto stands for.

    A run that is resumed keeps its own.
    """
    if config.batch_size != "auto":
        return config
    if num_processes() > 1:
        raise ConfigError("`batch_size` auto is for a single process; give a number of images.")
    if (workdir / "config.json").exists():
        return dataclasses.replace(config, batch_size=read_config(workdir).batch_size)
    batch_size, _ = find_batch_size(config, model, placement, most=num_train)
    return dataclasses.replace(config, batch_size=batch_size)


def _class_weights(config: Config, source: Source, train: np.ndarray) -> np.ndarray | None:
    if config.class_weights != "balanced":
        return None
    if source.targets is not None:
        return binary_weights(source.targets[train])
    return balanced_weights(source.labels[train], len(source.class_names))


def _open_given(config: Config) -> WeightFile | None:
    """Open the file that `weights` names, if it does; one that does not exist is refused later."""
    if config.weights in ("imagenet", "none"):
        return None
    path = local_path(config.weights)
    return WeightFile(path) if path.exists() else None


def _open_base(config: Config, weight_file: WeightFile | None) -> WeightFile | None:
    """Open the pretrained weights, unless `weight_file` is open already; None without any."""
    if not config.pretrained or config.start_from:
        return weight_file
    given = weight_file or config.weights
    return open_weights(given, config.model, include_top=False, expect_sha256=config.expect_sha256)


def resolve(config: Config, weight_file: WeightFile | None = None) -> Config:
    """Return the settings independent of the working directory, and with their preprocessing known.

    A weight file may state the preprocessing that it was trained with; `weight_file` is that of
    `weights`, if it is open already.

    Raises:
        ConfigError: `preprocess` is auto, and what the file holds puts it in doubt.
    """
    changes: dict[str, Any] = {
        name: place
        for name, value in (("dataset", config.dataset), ("weights", config.weights))
        if (place := place_of(value))
    }
    if config.data_dir:
        changes["data_dir"] = os.path.realpath(Path(config.data_dir).expanduser())
    if config.dtype is None:
        changes["dtype"] = default_dtype()
    if config.preprocess == "auto" and ("weights" in changes or is_hub_address(config.weights)):
        info = (weight_file or WeightFile(local_path(config.weights))).info
        if info.preprocess_doubt and not config.start_from:
            raise ConfigError(
                f"The pixels that {printable(config.weights)} expects are uncertain: "
                f"{info.preprocess_doubt}. Set `preprocess` to caffe, torch or unit."
            )
        changes["preprocess"] = info.preprocess if info.states_preprocess else "auto"
    if config.start_from:
        changes |= _start_settings(config)
    return dataclasses.replace(config, **changes)


def open_rendered(config: Config) -> tuple[Config, Source]:
    """Open the data as the model will see it; return the settings with the pixel range found."""
    source = open_source(config.dataset, data_dir=config.data_dir, options=config)
    if config.start_from:
        return config, source.rendered(config.preprocessing.rendering)
    source, rendering = render_source(source, config, num_threads=config.num_threads)
    return dataclasses.replace(config, pixel_range=rendering.pixel_range or ()), source


def check_outside(workdir: Path, source: Source) -> None:
    """Raise ConfigError if the run folder is inside the dataset, where it would be a class."""
    root = source.root and os.path.realpath(source.root)
    if root and Path(os.path.realpath(workdir)).is_relative_to(root):
        raise ConfigError(
            f"The run folder {printable(workdir)} is inside the dataset {printable(source.root)} "
            "and would become a class; give a `workdir` outside."
        )


def _find_splits(
    config: Config,
    workdir: Path,
    source: Source,
    contents: Contents,
    *,
    progress: Progress | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, int], Duplicates | None]:
    """Return the splits, the number of duplicates, and a first start's search for them.

    A first start also reads the contents of all files.
    """
    splits = read_splits(workdir, source)
    if splits is not None:
        return splits, known_data_facts(workdir).get("duplicates", {}), None
    duplicates = group_duplicates(config, source, contents, progress=progress)
    groups = duplicates.groups if duplicates else None
    splits = make_splits(source, parse_split(config.split), config.seed, groups)
    if duplicates is None:
        return splits, {}, None
    held_out = np.concatenate([splits["val"], splits["test"]])
    leaked = int(np.isin(duplicates.groups[held_out], duplicates.groups[splits["train"]]).sum())
    return splits, duplicates.counts | {"leaked": leaked}, duplicates


def group_duplicates(
    config: Config, source: Source, contents: Contents, *, progress: Progress | None = None
) -> Duplicates | None:
    """Group the duplicates that the setting `duplicates` names; None for "ignore".

    Either way every file is read, and its state added to `contents`.
    """
    near, num_threads = config.duplicates == "near", config.num_threads
    if config.duplicates == "ignore":
        contents.add_all(num_threads, progress)
        return None
    duplicates = find_duplicates(
        source, near=near, num_threads=num_threads, progress=progress, visit=contents.add
    )
    fault = find_blank_fault(duplicates)
    if fault:
        raise DataError(fault)
    return duplicates


def build_model(config: Config, head: Head, weight_file: WeightFile | None) -> Network:
    """Build the model: its backbone random, from the weight file, or from `start_from`."""
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
        assign(model, read_weights(Path(config.start_from) / "model.safetensors"))
    return model


def _describe_model(
    config: Config, head: Head, source: Source, weight_file: WeightFile | None
) -> ModelInfo:
    provenance = {
        "vggjax": version("vggjax"),
        "weights": config.start_from or config.weights,
        "dataset": config.dataset,
        "seed": str(config.seed),
    }
    if weight_file is not None:
        provenance |= weight_file.provenance
    return ModelInfo(
        arch=config.model,
        head=str(head),
        class_names=source.class_names,
        preprocessing=config.preprocessing,
        dtype=str(config.dtype),
        provenance=provenance,
        task=config.task,
    )


def _open_loaders(
    config: Config, source: Source, splits: dict[str, np.ndarray]
) -> dict[str, SplitLoader]:
    loaders, free_bytes = {}, config.cache_mb * 2**20
    for name in ("train", "val"):
        size_bytes = len(splits[name]) * 3 * config.image_size**2
        fits = size_bytes <= free_bytes
        free_bytes -= size_bytes if fits else 0
        loaders[name] = SplitLoader(
            source,
            splits[name],
            config.preprocessing,
            cache_mb=config.cache_mb if fits else 0,
            num_threads=config.num_threads,
            max_unreadable=config.max_unreadable,
        )
    return loaders


def _start_settings(config: Config) -> dict[str, Any]:
    """Return the settings that `start_from` decides, and its folder's full path."""
    folder = Path(config.start_from or "")
    preprocessing = _read_start(folder).preprocessing
    changes: dict[str, Any] = {"start_from": str(folder.resolve())}
    for part, value in dataclasses.asdict(preprocessing).items():
        value = () if value is None else value
        name = "preprocess" if part == "mode" else part
        received = getattr(config, name)
        if received not in (value, getattr(Config, name)):
            raise ConfigError(
                f"The run in `start_from` {printable(folder)} was trained with `{name}` {value}, "
                f"which this run takes over; got `{name}` {received}. Leave it out."
            )
        changes[name] = value
    return changes


def _check_start(config: Config, head: Head, source: Source, splits: dict[str, np.ndarray]) -> None:
    """Check that the run fits the one of `start_from` and holds out images that are new to it."""
    folder = Path(config.start_from or "")
    info, run = _read_start(folder), f"The run in `start_from` {printable(folder)}"
    pairs = {
        "task": (info.task, config.task),
        "model": (info.arch, config.model),
        "head": (info.head, str(head)),
    }
    for name, (value, received) in pairs.items():
        if value != received:
            raise ConfigError(f"{run} has `{name}` {value}; got {received}. Give `{name}` {value}.")
    if info.class_names != source.class_names:
        raise ConfigError(
            f"{run} has other classes: {join_names(info.class_names)}; the dataset has "
            f"{join_names(source.class_names)}. To use its backbone alone, give `weights` "
            f"{printable(folder / 'model.safetensors')}."
        )
    # Of another dataset, or a changed one, the names alone are known: console.py prints a warning.
    leaked = count_trained_names(folder, source, splits)
    if leaked and known_data_facts(folder).get("fingerprint") == source.fingerprint:
        raise ConfigError(
            f"{run} was trained on {leaked:,} of the {len(splits['val']) + len(splits['test']):,} "
            "images of this run's val and test splits. Give its `split`, `seed` and `duplicates`."
        )


def count_trained_names(folder: Path, source: Source, splits: dict[str, np.ndarray]) -> int:
    """Count the val and test images whose names are those of training images of another run."""
    split_of = read_image_splits(folder)
    return sum(
        split_of.get(source.ids[i]) == "train" for name in ("val", "test") for i in splits[name]
    )


def _read_start(folder: Path) -> ModelInfo:
    try:
        return read_info(folder)
    except VggjaxError as error:
        raise ConfigError(f"`start_from`: {error}") from None
