"""Gather what each section of a report shows, as plain values and images for the templates.

An image is uint8 RGB (H, W, 3), or None where it cannot be read any more.
"""

from dataclasses import dataclass
from typing import Any

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
from vggjax.report.run_files import RunFiles
from vggjax.report.thumbnails import Cell, Thumbnails, round_robin, thumbnail
from vggjax.training.run_dir.run_result import RunResult

MAX_MISTAKES = 12
MAX_PAIRS, MAX_PAIR_IMAGES = 6, 5
MAX_ISSUES = 12
NUM_CORRECT, NUM_WRONG = 4, 4

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
    confused = most_confused(files.evaluation["confusion"], files.names)
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
    """Compare confidence and accuracy on the test split, before and after temperature scaling.

    Without the predictions of both splits, `temperature` and the reliability `scaled` are None.
    """
    confidence = np.array([float(row["probability"]) for row in files.predictions])
    correct = np.array([row["correct"] == "1" for row in files.predictions])
    values = {
        "measured": reliability(confidence, correct),
        "chance_ece": chance_ece(confidence),
        "accuracy": float(correct.mean()),
        "temperature": None,
        "scaled": None,
    }
    if test is None or val is None:
        return values
    temperature = fit_temperature(val.probs, val.labels)
    probs = at_temperature(test.probs, temperature)
    return values | {
        "temperature": temperature,
        "at_edge": temperature in (MIN_TEMPERATURE, MAX_TEMPERATURE),
        "num_val": len(val.labels),
        "scaled": reliability(probs.max(1), probs.argmax(1) == test.labels),
        "scaled_loss": log_loss(probs, test.labels),
    }


def label_issues(
    files: RunFiles, thumbnails: Thumbnails, predictions: dict[str, SplitPredictions | None]
) -> dict[str, Any] | None:
    """Return the images whose label is in doubt; None without a source or any predictions."""
    parts = {split: part for split, part in predictions.items() if part is not None}
    source, names = thumbnails.source, files.names
    if not parts or source is None:
        return None
    index, labels, probs = (np.concatenate(rows) for rows in zip(*parts.values(), strict=True))
    splits = np.repeat(list(parts), [len(part.labels) for part in parts.values()])
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
    return {"cases": cases, "count": len(issues), "checked": len(labels), "splits": list(parts)}


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
    findings = [describe_finding(item, source, most=_MAX_ENTRIES) for item in result.items]
    return values | {"examined": True, "findings": findings}


def _is_small(source: Source) -> bool:
    if len(source) > MAX_EXAMINED:
        return False
    paths = [source.path(index) for index in range(len(source))]
    num_bytes = sum(path.stat().st_size for path in paths if path is not None and path.exists())
    return num_bytes <= MAX_EXAMINED_BYTES


@dataclass(frozen=True)
class GradCamExample:
    """An image with the Grad-CAM maps of its predicted and its true class."""

    id: str
    truth: str
    predicted: str
    probability: float
    is_correct: bool
    image: np.ndarray
    predicted_map: np.ndarray
    truth_map: np.ndarray | None
    """None where the prediction is correct."""

    def cells(self) -> list[Cell]:
        """Return its images as a row of an image grid."""
        look = "plain" if self.is_correct else "wrong"
        verdict = f"{'correct' if self.is_correct else 'wrong'}, {self.probability:.1%}"
        row = [
            Cell(self.image, ((f"true {self.truth}", "plain"), (verdict, "muted"))),
            Cell(self.predicted_map, ((f"for {self.predicted}", look),)),
        ]
        if self.truth_map is not None:
            row.append(Cell(self.truth_map, ((f"for {self.truth}", "plain"),)))
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
    shown, inputs, rows = [], [], []
    for row in (
        *_most_confident(predictions, correct=True)[:NUM_CORRECT],
        *_most_confident(predictions, correct=False)[:NUM_WRONG],
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
    labels, predicted = predictions.labels[rows], predictions.probs[rows].argmax(1)
    wrong = np.flatnonzero(labels != predicted)
    # One call for both maps, with a fixed number of rows: every new shape is compiled again.
    padding = NUM_CORRECT + 2 * NUM_WRONG - len(rows) - len(wrong)
    images = np.stack(inputs)
    images = np.pad(np.concatenate([images, images[wrong]]), [(0, padding), (0, 0), (0, 0), (0, 0)])
    classes = np.pad(np.concatenate([predicted, labels[wrong]]), (0, padding))
    maps = grad_cam(run.model, preprocess(images, preprocessing.mode), classes, layer=layer)
    truth_maps = dict(zip(wrong.tolist(), maps[len(rows) :], strict=False))
    examples = [
        GradCamExample(
            id=printable(run.source.ids[predictions.index[row]]),
            truth=names[labels[i]],
            predicted=names[predicted[i]],
            probability=float(predictions.probs[row].max()),
            is_correct=bool(labels[i] == predicted[i]),
            image=shown[i],
            predicted_map=overlay(shown[i], maps[i]),
            truth_map=overlay(shown[i], truth_maps[i]) if i in truth_maps else None,
        )
        for i, row in enumerate(rows)
    ]
    return examples, layer, maps.shape[1]


def _most_confident(predictions: SplitPredictions, *, correct: bool) -> list[int]:
    """Return the rows by confidence, one of each (truth, prediction) before a second of any."""
    predicted = predictions.probs.argmax(1)
    rows = np.flatnonzero((predicted == predictions.labels) == correct)
    rows = rows[np.argsort(-predictions.probs[rows].max(1), kind="stable")]
    pairs = zip(predictions.labels[rows].tolist(), predicted[rows].tolist(), strict=True)
    return rows[round_robin(pairs)].tolist()
