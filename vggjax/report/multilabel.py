"""Gather what the report of a run with several labels per image shows, beside sections.py.

Labels are text, joined by commas; "none" is an image without any.
"""

from typing import Any

import numpy as np

from vggjax.data.multilabel import SEPARATOR
from vggjax.errors import printable
from vggjax.evaluation.evaluate import SplitPredictions
from vggjax.evaluation.multilabel import find_multilabel_issues
from vggjax.report.run_files import RunFiles, join_splits
from vggjax.report.thumbnails import Cell, Thumbnails

MAX_MISTAKES, MAX_ISSUES, MAX_PAIRS = 12, 12, 15


def list_labels(text: str) -> str:
    """Return joined labels as a list for people: `circle, square`."""
    return printable(text.replace(SEPARATOR, ", ")) or "none"


def wrong_images(files: RunFiles, thumbnails: Thumbnails) -> list[dict[str, Any]]:
    """Return the images with wrong labels, the highest loss first, with what is wrong."""
    return [
        {key: list_labels(row[key]) for key in ("truth", "guess", "missing", "extra")}
        | {"id": row["id"], "loss": float(row["loss"]), "image": thumbnails.image_of(row["id"])}
        for row in files.mistakes[:MAX_MISTAKES]
    ]


def wrong_grid(mistakes: list[dict[str, Any]]) -> list[list[Cell]]:
    """Return the same as rows of an image grid."""
    cells = []
    for mistake in mistakes:
        lines = [(f"{key} {mistake[key]}", "wrong") for key in ("missing", "extra")]
        lines = [line for line in lines if not line[0].endswith(" none")]
        cells.append(Cell(mistake["image"], [*lines, (f"true {mistake['truth']}", "plain")]))
    return [cells[i : i + 6] for i in range(0, len(cells), 6)]


def label_issues(
    files: RunFiles, thumbnails: Thumbnails, predictions: dict[str, SplitPredictions | None]
) -> dict[str, Any] | None:
    """Return the labels in doubt, missing ones and extra ones; None as in sections.label_issues."""
    joined, source, names = join_splits(predictions), thumbnails.source, files.names
    if joined is None or source is None:
        return None
    (index, targets, probs), splits = joined
    issues = find_multilabel_issues(probs, targets)
    cases = [
        {
            "id": printable(source.ids[int(index[issue.row])]),
            "split": str(splits[issue.row]),
            "labels": list_labels(source.label_text(int(index[issue.row]))),
            "name": names[issue.label],
            "is_missing": issue.is_missing,
            "probability": float(probs[issue.row, issue.label]),
            "image": thumbnails.image(int(index[issue.row])),
        }
        for issue in issues[:MAX_ISSUES]
    ]
    return {
        "cases": cases,
        "count": len(issues),
        "checked": len(targets),
        "splits": [*dict.fromkeys(splits.tolist())],
    }


def frequent_pairs(files: RunFiles) -> list[dict[str, Any]]:
    """Return the pairs of labels that most images have both of, and how many are predicted so."""
    true, predicted = (
        np.array(files.evaluation[key]) for key in ("cooccurrence", "predicted_cooccurrence")
    )
    rows, columns = np.triu_indices(len(true), 1)
    order = np.argsort(-true[rows, columns], kind="stable")[:MAX_PAIRS]
    return [
        {
            "names": (files.names[i], files.names[j]),
            "count": int(true[i, j]),
            "predicted": int(predicted[i, j]),
        }
        for i, j in zip(rows[order].tolist(), columns[order].tolist(), strict=True)
        if true[i, j] or predicted[i, j]
    ]
