"""Judges a finished run on one of its splits and writes the figures beside the model.

In: a run folder (config.json, data.json, model.safetensors). Out: eval.json, everything that
metrics.summarize gives, and predictions.csv, one line an image; for a split other than test
eval-<split>.json and predictions-<split>.csv, so that the test's figures stay. All probabilities
are kept beside them (probabilities.py). Each file appears whole or not at all. Images that cannot
be read are counted and named, never guessed at.
"""

import csv
import io
import json
import platform
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from vggjax.atomic import write_text
from vggjax.data.images.preprocess import Preprocessing
from vggjax.data.loader import SplitLoader, prefetch
from vggjax.data.sources.source import Source
from vggjax.data.splits.split_file import NAME as SPLITS_FILE
from vggjax.data.splits.split_file import read_splits
from vggjax.data.splits.splits import SPLITS
from vggjax.errors import ConfigError, DataError, printable, unknown_name
from vggjax.evaluation.metrics import TOP_K, summarize, top_classes
from vggjax.evaluation.probabilities import SplitPredictions, write_probabilities
from vggjax.models.network import Network
from vggjax.training.config import Config, read_config
from vggjax.training.run_dir.folder import check_splits
from vggjax.training.run_dir.run_result import open_training_data
from vggjax.training.run_dir.saved_model import ModelInfo, load_model
from vggjax.training.step import make_predict_step

MAX_ROWS = 20
"""Classes that the printed table shows, the worst first."""


def evaluate(
    workdir: str | Path, *, split: str = "test", batch_size: int | None = None
) -> dict[str, Any]:
    """Runs the best model over a split, prints the figures and writes them into the run folder.

    Returns:
        What eval.json holds: split, summarize's figures, class_names, unreadable {id: reason},
        evaluated_at, seconds, device and versions.

    Raises:
        ConfigError: no run there, an unknown split, or a batch of nothing.
        WeightsError: the run has not finished, or its model is damaged.
        DataError: the dataset is gone or is no longer the one that the run was trained on.
    """
    workdir = Path(workdir)
    if split not in SPLITS:
        raise ConfigError(unknown_name("split", split, SPLITS))
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"--batch-size must be 1 or more; got {batch_size}.")
    config = read_config(workdir)
    model, info = load_model(workdir)
    source = open_training_data(workdir, config)
    start = time.monotonic()
    judged, unreadable = predict_split(
        workdir, config, model, info, source, split, batch_size=batch_size
    )
    result = {
        "split": split,
        **summarize(judged.probs, judged.labels, info.class_names),
        "class_names": list(info.class_names),
        "unreadable": {source.ids[i]: reason for i, reason in sorted(unreadable.items())},
        "evaluated_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - start, 3),
        "device": _device(),
        "versions": {"python": platform.python_version()}
        | {"vggjax": version("vggjax")}
        | {name: version(name) for name in ("jax", "flax", "numpy", "pillow")},
    }
    suffix = "" if split == "test" else f"-{split}"
    ids = [source.ids[i] for i in judged.index]
    text = _predictions_csv(ids, split, judged.labels, judged.probs, info.class_names)
    write_text(workdir / f"predictions{suffix}.csv", text)
    write_text(workdir / f"eval{suffix}.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
    print_summary(result)
    return result


def predict_split(
    workdir: Path,
    config: Config,
    model: Network,
    info: ModelInfo,
    source: Source,
    split: str,
    *,
    batch_size: int | None = None,
) -> tuple[SplitPredictions, dict[int, str]]:
    """Runs the model over a split of the run and keeps what it says in the run folder.

    Returns:
        What it says of the readable images, and the others: index into the source -> reason.

    Raises:
        ConfigError: the run does not say any more which images the split has.
        DataError: too many images cannot be read, or the model gives no numbers.
    """
    check_splits(workdir)
    splits = read_splits(workdir, source)
    if splits is None:
        raise ConfigError(
            f"{printable(workdir / SPLITS_FILE)} is missing, so nobody can tell which images the "
            "model has not seen. Train again with another --workdir."
        )
    examples = SplitLoader(
        source,
        splits[split],
        info.preprocessing,
        cache_mb=0,  # one pass only
        num_threads=config.num_threads,
        max_unreadable=config.max_unreadable,
    )
    batch_size = min(batch_size or config.batch_size, len(examples))
    judged = SplitPredictions(*run_model(model, info.preprocessing, examples, batch_size))
    write_probabilities(workdir, split, judged)
    return judged, examples.unreadable


def run_model(
    model: Network, preprocessing: Preprocessing, examples: SplitLoader, batch_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gives (index into the source, label, probabilities (N, C)) of all readable examples.

    Raises:
        DataError: the model gives probabilities that are no numbers.
    """
    predict_step = make_predict_step(model, preprocessing.mode)
    batches = prefetch(examples.batches(batch_size), lambda batch: batch)
    console = Console(stderr=True)
    total = examples.num_batches(batch_size)
    kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for batch in track(
        batches,
        "Evaluating",
        total=total,
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ):
        real = batch["mask"] > 0  # neither padding nor unreadable
        probs = np.asarray(predict_step(batch["images"]))
        kept.append((batch["index"][real], batch["label"][real], probs[real]))
    index, labels, probs = (np.concatenate(parts) for parts in zip(*kept, strict=True))
    broken = int((~np.isfinite(probs)).any(1).sum())
    if broken:
        raise DataError(
            f"The model gives no numbers (NaN) for {broken} of {len(probs)} images: its training "
            "diverged. Train again with a lower --learning-rate."
        )
    return index, labels, probs


def print_summary(result: dict[str, Any]) -> None:
    """Prints the figures and the classes, worst first."""
    console = Console()
    low, high = result["accuracy_interval"]
    loss = f"loss {result['loss']:.3f}"
    console.print(
        f"[bold]{result['accuracy']:.1%}[/] of {result['num_examples']:,} "
        + (f"{result['split']} images" if "folds" not in result else "images in all folds")
        + f" named correctly (95 % interval {low:.1%} to {high:.1%}), {loss}"
        + (f", top-5 {result['top5']:.1%}" if "top5" in result else ""),
        highlight=False,
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("class", overflow="fold")
    for name in ("precision", "recall", "F1", "images"):
        table.add_column(name, justify="right")
    worst = sorted(result["per_class"], key=lambda row: row["f1"])
    # One row more costs less room than the line that would speak of it.
    shown_rows = worst if len(worst) <= MAX_ROWS + 1 else worst[:MAX_ROWS]
    for row in shown_rows:
        figures = (f"{row[key]:.1%}" for key in ("precision", "recall", "f1"))
        table.add_row(escape(printable(row["name"])), *figures, f"{row['support']:,}")
    console.print(table)
    if len(shown_rows) < len(worst):
        console.print(
            f"... {len(worst) - len(shown_rows)} more, all better", highlight=False, soft_wrap=True
        )
    for name, reason in list(result["unreadable"].items())[:5]:
        line = f"unreadable: {printable(name)}: {printable(reason)}"
        console.print(escape(line), highlight=False, soft_wrap=True)
    if len(result["unreadable"]) > 5:
        console.print(
            f"... {len(result['unreadable'])} unreadable in all", highlight=False, soft_wrap=True
        )


def _device() -> str:
    devices = jax.devices()
    return f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"


def _predictions_csv(
    ids: list[str], split: str, labels: np.ndarray, probs: np.ndarray, class_names: tuple[str, ...]
) -> str:
    best, class_names = top_classes(probs), tuple(map(printable, class_names))
    columns = ["id", "split", "truth", "guess", "probability", "truth_probability", "correct"]
    with_top = len(class_names) > TOP_K
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*columns, f"top{TOP_K}"] if with_top else columns)
    for name, label, row, top in zip(ids, labels, probs, best, strict=True):
        truth, guess = class_names[label], class_names[top[0]]
        figures = [f"{row[top[0]]:.6f}", f"{row[label]:.6f}", int(label == top[0])]
        names = ["; ".join(class_names[i] for i in top)] if with_top else []
        # Names may hold any byte but a slash: escaped, the file is UTF-8, a line an image.
        writer.writerow([printable(name), split, truth, guess, *figures, *names])
    return file.getvalue()
