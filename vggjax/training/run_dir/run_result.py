"""The result of a training: in memory right after it, or read back from its run folder.

Evaluation and the report work on a `RunResult`, so that one command scans the dataset and loads the
model once.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vggjax.data.sources.open import open_source
from vggjax.data.sources.source import Source
from vggjax.data.splits.splits import SPLITS_FILE, read_splits
from vggjax.errors import ConfigError, DataError, VggjaxError, printable
from vggjax.models.network import Network
from vggjax.training.config import Config, read_config
from vggjax.training.run_dir.folder import check_splits, read_duplicates
from vggjax.training.run_dir.saved_model import ModelInfo, load_model


@dataclass(frozen=True)
class RunResult:
    """A finished training: its settings, the best model, and the data that it was trained on."""

    workdir: Path
    config: Config
    model: Network | None
    """In evaluation mode; None for a cross-validation, which has one model per fold."""
    info: ModelInfo | None
    source: Source | None
    """None where the dataset is gone or was changed."""
    splits: dict[str, np.ndarray] | None
    """Split -> indices into the source; None without a source, and for a cross-validation."""
    duplicates: dict[str, int]
    """Number of `exact`, `near` and `leaked` duplicates; empty where nobody looked."""
    left_out: dict[str, str]
    """Training and validation images that could not be read: id -> reason."""


def load_run_result(workdir: str | Path, *, require_data: bool = False) -> RunResult:
    """Read the result of a finished training from its run folder.

    With `require_data` a missing or changed dataset raises; without, `source` and `splits` are
    None then.

    Raises:
        ConfigError: there is no run, or with `require_data` its data cannot be identified.
        WeightsError: the training has not finished, or the model is damaged.
        DataError: with `require_data`, the dataset is gone or was changed.
    """
    workdir = Path(workdir)
    config = read_config(workdir)
    model, info = (None, None) if config.cross_validate else load_model(workdir)
    source, splits = None, None
    try:
        source = open_training_data(workdir, config)
        if not config.cross_validate:
            splits = _read_splits(workdir, source)
    except VggjaxError:
        if require_data:
            raise
        source = None
    duplicates, left_out = read_duplicates(workdir), info.left_out if info else {}
    return RunResult(workdir, config, model, info, source, splits, duplicates, left_out)


def open_training_data(workdir: Path, config: Config) -> Source:
    """Open the dataset that a run was trained on.

    Raises:
        ConfigError: the run folder does not identify it any more.
        DataError: it is gone, or was changed.
    """
    path = workdir / "data.json"
    try:
        expected = json.loads(path.read_text(encoding="utf-8"))["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(
            f"{printable(path)} is missing or damaged, so the dataset that the model was trained "
            "on cannot be identified. Train again with another `workdir`."
        ) from None
    source = open_source(config.dataset, data_dir=config.data_dir)
    if source.fingerprint != expected:
        raise DataError(
            f"The dataset {printable(config.dataset)!r} is not the one that {printable(workdir)} "
            "was trained on: images, labels or names were changed, so its splits would be others. "
            "Restore it, or train again with another `workdir`."
        )
    return source


def _read_splits(workdir: Path, source: Source) -> dict[str, np.ndarray]:
    check_splits(workdir)
    splits = read_splits(workdir, source)
    if splits is None:
        raise ConfigError(
            f"{printable(workdir / SPLITS_FILE)} is missing, so the images that the model has not "
            "seen are unknown. Train again with another `workdir`."
        )
    return splits
