"""Tells a run's story on one HTML page: how good, how trained, on what, and where it errs.

In: a run folder that was evaluated (evaluate.py), or a cross-validation's, whose folds were. Out:
report.html, which needs no other file, no network and no script, and the images alone under
plots/. Where the dataset or the model is gone the page is written all the same, without what needs
them. What each section shows is gathered in sections.py and views.py, and laid out in pages/.
"""

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from vggjax.atomic import write_text
from vggjax.data.sources.source import Source
from vggjax.data.splits.splits import read_splits
from vggjax.errors import VggjaxError, printable
from vggjax.report import curves, plots, sections
from vggjax.report.command import train_command
from vggjax.report.data_quality import describe_health
from vggjax.report.facts import (
    describe_data,
    describe_making,
    describe_stages,
    describe_training,
    duration,
    plain,
    short,
)
from vggjax.report.image_grid import Cell, draw_image_grid
from vggjax.report.model_views import draw_augmented, draw_grad_cam_examples
from vggjax.report.run_files import RunFiles, read_run
from vggjax.report.thumbnails import Thumbnails, data_uri, jpeg_uri
from vggjax.training import recipes
from vggjax.training.run_dir.run_result import open_training_data

MAX_CLASSES = 15
"""With more classes the page opens with the hardest ones, and the others behind a fold."""

_CONTENTS = {
    "lesson": "The lesson",
    "what": "What was trained",
    "folds": "Folds",
    "curves": "Curves",
    "confusion": "Confusion matrix",
    "pairs": "Confused pairs",
    "classes": "Classes",
    "calibration": "Calibration",
    "mistakes": "Mistakes",
    "labels": "Labels",
    "looks": "Grad-CAM",
    "augmentation": "Augmentation",
    "data": "Data",
    "use": "Commands",
}
"""Sections by their anchors, in the page's order; those that are not there are left out."""


def write_report(workdir: str | Path, *, doctor: bool = False) -> Path:
    """Writes report.html and plots/*.png into the run folder; gives the page's path.

    `doctor` looks at every image of the dataset, however many there are.

    Raises:
        ConfigError: no run there, or one that was not evaluated on its test split yet.
    """
    files = read_run(workdir)
    try:
        source, gone = open_training_data(files.workdir, files.config), None
    except VggjaxError as error:
        source, gone = None, str(error)
    album = Thumbnails(source)
    entries = sections.mistakes(files, album)
    calibration, found = _calibrate(files, source)
    judged, seen, sheets = calibration.pop("judged"), {}, {}
    if not files.config.cross_validate:
        seen, sheets = _views(files, source, calibration.pop("model"), judged["test"])
    collapses = [float(line["epoch"]) for line in files.collapses]
    drawn = {
        "curves": curves.draw_curves(files.rows, best_epoch=files.best, collapses=collapses),
        "confusion": plots.draw_confusion(files.result["confusion"], files.names),
        "reliability": curves.draw_reliability(found),
        "mistakes": sections.draw_mistakes(files, entries),
        "gradcam": None,
        "augmentation": None,
    }
    sections.write_pngs(files.workdir, drawn | sheets)
    context = {
        **_figures(files, drawn["confusion"]),
        **_words(files),
        **_course(files),
        "collapses": [{k: printable(v) if isinstance(v, str) else v for k, v in line.items()}
                      for line in files.collapses],
        "confused": sections.confused_pairs(files, album),
        "calibration": calibration,
        "mistakes": [entry | {"image": jpeg_uri(entry["pixels"])} for entry in entries],
        "num_wrong": len(files.wrong),
        "issues": sections.label_issues(files, album, judged),
        "gone": gone and printable(gone),
        "health": describe_health(files.config, source, ask=doctor),
        "looks": [], "look_layer": "", "look_side": 0, "augmented": [],
        **seen,
    }  # fmt: skip
    path = files.workdir / "report.html"
    write_text(path, render("report.html.j2", context | {"contents": _contents(context)}))
    return path


def render(name: str, context: dict[str, Any]) -> str:
    """Fills a template of pages/; whatever is no HTML is escaped."""
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent / "pages")
    settings = dict(autoescape=True, undefined=jinja2.StrictUndefined)
    environment = jinja2.Environment(
        loader=loader, trim_blocks=True, lstrip_blocks=True, **settings
    )
    environment.filters["percent"] = lambda share: f"{share:.1%}"
    environment.filters["loss"] = lambda loss: f"{loss:.3f}" if loss < 1000 else f"{loss:.2g}"
    environment.filters["sentence"] = lambda text: f"{str(text).rstrip('. ')}."
    return environment.get_template(name).render(context).lstrip()


def _calibrate(files: RunFiles, source: Source | None) -> tuple[dict[str, Any], Any]:
    """Gives the calibration's section with `judged`, what was said of each split, and `model`."""
    if files.config.cross_validate:
        told, found = sections.calibration(files, None, None)
        return told | {"judged": {"all folds": sections.read_folds(files)}}, found
    model = sections.LazyModel(files, source)
    judged = {split: model.predictions(split) for split in ("test", "val")}
    told, found = sections.calibration(files, judged["test"], judged["val"])
    return told | {"judged": judged, "model": model}, found


def _views(
    files: RunFiles, source: Source | None, model: Any, test: Any
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Gives the sections that need the model itself, and the same as sheets for plots/."""
    loaded = model.load()
    if source is None or loaded is None:
        return {}, {}
    seen: dict[str, Any] = {}
    sheets: dict[str, bytes] = {}
    if test is not None:
        looks, layer, side = draw_grad_cam_examples(*loaded, source, test)
        seen |= {"looks": [look.on_page() for look in looks]}
        seen |= {"look_layer": layer, "look_side": side}
        if looks:
            sheets["gradcam"] = draw_image_grid([look.cells() for look in looks])
    splits = read_splits(files.workdir, source)
    rows = (
        [] if splits is None else draw_augmented(loaded[1], source, files.config, splits["train"])
    )
    if rows:
        seen["augmented"] = [
            {"name": name, "images": [jpeg_uri(image) for image in images]} for name, images in rows
        ]
        sheets["augmentation"] = draw_image_grid([[Cell(p) for p in row] for _, row in rows])
    return seen, sheets


def _figures(files: RunFiles, light: bytes) -> dict[str, Any]:
    """Gives the figures of the evaluation; `light` is the confusion matrix on white."""
    result, names = files.result, files.names
    per_class = [row | {"shown": printable(row["name"])} for row in result["per_class"]]
    hardest = sorted(per_class, key=lambda row: row["f1"])[:MAX_CLASSES]
    confusion = None
    if len(names) > plots.MAX_NUMBERED:
        dark = plots.draw_confusion(result["confusion"], names, dark=True)
        width = int.from_bytes(light[16:20]) // 3 * 2  # px, from the PNG's header; 1.5 a CSS px
        confusion = {"light": data_uri(light), "dark": data_uri(dark), "width": width}
    return {
        "result": result,
        "per_class": per_class,
        "worst": per_class if len(names) <= MAX_CLASSES else hardest,
        "names": names,
        "folds": result.get("folds", []),
        "right": round(result["accuracy"] * result["num_examples"]),
        "commonest": max(row["support"] for row in result["per_class"]) / result["num_examples"],
        "confusion": confusion,
        "max_numbered": plots.MAX_NUMBERED,
        "best": files.best,
    }


def _course(files: RunFiles) -> dict[str, Any]:
    """Gives the curves, and what they show in words."""
    rows = files.rows
    told = {"train/accuracy", "val/accuracy"} <= set(rows[-1] if rows else ())
    best = next((row for row in rows if row["epoch"] == files.best and "val/loss" in row), None)
    return {
        "curves": sections.curves(files) if rows else [],
        "rates": sections.rate_looks(rows),
        "stages": describe_stages(rows),
        "best_row": best,
        "monitor": files.config.monitor,
        "last": rows[-1] if rows else {},
        "gap": rows[-1]["train/accuracy"] - rows[-1]["val/accuracy"] if told else None,
    }


def _words(files: RunFiles) -> dict[str, Any]:
    config, result, info = files.config, files.result, files.info
    left_out = info.get("left_out", {}) | result["unreadable"]
    device = str(result.get("device", "not recorded"))
    seconds = [row["seconds"] for row in files.rows if "seconds" in row]
    folds = f"{config.cross_validate} x " if config.cross_validate else ""  # rows are their means
    return {
        "title": f"{info['arch']} on {short(config.dataset)}",
        "took": f"{folds}{duration(float(np.sum(seconds)))}" if seconds else "",
        "lesson": _lesson(config),
        "trained": describe_training(config, info, files.rows, best=files.best, device=device),
        "data": describe_data(config, files.data, files.names),
        "unreadable": [(printable(id), printable(reason)) for id, reason in left_out.items()],
        "made_with": describe_making(result, info),
        "config": {name: plain(value) for name, value in json.loads(config.to_json()).items()},
        "predict_command": f"vggjax predict PHOTO.jpg --workdir "
        f"{shlex.quote(printable(files.runs[0]))}",
        "train_command": train_command(config),
    }


def _lesson(config: Any) -> dict[str, str] | None:
    """Gives what the run's recipe teaches; None where it has no recipe, or one without words."""
    found = recipes.lesson_of(config)
    names = ("title", "teaches", "source", "figure")
    told = {name: printable(getattr(found, name, None) or "") for name in names}
    return told if told["title"] and told["teaches"] else None


def _contents(context: dict[str, Any]) -> list[tuple[str, str]]:
    missing = {
        "lesson": not context["lesson"],
        "folds": not context["folds"],
        "curves": not context["curves"],
        "pairs": not context["confused"],
        "labels": not context["issues"],
        "looks": not context["looks"],
        "augmentation": not context["augmented"],
    }
    return [(anchor, text) for anchor, text in _CONTENTS.items() if not missing.get(anchor)]
