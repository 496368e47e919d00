"""The result of a training: the saved model, and with it the settings and the data.

`model.safetensors` and `model.json` are all that predict needs. Evaluation and the report work on a
`RunResult`, which a training hands on in memory or `load_run_result` reads back, so that one
command scans the dataset and loads the model once.
"""

import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx

from vggjax.data.images.preprocess import Preprocessing
from vggjax.data.quality.duplicates import Duplicates
from vggjax.data.sources.open import scan_source
from vggjax.data.sources.source import Source
from vggjax.data.splits.splits import SPLITS_FILE, read_splits
from vggjax.errors import (
    ConfigError,
    DataError,
    VggjaxError,
    WeightsError,
    join_names,
    printable,
)
from vggjax.models.convnets import find_arch
from vggjax.models.head import Head
from vggjax.models.network import Network
from vggjax.models.params import Weights, assign, extract
from vggjax.training.config import Config, place_of, read_config
from vggjax.training.run_dir.checked_json import check_form, read_json, write_json
from vggjax.training.run_dir.contents import with_missing_images
from vggjax.training.run_dir.folder import (
    check_data,
    check_no_links,
    known_data_facts,
    read_data_facts,
)
from vggjax.weights.hub.fetch import fetch, is_hub_address
from vggjax.weights.weight_file import WeightFile, write_weights

T = TypeVar("T")


_MODEL_FORM = {
    "arch": str,
    "head": str,
    "class_names": [str],
    "provenance": {...: str},
    "left_out": {...: str},
    "task": str,
    "thresholds": [float],
    "weights_sha256": str,
}


@dataclass(frozen=True)
class ModelInfo:
    """Everything that a saved model needs beside its weights; `model.json` has these keys."""

    arch: str
    head: str
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    dtype: str = "float32"
    provenance: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    """Training and validation images that could not be read: id -> reason."""
    task: str = "multiclass"
    """`multiclass`, or `multilabel`: each class has a sigmoid unit and a threshold."""
    thresholds: tuple[float, ...] = ()
    """With `multilabel`, the probability from which on each class is predicted: the one with the
    highest F1 on the validation split. Empty until the training is done."""
    temperature: float | None = None
    """What the logits are divided by, fitted on the validation split; 1 where none helps. None
    before the fit, and from versions that fitted none."""
    weights_sha256: str = ""
    """The SHA-256 of `model.safetensors`; empty from versions that did not write it."""

    def __post_init__(self) -> None:
        """Refuse what cannot be a model's description.

        Raises:
            TypeError, ValueError: a field has another type, or does not fit the others.
            VggjaxError: an unknown network or an invalid head.
        """
        names = self.class_names
        check_form(json.loads(json.dumps(asdict(self))), _MODEL_FORM)
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"the dtype {self.dtype!r} is unknown")
        if self.is_multilabel and len(self.thresholds) not in (0, len(names)):
            raise ValueError("it needs a threshold for each class")
        if self.temperature is not None and not 0 < self.temperature < math.inf:
            raise ValueError(f"the temperature {self.temperature!r} is not a number above 0")
        find_arch(self.arch)
        Head.parse(self.head).for_classes(len(names), multilabel=self.is_multilabel)

    @property
    def is_multilabel(self) -> bool:
        """Whether images have several labels."""
        return self.task == "multilabel"


def save_model(workdir: str | Path, model: Network, info: ModelInfo) -> ModelInfo:
    """Write `model.safetensors`, then `model.json`, whose presence means that both are complete.

    Return the info as `load_model` would.
    """
    workdir, weights = Path(workdir), extract(model)
    metadata = {"arch": info.arch, "head": info.head, "preprocess": info.preprocessing.mode}
    metadata["image_size"] = str(info.preprocessing.image_size)
    metadata["class_names"] = json.dumps(info.class_names)
    metadata |= {name: printable(value) for name, value in info.provenance.items()}
    path = workdir / "model.safetensors"
    write_weights(path, weights, metadata=metadata)
    info = replace(info, weights_sha256=WeightFile(path).digests.sha256)
    write_info(workdir, info)
    return info


def write_info(workdir: Path, info: ModelInfo) -> None:
    """Write `model.json` with its digest."""
    write_json(workdir / "model.json", asdict(info))


def load_model(workdir: str | Path) -> tuple[Network, ModelInfo]:
    """Load the finished model of a run, or of the repository `hf://user/name`, ready to predict.

    Raises:
        WeightsError: there is no finished model, it cannot be fetched, or it is damaged.
    """
    if is_hub_address(workdir):
        workdir = fetch(str(workdir), ("model.json", "model.safetensors"))
    info = read_info(workdir)
    file = WeightFile(Path(workdir) / "model.safetensors")
    if info.weights_sha256 and file.digests.sha256 != info.weights_sha256:
        raise WeightsError(
            f"{printable(file.path)} is not the file that the training wrote: its SHA-256 is "
            f"{file.digests.sha256}, and model.json has {printable(info.weights_sha256)}. Restore "
            "the run folder from a copy, or train again.",
            code="E_DIGEST",
        )
    return assemble_model(info, file.read()), info


def assemble_model(info: ModelInfo, weights: Weights) -> Network:
    """Build the model that `info` describes around `weights`, in evaluation mode."""
    head, size = Head.parse(info.head), info.preprocessing.image_size
    model = nnx.eval_shape(
        lambda: Network(info.arch, head=head, image_size=size, dtype=jnp.dtype(info.dtype))
    )
    assign(model, weights)
    model.preprocess_mode = info.preprocessing.mode
    model.eval()
    return model


def read_info(workdir: str | Path) -> ModelInfo:
    """Read `model.json`; raise WeightsError if there is no finished model, or it is damaged."""
    path = Path(workdir) / "model.json"
    if not path.parent.is_dir():
        raise WeightsError(f"There is no run folder {printable(workdir)}.")
    if (path.parent / "fold-1").is_dir():
        raise WeightsError(
            f"{printable(workdir)} is a cross-validation, which has one model per fold; give one "
            f"of them instead: {printable(path.parent / 'fold-1')}."
        )
    if not path.is_file():
        raise WeightsError(
            f"{printable(workdir)} holds no finished model (no model.json). If its training was "
            "interrupted, run the same train command with this `workdir` again; it resumes."
        )
    try:
        fields = read_json(path)
        fields["preprocessing"] = Preprocessing.from_json(fields["preprocessing"])
        fields["class_names"] = tuple(fields["class_names"])
        fields["thresholds"] = tuple(fields.get("thresholds", ()))
        info = ModelInfo(**fields)
        # Of a dataset; two of ImageNet's classes are called `crane`.
        names = info.class_names
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"the class names have {join_names(twice, most=3)} twice")
        if info.is_multilabel and not info.thresholds:
            raise ValueError("it needs a threshold for each class")
        return info
    except (OSError, ValueError, TypeError, KeyError, AttributeError, VggjaxError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise WeightsError(f"{printable(path)} is damaged: {reason}.") from None


class SplitPredictions(NamedTuple):
    """A model's predictions for the readable images of a split."""

    index: np.ndarray  # type: ignore[assignment]  # hides tuple.index, which nothing uses
    """int64 (N,), into the source."""
    labels: np.ndarray
    """int32 (N,), or of several labels per image bool (N, C)."""
    probs: np.ndarray
    """float32 (N, C), each row summing to 1, or each value a sigmoid."""


@dataclass(frozen=True)
class RunResult:
    """A finished training: its settings, the best model, and the data that it was trained on."""

    workdir: Path
    config: Config
    model: Network | None = None
    """In evaluation mode; None for a cross-validation, which has one model per fold."""
    info: ModelInfo | None = None
    source: Source | None = None
    """None where the dataset is gone or was changed."""
    splits: dict[str, np.ndarray] | None = None
    """Split -> indices into the source; None without a source, and for a cross-validation."""
    duplicates: dict[str, int] = field(default_factory=dict)
    """Number of `exact`, `near` and `leaked` duplicates; empty if they were not searched for."""
    duplicate_groups: Duplicates | None = None
    """The result of the training's search for duplicates; None if it made none, or from files."""
    missing_data: str = ""
    """Why there is no source."""
    predictions: dict[str, tuple[SplitPredictions, dict[int, str]]] = field(default_factory=dict)
    """Split -> the best model's predictions, and the unreadable images, index into the source ->
    reason; of val and test, if the training kept their features."""

    @property
    def left_out(self) -> dict[str, str]:
        """Training and validation images that could not be read: id -> reason."""
        return self.info.left_out if self.info else {}


def load_run_result(
    workdir: str | os.PathLike[str],
    *,
    strict: bool = False,
    dataset: str | None = None,
    source: Source | None = None,
) -> RunResult:
    """Read the result of a finished training from its run folder.

    Args:
        workdir: the run's folder.
        strict: refuse a run whose model or data is missing or changed; else these are None. A
            model that is not the one that was trained is always refused.
        dataset: where the dataset lies now; None is where it was. It must be the same.
        source: that dataset, if it was opened already.

    Raises:
        ConfigError: there is no run, or a link is in its folder.
        DataError: `dataset` is given, and is not the run's.
        WeightsError: the model was damaged or replaced; with `strict`, also that the training has
            not finished.
        VggjaxError: with `strict`, the dataset is missing or was changed.
    """
    workdir, reasons = Path(workdir), [""]
    check_no_links(workdir)
    config = read_config(workdir)
    if dataset is not None:
        was, dataset = config.dataset, place_of(dataset) or dataset
        config = replace(config, dataset=dataset)
        # A folder with a part of the images is another dataset, unless it is the run's own.
        is_moved = dataset not in (was, place_of(was))
        source = open_training_data(workdir, config, source, is_whole=is_moved)

    def load(read: Callable[..., T], *arguments: Any) -> T | None:
        try:
            return read(workdir, *arguments)
        except VggjaxError as error:
            if strict or error.code == "E_DIGEST":
                raise
            reasons.append(printable(error))
            return None

    folds = bool(config.cross_validate)
    model, info = (None if folds else load(load_model)) or (None, None)
    source = source or load(open_training_data, config)
    if source is not None and info is not None:
        source = source.rendered(info.preprocessing.rendering)
    missing_data = "" if source else reasons[-1]
    splits = None if folds or source is None else load(_read_splits, source)
    counts = known_data_facts(workdir).get("duplicates", {})
    return RunResult(workdir, config, model, info, source, splits, counts, None, missing_data)


def open_training_data(
    workdir: Path, config: Config, source: Source | None = None, *, is_whole: bool = False
) -> Source:
    """Open the dataset that a run was trained on; raise VggjaxError if it is missing or changed.

    Images that vanished since are in it, as unreadable, unless it is to be whole. `source` is the
    dataset, if it was opened already.
    """
    facts = read_data_facts(workdir)
    if facts is None:
        raise ConfigError(
            f"{printable(workdir / 'data.json')} is missing, so the dataset that the model was "
            "trained on cannot be identified. Train again in another `workdir`."
        )
    if source is None:
        scan = scan_source(config.dataset, data_dir=config.data_dir, options=config)
        # That a table names missing images is one fault.
        if scan.source is None or len(scan.faults) > bool(scan.missing):
            raise DataError(scan.faults[0])
        source = scan.source
    if not is_whole:
        source = with_missing_images(workdir, source, facts)
    check_data(workdir, source)
    return source


def _read_splits(workdir: Path, source: Source) -> dict[str, np.ndarray]:
    splits = read_splits(workdir, source)
    if splits is None:
        raise ConfigError(
            f"{printable(workdir / SPLITS_FILE)} is missing, so the images that the model has not "
            "seen are unknown. Train again in another `workdir`."
        )
    return splits
