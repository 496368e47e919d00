"""Gathers what each section of a report shows: figures and names in, plain values for the page out.

Nothing is written here but a split's probabilities, where they are not kept yet; no HTML is made.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from vggjax.data.sources.source import Source
from vggjax.errors import VggjaxError, printable
from vggjax.evaluation.calibration import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    Reliability,
    at_temperature,
    chance_ece,
    fit_temperature,
    reliability,
)
from vggjax.evaluation.evaluate import predict_split
from vggjax.evaluation.label_issues import find_label_issues
from vggjax.evaluation.metrics import log_loss, most_confused
from vggjax.evaluation.probabilities import SplitPredictions, read_probabilities
from vggjax.report.charts import Line, Mark, line_chart, reliability_chart
from vggjax.report.facts import stage_starts
from vggjax.report.image_grid import Cell, draw_image_grid
from vggjax.report.plot_style import drawable
from vggjax.report.run_files import RunFiles
from vggjax.report.thumbnails import Thumbnails, jpeg_uri
from vggjax.training.run_dir.run_result import load_run_result
from vggjax.training.run_dir.saved_model import load_model

MAX_MISTAKES = 12
MAX_PAIRS, MAX_OF_PAIR = 6, 5
MAX_ISSUES = 12

STEEP = 200
"""A loss that falls by more than this is drawn by powers of ten: its end would be one flat line."""


def curves(files: RunFiles) -> list[dict[str, str]]:
    """Draws loss, accuracy and rates by epoch, with stages, collapses and the best epoch marked."""
    rows, best = files.rows, files.best
    marks = [Mark(at, f"{clip(text)} unfrozen") for at, text in stage_starts(rows)]
    marks += [Mark(float(line["epoch"]), "collapse", "collapse") for line in files.collapses]

    def points(key: str) -> list[tuple[float, float]]:
        return [(row["epoch"], row[key]) for row in rows if row.get(key) is not None]

    drawn = []
    for metric in ("loss", "accuracy"):
        lines = [
            Line("training", "line-train", points(f"train/{metric}")),
            Line("validation", "line-val", points(f"val/{metric}")),
        ]
        seen = [y for line in lines for _, y in line.points if y > 0 and math.isfinite(y)]
        steep = metric == "loss" and seen and max(seen) > STEEP * min(seen)
        ring = next((point for point in lines[1].points if point[0] == best), None)
        chart = line_chart(
            lines,
            label=f"{metric} by epoch",
            share=metric == "accuracy",
            log=bool(steep),
            marks=marks,
            best=ring,
        )
        drawn.append({"title": f"{metric}, by powers of ten" if steep else metric, "svg": chart})
    lines = [Line(name, look, points(key)) for key, name, look in rate_looks(rows)]
    if any(line.points for line in lines):
        chart = line_chart(lines, label="learning rate by epoch", log=True, marks=marks)
        drawn.append({"title": "learning rate", "svg": chart})
    return drawn


def rate_looks(rows: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Lists the learning rates that were logged: (key, name, class that colors its line).

    Rates that are the same throughout are one, with both names.
    """
    starts = "learning_rate/"
    keys = sorted({key for row in rows for key in row if key.startswith(starts)}, reverse=True)
    alike: dict[tuple[Any, ...], list[str]] = {}
    for key in keys:
        alike.setdefault(tuple(row.get(key) for row in rows), []).append(key)
    return [
        (same[0], " and ".join(key.removeprefix(starts) for key in same), f"c{(2, 3, 4, 5)[i % 4]}")
        for i, same in enumerate(alike.values())
    ]


def confused_pairs(files: RunFiles, album: Thumbnails) -> list[dict[str, Any]]:
    """Lists the commonest mistakes, each with its surest images."""
    by_pair: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in files.wrong:
        by_pair.setdefault((row["truth"], row["guess"]), []).append(row)
    support = {printable(row["name"]): row["support"] for row in files.result["per_class"]}
    pairs = []
    for number, (truth, guess, count) in enumerate(
        most_confused(files.result["confusion"], files.names)
    ):
        rows = by_pair.get((truth, guess), [])[:MAX_OF_PAIR] if number < MAX_PAIRS else []
        pairs.append(
            {
                "truth": truth,
                "guess": guess,
                "count": count,
                "of": support[truth],
                "images": [uri for row in rows if (uri := jpeg_uri(album.pixels_of(row["id"])))],
            }
        )
    return pairs


def mistakes(files: RunFiles, album: Thumbnails) -> list[dict[str, Any]]:
    """Lists the mistakes in which the model was surest, with their images as pixels."""
    return [
        {
            "id": row["id"],
            "truth": printable(row["truth"]),
            "guess": printable(row["guess"]),
            "probability": float(row["probability"]),
            "truth_probability": float(row["truth_probability"]),
            "pixels": album.pixels_of(row["id"]),
        }
        for row in files.wrong[:MAX_MISTAKES]
    ]


class LazyModel:
    """A run's model and what it says of its splits, loaded and judged when they are asked for."""

    def __init__(self, files: RunFiles, source: Source | None):
        self._files, self._source = files, source
        self._loaded: Any = None

    def load(self) -> tuple[Any, Any] | None:
        """Gives (model, info); None where it is gone or damaged, or where each fold has its own."""
        if self._loaded is None:
            try:
                self._loaded = load_model(self._files.workdir)
            except VggjaxError:
                self._loaded = ()
        return self._loaded or None

    def predictions(self, split: str) -> SplitPredictions | None:
        """Gives what the model says of a split: as it was kept, else by judging it now."""
        files = self._files
        kept = read_probabilities(files.workdir, split, num_classes=len(files.names))
        if kept is not None or self._source is None or self.load() is None:
            return kept
        try:
            return predict_split(load_run_result(files.workdir, require_data=True), split)[0]
        except (VggjaxError, OSError):  # such as a folder that may only be read
            return None


def read_folds(files: RunFiles) -> SplitPredictions | None:
    """Gives what the folds' models said of their test images, all of them together."""
    kept = [read_probabilities(run, "test", num_classes=len(files.names)) for run in files.runs]
    if None in kept:
        return None
    return SplitPredictions(*(np.concatenate(parts) for parts in zip(*kept, strict=True)))


def calibration(
    files: RunFiles, test: SplitPredictions | None, val: SplitPredictions | None
) -> tuple[dict[str, Any], Reliability]:
    """Compares how sure the model was with how often it was right, and fits a temperature."""
    confidence = np.array([float(row["probability"]) for row in files.predictions])
    correct = np.array([row["correct"] == "1" for row in files.predictions])
    found = reliability(confidence, correct)
    told: dict[str, Any] = {
        "ece": found.ece,
        "chance": chance_ece(confidence),
        "confidence": found.mean_confidence,
        "accuracy": float(correct.mean()),
        "temperature": None,
    }
    after = None
    if test is not None and val is not None:
        temperature = fit_temperature(val.probs, val.labels)
        probs = at_temperature(test.probs, temperature)
        after = reliability(probs.max(1), probs.argmax(1) == test.labels)
        told |= {
            "temperature": temperature,
            "at_edge": temperature in (MIN_TEMPERATURE, MAX_TEMPERATURE),
            "num_val": len(val.labels),
            "ece_after": after.ece,
            "loss_after": log_loss(probs, test.labels),
        }
    return told | {"svg": reliability_chart(found, after=after)}, found


def label_issues(
    files: RunFiles, album: Thumbnails, judged: dict[str, SplitPredictions | None]
) -> dict[str, Any] | None:
    """Lists the images whose label is in doubt, of the splits that were judged."""
    parts = {split: part for split, part in judged.items() if part is not None}
    if not parts or album.source is None:
        return None
    names = files.names
    index, labels, probs = (np.concatenate(rows) for rows in zip(*parts.values(), strict=True))
    splits = np.repeat(list(parts), [len(part.labels) for part in parts.values()])
    issues = find_label_issues(probs, labels)
    cases = [
        {
            "id": printable(album.source.ids[int(index[issue.row])]),
            "split": str(splits[issue.row]),
            "label": names[labels[issue.row]],
            "suggested": names[issue.suggested],
            "label_probability": float(probs[issue.row, labels[issue.row]]),
            "probability": float(probs[issue.row, issue.suggested]),
            "image": jpeg_uri(album.pixels(int(index[issue.row]))),
        }
        for issue in issues[:MAX_ISSUES]
    ]
    return {"cases": cases, "count": len(issues), "judged": len(labels), "splits": list(parts)}


def draw_mistakes(files: RunFiles, entries: list[dict[str, Any]]) -> bytes | None:
    """Draws the worst mistakes on one sheet; None where there are none."""
    if not entries:
        return None
    names = files.names

    def name(text: str) -> str:
        return drawable(text, names.index(text) if text in names else None, width=15)

    cells = [
        Cell(
            entry["pixels"],
            (
                (f"taken for {name(entry['guess'])}", "wrong"),
                (f"{entry['probability']:.1%} sure", "muted"),
                (f"is {name(entry['truth'])}", "plain"),
            ),
        )
        for entry in entries
    ]
    return draw_image_grid([cells[i : i + 6] for i in range(0, len(cells), 6)])


def write_pngs(workdir: Path, drawn: dict[str, bytes | None]) -> None:
    """Writes plots/<name>.png; of what was not drawn no old image stays."""
    folder = workdir / "plots"
    folder.mkdir(exist_ok=True)
    for name, data in drawn.items():
        path = folder / f"{name}.png"
        if data is None:
            path.unlink(missing_ok=True)
        else:
            path.write_bytes(data)


def clip(text: str, *, width: int = 26) -> str:
    """Shortens a text in its middle."""
    half = (width - 1) // 2
    return text if len(text) <= width else f"{text[: width - half - 1]}…{text[-half:]}"
