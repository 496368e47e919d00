"""Write the report of a run: one HTML page on how good it is, how it was trained, and its mistakes.

The input is an evaluated run, or a cross-validation whose folds were evaluated. The output is
report.html, which needs no other file, no network and no script, and its figures under plots/.
Where the dataset or the model is gone, the page is written without what needs them. sections.py
gathers what each section shows; the templates in pages/ lay it out.
"""

import dataclasses
import json
import os
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from vggjax.atomic import write_bytes, write_text
from vggjax.errors import printable, with_flags
from vggjax.evaluation.evaluate import SplitPredictions
from vggjax.report import figures, multilabel, sections
from vggjax.report.augment_preview import augmented_examples
from vggjax.report.facts import (
    describe_data,
    describe_provenance,
    describe_stages,
    describe_training,
    duration,
    short,
    stage_starts,
    train_command,
    value_text,
)
from vggjax.report.page import format_loss, percent, render
from vggjax.report.plot_style import image_bytes, png, shorten
from vggjax.report.run_files import RunFiles, read_run, split_predictions
from vggjax.report.thumbnails import Cell, Thumbnails, image_grid
from vggjax.training.config import read_config
from vggjax.training.recipes import lesson_of
from vggjax.training.run_dir.folder import lock_workdir
from vggjax.training.run_dir.run_result import RunResult, load_run_result

MAX_CLASSES = 15
"""With more classes the page shows the hardest ones first, and all of them folded."""

MAX_TILES = 6
"""Figures below the headline; more would not fit a row."""


def write_report(
    run: RunResult | str | os.PathLike[str],
    *,
    doctor: bool = False,
    evaluation: dict[str, Any] | None = None,
    predictions: SplitPredictions | None = None,
) -> Path:
    """Write report.html and plots/*.png into the run folder; return the path of the page.

    Args:
        run: the run, or its folder; what a `RunResult` holds is not read again.
        doctor: examine every image of the dataset, however many there are.
        evaluation: the contents of eval.json, if already in memory.
        predictions: the predictions on the test split, if already in memory.

    Raises:
        ConfigError: there is no run, it was not evaluated on its test split yet, or another process
            writes into its folder now.
    """
    workdir = run.workdir if isinstance(run, RunResult) else Path(run)
    if not isinstance(run, RunResult):
        read_config(workdir)  # before a lock file is made where no run is
    with lock_workdir(workdir, "a report"):
        return write_pages(run, doctor=doctor, evaluation=evaluation, predictions=predictions)


def write_pages(
    run: RunResult | str | os.PathLike[str],
    *,
    doctor: bool = False,
    evaluation: dict[str, Any] | None = None,
    predictions: SplitPredictions | None = None,
) -> Path:
    """Do what `write_report` does, in a run folder that this process has locked."""
    files = read_run(run, evaluation=evaluation)
    run = run if isinstance(run, RunResult) else load_run_result(run)
    thumbnails = Thumbnails(run.source)
    folds = files.config.cross_validate  # whose validation images are other folds' test images
    test = predictions or split_predictions(run, files, "test")
    val = None if folds else split_predictions(run, files, "val")
    known = {"all folds": test} if folds else {"test": test, "val": val}
    examples, layer, side = sections.grad_cam_examples(run, test)
    augmented = augmented_examples(run)
    curves = draw_run_curves(files)
    if files.is_multilabel:
        task, drawings, grid = _multilabel_context(files, thumbnails, known)
    else:
        task, drawings, grid = _multiclass_context(files, thumbnails, known)
    context = {
        **_evaluation_context(files),
        **_training_context(files),
        **_run_context(files),
        **task,
        "curves": [drawing.svg() for drawing in curves],
        "grad_cam": examples,
        "grad_cam_layer": layer,
        "grad_cam_side": side,
        "augmented": augmented,
        "missing_data": run.missing_data,
        "quality": sections.data_quality(run, examine_all=doctor),
    }
    path = files.workdir / "report.html"
    write_text(path, render("report.html.j2", context))
    grids = {
        "mistakes": grid,
        "gradcam": [example.cells() for example in examples],
        "augmentation": [[Cell(image) for image in images] for _, images in augmented],
    }
    _write_plots(files.workdir / "plots", {"curves": curves} | drawings, grids)
    return path


_Predictions = dict[str, SplitPredictions | None]
_Context = tuple[dict[str, Any], dict[str, list[figures.Drawing]], list[list[Cell]]]
"""What the page shows, the figures beside the curves, and the grid of mistakes."""


def _multiclass_context(
    files: RunFiles, thumbnails: Thumbnails, predictions: _Predictions
) -> _Context:
    test, *others = predictions.values()
    calibration = sections.calibration(files, test, others[0] if others else None)
    mistakes = sections.misclassified(files, thumbnails)
    counts = files.evaluation["confusion"]
    confusion = figures.draw_confusion(counts, files.names) if counts else None
    when = "before" if calibration["is_kept"] else "after"
    reliability = figures.draw_reliability(
        calibration["measured"],
        other=calibration["other"],
        name=f"{when} temperature scaling",
    )
    context = {
        "confusion_svg": confusion.svg()
        if confusion and len(files.names) > figures.MAX_NUMBERED
        else None,
        "reliability_svg": reliability.svg(),
        "pairs": sections.confused_pairs(files, thumbnails),
        "calibration": calibration,
        "mistakes": mistakes,
        "issues": sections.label_issues(files, thumbnails, predictions),
    }
    drawings = {"reliability": [reliability]} | ({"confusion": [confusion]} if confusion else {})
    return context, drawings, sections.misclassified_grid(files, mistakes)


def _multilabel_context(
    files: RunFiles, thumbnails: Thumbnails, predictions: _Predictions
) -> _Context:
    mistakes = multilabel.wrong_images(files, thumbnails)
    context = {
        "pairs": multilabel.frequent_pairs(files),
        "max_numbered": figures.MAX_NUMBERED,
        "mistakes": mistakes,
        "issues": multilabel.label_issues(files, thumbnails, predictions),
    }
    return context, {}, multilabel.wrong_grid(mistakes)


def draw_run_curves(files: RunFiles) -> list[figures.Drawing]:
    """Draw the curves of a run, with its stages, collapses and best epoch."""
    marks = [
        figures.Mark(epoch, f"{shorten(layers, 26)} unfrozen")
        for epoch, layers in stage_starts(files.rows)
    ]
    marks += [
        figures.Mark(float(record["epoch"]), "collapse", is_collapse=True)
        for record in files.collapses
    ]
    return figures.draw_curves(files.rows, marks=marks, best_epoch=files.best_epoch)


def _evaluation_context(files: RunFiles) -> dict[str, Any]:
    evaluation = files.evaluation
    per_class = [row | {"name": printable(row["name"])} for row in evaluation["per_class"]]
    hardest = sorted(per_class, key=lambda row: (row["support"] == 0, row["f1"]))[:MAX_CLASSES]
    num_examples, is_multilabel = evaluation["num_examples"], files.is_multilabel
    supports = [row["support"] for row in per_class if row["support"]]
    chance = np.mean(supports) if is_multilabel else max(supports)
    correct = evaluation["exact_match" if is_multilabel else "accuracy"]
    return {
        "evaluation": evaluation,
        "is_multilabel": is_multilabel,
        "headline": files.headline,
        "folds": evaluation.get("folds", []),
        "names": files.names,
        "per_class": per_class,
        "hardest": per_class if len(per_class) <= MAX_CLASSES else hardest,
        "num_correct": round(correct * num_examples),
        "num_mistakes": len(files.mistakes),
        "majority": chance / num_examples,
        "tiles": _tiles(files),
    }


def _tiles(files: RunFiles) -> list[tuple[str, str]]:
    """Return the figures of the row below the headline, the most important first."""
    evaluation = files.evaluation
    tiles = [(percent(evaluation["top5"]), "top-5 accuracy")] if "top5" in evaluation else []
    for baseline in evaluation.get("baselines", []):
        low, high = map(percent, baseline["accuracy_interval"])
        tiles.append((percent(baseline["accuracy"]), f"{baseline['name']} ({low} to {high})"))
    tiles.append((format_loss(evaluation["loss"]), "loss (cross-entropy)"))
    f1, f1_interval = percent(evaluation["macro"]["f1"]), ""
    if files.is_multilabel:
        f1_interval = " ({} to {})".format(*map(percent, evaluation["macro_f1_interval"]))
    tiles.append((f1, f"macro F1{f1_interval}"))
    if files.is_multilabel:
        tiles.append((percent(evaluation["micro"]["f1"]), "micro F1"))
    tiles.append((percent(evaluation["macro"]["recall"]), "macro recall"))
    tiles.append((f"{len(files.names):,}", "classes"))
    if files.rows:
        tiles.append((_duration(files), "of training"))
    return tiles[:MAX_TILES]


def _duration(files: RunFiles) -> str:
    seconds, folds = sum(row["seconds"] for row in files.rows), files.config.cross_validate
    return f"{f'{folds} x ' if folds else ''}{duration(seconds)}"


def _training_context(files: RunFiles) -> dict[str, Any]:
    rows = files.rows
    return {
        "best": next((row for row in rows if row["epoch"] == files.best_epoch), None),
        "monitor": files.config.best_metric,
        "last": rows[-1] if rows else None,
        "stages": describe_stages(rows),
        "collapses": files.collapses,
    }


def _run_context(files: RunFiles) -> dict[str, Any]:
    config, info, lesson = files.config, files.info, lesson_of(files.config)
    names = [field.name for field in dataclasses.fields(config)]
    left_out = info.get("left_out", {}) | files.evaluation["unreadable"]
    settings = json.loads(config.to_json())
    folder = shlex.quote(printable(files.model_folders[0]))
    return {
        "title": f"{info['arch']} on {short(config.dataset)}",
        "recipe": lesson,
        "lesson": with_flags(lesson.teaches, names) if lesson else "",
        "training": describe_training(files),
        "data": describe_data(files),
        "left_out": [(printable(id), printable(reason)) for id, reason in left_out.items()],
        "provenance": describe_provenance(files),
        "settings": {name: value_text(value) for name, value in settings.items()},
        "predict_command": f"vggjax predict PHOTO.jpg --workdir {folder}",
        "train_command": train_command(config),
    }


def _write_plots(
    folder: Path,
    drawings: dict[str, list[figures.Drawing]],
    grids: dict[str, list[list[Cell]]],
) -> None:
    """Write <name>.png; a grid without images removes an older one."""
    folder.mkdir(exist_ok=True)
    for name, parts in drawings.items():
        write_bytes(folder / f"{name}.png", png(*parts))
    for name, grid in grids.items():
        path = folder / f"{name}.png"
        if grid:
            write_bytes(path, image_bytes(image_grid(grid)))
        else:
            path.unlink(missing_ok=True)
