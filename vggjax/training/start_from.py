"""--start-from: a run that goes on from a finished run's base and head.

The model is the finished run's, so what does not fit it is refused, and its preprocessing is taken
over. Images that it was trained on may not be judged.
"""

import csv
import json
from pathlib import Path
from typing import Any

from vggjax.data.augment.fields import flag
from vggjax.data.sources.source import Source
from vggjax.data.splits.splits import SPLITS_FILE
from vggjax.errors import ConfigError, VggjaxError, printable
from vggjax.models.network import Network
from vggjax.models.params import assign
from vggjax.training.config import Config
from vggjax.training.run_dir.saved_model import ModelInfo, read_info
from vggjax.weights.weight_file import read_weights

_PREPROCESSING = {
    "preprocess": "mode",
    "image_size": "image_size",
    "resize": "resize",
    "interpolation": "interpolation",
}
"""Field of Config -> of Preprocessing."""


def preprocessing_of(config: Config) -> dict[str, Any]:
    """Gives the fields that the run of --start-from decides, with its folder's full path.

    Raises:
        ConfigError: no finished run, or one that was trained on other pixels than are asked for.
    """
    info, changes = _read(config.start_from), {"start_from": str(Path(config.start_from).resolve())}
    for name, theirs in _PREPROCESSING.items():
        was, asked = getattr(info.preprocessing, theirs), getattr(config, name)
        if asked not in (was, getattr(Config, name)):
            raise ConfigError(
                f"--start-from {printable(config.start_from)} was trained with {flag(name)} {was}, "
                f"which is taken over; got {flag(name)} {asked}. Leave it out."
            )
        changes[name] = was
    return changes


def check_start(config: Config, head: object, source: Source, splits: dict[str, Any]) -> None:
    """Refuses a run whose model is another, or that has learned what this one would be judged by.

    `head` is the head with its number of outputs.

    Raises:
        ConfigError: with both sides and the way out.
    """
    info, run = _read(config.start_from), printable(config.start_from)
    for name, was, now in (("model", info.arch, config.model), ("head", info.head, str(head))):
        if was != now:
            raise ConfigError(
                f"--start-from {run} has {flag(name)} {was}; got {now}. Give {flag(name)} {was}."
            )
    if info.class_names != source.class_names:
        was, now = (
            ", ".join(map(printable, names)) for names in (info.class_names, source.class_names)
        )
        raise ConfigError(
            f"--start-from {run} tells other classes apart: {was}; the dataset has {now}. To take "
            f"its base alone, use --weights {Path(config.start_from) / 'model.safetensors'}."
        )
    judged = [source.ids[i] for name in ("val", "test") for i in splits[name]]
    learned = _learned(Path(config.start_from), source)
    leaked = sum(name in learned for name in judged)
    if leaked:
        raise ConfigError(
            f"--start-from {run} was trained on {leaked:,} of the {len(judged):,} images that "
            "this run would be judged by. Give its --split, --seed and --duplicates."
        )


def load_start(model: Network, config: Config) -> None:
    """Puts the finished run's weights into the model.

    Raises:
        WeightsError: they are damaged.
    """
    assign(model, read_weights(Path(config.start_from) / "model.safetensors"))


def _read(start_from: str) -> ModelInfo:
    try:
        return read_info(start_from)
    except VggjaxError as error:
        raise ConfigError(f"--start-from: {error}") from None


def _learned(run: Path, source: Source) -> set[str]:
    """Names the images that a run was trained on, if its dataset is this one."""
    try:
        told = json.loads((run / "data.json").read_text(encoding="utf-8"))
        if told["fingerprint"] != source.fingerprint:
            return set()
        with (run / SPLITS_FILE).open(
            encoding="utf-8", errors="surrogateescape", newline=""
        ) as file:
            return {row["path"] for row in csv.DictReader(file) if row["split"] == "train"}
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return set()  # a model that was copied without its run
