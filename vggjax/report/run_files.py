"""Read an evaluated run for the pages: settings, evaluation, log and predictions.

The input is a `RunResult` that is already in memory, or a run folder (a cross-validation's, too).
A file that is missing or damaged raises `ConfigError` with the command that writes it again.
"""

import csv
import hashlib
import io
import itertools
import math
import os
from dataclasses import asdict, dataclass
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vggjax.csv_text import csv_rows
from vggjax.errors import ConfigError, VggjaxError, printable
from vggjax.evaluation.evaluate import SplitPredictions, predict_split, read_probabilities
from vggjax.evaluation.multilabel import COLUMNS
from vggjax.training.config import Config, read_config
from vggjax.training.run_dir.checked_json import check_form, read_json
from vggjax.training.run_dir.folder import fold_folders
from vggjax.training.run_dir.log import read_log
from vggjax.training.run_dir.run_result import RunResult

_EVALUATION_FORM = {
    "split": str,
    "num_examples": int,
    "loss": float,
    "accuracy": float,
    "per_class": [{"name": str, "support": int, "f1": float}],
    "macro": {"f1": float},
    "class_names": [str],
    "unreadable": {...: str},
    "evaluated_at": str,
    "seconds": float,
    "device": str,
    "versions": {...: str},
}
_MULTICLASS_FORM = {"accuracy_interval": [float], "confusion": [[int]]}
_MULTILABEL_FORM = {
    "mAP": float,
    "mAP_interval": [float],
    "exact_match": float,
    "cooccurrence": [[int]],
    "predicted_cooccurrence": [[int]],
}


class Headline(NamedTuple):
    """The first figure of a report."""

    name: str
    """`accuracy`, or of several labels per image `mAP`: a key of eval.json."""
    value: float
    interval: tuple[float, float]
    """95 %."""


@dataclass(frozen=True)
class RunFiles:
    """The files of one evaluated run."""

    workdir: Path
    config: Config
    evaluation: dict[str, Any]
    """The contents of eval.json."""
    data: dict[str, Any]
    """The contents of data.json."""
    info: dict[str, Any]
    """The contents of model.json; for a cross-validation, of its first fold's."""
    rows: list[dict[str, Any]]
    """One log record per epoch; for a cross-validation, the means of its folds'."""
    collapses: list[dict[str, str]]
    """Log records of collapses: epoch, reason, advice and action, as printable text."""

    @property
    def model_folders(self) -> list[Path]:
        """Return the folders that hold one model each."""
        return fold_folders(self.workdir, self.config) or [self.workdir]

    @property
    def names(self) -> list[str]:
        """Return the class names, printable."""
        return [printable(name) for name in self.evaluation["class_names"]]

    @property
    def is_multilabel(self) -> bool:
        """Return whether images have several labels."""
        return self.config.task == "multilabel"

    @property
    def headline(self) -> Headline:
        """Return the figure that stands for the run."""
        name = "mAP" if self.is_multilabel else "accuracy"
        low, high = self.evaluation[f"{name}_interval"]
        return Headline(name, self.evaluation[name], (low, high))

    @property
    def best_epoch(self) -> float | None:
        """Return the epoch whose weights were kept; None for a cross-validation."""
        return (
            None if self.config.cross_validate else best_epoch(self.rows, self.config.best_metric)
        )

    @cached_property
    def predictions(self) -> list[dict[str, str]]:
        """Return the rows of predictions.csv, one per image."""
        path = self.workdir / "predictions.csv"
        try:
            data = path.read_bytes()
            sha256 = self.evaluation.get("predictions_sha256")
            if sha256 and hashlib.sha256(data).hexdigest() != sha256:
                raise ValueError("it is not the file that the evaluation wrote")
            header, *lines = csv_rows(io.StringIO(data.decode(), newline=""))
            if self.is_multilabel:
                return _multilabel_rows(header, lines)
            rows = [dict(zip(header, line, strict=True)) for line in lines]
            for row in rows:
                shares = float(row["probability"]), float(row["truth_probability"])
                texts = row["id"], row["truth"], row["guess"], row["correct"]
                if not all(texts) or not all(0 <= share <= 1 for share in shares):
                    raise ValueError("a value is missing or out of range")
        except (OSError, ValueError, KeyError, csv.Error):
            message = f"{printable(path)} is missing or damaged; evaluate the run again."
            raise ConfigError(message) from None
        return rows

    @cached_property
    def mistakes(self) -> list[dict[str, str]]:
        """Return the wrong predictions, those of the highest probability, or loss, first."""
        wrong = [row for row in self.predictions if row["correct"] == "0"]
        key = "loss" if self.is_multilabel else "probability"
        return sorted(wrong, key=lambda row: -float(row[key]))


def _multilabel_rows(header: list[str], lines: list[list[str]]) -> list[dict[str, str]]:
    """Return the rows of predictions.csv without the probabilities; raise ValueError if damaged."""
    if tuple(header[: len(COLUMNS)]) != COLUMNS:
        raise ValueError("the columns are others")
    rows = [dict(zip(COLUMNS, line, strict=False)) for line in lines]
    for row in rows:
        if not row["id"] or row["correct"] not in ("0", "1") or not float(row["loss"]) >= 0:
            raise ValueError("a value is missing or out of range")
    return rows


def read_run(
    run: RunResult | str | os.PathLike[str], *, evaluation: dict[str, Any] | None = None
) -> RunFiles:
    """Read an evaluated run; `evaluation` is the contents of its eval.json, if already in memory.

    Raises:
        ConfigError: there is no run, or it was not evaluated on its test split yet.
    """
    workdir, info = (run.workdir, run.info) if isinstance(run, RunResult) else (Path(run), None)
    config = run.config if isinstance(run, RunResult) else read_config(workdir)
    folders = fold_folders(workdir, config) or [workdir]
    logs = [read_log(folder) for folder in folders]
    collapses = [record for log in logs for record in log if record["kind"] == "collapse"]
    return RunFiles(
        workdir,
        config,
        evaluation=evaluation
        or _read_evaluation(workdir, is_multilabel=config.task != "multiclass"),
        data=_read_json(workdir / "data.json", workdir),
        info=asdict(info) if info else _read_json(folders[0] / "model.json", workdir),
        rows=mean_epochs([epoch_records(log) for log in logs]),
        collapses=[
            {name: printable(record[name]) for name in ("epoch", "reason", "advice", "action")}
            for record in collapses
        ],
    )


def split_predictions(run: RunResult, files: RunFiles, split: str) -> SplitPredictions | None:
    """Return the predictions on a split: those in the run folder, or new ones of `run`'s model.

    For a cross-validation they are all the folds' together. None if there is no way to get them.
    """
    num_classes = len(files.names)
    parts = [
        read_probabilities(folder, split, num_classes=num_classes) for folder in files.model_folders
    ]
    kept = [part for part in parts if part is not None]
    if len(kept) == len(parts):
        return SplitPredictions(*map(np.concatenate, zip(*kept, strict=True)))
    if run.model is None or run.source is None or run.splits is None:
        return None
    try:
        return predict_split(run, split)[0]
    except (VggjaxError, OSError):  # such as a run folder that is read-only
        return None


def join_splits(
    predictions: dict[str, SplitPredictions | None],
) -> tuple[SplitPredictions, np.ndarray] | None:
    """Return the predictions of all splits together, and each image's split; None without any."""
    parts = {split: part for split, part in predictions.items() if part is not None}
    if not parts:
        return None
    joined = SplitPredictions(*map(np.concatenate, zip(*parts.values(), strict=True)))
    return joined, np.repeat(list(parts), [len(part.labels) for part in parts.values()])


def epoch_records(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the evaluations in a log by epoch; of a repeated epoch the last one."""
    rows = [record for record in log if record.get("kind") == "epoch"]
    return sorted({row["epoch"]: row for row in rows}.values(), key=lambda row: row["epoch"])


def mean_epochs(runs: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return one row per epoch with the means over the runs that reached it."""
    epoch = itemgetter("epoch")
    means = []
    for _, group in itertools.groupby(sorted(itertools.chain(*runs), key=epoch), key=epoch):
        rows = list(group)
        keys = [key for key, value in rows[0].items() if isinstance(value, float)]
        mean = {key: float(np.mean([row[key] for row in rows if key in row])) for key in keys}
        means.append(rows[0] | mean)
    return means


def best_epoch(rows: list[dict[str, Any]], monitor: str) -> float | None:
    """Return the epoch whose weights were kept: the last that was logged as the best.

    A log of an older version does not say it: there it is the first epoch with the best `monitor`,
    the lowest loss or the highest accuracy.
    """
    if kept := [row["epoch"] for row in rows if row.get("is_best")]:
        return kept[-1]
    sign = 1 if monitor.endswith("loss") else -1
    known = [row for row in rows if math.isfinite(row.get(monitor, math.nan))]
    return min(known, key=lambda row: sign * row[monitor])["epoch"] if known else None


def _read_evaluation(workdir: Path, *, is_multilabel: bool) -> dict[str, Any]:
    path = workdir / "eval.json"
    evaluation = _read_json(path, workdir)
    form = _EVALUATION_FORM | (_MULTILABEL_FORM if is_multilabel else _MULTICLASS_FORM)
    try:
        check_form(evaluation, form)
        square = evaluation["cooccurrence" if is_multilabel else "confusion"]
        if not square and "confused" in evaluation:  # too many classes for a matrix
            check_form(evaluation, {"confused": [[int]]})
            lengths = [len(evaluation["per_class"])]
        else:
            lengths = [*map(len, (evaluation["per_class"], square, *square))]
        interval = evaluation["mAP_interval" if is_multilabel else "accuracy_interval"]
        if {*lengths} != {len(evaluation["class_names"])} or len(interval) != 2:
            raise ValueError("its tables have other sizes")
    except ValueError as error:
        raise _damaged(path, error) from None
    return evaluation


def _damaged(path: Path, error: ValueError) -> ConfigError:
    return ConfigError(f"{printable(path)} is damaged ({error}); evaluate the run again.")


def _read_json(path: Path, workdir: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except OSError:
        raise ConfigError(
            f"{printable(path)} is missing, so there is nothing to report yet. Finish the "
            f"training, then run: vggjax evaluate --workdir {printable(workdir)}"
        ) from None
    except ValueError as error:
        raise _damaged(path, error) from None
