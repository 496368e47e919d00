"""The facts that a report lists beside its figures, in words: what was trained, on what, how.

In: a run's config, model.json, data.json and epochs. Out: {term: text}, with every name made fit to
be shown. Nothing is read or drawn here.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from vggjax.data.augment.settings import describe
from vggjax.errors import printable
from vggjax.training.config import Config
from vggjax.training.run_dir.folder import describe_duplicates

Facts = dict[str, str]


def describe_training(
    config: Config,
    info: dict[str, Any],
    rows: list[dict[str, Any]],
    *,
    best: float | None,
    device: str,
) -> Facts:
    """Says what was trained; `rows` are the epochs, `best` the one whose weights were kept."""
    seen = info["preprocessing"]
    size = f"{seen['image_size']}x{seen['image_size']} px"
    weights = config.weights if config.pretrained else "none: from scratch, random"
    if config.start_from:
        weights = f"the run {config.start_from}"
    described = {
        "Network": f"{info['arch']}, head {info['head']}",
        "Started from": short(weights),
        "Input": f"{size}, {seen['resize']}, {seen['interpolation']}, '{seen['mode']}' values",
        "Trained": "; ".join(describe_stages(rows)) or "not logged",
        "Optimizer": _describe_learning(config),
        "Augmentation": describe(config.augmentation),
    }
    if best is not None:
        described["Kept"] = f"the weights of epoch {best:g}, best by {config.monitor}"
    return described | {"Took": describe_time(rows) or "not logged", "Device": device}


def describe_stages(rows: list[dict[str, Any]]) -> list[str]:
    """Says which layers trained in which epochs: `the head alone: epoch 1 to 2`."""
    stages: dict[str, list[float]] = {}
    for row in rows:
        stages.setdefault(str(row.get("stage", "all")), []).append(row["epoch"])
    words = {"head": "the head alone", "head+all": "every layer", "all": "every layer"}
    return [
        f"{words.get(stage, stage.replace('+', ' and '))}: epoch {_span(epochs)}"
        for stage, epochs in stages.items()
    ]


def stage_starts(rows: list[dict[str, Any]]) -> list[tuple[float, str]]:
    """Finds where other layers began to train: (epoch, between two, and what was added)."""
    starts = []
    for before, row in zip(rows, rows[1:], strict=False):
        was, now = str(before.get("stage")), str(row.get("stage"))
        if now != was:
            added = [word for word in now.split("+") if word not in was.split("+")]
            starts.append(((before["epoch"] + row["epoch"]) / 2, "+".join(added) or now))
    return starts


def describe_time(rows: list[dict[str, Any]]) -> str:
    """Says how long the epochs took and how fast they were; nothing where no log says it."""
    speeds = [row["images_per_s"] for row in rows if row.get("images_per_s")]
    if not speeds:
        return ""
    seconds = sum(row.get("seconds", 0) for row in rows)
    epochs = f"{len(rows)} epoch{'' if len(rows) == 1 else 's'}"
    return f"{duration(seconds)}: {epochs}, {float(np.median(speeds)):,.0f} images a second"


def _describe_learning(config: Config) -> str:
    words = [config.optimizer, f"rate {config.learning_rate:g}"]
    if config.backbone_learning_rate is not None:
        words.append(f"{config.backbone_learning_rate:g} for the unfrozen layers")
    if config.layer_decay != 1:
        words.append(f"times {config.layer_decay:g} a block down")
    words.append(config.schedule)
    for name, text in (
        ("weight_decay", "weight decay"),
        ("clip_norm", "gradients clipped at"),
        ("label_smoothing", "labels smoothed by"),
        ("ema", "weights averaged by"),
    ):
        if getattr(config, name):
            words.append(f"{text} {getattr(config, name):g}")
    return ", ".join([*words, f"batches of {config.batch_size}"])


def describe_data(config: Config, data: dict[str, Any], names: list[str]) -> Facts:
    """Says what it was trained on, and what of it was judged."""
    listed = ", ".join(names[:30]) + (f" and {len(names) - 30} more" if len(names) > 30 else "")
    sizes = [f"{count:,} {split}" for split, count in data.get("splits", {}).items()]
    described = {
        "Dataset": printable(config.dataset),
        "Classes": f"{len(names)}: {listed}",
        "Images": ", ".join(sizes) or "not recorded",
        "Split": f"{config.split} by class where the dataset has none, seed {config.seed}",
    }
    if config.cross_validate:
        described["Split"] = f"{config.cross_validate} folds by class, seed {config.seed}"
    if counts := describe_duplicates(data.get("duplicates", {})):
        described["Duplicates"] = counts
    return described | {"Fingerprint": str(data["fingerprint"])[:16]}


def describe_making(result: dict[str, Any], info: dict[str, Any]) -> Facts:
    """Says when and with what the figures were made."""
    described = {
        "Evaluated": f"{result['evaluated_at'].replace('T', ' ')[:16]} UTC, {result['seconds']} s",
        "Versions": ", ".join(f"{k} {v}" for k, v in result.get("versions", {}).items()),
    }
    return described | {
        f"Model: {name.replace('_', ' ')}": plain(value)
        for name, value in info.get("provenance", {}).items()
    }


def _span(epochs: list[float]) -> str:
    first, last = math.ceil(min(epochs)), math.ceil(max(epochs))
    return f"{first}" if first == last else f"{first} to {last}"


def duration(seconds: float) -> str:
    """Words a length of time: `47 s`, `3 min 28 s`, `2 h 5 min`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if not minutes and not hours:
        return f"{seconds} s"
    return f"{minutes} min {seconds} s" if not hours else f"{hours} h {minutes} min"


def plain(value: Any) -> str:
    """Shows the value of a setting."""
    if isinstance(value, list | tuple):
        return printable(" ".join(map(str, value)))
    return "automatic" if value is None else printable(str(value))


def short(path: str) -> str:
    """Shows a path's last part."""
    return printable(Path(path).name or path)
