"""Classifiers that take no training by steps, on the frozen features of a run: the figures to beat.

k nearest neighbors (Cover and Hart, 1967) by cosine, each vote weighted by its similarity as in Wu
et al. (arXiv:1805.01978), and the linear head of fit.py. Both see what the head's own stage sees:
the same kept features of the same images. Validation chooses the number of neighbors (the highest
accuracy, then the lowest loss) and the penalty. The result is `baselines.json` in the run folder,
which the evaluation reads.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vggjax.training.linear_probe.fit import score
from vggjax.training.linear_probe.solve import fit_head
from vggjax.training.prepare import RunContext
from vggjax.training.run_dir.checked_json import check_form, read_json, write_json

FILE = "baselines.json"

NEIGHBORS = (1, 3, 5, 10, 20, 50)
"""Numbers of neighbors to try."""

TEMPERATURE = 0.07
"""A neighbor's vote is exp(cosine / this)."""

_BLOCK_ROWS = 1024

_FORM = [{"name": str, "setting": str, "val_accuracy": float, "num_correct": int}]


class Features(Protocol):
    """The features of a split, such as `CachedFeatures`."""

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the features (N, ...) of all readable images, and their labels (N,)."""
        ...


def write_baselines(run: RunContext, features: Mapping[str, Features]) -> str:
    """Fit the baselines of a run, write their file unless it is there; return a line of text.

    Args:
        run: the run.
        features: those of train, val and test; train's may have several views of an image.
    """
    path = run.workdir / FILE
    if not path.exists():
        train, val, test = (_rows(features[split]) for split in ("train", "val", "test"))
        fit = fit_head(run, train, val)
        correct = (fit.logits(test[0]).argmax(1) == test[1]).sum()
        linear = _record("linear", f"penalty {fit.strength:g}", fit.val_accuracy, correct)
        baselines = [_fit_neighbors(train, val, test), linear]
        write_json(path, {"width": int(train[0].shape[1]), "baselines": baselines})
    texts = (
        f"{known['name']} ({known['setting']}) {known['val_accuracy']:.1%}"
        for known in read_baselines(run.workdir)
    )
    return f"baselines on these features, val accuracy: {', '.join(texts)}"


def read_baselines(workdir: Path) -> list[dict[str, Any]]:
    """Return the baselines of a run: name, setting, val_accuracy, num_correct on test; or none."""
    try:
        baselines = read_json(workdir / FILE)["baselines"]
        check_form(baselines, _FORM)
    except (OSError, ValueError, KeyError):
        return []
    return baselines


def neighbor_votes(
    rows: np.ndarray, labels: np.ndarray, queries: np.ndarray, *, num_classes: int
) -> dict[int, np.ndarray]:
    """Return each class's votes among the nearest rows: {number of neighbors: float32 (M, C)}.

    Args:
        rows: float32 (N, D), those whose labels are known.
        labels: int (N,).
        queries: float32 (M, D).
        num_classes: C.
    """
    counts = sorted({min(count, len(rows)) for count in NEIGHBORS})
    votes = {count: np.zeros((len(queries), num_classes), np.float32) for count in counts}
    unit, most = _unit(rows), counts[-1]
    for start in range(0, len(queries), _BLOCK_ROWS):
        cosines = _unit(queries[start : start + _BLOCK_ROWS]) @ unit.T
        nearest = np.argpartition(-cosines, most - 1, axis=1)[:, :most]
        order = np.argsort(-np.take_along_axis(cosines, nearest, 1), axis=1, kind="stable")
        nearest = np.take_along_axis(nearest, order, 1)
        weights = np.exp((np.take_along_axis(cosines, nearest, 1) - 1) / TEMPERATURE)
        positions = start + np.arange(len(nearest))
        for rank in range(most):
            for count in counts[np.searchsorted(counts, rank + 1) :]:
                votes[count][positions, labels[nearest[:, rank]]] += weights[:, rank]
    return votes


def _fit_neighbors(
    train: tuple[np.ndarray, np.ndarray],
    val: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
) -> dict[str, Any]:
    num_classes = 1 + max(int(labels.max()) for _, labels in (train, val, test))
    votes = neighbor_votes(*train, val[0], num_classes=num_classes)
    # As logits, so that their softmax is each class's share of the votes.
    scores = {count: score(np.log(shares + 1e-9), val[1]) for count, shares in votes.items()}
    best = max(scores, key=lambda count: (scores[count][1], -scores[count][0]))
    guesses = neighbor_votes(*train, test[0], num_classes=num_classes)[best].argmax(1)
    return _record("k-NN", f"k = {best}", scores[best][1], (guesses == test[1]).sum())


def _record(name: str, setting: str, val_accuracy: float, num_correct: Any) -> dict[str, Any]:
    record = {"name": name, "setting": setting, "val_accuracy": float(val_accuracy)}
    return record | {"num_correct": int(num_correct)}


def _rows(features: Features) -> tuple[np.ndarray, np.ndarray]:
    rows, labels = features.rows()
    return np.asarray(rows, np.float32).reshape(len(rows), -1), labels


def _unit(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1)
