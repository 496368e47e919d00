"""Reads what a run leaves in its folder, for the pages: config, figures, epochs, mistakes.

In: a run folder that was evaluated, or a cross-validation's. Every file that is missing or damaged
is a `ConfigError` with the command that makes it anew.
"""

import csv
import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vggjax.errors import ConfigError, printable
from vggjax.training.config import Config, read_config
from vggjax.training.run_dir.folder import fold_folders, read_log


@dataclass(frozen=True)
class RunFiles:
    """One evaluated run, as its files tell it."""

    workdir: Path
    config: Config
    result: dict[str, Any]
    """eval.json."""
    data: dict[str, Any]
    """data.json."""
    info: dict[str, Any]
    """model.json, of a cross-validation its first fold's."""
    rows: list[dict[str, Any]]
    """An epoch each, the mean of the folds' where there are several."""
    collapses: list[dict[str, Any]]
    """Log lines of a training that learned nothing for a while."""

    @property
    def runs(self) -> list[Path]:
        """Lists the folders that hold a model each."""
        return fold_folders(self.workdir, self.config) or [self.workdir]

    @property
    def names(self) -> list[str]:
        """Lists the classes as they can be shown."""
        return [printable(name) for name in self.result["class_names"]]

    @property
    def best(self) -> float | None:
        """Names the epoch whose weights were kept; None of a cross-validation."""
        return None if self.config.cross_validate else best_epoch(self.rows, self.config.monitor)

    @cached_property
    def predictions(self) -> list[dict[str, str]]:
        """Lists predictions.csv, a row an image."""
        path = self.workdir / "predictions.csv"
        try:
            with open(path, encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
            for row in rows:
                shares = float(row["probability"]), float(row["truth_probability"])
                texts = row["id"], row["truth"], row["guess"], row["correct"]
                if None in texts or not all(0 <= share <= 1 for share in shares):
                    raise ValueError("a line that cannot be")
        except (OSError, ValueError, KeyError, TypeError, csv.Error):
            raise ConfigError(
                f"{printable(path)} is missing or damaged; evaluate the run again."
            ) from None
        return rows

    @cached_property
    def wrong(self) -> list[dict[str, str]]:
        """Lists the mistakes, the surest first."""
        wrong = [row for row in self.predictions if row["correct"] == "0"]
        return sorted(wrong, key=lambda row: -float(row["probability"]))


def read_run(workdir: str | Path) -> RunFiles:
    """Reads an evaluated run.

    Raises:
        ConfigError: no run there, or one that was not evaluated on its test split yet.
    """
    workdir = Path(workdir)
    config = read_config(workdir)
    result = _read_json(workdir / "eval.json", workdir)
    data = _read_json(workdir / "data.json", workdir)
    runs = fold_folders(workdir, config) or [workdir]
    info = _read_json(runs[0] / "model.json", workdir)
    rows = mean_epochs([read_epochs(run) for run in runs])
    collapses = [line for run in runs for line in read_log(run) if line.get("kind") == "collapse"]
    return RunFiles(workdir, config, result, data, info, rows, collapses)


def read_epochs(workdir: str | Path) -> list[dict[str, Any]]:
    """Reads a log's evaluations in the order of their epochs, each once; no log gives none."""
    rows = [row for row in read_log(workdir) if row.get("kind") == "epoch"]
    return sorted({row["epoch"]: row for row in rows}.values(), key=lambda row: row["epoch"])


def mean_epochs(runs: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Gives one row an epoch with the means over the runs that came so far."""
    by_epoch: dict[float, list[dict[str, Any]]] = {}
    for row in (row for rows in runs for row in rows):
        by_epoch.setdefault(row["epoch"], []).append(row)
    return [
        rows[0] | {key: float(np.mean([row[key] for row in rows if key in row]))
                   for key, value in rows[0].items() if isinstance(value, float)}
        for _, rows in sorted(by_epoch.items())
    ]  # fmt: skip


def best_epoch(rows: list[dict[str, Any]], monitor: str) -> float | None:
    """Gives the first epoch with the best `monitor`: the lowest loss or the highest accuracy."""
    sign = 1 if monitor.endswith("loss") else -1
    known = [row for row in rows if math.isfinite(row.get(monitor, math.nan))]
    return min(known, key=lambda row: sign * row[monitor])["epoch"] if known else None


def _read_json(path: Path, workdir: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise ConfigError(
            f"{printable(path)} is not there, so there is nothing to report yet. Finish the training, "
            f"then: vggjax evaluate --workdir {printable(workdir)}"
        ) from None
    except ValueError as error:
        raise ConfigError(
            f"{printable(path)} is damaged ({error}); evaluate the run again."
        ) from None
