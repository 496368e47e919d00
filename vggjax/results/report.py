"""Tells a run's story on one HTML page: how good, how trained, on what, and where it errs.

In: a run folder that was evaluated (evaluate.py), or a cross-validation's, whose folds were. Out:
report.html, which needs no other file, no network and no script, and the pictures alone under
plots/. Where the data set is gone or changed the page is written all the same, without the
photographs of the mistakes.
"""

import base64
import csv
import io
import json
import math
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from vggjax.data.source import Source
from vggjax.errors import ConfigError, DataError, VggjaxError, shown
from vggjax.results import plots
from vggjax.results.evaluate import open_data
from vggjax.results.facts import (
    describe_data,
    describe_making,
    describe_training,
    plain,
    short,
)
from vggjax.results.metrics import most_confused
from vggjax.training.checkpoint import write_text
from vggjax.training.config import read_config
from vggjax.training.run_folder import fold_folders, read_log

MAX_MISTAKES = 24
"""Pictures in the gallery."""

MAX_CLASSES = 15
"""With more classes the page opens with the hardest ones, and the others behind a fold."""

THUMBNAIL_PX = 240


def write_report(workdir: str | Path) -> Path:
    """Writes report.html and plots/*.png into the run folder; gives the page's path.

    Raises:
        ConfigError: no run there, or one that was not evaluated on its test split yet.
    """
    workdir = Path(workdir)
    config = read_config(workdir)
    result = _read_json(workdir / "eval.json", workdir)
    data = _read_json(workdir / "data.json", workdir)
    runs = fold_folders(workdir, config) or [workdir]
    info = _read_json(runs[0] / "model.json", workdir)
    rows = mean_epochs([read_epochs(run) for run in runs])
    best = None if config.cross_validate else best_epoch(rows, config.monitor)
    names = [shown(name) for name in result["class_names"]]
    wrong = _read_wrong(workdir / "predictions.csv")
    try:
        source, gone = open_data(workdir, config), None
    except VggjaxError as error:
        source, gone = None, str(error)
    mistakes = _with_pictures(wrong[:MAX_MISTAKES], source)

    folder = workdir / "plots"
    folder.mkdir(exist_ok=True)
    images = {}
    for name, draw in {
        "curves": lambda dark: plots.draw_curves(rows, best_epoch=best, dark=dark),
        "confusion": lambda dark: plots.draw_confusion(result["confusion"], names, dark=dark),
    }.items():
        light = draw(False)
        (folder / f"{name}.png").write_bytes(light)
        width = int.from_bytes(light[16:20]) // 3 * 2  # px, from the PNG's header; 1.5 a CSS px
        images[name] = {"light": _data_uri(light), "dark": _data_uri(draw(True)), "width": width}
    _write_gallery(folder / "mistakes.png", mistakes, names)

    per_class = [row | {"shown": shown(row["name"])} for row in result["per_class"]]
    page = _template().render(
        title=f"{info['arch']} on {short(config.dataset)}",
        result=result,
        per_class=per_class,
        worst=per_class if len(names) <= MAX_CLASSES else _hardest(per_class),
        names=names,
        folds=result.get("folds", []),
        right=round(result["accuracy"] * result["num_examples"]),
        commonest=max(row["support"] for row in result["per_class"]) / result["num_examples"],
        trained=describe_training(config, info, rows, best),
        data=describe_data(config, data, names),
        images=images,
        has_curves=bool(rows),
        undrawable=any(plots.drawable(name, width=len(name)) != name for name in names),
        confused=most_confused(result["confusion"], names),
        max_numbered=plots.MAX_NUMBERED,
        mistakes=[entry | {"image": _thumbnail(entry["image"])} for entry in mistakes],
        num_wrong=len(wrong),
        gone=gone,
        unreadable=[
            (shown(i), shown(reason))
            for i, reason in (info.get("left_out", {}) | result["unreadable"]).items()
        ],
        made_with=describe_making(result, info, rows),
        config={name: plain(value) for name, value in json.loads(config.to_json()).items()},
        predict_command=f"vggjax predict PHOTO.jpg --workdir {shlex.quote(shown(runs[0]))}",
    )
    path = workdir / "report.html"
    write_text(path, page)
    return path


def read_epochs(workdir: str | Path) -> list[dict[str, Any]]:
    """Reads a log's evaluations in the order of their epochs, each once; no log gives none."""
    rows = [row for row in read_log(workdir) if row.get("kind") == "epoch"]
    return sorted({row["epoch"]: row for row in rows}.values(), key=lambda row: row["epoch"])


def mean_epochs(runs: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Gives one row an epoch with the means over the runs that came so far."""
    by_epoch: dict[float, list[dict[str, Any]]] = {}
    for row in (row for rows in runs for row in rows):
        by_epoch.setdefault(row["epoch"], []).append(row)
    return [
        rows[0] | {key: float(np.mean([row[key] for row in rows if key in row]))
                   for key, value in rows[0].items() if isinstance(value, float)}
        for _, rows in sorted(by_epoch.items())
    ]  # fmt: skip


def best_epoch(rows: list[dict[str, Any]], monitor: str) -> float | None:
    """Gives the first epoch with the best `monitor`: the lowest loss or the highest accuracy."""
    sign = 1 if monitor.endswith("loss") else -1
    known = [row for row in rows if math.isfinite(row.get(monitor, math.nan))]
    return min(known, key=lambda row: sign * row[monitor])["epoch"] if known else None


def _read_json(path: Path, workdir: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise ConfigError(
            f"{shown(path)} is not there, so there is nothing to report yet. Finish the training, "
            f"then: vggjax evaluate --workdir {shown(workdir)}"
        ) from None
    except ValueError as error:
        raise ConfigError(f"{shown(path)} is damaged ({error}); evaluate the run again.") from None


def _read_wrong(path: Path) -> list[dict[str, Any]]:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            wrong = [row for row in csv.DictReader(file) if row["correct"] == "0"]
            wrong.sort(key=lambda row: -float(row["probability"]))
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        raise ConfigError(f"{shown(path)} is missing or damaged; evaluate the run again.") from None
    return wrong


def _with_pictures(wrong: list[dict[str, Any]], source: Source | None) -> list[dict[str, Any]]:
    wanted = {row["id"] for row in wrong}
    ids = enumerate(source.ids) if source is not None else ()
    index = {shown(name): i for i, name in ids if shown(name) in wanted}
    mistakes = []
    for row in wrong:
        image = None
        if source is not None and row["id"] in index:
            try:
                image = source.read(index[row["id"]]).pixels
            except DataError:
                pass  # it was there when the run was evaluated; the page says that it is not now
        mistakes.append(
            {
                "id": row["id"],
                "truth": shown(row["truth"]),
                "guess": shown(row["guess"]),
                "probability": float(row["probability"]),
                "truth_probability": float(row["truth_probability"]),
                "image": image,
            }
        )
    return mistakes


def _write_gallery(path: Path, mistakes: list[dict[str, Any]], names: list[str]) -> None:
    if not mistakes:
        path.unlink(missing_ok=True)
        return

    def name(text: str) -> str:
        return plots.drawable(text, names.index(text) if text in names else None)

    rows = [(m["image"], name(m["truth"]), name(m["guess"]), m["probability"]) for m in mistakes]
    path.write_bytes(plots.draw_mistakes(rows))


def _thumbnail(image: np.ndarray | None) -> str | None:
    from PIL import Image

    if image is None:
        return None
    picture = Image.fromarray(image)
    side = max(picture.size)
    if side <= THUMBNAIL_PX // 4:  # a tiny picture shows its pixels, sharp
        times = THUMBNAIL_PX // side
        picture = picture.resize((picture.width * times, picture.height * times), 0)
    picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return _data_uri(file.getvalue(), "jpeg")


def _hardest(per_class: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(per_class, key=lambda row: row["f1"])[:MAX_CLASSES]


def _template() -> Any:
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    settings = dict(autoescape=True, undefined=jinja2.StrictUndefined)
    environment = jinja2.Environment(
        loader=loader, trim_blocks=True, lstrip_blocks=True, **settings
    )
    environment.filters["percent"] = lambda share: f"{share:.1%}"
    return environment.get_template("report.html.j2")


def _data_uri(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
