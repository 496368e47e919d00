"""Compare evaluated runs on one page: accuracy, significance, curves, settings and classes.

The runs must have the same classes. Two runs that were evaluated on the same images are compared
image by image (McNemar's exact test); others by their intervals only. The page is as
self-contained as a report.
"""

import dataclasses
import itertools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vggjax.atomic import check_output_file, write_output
from vggjax.data.augment.settings import NAMES as AUGMENTATION_FIELDS
from vggjax.data.augment.settings import describe
from vggjax.errors import ConfigError, join_names, printable
from vggjax.evaluation.metrics import mcnemar
from vggjax.report.facts import describe_stages, duration, short, train_command, value_text
from vggjax.report.figures import Line, line_chart
from vggjax.report.page import render
from vggjax.report.run_files import RunFiles, read_run
from vggjax.training.config import RESUME_MUTABLE_FIELDS, Config

NUM_COLORS = 6
MAX_RUNS = 3 * NUM_COLORS
"""A line is solid or has one of two dashes."""

MAX_CLASSES = 40
"""Number of classes that are listed, those that differ most first."""


def write_comparison(workdirs: Sequence[str | Path], out: str | Path) -> Path:
    """Write the page and return its path.

    Raises:
        ConfigError: fewer than two runs, too many, one twice, one that was not evaluated, runs with
            different classes, or a file that cannot be written.
    """
    out = check_output_file(out, field="out", endings=(".html", ".htm"))
    _check_runs(workdirs)
    runs = [read_run(workdir) for workdir in workdirs]
    _check_classes(runs)
    names = _distinct_names(runs)
    curves = _curves(runs, names)
    rows = [_run_context(files, line) for files, line in zip(runs, curves["epoch"], strict=True)]
    best = max(rows, key=lambda row: row["headline"].value)
    metric = runs[0].headline.name
    context = {
        "title": f"{len(runs)} runs on {_dataset_names(runs)}",
        "runs": rows,
        "best": best,
        "metric": metric,
        "scale": _interval_scale(runs),
        "same_data": len({files.data["fingerprint"] for files in runs}) == 1,
        "settings": differing_settings([files.config for files in runs]),
        "charts": [
            line_chart(
                lines, title=f"Validation {metric} by {x_label}", x_label=x_label, percent=True
            ).svg()
            for x_label, lines in curves.items()
            if any(line.points for line in lines)
        ],
        "classes": _class_rows(runs),
        "num_classes": len(runs[0].names),
        "pairs": [
            compare_pair(runs[i], runs[j]) | {"first": rows[i], "second": rows[j]}
            for i, j in itertools.combinations(range(len(runs)), 2)
        ],
    }
    write_output(out, render("compare.html.j2", context).encode("utf-8", "surrogateescape"))
    return out


def compare_pair(first: RunFiles, second: RunFiles) -> dict[str, Any]:
    """Compare two runs image by image, if they were evaluated on the same images.

    Returns:
        `paired`; and if they are, the number of images `total`, how many only one run classified
        correctly, `only_first` and `only_second`, and `p` of McNemar's exact test.
    """
    first_rows, second_rows = (
        {row["id"]: row for row in files.predictions} for files in (first, second)
    )
    truths = [{id: row["truth"] for id, row in rows.items()} for rows in (first_rows, second_rows)]
    if first.data["fingerprint"] != second.data["fingerprint"] or truths[0] != truths[1]:
        return {"paired": False}
    correct = [
        (row["correct"] == "1", second_rows[id]["correct"] == "1") for id, row in first_rows.items()
    ]
    only_first, only_second = correct.count((True, False)), correct.count((False, True))
    return {
        "paired": True,
        "total": len(correct),
        "only_first": only_first,
        "only_second": only_second,
        "p": mcnemar(only_first, only_second),
    }


def differing_settings(configs: Sequence[Config]) -> dict[str, list[str]]:
    """Return the settings that influence the result and are not the same in all runs."""
    ignored = {*RESUME_MUTABLE_FIELDS, "augment", *AUGMENTATION_FIELDS}
    augmentations = [describe(config.augmentation) for config in configs]
    settings = {"augmentation": augmentations} if len(set(augmentations)) > 1 else {}
    for field in dataclasses.fields(Config):
        values = [value_text(getattr(config, field.name)) for config in configs]
        if field.name not in ignored and len(set(values)) > 1:
            settings[field.name] = [value or "none" for value in values]
    return settings


def _run_context(files: RunFiles, line: Line) -> dict[str, Any]:
    seconds = sum(row["seconds"] for row in files.rows)
    return {
        "name": line.name,
        "key": f"{line.color} dash{line.dash}",
        "workdir": printable(files.workdir),
        "evaluation": files.evaluation,
        "headline": files.headline,
        "duration": duration(seconds) if seconds else "not logged",
        "stages": "; ".join(describe_stages(files.rows)) or "not logged",
        "num_collapses": len(files.collapses),
        "device": files.evaluation["device"],
        "command": train_command(files.config),
    }


def _curves(runs: list[RunFiles], names: list[str]) -> dict[str, list[Line]]:
    """Return each run's validation accuracy or mAP, by epoch and by seconds of training."""
    curves: dict[str, list[Line]] = {"epoch": [], "seconds": []}
    for number, (files, name) in enumerate(zip(runs, names, strict=True)):
        scores = [row.get(f"val/{files.headline.name}", math.nan) for row in files.rows]
        seconds = itertools.accumulate(row["seconds"] for row in files.rows)
        for label, xs in (("epoch", [row["epoch"] for row in files.rows]), ("seconds", seconds)):
            points = list(zip(xs, scores, strict=True))
            color, dash = f"c{number % NUM_COLORS}", number // NUM_COLORS
            curves[label].append(Line(name, color, points, dash))
    return curves


def _interval_scale(runs: list[RunFiles]) -> tuple[float, float]:
    """Return the ends, in multiples of 5 %, of a scale that holds every run's interval."""
    intervals = [files.headline.interval for files in runs]
    low = math.floor(20 * min(low for low, _ in intervals)) / 20
    return low, max(low + 0.05, math.ceil(20 * max(high for _, high in intervals)) / 20)


def _class_rows(runs: list[RunFiles]) -> list[dict[str, Any]]:
    """Return each class's F1 score in each run, and their range; the largest range first."""
    rows: list[dict[str, Any]] = []
    for i, name in enumerate(runs[0].names):
        scores = [files.evaluation["per_class"][i]["f1"] for files in runs]
        rows.append({"name": name, "f1": scores, "range": max(scores) - min(scores)})
    if len(rows) > MAX_CLASSES:
        rows.sort(key=lambda row: -row["range"])
    return rows[:MAX_CLASSES]


def _distinct_names(runs: list[RunFiles]) -> list[str]:
    """Name runs by their folders, with as much of the path as makes the names distinct."""
    paths = [Path(os.path.abspath(files.workdir)).parts for files in runs]
    for length in range(1, max(map(len, paths)) + 1):
        names = [printable("/".join(parts[-length:])) for parts in paths]
        if len(set(names)) == len(names):
            break
    return names


def _dataset_names(runs: list[RunFiles]) -> str:
    names = dict.fromkeys(short(files.config.dataset) for files in runs)
    return next(iter(names)) if len(names) == 1 else f"{len(names)} datasets"


def _check_runs(workdirs: Sequence[str | Path]) -> None:
    if not 2 <= len(workdirs) <= MAX_RUNS:
        raise ConfigError(f"A comparison needs 2 to {MAX_RUNS} run folders; got {len(workdirs)}.")
    for first, second in itertools.combinations(workdirs, 2):
        if os.path.realpath(first) == os.path.realpath(second):
            raise ConfigError(f"The run {printable(second)} is given twice; give each run once.")


def _check_classes(runs: list[RunFiles]) -> None:
    for files in runs[1:]:
        if files.config.task != runs[0].config.task:
            raise ConfigError(
                f"Runs with different tasks cannot be compared: {printable(runs[0].workdir)} is "
                f"{runs[0].config.task}, {printable(files.workdir)} {files.config.task}."
            )
        if files.evaluation["class_names"] != runs[0].evaluation["class_names"]:
            descriptions = [
                f"{printable(run.workdir)} has {join_names(run.names, most=5)}"
                for run in (runs[0], files)
            ]
            raise ConfigError(
                f"Runs with different classes cannot be compared: {'; '.join(descriptions)}."
            )
