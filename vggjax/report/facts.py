"""Describe a run in text: what was trained, on which data, and how to train it again.

Facts are {term: text} with every name printable. Nothing is read or drawn here.
"""

import dataclasses
import itertools
import math
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from vggjax.data.augment.settings import describe
from vggjax.data.images.preprocess import Preprocessing
from vggjax.data.sources.options import DatasetOptions
from vggjax.errors import flag_of, join_names, printable
from vggjax.report.run_files import RunFiles
from vggjax.training.config import Config
from vggjax.training.recipes import recipe_fields
from vggjax.training.run_dir.folder import describe_duplicates

Facts = dict[str, str]

_STAGES = {"head": "head only", "head+all": "all layers", "all": "all layers"}


def describe_training(files: RunFiles) -> Facts:
    """Describe the network, the settings of its training, and the device."""
    config, info = files.config, files.info
    preprocessing = info["preprocessing"]
    size = f"{preprocessing['image_size']}x{preprocessing['image_size']} px"
    weights = short(config.weights) if config.pretrained else "none (random initialization)"
    if config.start_from:
        weights = f"the run {short(config.start_from)}"
    rendering = Preprocessing.from_json(preprocessing).rendering
    facts = {
        "Network": f"{info['arch']}, head {info['head']}",
        "Task": "several labels per image, a sigmoid unit each" if files.is_multilabel else "",
        "Initial weights": weights,
        "Input": f"{size}, {preprocessing['resize']}, {preprocessing['interpolation']}, "
        f"'{preprocessing['mode']}' values{rendering.remark}",
        "Stages": "; ".join(describe_stages(files.rows)) or "not logged",
        "Optimizer": _describe_optimizer(config),
        "Augmentation": describe(config.augmentation),
    }
    if files.best_epoch is not None:
        facts["Kept weights"] = f"epoch {files.best_epoch:g}, best by {config.best_metric}"
    if info.get("temperature") not in (None, 1):
        facts["Calibration"] = f"temperature {info['temperature']:.2f}, fitted on validation images"
    facts["Baselines"] = "; ".join(
        f"{baseline['name']}, {baseline['setting']}: {baseline['accuracy']:.1%}"
        for baseline in files.evaluation.get("baselines", [])
    )
    facts["Duration"] = _describe_duration(files.rows) or "not logged"
    facts["Device"] = files.evaluation["device"]
    return {name: text for name, text in facts.items() if text}


def describe_stages(rows: list[dict[str, Any]]) -> list[str]:
    """Return which layers trained in which epochs, such as `head only: epochs 1 to 2`."""
    stages: dict[str, list[float]] = {}
    for row in rows:
        stages.setdefault(row["stage"], []).append(row["epoch"])
    return [
        f"{_STAGES.get(stage, stage.replace('+', ' and '))}: {_epoch_span(epochs)}"
        for stage, epochs in stages.items()
    ]


def stage_starts(rows: list[dict[str, Any]]) -> list[tuple[float, str]]:
    """Return where new stages begin: (epoch, halfway between two; the layers that were added)."""
    starts = []
    for previous, row in itertools.pairwise(rows):
        before, after = previous["stage"], row["stage"]
        if after != before:
            added = [layer for layer in after.split("+") if layer not in before.split("+")]
            starts.append(((previous["epoch"] + row["epoch"]) / 2, "+".join(added) or after))
    return starts


def _describe_duration(rows: list[dict[str, Any]]) -> str:
    throughputs = [row["images_per_s"] for row in rows if row.get("images_per_s")]
    if not throughputs:
        return ""
    seconds = sum(row.get("seconds", 0) for row in rows)
    epochs = f"{len(rows)} epoch{'' if len(rows) == 1 else 's'}"
    return f"{duration(seconds)}: {epochs}, {np.median(throughputs):,.0f} images/s"


def _describe_optimizer(config: Config) -> str:
    if config.takes_no_steps:
        return f"L-BFGS, its penalty chosen on val, label smoothing {config.label_smoothing:g}"
    parts = [config.optimizer, f"learning rate {config.learning_rate:g}"]
    if config.backbone_learning_rate is not None:
        parts.append(f"{config.backbone_learning_rate:g} for the backbone")
    if config.layer_decay != 1:
        parts.append(f"layer decay {config.layer_decay:g}")
    parts.append(f"{config.schedule} schedule")
    for name in ("weight_decay", "clip_norm", "label_smoothing", "ema"):
        if getattr(config, name):
            parts.append(f"{name.replace('_', ' ')} {getattr(config, name):g}")
    return ", ".join([*parts, f"batch size {config.batch_size}"])


def describe_data(files: RunFiles) -> Facts:
    """Describe the dataset and its splits."""
    config, data = files.config, files.data
    sizes = [f"{count:,} {split}" for split, count in data.get("splits", {}).items()]
    by = "combination of labels" if files.is_multilabel else "class"
    split = f"{config.split}, stratified by {by} unless the dataset has splits"
    if config.cross_validate:
        split = f"{config.cross_validate} stratified folds"
    return {
        "Dataset": printable(config.dataset),
        "Classes": f"{len(files.names)}: {join_names(files.names, most=30)}",
        "Images": ", ".join(sizes) or "not recorded",
        "Split": f"{split}, seed {config.seed}",
        "Duplicates": describe_duplicates(data.get("duplicates", {})) or "none known",
        "Fingerprint": data["fingerprint"][:16],
    }


def describe_provenance(files: RunFiles) -> Facts:
    """Describe when and with which versions the run was evaluated, and its weights' origin."""
    evaluation = files.evaluation
    evaluated = f"{evaluation['evaluated_at'].replace('T', ' ')[:16]} UTC"
    versions = ", ".join(f"{name} {version}" for name, version in evaluation["versions"].items())
    return {"Evaluated": f"{evaluated}, {evaluation['seconds']} s", "Versions": versions} | {
        f"Model: {name.replace('_', ' ')}": value_text(value)
        for name, value in files.info.get("provenance", {}).items()
    }


def train_command(config: Config) -> str:
    """Return `vggjax train ...` with every flag that differs from the recipe and the defaults.

    The run folder is left out, because in it the command would find the run finished.
    """
    return _command(["vggjax", "train"], _changed_settings(config))


def doctor_command(config: Config) -> str:
    """Return the `vggjax doctor ...` that examines a run's dataset, read as the run read it."""
    options = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(DatasetOptions)
        if getattr(config, field.name) != field.default
    }
    return _command(["vggjax", "doctor", config.dataset], options | {"html": "doctor.html"})


def _command(words: list[str], settings: dict[str, Any]) -> str:
    for name, value in settings.items():
        if isinstance(value, bool):
            words.append(flag_of(name if value else f"no_{name}"))
        else:
            words += [flag_of(name), *map(str, value if isinstance(value, tuple) else [value])]
    return " ".join(shlex.quote(printable(word)) for word in words)


def _changed_settings(config: Config) -> dict[str, Any]:
    start = Config(**recipe_fields(config.recipe, config.dataset))
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(Config)}
    changed = {
        name: value
        for name, value in values.items()
        if name not in ("workdir", "recipe", "config") and value != getattr(start, name)
    }
    if config.recipe not in (None, recipe_fields(None, config.dataset).get("recipe")):
        changed = {"recipe": config.recipe} | changed  # unless implied, as by the dataset `digits`
    return changed


def _epoch_span(epochs: list[float]) -> str:
    first, last = math.ceil(min(epochs)), math.ceil(max(epochs))
    return f"epoch {first}" if first == last else f"epochs {first} to {last}"


def duration(seconds: float) -> str:
    """Format a duration: `47 s`, `3 min 28 s`, `2 h 5 min`."""
    minutes, seconds = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
    return f"{minutes // 60} h {minutes % 60} min"


def value_text(value: Any) -> str:
    """Format the value of a setting."""
    if isinstance(value, list | tuple):
        return printable(" ".join(map(str, value)))
    return "automatic" if value is None else printable(str(value))


def short(path: str) -> str:
    """Return the last part of a path, printable."""
    return printable(Path(path).name or path)
