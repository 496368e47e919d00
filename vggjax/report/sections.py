"""Gather what each section of a report shows, as plain values and images for the templates.

An image is uint8 RGB (H, W, 3), or None where it cannot be read any more.
"""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from vggjax.data.images.preprocess import preprocess, resize_image
from vggjax.data.quality.doctor import examine
from vggjax.data.sources.source import Source
from vggjax.errors import DataError, VggjaxError, printable
from vggjax.evaluation.calibration import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    at_temperature,
    chance_ece,
    fit_temperature,
    reliability,
)
from vggjax.evaluation.evaluate import SplitPredictions
from vggjax.evaluation.grad_cam import grad_cam, map_layer, overlay
from vggjax.evaluation.metrics import find_label_issues, log_loss, most_confused
from vggjax.report.doctor_screen import describe_finding
from vggjax.report.facts import doctor_command
from vggjax.report.plot_style import drawable
from vggjax.report.run_files import RunFiles, join_splits
from vggjax.report.thumbnails import Cell, Thumbnails, round_robin, thumbnail
from vggjax.training.run_dir.run_result import ModelInfo, RunResult

MAX_MISTAKES = 12
MAX_PAIRS, MAX_PAIR_IMAGES = 6, 5
MAX_ISSUES = 12
NUM_CORRECT, NUM_WRONG, MAX_MAPS = 4, 4, 3
"""Examples of Grad-CAM, and maps of one with several labels."""

MAX_EXAMINED = 2000
MAX_EXAMINED_BYTES = 32 * 2**20
"""Up to this number of images and size of all files, a report examines the dataset unasked; about
a thousand small photographs a second are decoded on two cores."""

_MAX_ENTRIES = 3


def confused_pairs(files: RunFiles, thumbnails: Thumbnails) -> list[dict[str, Any]]:
    """Return the most confused pairs of classes, the first ones with images."""
    by_pair: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in files.mistakes:
        by_pair.setdefault((row["truth"], row["guess"]), []).append(row)
    support = {printable(row["name"]): row["support"] for row in files.evaluation["per_class"]}
    pairs = []
    confused = most_confused(files.evaluation, files.names)
    for number, (truth, predicted, count) in enumerate(confused):
        rows = by_pair.get((truth, predicted), [])[:MAX_PAIR_IMAGES] if number < MAX_PAIRS else []
        images = [thumbnails.image_of(row["id"]) for row in rows]
        pairs.append(
            {
                "truth": truth,
                "predicted": predicted,
                "count": count,
                "support": support[truth],
                "images": [image for image in images if image is not None],
            }
        )
    return pairs


def misclassified(files: RunFiles, thumbnails: Thumbnails) -> list[dict[str, Any]]:
    """Return the most confident mistakes, with their images."""
    return [
        {
            "id": row["id"],
            "truth": printable(row["truth"]),
            "predicted": printable(row["guess"]),
            "probability": float(row["probability"]),
            "truth_probability": float(row["truth_probability"]),
            "image": thumbnails.image_of(row["id"]),
        }
        for row in files.mistakes[:MAX_MISTAKES]
    ]


def misclassified_grid(files: RunFiles, mistakes: list[dict[str, Any]]) -> list[list[Cell]]:
    """Return the same as rows of an image grid."""
    index_of = {name: index for index, name in enumerate(files.names)}
    cells = []
    for mistake in mistakes:
        predicted, truth = (
            drawable(name, index_of.get(name), width=15)
            for name in (mistake["predicted"], mistake["truth"])
        )
        caption = [(f"predicted {predicted}", "wrong")]
        caption += [(f"with {mistake['probability']:.1%}", "muted"), (f"true {truth}", "plain")]
        cells.append(Cell(mistake["image"], caption))
    return [cells[i : i + 6] for i in range(0, len(cells), 6)]


def calibration(
    files: RunFiles, test: SplitPredictions | None, val: SplitPredictions | None
) -> dict[str, Any]:
    """Compare confidence and accuracy on the test split, with and without a temperature.

    `measured` are the probabilities of the saved model. `other` are those without its temperature,
    or, of a model of an older version, `is_kept` False, with the one that would be fitted. Without
    these, as where no temperature helps, `other` is None; and `temperature`, if it is unknown.
    """
    confidence = np.array([float(row["probability"]) for row in files.predictions])
    correct = np.array([row["correct"] == "1" for row in files.predictions])
    values = {
        "measured": reliability(confidence, correct),
        "chance_ece": chance_ece(confidence),
        "accuracy": float(correct.mean()),
        "temperature": None,
        "is_kept": False,
        "other": None,
    }
    if test is None or val is None:
        return values
    kept = files.info.get("temperature")
    temperature = kept or fit_temperature(val.probs, val.labels)
    values |= {
        "temperature": temperature,
        "is_kept": kept is not None,
        "at_edge": temperature in (MIN_TEMPERATURE, MAX_TEMPERATURE),
        "num_val": len(val.labels),
    }
    if kept == 1:
        return values
    probs = at_temperature(test.probs, 1 / temperature if kept else temperature)
    return values | {
        "other": reliability(probs.max(1), probs.argmax(1) == test.labels),
        "other_loss": log_loss(probs, test.labels),
    }


def label_issues(
    files: RunFiles, thumbnails: Thumbnails, predictions: dict[str, SplitPredictions | None]
) -> dict[str, Any] | None:
    """Return the images whose label is in doubt; None without a source or any predictions."""
    joined, source, names = join_splits(predictions), thumbnails.source, files.names
    if joined is None or source is None:
        return None
    (index, labels, probs), splits = joined
    issues = find_label_issues(probs, labels)
    cases = [
        {
            "id": printable(source.ids[int(index[issue.row])]),
            "split": str(splits[issue.row]),
            "label": names[labels[issue.row]],
            "suggested": names[issue.suggested],
            "label_probability": float(probs[issue.row, labels[issue.row]]),
            "probability": float(probs[issue.row, issue.suggested]),
            "image": thumbnails.image(int(index[issue.row])),
        }
        for issue in issues[:MAX_ISSUES]
    ]
    return {
        "cases": cases,
        "count": len(issues),
        "checked": len(labels),
        "splits": [*dict.fromkeys(splits.tolist())],
    }


def data_quality(run: RunResult, *, examine_all: bool = False) -> dict[str, Any]:
    """Return the findings of the dataset's examination.

    The duplicates that the training found save decoding every image again, if its setting was
    "near".

    Returns:
        `examined`; `findings` as `describe_finding` describes them; and `command`, which examines
        everything. A dataset that is gone is not examined, a large one only with `examine_all`.
    """
    config, source = run.config, run.source
    command = doctor_command(config)
    values = {"examined": False, "findings": [], "command": command}
    if source is None or not (examine_all or _is_small(source)):
        return values
    duplicates = run.duplicate_groups if config.duplicates == "near" else None
    try:
        result = examine(
            config.dataset, source=source, duplicates=duplicates, num_threads=config.num_threads
        )
    except VggjaxError:  # it was readable a moment ago
        return values
    findings = [describe_finding(item, result, most=_MAX_ENTRIES) for item in result.items]
    return values | {"examined": True, "findings": findings}


def _is_small(source: Source) -> bool:
    if len(source) > MAX_EXAMINED:
        return False
    num_bytes = 0
    for path in filter(None, map(source.path, range(len(source)))):
        with suppress(OSError, ValueError):  # gone
            num_bytes += path.stat().st_size
    return num_bytes <= MAX_EXAMINED_BYTES


@dataclass(frozen=True)
class GradCamExample:
    """An image with Grad-CAM maps of its predicted and, where that is wrong, its true class.

    Of several labels per image there is a map of each predicted label, the most probable first.
    """

    id: str
    truth: str
    predicted: str
    probability: float | None
    """Of the predicted class; None of several labels."""
    is_correct: bool
    image: np.ndarray
    maps: tuple[tuple[str, np.ndarray], ...]
    """(class name, map drawn over the image), the predicted class first."""

    def cells(self) -> list[Cell]:
        """Return its images as a row of an image grid."""
        verdict = "correct" if self.is_correct else "wrong"
        verdict += "" if self.probability is None else f", {self.probability:.1%}"
        row = [Cell(self.image, ((f"true {self.truth}", "plain"), (verdict, "muted")))]
        for number, (name, drawn) in enumerate(self.maps):
            look = "wrong" if number == 0 and not self.is_correct else "plain"
            row.append(Cell(drawn, ((f"for {name}", look),)))
        return row


def grad_cam_examples(
    run: RunResult, predictions: SplitPredictions | None
) -> tuple[list[GradCamExample], str, int]:
    """Compute Grad-CAM for a few confident predictions, correct and wrong, of various classes.

    Returns:
        The examples, the layer of the maps, and the side of a map in cells. There are no examples
        without the model, the dataset or the predictions.
    """
    if predictions is None or run.model is None or run.info is None or run.source is None:
        return [], "", 0
    preprocessing, names = run.info.preprocessing, [printable(n) for n in run.info.class_names]
    views = _views(predictions, run.info, names)
    shown, inputs, rows = [], [], []
    for row in (
        *_most_confident(views, correct=True)[:NUM_CORRECT],
        *_most_confident(views, correct=False)[:NUM_WRONG],
    ):
        try:
            pixels = run.source.read(int(predictions.index[row])).pixels
        except DataError:
            continue
        inputs.append(resize_image(pixels, preprocessing))
        # A squashed input shows all of the image, so the map fits the image as it was.
        shown.append(thumbnail(pixels if preprocessing.resize == "squash" else inputs[-1]))
        rows.append(row)
    layer = map_layer(run.model, preprocessing.image_size)
    if not rows:
        return [], layer, 0
    wanted = [(i, label) for i, row in enumerate(rows) for label in views[row].classes]
    # One call for all maps, with a fixed number of rows: every new shape is compiled again.
    num_maps = (MAX_MAPS, MAX_MAPS) if run.info.is_multilabel else (1, 2)
    padding = NUM_CORRECT * num_maps[0] + NUM_WRONG * num_maps[1] - len(wanted)
    images = np.pad(np.stack([inputs[i] for i, _ in wanted]), [(0, padding), *[(0, 0)] * 3])
    classes = np.pad([label for _, label in wanted], (0, padding))
    maps = grad_cam(run.model, preprocess(images, preprocessing.mode), classes, layer=layer)
    drawn: dict[int, list[tuple[str, np.ndarray]]] = {i: [] for i in range(len(rows))}
    for (i, label), heat in zip(wanted, maps, strict=False):
        drawn[i].append((names[label], overlay(shown[i], heat)))
    examples = [
        GradCamExample(
            id=printable(run.source.ids[predictions.index[row]]),
            truth=views[row].truth,
            predicted=views[row].predicted,
            probability=None if run.info.is_multilabel else views[row].confidence,
            is_correct=views[row].is_correct,
            image=shown[i],
            maps=tuple(drawn[i]),
        )
        for i, row in enumerate(rows)
    ]
    return examples, layer, maps.shape[1]


class _View(NamedTuple):
    """A prediction as text, and the classes to explain."""

    truth: str
    predicted: str
    is_correct: bool
    confidence: float
    classes: list[int]


def _views(predictions: SplitPredictions, info: ModelInfo, names: list[str]) -> list[_View]:
    views = []
    for label, probs in zip(predictions.labels, predictions.probs, strict=True):
        if not info.is_multilabel:
            best, label = int(probs.argmax()), int(label)
            classes = [best] if best == label else [best, label]
            texts, confidence = (names[label], names[best]), float(probs[best])
            views.append(_View(*texts, best == label, confidence, classes))
            continue
        guess = probs >= np.array(info.thresholds)
        best_first = np.argsort(-probs, kind="stable")
        classes = [int(i) for i in best_first if guess[i]]
        texts = _label_list(names, label), _label_list(names, guess)
        confidence = float(np.abs(probs - 0.5).min()) if classes else -1.0  # without a map
        views.append(_View(*texts, bool((label == guess).all()), confidence, classes[:MAX_MAPS]))
    return views


def _label_list(names: list[str], target: np.ndarray) -> str:
    return ", ".join(names[i] for i in np.flatnonzero(target)) or "none"


def _most_confident(views: list[_View], *, correct: bool) -> list[int]:
    """Return the rows by confidence, one of each (truth, prediction) before a second of any."""
    rows = np.array([i for i, view in enumerate(views) if view.is_correct == correct], np.int64)
    confidence = np.array([views[i].confidence for i in rows])
    rows = rows[np.argsort(-confidence, kind="stable")]
    return rows[round_robin([(views[i].truth, views[i].predicted) for i in rows])].tolist()
