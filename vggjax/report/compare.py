"""Sets several runs side by side on one page: what differs, how good each is, and if that counts.

In: run folders that were evaluated, with the same classes. Out: one HTML page as self-contained as
a report. Two runs that judged the very same images are compared image by image (McNemar's
exact test); others by their intervals alone, and the page says so.
"""

import dataclasses
import itertools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vggjax.atomic import write_text
from vggjax.data.augment.settings import NAMES as AUGMENTATION_FIELDS
from vggjax.data.augment.settings import describe
from vggjax.errors import ConfigError, printable
from vggjax.evaluation.metrics import mcnemar
from vggjax.report.charts import Line, line_chart
from vggjax.report.command import train_command
from vggjax.report.facts import describe_stages, duration, plain, short
from vggjax.report.report import render
from vggjax.report.run_files import RunFiles, read_run
from vggjax.training.config import RESUME_MUTABLE_FIELDS, Config

COLORS = 6
"""Runs beyond as many share the colors of the first, with another dash."""

MAX_RUNS = 18
MAX_CLASSES = 40
"""Classes whose differences are listed, those that differ most first."""


def write_comparison(workdirs: Sequence[str | Path], out: str | Path) -> Path:
    """Writes the page; gives its path.

    Raises:
        ConfigError: fewer than two runs, too many, one twice, one that is no evaluated run, other
            classes than the first, or a file that cannot be written.
    """
    out = _check_out(out)
    _check_runs(workdirs)
    runs = [read_run(workdir) for workdir in workdirs]
    _check_classes(runs)
    names = _name(runs)
    seconds = [sum(row.get("seconds", 0) for row in files.rows) for files in runs]
    best = max(range(len(runs)), key=lambda i: runs[i].result["accuracy"])
    looks = [
        f"c{i % COLORS}{f' dash{i // COLORS}' if i >= COLORS else ''}" for i in range(len(runs))
    ]
    told = [
        {
            "name": name,
            "look": look,
            "workdir": printable(files.workdir),
            "result": files.result,
            "took": duration(taken) if taken else "not logged",
            "epochs": len(files.rows),
            "kept": files.best,
            "stages": "; ".join(describe_stages(files.rows)),
            "collapses": len(files.collapses),
            "device": str(files.result.get("device", "not recorded")),
            "command": train_command(files.config),
        }
        for name, look, files, taken in zip(names, looks, runs, seconds, strict=True)
    ]
    page = render(
        "compare.html.j2",
        {
            "title": f"{len(runs)} runs on {_datasets(runs)}",
            "runs": told,
            "best": told[best],
            "scale": _scale(runs),
            "same_data": len({files.data["fingerprint"] for files in runs}) == 1,
            "settings": differing_settings([files.config for files in runs]),
            "charts": _charts(runs, names, looks),
            "classes": _classes(runs),
            "num_classes": len(runs[0].names),
            "pairs": [
                compare_pair(runs[i], runs[j]) | {"first": told[i], "second": told[j]}
                for i, j in itertools.combinations(range(len(runs)), 2)
            ],
        },
    )
    try:
        write_text(out, page)
    except OSError as error:
        raise ConfigError(f"Cannot write {printable(out)}: {error.strerror or error}.") from None
    return out


def compare_pair(first: RunFiles, second: RunFiles) -> dict[str, Any]:
    """Compares two runs image by image, where they judged the very same ones.

    Returns:
        `paired`, and if so how many images there are, how many `only_first` and `only_second`
        named correctly, and `p` of McNemar's exact test.
    """
    mine, theirs = ({row["id"]: row for row in files.predictions} for files in (first, second))
    same = first.data["fingerprint"] == second.data["fingerprint"] and mine.keys() == theirs.keys()
    if not same or any(mine[id]["truth"] != theirs[id]["truth"] for id in mine):
        return {"paired": False}
    right = [(mine[id]["correct"] == "1", theirs[id]["correct"] == "1") for id in mine]
    only_first = sum(a and not b for a, b in right)
    only_second = sum(b and not a for a, b in right)
    return {
        "paired": True,
        "total": len(right),
        "only_first": only_first,
        "only_second": only_second,
        "p": mcnemar(only_first, only_second),
    }


def differing_settings(configs: Sequence[Config]) -> dict[str, list[str]]:
    """Lists the settings that would change the result and are not the same in all runs."""
    passed_over = {*RESUME_MUTABLE_FIELDS, "augment", *AUGMENTATION_FIELDS}
    drawn = [describe(config.augmentation) for config in configs]
    found = {"augmentation": drawn} if len(set(drawn)) > 1 else {}
    for field in dataclasses.fields(Config):
        values = [plain(getattr(config, field.name)) for config in configs]
        if field.name not in passed_over and len(set(values)) > 1:
            found[field.name] = [value or "none" for value in values]
    return found


def _charts(runs: list[RunFiles], names: list[str], looks: list[str]) -> list[dict[str, str]]:
    by_epoch, by_seconds = [], []
    for files, name, look in zip(runs, names, looks, strict=True):
        rows = [row for row in files.rows if "val/accuracy" in row]
        taken = list(itertools.accumulate(row.get("seconds", 0.0) for row in files.rows))
        clock = {row["epoch"]: at for row, at in zip(files.rows, taken, strict=True)}
        by_epoch.append(Line(name, look, [(row["epoch"], row["val/accuracy"]) for row in rows]))
        points = [(clock[row["epoch"]], row["val/accuracy"]) for row in rows]
        by_seconds.append(Line(name, look, points if taken and taken[-1] else []))
    charts = [("validation accuracy by epoch", "epoch", by_epoch)]
    charts += [("validation accuracy by seconds of training", "seconds", by_seconds)]
    return [
        {"title": title, "svg": line_chart(lines, label=title, x_label=x_label, share=True)}
        for title, x_label, lines in charts
        if any(line.points for line in lines)
    ]


def _scale(runs: list[RunFiles]) -> tuple[float, float]:
    """Gives the ends, in whole twentieths, of a scale that holds every run's interval."""
    intervals = [files.result["accuracy_interval"] for files in runs]
    low = math.floor(20 * min(low for low, _ in intervals)) / 20
    return low, max(low + 0.05, math.ceil(20 * max(high for _, high in intervals)) / 20)


def _classes(runs: list[RunFiles]) -> list[dict[str, Any]]:
    """Lists each class' F1 in each run, and how far the runs lie apart; the farthest first."""
    rows = [
        {"name": name, "f1": [files.result["per_class"][i]["f1"] for files in runs]}
        for i, name in enumerate(runs[0].names)
    ]
    for row in rows:
        row["spread"] = max(row["f1"]) - min(row["f1"])
    if len(rows) > MAX_CLASSES:
        rows.sort(key=lambda row: -row["spread"])
    return rows[:MAX_CLASSES]


def _name(runs: list[RunFiles]) -> list[str]:
    """Names runs by their folders; by so much of the path as tells them apart."""
    paths = [Path(os.path.abspath(files.workdir)).parts for files in runs]
    for length in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-length:]) for parts in paths]
        if len(set(names)) == len(names):
            break
    return [printable(name) for name in names]


def _datasets(runs: list[RunFiles]) -> str:
    names = dict.fromkeys(short(files.config.dataset) for files in runs)
    return next(iter(names)) if len(names) == 1 else f"{len(names)} datasets"


def _check_out(out: str | Path) -> Path:
    path = Path(out).expanduser()
    if path.is_dir() or not path.parent.is_dir():
        raise ConfigError(
            f"--out takes a file to write, in a folder that is there; got {printable(path)}."
        )
    if path.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"The page's file must end in .html; got {printable(path.name)!r}.")
    return path


def _check_runs(workdirs: Sequence[str | Path]) -> None:
    if not workdirs:
        raise ConfigError("A report is of a finished run: give its folder, or several to compare.")
    if not 2 <= len(workdirs) <= MAX_RUNS:
        raise ConfigError(f"A comparison takes 2 to {MAX_RUNS} run folders; got {len(workdirs)}.")
    real = [os.path.realpath(workdir) for workdir in workdirs]
    for workdir, path in zip(workdirs, real, strict=True):
        if real.count(path) > 1:
            raise ConfigError(f"The run {printable(workdir)} is given twice; give each run once.")


def _check_classes(runs: list[RunFiles]) -> None:
    first = runs[0]
    for files in runs[1:]:
        if files.result["class_names"] != first.result["class_names"]:
            raise ConfigError(
                f"Runs with other classes cannot be compared: {printable(first.workdir)} has "
                f"{_few(first.names)}, {printable(files.workdir)} has {_few(files.names)}."
            )


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
    return f"{', '.join(names[:5])}{more}"
