"""The result of a training: in memory right after it, or read back from its run folder.

Evaluation and the report work on a `RunResult`, so that one command scans the dataset and loads the
model once.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vggjax.data.quality.duplicates import Duplicates
from vggjax.data.sources.open import open_source
from vggjax.data.sources.source import Source
from vggjax.data.splits.splits import SPLITS_FILE, read_splits
from vggjax.errors import ConfigError, VggjaxError, printable
from vggjax.models.network import Network
from vggjax.training.config import Config, read_config
from vggjax.training.run_dir.folder import check_data, read_data_facts, read_duplicates
from vggjax.training.run_dir.saved_model import ModelInfo, load_model


@dataclass(frozen=True)
class RunResult:
    """A finished training: its settings, the best model, and the data that it was trained on."""

    workdir: Path
    config: Config
    model: Network | None = None
    """In evaluation mode; None for a cross-validation, which has one model per fold."""
    info: ModelInfo | None = None
    source: Source | None = None
    """None where the dataset is gone or was changed."""
    splits: dict[str, np.ndarray] | None = None
    """Split -> indices into the source; None without a source, and for a cross-validation."""
    duplicates: dict[str, int] = field(default_factory=dict)
    """Number of `exact`, `near` and `leaked` duplicates; empty if they were not searched for."""
    duplicate_groups: Duplicates | None = None
    """The result of the training's search for duplicates; None if it made none, or from files."""

    @property
    def left_out(self) -> dict[str, str]:
        """Training and validation images that could not be read: id -> reason."""
        return self.info.left_out if self.info else {}


def load_run_result(workdir: str | Path, *, require_data: bool = False) -> RunResult:
    """Read the result of a finished training from its run folder.

    Without `require_data`, `source` and `splits` are None if the dataset is missing or was changed.

    Raises:
        WeightsError: the training has not finished, or the model is damaged.
        VggjaxError: there is no run, or `require_data` and its dataset is missing or was changed.
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
    return RunResult(workdir, config, model, info, source, splits, read_duplicates(workdir))


def open_training_data(workdir: Path, config: Config) -> Source:
    """Open the dataset that a run was trained on; raise VggjaxError if it is missing or changed."""
    if read_data_facts(workdir) is None:
        raise ConfigError(
            f"{printable(workdir / 'data.json')} is missing, so the dataset that the model was "
            "trained on cannot be identified. Train again in another `workdir`."
        )
    source = open_source(config.dataset, data_dir=config.data_dir)
    check_data(workdir, source)
    return source


def _read_splits(workdir: Path, source: Source) -> dict[str, np.ndarray]:
    splits = read_splits(workdir, source)
    if splits is None:
        raise ConfigError(
            f"{printable(workdir / SPLITS_FILE)} is missing, so the images that the model has not "
            "seen are unknown. Train again in another `workdir`."
        )
    return splits
