"""Write the report of a run: one HTML page on how good it is, how it was trained, and its mistakes.

The input is an evaluated run, or a cross-validation whose folds were evaluated. The output is
report.html, which needs no other file, no network and no script, and its figures under plots/.
Where the dataset or the model is gone, the page is written without what needs them. sections.py
gathers what each section shows; the templates in pages/ lay it out.
"""

import json
import os
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from vggjax.atomic import write_text
from vggjax.errors import printable
from vggjax.evaluation.probabilities import SplitPredictions
from vggjax.report import figures, sections
from vggjax.report.augment_preview import augmented_examples
from vggjax.report.facts import (
    describe_data,
    describe_evaluation,
    describe_stages,
    describe_training,
    duration,
    short,
    stage_starts,
    train_command,
    value_text,
)
from vggjax.report.page import render
from vggjax.report.plot_style import image_bytes, png, shorten
from vggjax.report.run_files import LazyModel, RunFiles, read_run
from vggjax.report.thumbnails import Cell, Thumbnails, image_grid, jpeg_uri
from vggjax.training import recipes
from vggjax.training.config import Config
from vggjax.training.run_dir.run_result import RunResult

MAX_CLASSES = 15
"""With more classes the page shows the hardest ones first, and all of them folded."""

_SECTIONS = (
    ("recipe", "Recipe", "recipe"),
    ("training", "Training", ""),
    ("folds", "Folds", "folds"),
    ("curves", "Training curves", "stages"),
    ("confusion", "Confusion matrix", ""),
    ("pairs", "Most confused pairs", "pairs"),
    ("classes", "Per-class metrics", ""),
    ("calibration", "Calibration", ""),
    ("mistakes", "Misclassified images", ""),
    ("labels", "Label issues", "issues"),
    ("grad-cam", "Grad-CAM", "grad_cam"),
    ("augmentation", "Augmentation", "augmented"),
    ("data", "Data quality", ""),
    ("commands", "Commands", ""),
)
"""Anchor and title of each section, in order, and the value without which it is left out."""


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
        ConfigError: there is no run, or it was not evaluated on its test split yet.
    """
    files = read_run(run, evaluation=evaluation)
    model = LazyModel(run, files, predictions)
    duplicates = run.duplicate_groups if isinstance(run, RunResult) else None
    thumbnails = Thumbnails(model.source)
    test = model.predictions("test")
    val = None if files.config.cross_validate else model.predictions("val")
    known = {"all folds": test} if files.config.cross_validate else {"test": test, "val": val}
    calibration, measured, scaled = sections.calibration(files, test, val)
    mistakes = sections.misclassified(files, thumbnails)
    curves = _draw_curves(files)
    confusion = figures.draw_confusion(files.evaluation["confusion"], files.names)
    reliability = figures.draw_reliability(measured, scaled=scaled)
    examples, images = _model_sections(files, model, test)
    context = {
        **_evaluation_context(files),
        **_training_context(files),
        **_run_context(files),
        **examples,
        "curves": [drawing.svg() for drawing in curves],
        "confusion_svg": None if _has_table(files) else confusion.svg(),
        "reliability_svg": reliability.svg(),
        "pairs": sections.confused_pairs(files, thumbnails),
        "calibration": calibration,
        "mistakes": [entry | {"image": jpeg_uri(entry["pixels"])} for entry in mistakes],
        "num_mistakes": len(files.mistakes),
        "issues": sections.label_issues(files, thumbnails, known),
        "missing_data": model.missing,
        "quality": sections.data_quality(
            files.config, model.source, duplicates=duplicates, examine_all=doctor
        ),
    }
    grid = sections.misclassified_grid(files, mistakes)
    plots = {
        "curves": png(*curves),
        "confusion": png(confusion),
        "reliability": png(reliability),
        "mistakes": image_bytes(image_grid(grid)) if grid else None,
    }
    _write_plots(files.workdir, plots | images)
    contents = [(anchor, title) for anchor, title, key in _SECTIONS if not key or context[key]]
    path = files.workdir / "report.html"
    write_text(path, render("report.html.j2", context | {"contents": contents}))
    return path


def _draw_curves(files: RunFiles) -> list[figures.Drawing]:
    marks = [
        figures.Mark(epoch, f"{shorten(layers, 26)} unfrozen")
        for epoch, layers in stage_starts(files.rows)
    ]
    marks += [
        figures.Mark(float(record["epoch"]), "collapse", is_collapse=True)
        for record in files.collapses
    ]
    return figures.draw_curves(files.rows, marks=marks, best_epoch=files.best_epoch)


def _model_sections(
    files: RunFiles, model: LazyModel, test: SplitPredictions | None
) -> tuple[dict[str, Any], dict[str, bytes | None]]:
    """Return the sections that need the model and its data, and their images for plots/."""
    run = model.load()
    examples: list[sections.GradCamExample] = []
    layer, side = "", 0
    augmented: list[tuple[str, list[np.ndarray]]] = []
    if run is not None and run.source is not None and run.info is not None:
        if test is not None:
            examples, layer, side = sections.grad_cam_examples(
                run.model, run.info, run.source, test
            )
        if run.splits is not None:
            train = run.splits["train"]
            augmented = augmented_examples(run.info, run.source, files.config, train)
    context = {
        "grad_cam": [example.context() for example in examples],
        "grad_cam_layer": layer,
        "grad_cam_side": side,
        "augmented": [
            {"name": name, "images": [jpeg_uri(image) for image in images]}
            for name, images in augmented
        ],
    }
    grids = {
        "gradcam": [example.cells() for example in examples],
        "augmentation": [[Cell(image) for image in images] for _, images in augmented],
    }
    return context, {
        name: image_bytes(image_grid(grid)) if grid else None for name, grid in grids.items()
    }


def _has_table(files: RunFiles) -> bool:
    """Return whether the page shows the confusion matrix as a table, not as a figure."""
    return len(files.names) <= figures.MAX_NUMBERED


def _evaluation_context(files: RunFiles) -> dict[str, Any]:
    evaluation, names = files.evaluation, files.names
    per_class = [row | {"name": printable(row["name"])} for row in evaluation["per_class"]]
    hardest = sorted(per_class, key=lambda row: row["f1"])[:MAX_CLASSES]
    majority = max(row["support"] for row in per_class) / evaluation["num_examples"]
    return {
        "evaluation": evaluation,
        "split": evaluation.get("split", "test"),
        "top5": evaluation.get("top5"),
        "folds": evaluation.get("folds", []),
        "names": names,
        "per_class": per_class,
        "hardest": per_class if len(names) <= MAX_CLASSES else hardest,
        "num_correct": round(evaluation["accuracy"] * evaluation["num_examples"]),
        "majority": majority,
    }


def _training_context(files: RunFiles) -> dict[str, Any]:
    rows, best = files.rows, files.best_epoch
    last = rows[-1] if rows else {}
    seconds = [row["seconds"] for row in rows if "seconds" in row]
    times = f"{files.config.cross_validate} x " if files.config.cross_validate else ""
    best_row = next((row for row in rows if row["epoch"] == best), {})
    has_best = "val/loss" in best_row and "val/accuracy" in best_row
    both = "train/accuracy" in last and "val/accuracy" in last
    return {
        "best_epoch": best,
        "best": (best_row["val/loss"], best_row["val/accuracy"]) if has_best else None,
        "monitor": files.config.monitor,
        "last": (last["train/accuracy"], last["val/accuracy"]) if both else None,
        "stages": describe_stages(rows),
        "collapses": files.collapses,
        "duration": f"{times}{duration(float(np.sum(seconds)))}" if seconds else "",
    }


def _run_context(files: RunFiles) -> dict[str, Any]:
    config, evaluation, info = files.config, files.evaluation, files.info
    left_out = info.get("left_out", {}) | evaluation["unreadable"]
    device = str(evaluation.get("device", "not recorded"))
    settings = json.loads(config.to_json())
    folder = shlex.quote(printable(files.model_folders[0]))
    return {
        "title": f"{info['arch']} on {short(config.dataset)}",
        "recipe": _recipe(config),
        "training": describe_training(
            config, info, files.rows, best_epoch=files.best_epoch, device=device
        ),
        "data": describe_data(config, files.data, files.names),
        "left_out": [(printable(id), printable(reason)) for id, reason in left_out.items()],
        "provenance": describe_evaluation(evaluation, info),
        "settings": {name: value_text(value) for name, value in settings.items()},
        "predict_command": f"vggjax predict PHOTO.jpg --workdir {folder}",
        "train_command": train_command(config),
    }


def _recipe(config: Config) -> dict[str, str] | None:
    """Return what the run's recipe teaches; None without a recipe, or where it teaches nothing."""
    lesson = recipes.lesson_of(config)
    names = ("title", "teaches", "source", "figure")
    texts = {name: printable(getattr(lesson, name, None) or "") for name in names}
    return texts if texts["title"] and texts["teaches"] else None


def _write_plots(workdir: Path, plots: dict[str, bytes | None]) -> None:
    """Write plots/<name>.png, and remove an older one where there is nothing to draw any more."""
    folder = workdir / "plots"
    folder.mkdir(exist_ok=True)
    for name, data in plots.items():
        path = folder / f"{name}.png"
        if data is None:
            path.unlink(missing_ok=True)
        else:
            path.write_bytes(data)
