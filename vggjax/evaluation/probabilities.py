"""Keep a split's predicted probabilities in the run folder, for the report.

`probabilities.npz` for the test split, `probabilities-<split>.npz` for others: `index` int64 (N,)
into the source, `labels` int32 (N,) and `probs` float32 (N, C), each row summing to 1.
"""

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vggjax.atomic import atomic_write


class SplitPredictions(NamedTuple):
    """A model's predictions for the readable images of a split."""

    index: np.ndarray  # type: ignore[assignment]  # hides tuple.index, which nothing uses
    """int64 (N,), into the source."""
    labels: np.ndarray
    """int32 (N,)."""
    probs: np.ndarray
    """float32 (N, C), each row summing to 1."""


def write_probabilities(workdir: Path, split: str, predictions: SplitPredictions) -> None:
    """Write the file, whole or not at all."""
    with atomic_write(_path(workdir, split)) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **predictions._asdict())


def read_probabilities(workdir: Path, split: str, *, num_classes: int) -> SplitPredictions | None:
    """Read the file; None if it is missing or unusable."""
    try:
        # np.load leaves a damaged file that it opened itself open.
        with open(_path(workdir, split), "rb") as data, np.load(data, allow_pickle=False) as file:
            predictions = SplitPredictions(file["index"], file["labels"], file["probs"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    rows, probs = len(predictions.index), predictions.probs
    fits = predictions.labels.shape == (rows,) and probs.shape == (rows, num_classes)
    return predictions if fits and rows and np.isfinite(probs).all() else None


def _path(workdir: Path, split: str) -> Path:
    return workdir / f"probabilities{'' if split == 'test' else f'-{split}'}.npz"
