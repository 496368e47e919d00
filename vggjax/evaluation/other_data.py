"""Open the data that an evaluation names: the run's own in a new place, or another labeled set.

The same classes, images and labels are the same data, wherever they lie. Other data is evaluated as
images that the model has not seen: its classes are matched by name, and its results get a folder
of their own, `evaluations/<name>-<fingerprint>/` in the run folder.
"""

import dataclasses
import os
import re
from pathlib import Path

import numpy as np
from rich.console import Console

from vggjax.data.sources.csv import is_csv
from vggjax.data.sources.open import scan_source
from vggjax.data.sources.options import DEFAULT_OPTIONS, DatasetOptions
from vggjax.data.sources.source import Source
from vggjax.errors import ConfigError, DataError, join_names, nearest_name, printable, unknown_name
from vggjax.training.config import Config, place_of, read_config
from vggjax.training.run_dir.folder import known_data_facts, read_image_splits
from vggjax.training.run_dir.run_result import RunResult, load_model, load_run_result

EVALUATIONS = "evaluations"


def open_evaluation(
    workdir: str | os.PathLike[str],
    dataset: str,
    split: str,
    *,
    options: DatasetOptions = DEFAULT_OPTIONS,
    console: Console | None = None,
) -> tuple[RunResult, str]:
    """Open a finished run with the data at `dataset`; print how it is used.

    Args:
        workdir: the run's folder.
        dataset: what `train` takes as a dataset.
        split: a split of the run, if the data is the run's own; of other data one of its official
            splits, `test` for all of it where it has none, or `all`.
        options: how to read it; by default as the run's own data, if it is of the same kind.
        console: where to print.

    Returns:
        The run, with this data and the folder for the results, and the name of the split.

    Raises:
        WeightsError: the training has not finished, or its model is damaged.
        DataError: there is no such dataset, or it is a changed copy of the run's own.
        ConfigError: it has no such split, or none of the model's classes.
    """
    workdir = Path(workdir)
    config = dataclasses.replace(read_config(workdir), dataset=place_of(dataset) or dataset)
    if options == DEFAULT_OPTIONS and is_csv(dataset) == is_csv(read_config(workdir).dataset):
        options = config
    source = _open(dataset, config, options)
    is_same = source.fingerprint == known_data_facts(workdir).get("fingerprint")
    if split != "all" and is_same:
        return load_run_result(workdir, strict=True, dataset=dataset, source=source), split
    trained_on = read_image_splits(workdir)
    common = trained_on.keys() & set(source.ids)
    if split != "all" and 2 * len(common) > max(len(trained_on), len(source)):
        try:  # without some images it is still the run's own
            return load_run_result(workdir, strict=True, dataset=dataset, source=source), split
        except DataError as error:
            raise DataError(f"{error} Or give `split` all, which takes it as other data.") from None
    run, notes = _run_with(workdir, config, source, split)
    num_trained = sum(trained_on[id] in ("train", "val") for id in common)
    if num_trained:
        notes.append(
            f"{num_trained:,} of the images have names of images that the model was trained on; if "
            "they are the same, its accuracy is overestimated."
        )
    for note in notes:
        (console or Console()).print(note, markup=False, highlight=False, soft_wrap=True)
    assert run.splits is not None
    return run, next(iter(run.splits))


def _open(dataset: str, config: Config, options: DatasetOptions) -> Source:
    """Open a dataset; unlike one to train on, it may have a single class."""
    scan = scan_source(dataset, data_dir=config.data_dir, options=options)
    is_single = scan.source is not None and len(scan.source.class_names) == 1
    if scan.source is None or len(scan.faults) > is_single:
        raise DataError(scan.faults[0])
    return scan.source


def _run_with(
    workdir: Path, config: Config, source: Source, split: str
) -> tuple[RunResult, list[str]]:
    """Return the run on other data, whose only split is the one to evaluate, and notes on it."""
    model, info = load_model(workdir)
    label_of = np.array([_index(info.class_names, name) for name in source.class_names])
    name = printable(source.name)
    unknown = [
        known for known, label in zip(source.class_names, label_of, strict=True) if label < 0
    ]
    if len(unknown) == len(label_of):
        raise ConfigError(
            f"{name} has none of the model's classes, {join_names(info.class_names)}; its classes "
            f"are {join_names(unknown)}."
        )
    indices = _indices(source, split)
    if source.targets is None:
        labels, targets = label_of[source.labels], None
        is_known = labels >= 0
    else:
        targets = np.zeros((len(source), len(info.class_names)), bool)
        targets[:, label_of[label_of >= 0]] = source.targets[:, label_of >= 0]
        labels, is_known = source.labels, np.ones(len(source), bool)
    kept = indices[is_known[indices]]
    if targets is None:
        counts = np.bincount(labels[kept], minlength=len(info.class_names))
    else:
        counts = targets[kept].sum(0)
    if not counts.any():
        raise ConfigError(f"{name} has no images of the model's classes in `split` {split}.")
    folder = workdir / EVALUATIONS / _folder_name(source)
    folder.mkdir(parents=True, exist_ok=True)
    notes = [
        f"{name} is not the run's own data: {len(kept):,} images are evaluated as images that the "
        f"model has not seen. The results are in {printable(folder)}."
    ]
    if unknown:
        near = [(known, nearest_name(known, info.class_names, cutoff=0.8)) for known in unknown]
        hints = join_names(f"{a!r} (did you mean {b!r}?)" if b else repr(a) for a, b in near)
        images = f"{len(indices) - len(kept):,} images of " if targets is None else ""
        notes.append(f"Left out: {images}classes that the model does not have: {hints}.")
    if missing := [name for name, count in zip(info.class_names, counts, strict=True) if not count]:
        notes.append(f"No images of {join_names(map(repr, missing))}.")
    source = dataclasses.replace(
        source.rendered(info.preprocessing.rendering),
        class_names=info.class_names,
        labels=np.where(is_known, labels, 0).astype(np.int32),
        targets=targets,
        splits=None,
    )
    return RunResult(folder, config, model, info, source, {split: kept}), notes


def _index(names: tuple[str, ...], name: str) -> int:
    return names.index(name) if name in names else -1


def _indices(source: Source, split: str) -> np.ndarray:
    """Return the images of a split: an official one, or all where there are none, or `all`."""
    if split == "all" or (split == "test" and source.splits is None):
        return np.arange(len(source))
    choices = [*(source.splits or ()), "all"]
    if split not in choices:
        raise ConfigError(
            unknown_name("split", split, choices, hint=f" It is one of {printable(source.name)}.")
        )
    return (source.splits or {})[split]


def _folder_name(source: Source) -> str:
    name = re.sub(r"[^\w.-]+", "-", source.name).strip(".-") or "data"
    return f"{name}-{source.fingerprint[:8]}"
