"""Read an evaluated run for the pages: settings, evaluation, log and predictions.

The input is a `RunResult` that is already in memory, or a run folder (a cross-validation's, too).
A file that is missing or damaged raises `ConfigError` with the command that writes it again.
"""

import csv
import dataclasses
import json
import math
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vggjax.data.splits.splits import read_splits
from vggjax.errors import ConfigError, VggjaxError, printable
from vggjax.evaluation.evaluate import predict_split
from vggjax.evaluation.probabilities import SplitPredictions, read_probabilities
from vggjax.training.config import Config, read_config
from vggjax.training.run_dir.folder import fold_folders
from vggjax.training.run_dir.log import read_log
from vggjax.training.run_dir.run_result import RunResult, open_training_data
from vggjax.training.run_dir.saved_model import load_model


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
    def best_epoch(self) -> float | None:
        """Return the epoch whose weights were kept; None for a cross-validation."""
        return None if self.config.cross_validate else best_epoch(self.rows, self.config.monitor)

    @cached_property
    def predictions(self) -> list[dict[str, str]]:
        """Return the rows of predictions.csv, one per image."""
        path = self.workdir / "predictions.csv"
        try:
            with open(path, encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
            for row in rows:
                shares = float(row["probability"]), float(row["truth_probability"])
                texts = row["id"], row["truth"], row["guess"], row["correct"]
                if None in texts or not all(0 <= share <= 1 for share in shares):
                    raise ValueError("a value is missing or out of range")
        except (OSError, ValueError, KeyError, TypeError, csv.Error):
            raise ConfigError(
                f"{printable(path)} is missing or damaged; evaluate the run again."
            ) from None
        return rows

    @cached_property
    def mistakes(self) -> list[dict[str, str]]:
        """Return the wrong predictions, those of the highest probability first."""
        wrong = [row for row in self.predictions if row["correct"] == "0"]
        return sorted(wrong, key=lambda row: -float(row["probability"]))


def read_run(
    run: RunResult | str | os.PathLike[str], *, evaluation: dict[str, Any] | None = None
) -> RunFiles:
    """Read an evaluated run; `evaluation` is the contents of its eval.json, if already in memory.

    Raises:
        ConfigError: there is no run, or it was not evaluated on its test split yet.
    """
    workdir = run.workdir if isinstance(run, RunResult) else Path(run)
    config = run.config if isinstance(run, RunResult) else read_config(workdir)
    folders = fold_folders(workdir, config) or [workdir]
    logs = [read_log(folder) for folder in folders]
    if isinstance(run, RunResult) and run.info is not None:
        info = dataclasses.asdict(run.info)
    else:
        info = _read_json(folders[0] / "model.json", workdir)
    return RunFiles(
        workdir,
        config,
        _read_json(workdir / "eval.json", workdir) if evaluation is None else evaluation,
        _read_json(workdir / "data.json", workdir),
        info,
        mean_epochs([epoch_records(log) for log in logs]),
        [
            {"epoch": f"{record['epoch']:g}"}
            | {name: printable(record.get(name, "")) for name in ("reason", "advice", "action")}
            for log in logs
            for record in log
            if record.get("kind") == "collapse"
        ],
    )


class LazyModel:
    """A run's model and predictions, loaded and computed when they are first needed.

    Attributes:
        source: the dataset; None where it is gone, with the reason in `missing`.
    """

    def __init__(
        self,
        run: RunResult | str | os.PathLike[str],
        files: RunFiles,
        predictions: SplitPredictions | None = None,
    ):
        self._files, self._test = files, predictions
        self.missing = ""
        self._run = run if isinstance(run, RunResult) else None
        self._is_broken = False
        if self._run is not None:
            self.source = self._run.source
            self.missing = "" if self.source else "The dataset is gone or was changed."
            return
        try:
            self.source = open_training_data(files.workdir, files.config)
        except VggjaxError as error:
            self.source, self.missing = None, printable(error)

    def load(self) -> RunResult | None:
        """Return the run with its model and its data; None where either is gone or damaged."""
        if self.source is None or self._files.config.cross_validate:
            return None
        if self._run is None and not self._is_broken:
            workdir, config = self._files.workdir, self._files.config
            try:
                model, info = load_model(workdir)
                splits = read_splits(workdir, self.source)
                self._run = RunResult(workdir, config, model, info, self.source, splits, {}, {})
            except VggjaxError:
                self._is_broken = True
        return self._run

    def predictions(self, split: str) -> SplitPredictions | None:
        """Return the predictions on a split: those in memory or in the run folder, or new ones.

        For a cross-validation they are all the folds' test predictions together.
        """
        if split == "test" and self._test is not None:
            return self._test
        num_classes = len(self._files.names)
        kept = [
            read_probabilities(folder, split, num_classes=num_classes)
            for folder in self._files.model_folders
        ]
        parts = [part for part in kept if part is not None]
        if len(parts) == len(kept):
            return SplitPredictions(*(np.concatenate(p) for p in zip(*parts, strict=True)))
        run = self.load()
        if run is None:
            return None
        try:
            return predict_split(run, split)[0]
        except (VggjaxError, OSError):  # such as a run folder that is read-only
            return None


def epoch_records(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the evaluations in a log by epoch; of a repeated epoch the last one."""
    rows = [record for record in log if record.get("kind") == "epoch"]
    return sorted({row["epoch"]: row for row in rows}.values(), key=lambda row: row["epoch"])


def mean_epochs(runs: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return one row per epoch with the means over the runs that reached it."""
    by_epoch: dict[float, list[dict[str, Any]]] = {}
    for row in (row for rows in runs for row in rows):
        by_epoch.setdefault(row["epoch"], []).append(row)
    means = []
    for _, rows in sorted(by_epoch.items()):
        keys = [key for key, value in rows[0].items() if isinstance(value, float)]
        mean = {key: float(np.mean([row[key] for row in rows if key in row])) for key in keys}
        means.append(rows[0] | mean)
    return means


def best_epoch(rows: list[dict[str, Any]], monitor: str) -> float | None:
    """Return the first epoch with the best `monitor`: the lowest loss or the highest accuracy."""
    sign = 1 if monitor.endswith("loss") else -1
    known = [row for row in rows if math.isfinite(row.get(monitor, math.nan))]
    return min(known, key=lambda row: sign * row[monitor])["epoch"] if known else None


def _read_json(path: Path, workdir: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise ConfigError(
            f"{printable(path)} is missing, so there is nothing to report yet. Finish the "
            f"training, then run: vggjax evaluate --workdir {printable(workdir)}"
        ) from None
    except ValueError as error:
        raise ConfigError(
            f"{printable(path)} is damaged ({error}); evaluate the run again."
        ) from None
