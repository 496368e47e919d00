"""Evaluate a finished run on one of its splits, and write the results into its folder.

In: a `RunResult`, or the folder that it is read from. Out: eval.json, the metrics of
metrics.summarize; predictions.csv, one line per image; and all probabilities (probabilities.npz).
For a split other than test, `-<split>` is added to their names, and with mirror images `-flip`.
Images that cannot be read are named and left out. A cross-validation has one eval.json and
predictions.csv over all folds.
"""

import functools
import hashlib
import platform
import time
import zipfile
import zlib
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vggjax.atomic import atomic_write, write_text
from vggjax.csv_text import csv_line, csv_rows
from vggjax.data.loader import SplitLoader, prefetch
from vggjax.data.sources.options import DEFAULT_OPTIONS, DatasetOptions
from vggjax.data.splits.splits import SPLITS
from vggjax.errors import ConfigError, DataError, printable, unknown_name
from vggjax.evaluation import multilabel
from vggjax.evaluation.metrics import TOP_K, pool, summarize, top_classes, wilson_interval
from vggjax.evaluation.other_data import open_evaluation
from vggjax.evaluation.predict import mean_over_mirror
from vggjax.evaluation.predict_options import Tta
from vggjax.training.config import Config, read_config
from vggjax.training.console import progress_bar
from vggjax.training.linear_probe.baselines import read_baselines
from vggjax.training.run_dir.checked_json import read_json, write_json
from vggjax.training.run_dir.folder import fold_folders, lock_workdir
from vggjax.training.run_dir.run_result import (
    RunResult,
    SplitPredictions,
    load_run_result,
    read_info,
)
from vggjax.training.step import make_predict_step

_ARCHIVE_ERRORS = (zipfile.BadZipFile, zlib.error)
MAX_ROWS = 20
"""Classes in the printed table, those with the lowest F1."""


def evaluate(
    run: RunResult | str | Path,
    *,
    split: str = "test",
    batch_size: int | None = None,
    dataset: str | None = None,
    options: DatasetOptions = DEFAULT_OPTIONS,
    tta: Tta = "none",
) -> dict[str, Any]:
    """Evaluate a run's best model on a split, print a summary, and write the results.

    Args:
        run: a finished run, or its folder.
        split: test, val or train; of other data also `all`.
        batch_size: images per step; None uses the run's own.
        dataset: where the run's dataset lies now, or another labeled dataset; see other_data.py.
        options: how to read `dataset`; by default as the run's own.
        tta: test-time augmentation; `flip` evaluates the mean over each image and its mirror, and
            writes eval-flip.json and so on, beside the run's own results.

    Returns:
        The contents of eval.json: split, the metrics of metrics.summarize, or of several labels
        per image those of multilabel.summarize, class_names, unreadable {id: reason},
        evaluated_at, seconds, device and versions.

    Raises:
        ConfigError: there is no run, an unknown split, an empty batch, or another process writes
            into the run's folder now.
        WeightsError: the training has not finished, or its model is damaged.
        DataError: the dataset is gone or was changed since the training.
    """
    workdir = Path(run.workdir if isinstance(run, RunResult) else run)
    if dataset is not None:
        run, split = open_evaluation(workdir, dataset, split, options=options)
        workdir = run.workdir
    _check_settings(run, split, batch_size)
    if not isinstance(run, RunResult):
        read_config(workdir)  # before a lock file is made where no run is
    with lock_workdir(workdir, "an evaluation"):
        return evaluate_split(run, split, batch_size=batch_size, tta=tta)[0]


def evaluate_split(
    run: RunResult | str | Path, split: str, *, batch_size: int | None = None, tta: Tta = "none"
) -> tuple[dict[str, Any], SplitPredictions]:
    """Do what `evaluate` does; return the contents of eval.json and the predictions."""
    _check_settings(run, split, batch_size)
    run = _with_data(run)
    assert run.info is not None and run.source is not None
    start, devices = time.monotonic(), jax.devices()
    predictions, unreadable = predict_split(run, split, batch_size=batch_size, tta=tta)
    ids, class_names = run.source.ids, run.info.class_names
    thresholds = np.array(run.info.thresholds) if run.info.is_multilabel else None
    result = {
        "split": split,
        "dataset": run.config.dataset,
        **_summarize(predictions, thresholds, class_names),
        "temperature": run.info.temperature,
        "tta": tta,
        **_baselines(run, split, len(predictions.labels)),
        "class_names": list(class_names),
        "unreadable": {ids[i]: reason for i, reason in sorted(unreadable.items())},
        "evaluated_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - start, 3),
        "device": f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})",
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("vggjax", "jax", "flax", "numpy", "pillow")},
    }
    suffix = _suffix(split, tta)
    text = predictions_csv(
        predictions, split, ids=ids, class_names=class_names, thresholds=thresholds
    )
    _write_result(run.workdir, suffix, result, text)
    print_summary(result)
    return result, predictions


def _check_settings(run: RunResult | str | Path, split: str, batch_size: int | None) -> None:
    choices = (isinstance(run, RunResult) and run.splits) or SPLITS
    if split not in choices:
        raise ConfigError(unknown_name("split", split, choices))
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"`batch_size` must be above 0; got {batch_size}.")


def _summarize(
    predictions: SplitPredictions, thresholds: np.ndarray | None, class_names: Sequence[str]
) -> dict[str, Any]:
    probs, labels = predictions.probs, predictions.labels
    if thresholds is None:
        return summarize(probs, labels, class_names)
    return multilabel.summarize(probs, labels, thresholds, class_names)


def _baselines(run: RunResult, split: str, num_examples: int) -> dict[str, Any]:
    """Return the key `baselines`: those of the run with their accuracy on test; or none."""
    known = read_baselines(run.workdir) if split == "test" else []
    for baseline in known:
        correct = baseline.pop("num_correct")
        baseline["accuracy"] = correct / num_examples
        baseline["accuracy_interval"] = wilson_interval(correct, num_examples)
    return {"baselines": known} if known else {}


def predict_split(
    run: RunResult, split: str, *, batch_size: int | None = None, tta: Tta = "none"
) -> tuple[SplitPredictions, dict[int, str]]:
    """Run a run's best model over one of its splits; keep the probabilities in the run folder.

    What the training predicted from the features that it had is taken over.

    Returns:
        The predictions for the readable images, and the others: index into the source -> reason.

    Raises:
        ConfigError: the split's images can no longer be identified.
        DataError: too many images cannot be read, or the model's outputs are not finite.
    """
    run = _with_data(run)
    assert run.source is not None
    known = run.predictions.get(split) if tta == "none" else None
    predictions, unreadable = known or _predict_images(run, split, batch_size=batch_size, tta=tta)
    if not len(predictions.index):
        first, reason = next(iter(unreadable.items()))
        raise DataError(
            f"No image of the {split} split can be read; {printable(run.source.ids[first])}: "
            f"{reason}."
        )
    num_broken = int((~np.isfinite(predictions.probs)).any(1).sum())
    if num_broken:
        raise DataError(
            f"The model's outputs are not finite (NaN) for {num_broken} of "
            f"{len(predictions.probs)} images: its training diverged. Train again with a lower "
            "`learning_rate`."
        )
    write_probabilities(run.workdir, split, predictions, tta=tta)
    return predictions, unreadable


def _predict_images(
    run: RunResult, split: str, *, batch_size: int | None, tta: Tta
) -> tuple[SplitPredictions, dict[int, str]]:
    """Read the images of a split and pass them through the network; show the progress."""
    assert run.model is not None and run.info is not None
    assert run.source is not None and run.splits is not None
    loader = SplitLoader(
        run.source,
        run.splits[split],
        run.info.preprocessing,
        cache_mb=0,  # a single pass
        num_threads=run.config.num_threads,
        max_unreadable=None,  # each is named; the figures are of the others
    )
    batch_size = min(batch_size or int(run.config.batch_size), len(loader))
    predict_step = make_predict_step(
        run.model,
        run.info.preprocessing.mode,
        multilabel=run.info.is_multilabel,
        temperature=run.info.temperature,
    )
    if tta == "flip":
        predict_step = mean_over_mirror(predict_step)
    print(f"Evaluating {len(loader):,} {split} images.", flush=True)
    parts: list[list[np.ndarray]] = []
    with progress_bar(Console(stderr=True), f"evaluating {split}") as progress:
        for batch in prefetch(loader.batches(batch_size), lambda batch: batch):
            is_readable = batch["mask"] > 0  # neither padding nor unreadable
            probs = np.asarray(predict_step(batch["images"]))
            rows = batch["index"], batch["label"], probs
            parts.append([part[is_readable] for part in rows])
            progress(min(len(parts) * batch_size, len(loader)), len(loader))
    return SplitPredictions(*map(np.concatenate, zip(*parts, strict=True))), loader.unreadable


def write_probabilities(
    workdir: Path, split: str, predictions: SplitPredictions, *, tta: Tta = "none"
) -> None:
    """Write probabilities.npz, the fields of `SplitPredictions`, for the report."""
    with atomic_write(_path(workdir, split, tta)) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **predictions._asdict())


def read_probabilities(workdir: Path, split: str, *, num_classes: int) -> SplitPredictions | None:
    """Read the file; None if it is missing or unusable."""
    try:
        # np.load leaves a damaged file that it opened itself open.
        with open(_path(workdir, split), "rb") as data, np.load(data, allow_pickle=False) as file:
            predictions = SplitPredictions(file["index"], file["labels"], file["probs"])
    except (OSError, ValueError, LookupError, EOFError, RuntimeError, *_ARCHIVE_ERRORS):
        return None
    rows, labels, probs = len(predictions.index), predictions.labels, predictions.probs
    fits = probs.shape == (rows, num_classes) and labels.shape in ((rows,), probs.shape)
    return predictions if fits and rows and np.isfinite(probs).all() else None


def _path(workdir: Path, split: str, tta: Tta = "none") -> Path:
    return workdir / f"probabilities{_suffix(split, tta)}.npz"


def _suffix(split: str, tta: Tta) -> str:
    """Return what is added to the names of results that are not the report's."""
    return ("" if split == "test" else f"-{split}") + ("" if tta == "none" else f"-{tta}")


def pool_folds(workdir: Path, config: Config) -> dict[str, Any]:
    """Write and print the metrics over all folds of a cross-validation, each evaluated before.

    predictions.csv has the folds' lines, with the fold's name as split. Return the contents of
    eval.json: the keys of a single run's, and `folds`.
    """
    folders = fold_folders(workdir, config)
    results = [read_json(path / "eval.json") for path in folders]
    names, is_multilabel = results[0]["class_names"], config.task == "multilabel"
    metric = "mAP" if is_multilabel else "accuracy"
    keys = ("num_examples", "loss", metric, f"{metric}_interval")
    kept = ("class_names", "evaluated_at", "device", "versions")
    pooled = {
        "split": "test",
        "dataset": config.dataset,
        **(_pool_multilabel(folders, names) if is_multilabel else pool(results, names)),
        "folds": [
            {"name": path.name} | {key: result[key] for key in keys}
            for path, result in zip(folders, results, strict=True)
        ],
        "unreadable": {id: why for result in results for id, why in result["unreadable"].items()},
        "seconds": round(sum(result["seconds"] for result in results), 3),
        **{key: results[-1][key] for key in kept},
    }
    _write_result(workdir, "", pooled, _join_predictions(folders))
    print_summary(pooled)
    return pooled


def _write_result(workdir: Path, suffix: str, result: dict[str, Any], predictions: str) -> None:
    """Write predictions.csv, and eval.json with its SHA-256, which is added to the result."""
    result["predictions_sha256"] = hashlib.sha256(predictions.encode()).hexdigest()
    write_text(workdir / f"predictions{suffix}.csv", predictions)
    write_json(workdir / f"eval{suffix}.json", result)


def _pool_multilabel(folders: list[Path], names: Sequence[str]) -> dict[str, Any]:
    """Return the metrics of all folds' images, each with the thresholds of its fold's model."""
    parts, thresholds = [], []
    for folder in folders:
        part = read_probabilities(folder, "test", num_classes=len(names))
        if part is None:
            raise ConfigError(f"Evaluate {printable(folder)} again: its probabilities are missing.")
        parts.append(part)
        thresholds.append(np.tile(read_info(folder).thresholds, (len(part.probs), 1)))
    predictions = SplitPredictions(*map(np.concatenate, zip(*parts, strict=True)))
    return _summarize(predictions, np.concatenate(thresholds), names)


def print_summary(result: dict[str, Any]) -> None:
    """Print the metrics, the classes with the lowest F1, and the unreadable images."""
    console = Console()
    print_line = functools.partial(console.print, highlight=False, soft_wrap=True)
    images = f"{result['split']} images" if "folds" not in result else "images in all folds"
    images = images.removeprefix("all ")
    columns = {"precision": "precision", "recall": "recall", "f1": "F1"}
    if result.get("task") == "multilabel":
        columns |= {"average_precision": "AP", "threshold": "threshold"}
        print_line(multilabel.describe(result, images))
    else:
        low, high = result["accuracy_interval"]
        print_line(
            f"[bold]{result['accuracy']:.1%}[/] of {result['num_examples']:,} {images} classified "
            f"correctly (95% interval {low:.1%} to {high:.1%}), loss {result['loss']:.3f}"
            + (f", top-5 {result['top5']:.1%}" if "top5" in result else "")
        )
    for baseline in result.get("baselines", []):
        low, high = baseline["accuracy_interval"]
        print_line(
            f"{baseline['accuracy']:.1%} by {baseline['name']} ({baseline['setting']}) on the "
            f"frozen features ({low:.1%} to {high:.1%})"
        )
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("class", overflow="fold")
    for name in (*columns.values(), "images"):
        table.add_column(name, justify="right")
    worst = sorted(result["per_class"], key=lambda row: (row["support"] == 0, row["f1"]))
    # A single further row takes no more room than the line about it.
    shown = worst if len(worst) <= MAX_ROWS + 1 else worst[:MAX_ROWS]
    for row in shown:
        scores = [f"{row[key]:.1%}" if row["support"] else "-" for key in columns]
        table.add_row(escape(printable(row["name"])), *scores, f"{row['support']:,}")
    console.print(table)
    if len(shown) < len(worst):
        is_tied = worst[len(shown)]["f1"] <= shown[-1]["f1"]
        print_line(
            f"... {len(worst) - len(shown)} more, {'none worse' if is_tied else 'all better'}"
        )
    for name, reason in list(result["unreadable"].items())[:5]:
        print_line(escape(f"unreadable: {printable(name)}: {printable(reason)}"))
    if len(result["unreadable"]) > 5:
        print_line(f"... {len(result['unreadable'])} unreadable in all")


def predictions_csv(
    predictions: SplitPredictions,
    split: str,
    *,
    ids: Sequence[str],
    class_names: Sequence[str],
    thresholds: np.ndarray | None = None,
) -> str:
    """Return predictions.csv: a line per image, names escaped so that the text is UTF-8.

    With `thresholds` (C,) of several labels per image the columns are multilabel.COLUMNS.
    """
    if thresholds is not None:
        rows = [(ids[i], target, probs) for i, target, probs in zip(*predictions, strict=True)]
        return "".join(
            multilabel.prediction_lines(rows, split, thresholds=thresholds, class_names=class_names)
        )
    names = tuple(map(printable, class_names))
    columns = ["id", "split", "truth", "guess", "probability", "truth_probability", "correct"]
    with_top = len(names) > TOP_K
    lines = [csv_line([*columns, f"top{TOP_K}"] if with_top else columns)]
    top_rows = top_classes(predictions.probs)
    for index, label, probs, top in zip(*predictions, top_rows, strict=True):
        shares = [f"{probs[top[0]]:.6f}", f"{probs[label]:.6f}"]
        row = [printable(ids[index]), split, names[label], names[top[0]], *shares]
        top_names = ["; ".join(names[i] for i in top)] if with_top else []
        lines.append(csv_line([*row, int(label == top[0]), *top_names]))
    return "".join(lines)


def _join_predictions(folders: list[Path]) -> str:
    joined: list[list[str]] = []
    for folder in folders:
        with open(folder / "predictions.csv", encoding="utf-8", newline="") as file:
            header, *rows = csv_rows(file)
        joined += [] if joined else [header]
        joined += [[image_id, folder.name, *rest] for image_id, _, *rest in rows]
    return "".join(map(csv_line, joined))


def _with_data(run: RunResult | str | Path) -> RunResult:
    """Return the run with its model and data, read from its folder if they are missing."""
    if not isinstance(run, RunResult) or run.source is None:
        workdir = run.workdir if isinstance(run, RunResult) else run
        try:
            run = load_run_result(workdir, strict=True)
        except DataError as error:
            message = f"{error} If the data has moved, give its new place as `dataset`."
            raise DataError(message) from None
    if run.model is None:
        folds = ", ".join(path.name for path in fold_folders(run.workdir, run.config))
        raise ConfigError(
            f"{printable(run.workdir)} is a cross-validation, which has one model per fold; give "
            f"the folder of a fold: {folds}."
        )
    return run
