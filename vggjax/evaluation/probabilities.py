"""Keeps a split's probabilities in the run folder: the report asks more of them than the table has.

`probabilities.npz` for the test split, `probabilities-<split>.npz` for another: `index` int64 (N,)
into the source, `labels` int32 (N,) and `probs` float32 (N, C), each row summing to 1. A file that
is missing or damaged is None: whoever needs it can judge the split again.
"""

import io
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vggjax.atomic import atomic_write


class SplitPredictions(NamedTuple):
    """What a model said of a split's readable images."""

    index: np.ndarray
    labels: np.ndarray
    probs: np.ndarray


def write_probabilities(workdir: Path, split: str, judged: SplitPredictions) -> None:
    """Writes the file, whole or not at all."""
    path = _path(workdir, split)
    file = io.BytesIO()
    np.savez_compressed(
        file,
        index=np.asarray(judged.index, np.int64),
        labels=np.asarray(judged.labels, np.int32),
        probs=np.asarray(judged.probs, np.float32),
    )
    with atomic_write(path) as temporary:
        temporary.write_bytes(file.getvalue())


def read_probabilities(workdir: Path, split: str, *, num_classes: int) -> SplitPredictions | None:
    """Reads the file; None where there is none that can be used."""
    try:
        data = io.BytesIO(_path(workdir, split).read_bytes())
        with np.load(data, allow_pickle=False) as file:
            judged = SplitPredictions(file["index"], file["labels"], file["probs"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    rows = len(judged.index)
    fits = judged.labels.shape == (rows,) and judged.probs.shape == (rows, num_classes)
    return judged if fits and rows and np.isfinite(judged.probs).all() else None


def _path(workdir: Path, split: str) -> Path:
    return workdir / f"probabilities{'' if split == 'test' else f'-{split}'}.npz"
