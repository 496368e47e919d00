"""Write a run's classifier as one file that another runtime loads without vggjax.

The ending of the file chooses the format; FORMATS is the table. An export is what `predict`
computes: preprocessing, network, temperature. ONNX also resizes images of any size; the other
formats take images that are resized already. Each carries metadata (description.py) that say which.
"""

import importlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from vggjax.atomic import atomic_write, check_output_file
from vggjax.errors import ConfigError, printable
from vggjax.export.description import describe
from vggjax.models.network import Network
from vggjax.training.run_dir.run_result import ModelInfo, load_model

Writer: TypeAlias = Callable[[Path, Network, ModelInfo, dict[str, str]], None]
"""Writes a model to a new path, with its metadata in it or beside it, as `<name>.json`."""


@dataclass(frozen=True)
class Format:
    """A kind of file that a classifier is written to."""

    title: str
    module: str
    """Where the `Writer` is."""
    writer: str
    install: str
    """The packages that it needs, for pip."""
    resizes: bool = False
    """Whether it takes images of any size."""


_KERAS = "vggjax.export.keras_model"
_TF = "keras tensorflow-cpu"
FORMATS = {
    ".onnx": Format(
        "ONNX, opset 17", "vggjax.export.onnx_model", "write", "'vggjax[onnx]'", resizes=True
    ),
    ".stablehlo": Format("StableHLO", "vggjax.export.stablehlo", "write", "jax"),
    ".keras": Format("Keras", _KERAS, "write_keras", "keras, and TensorFlow, JAX or torch for it"),
    ".tflite": Format("LiteRT", _KERAS, "write_litert", _TF),
    ".pt2": Format("torch.export", "vggjax.export.torch_program", "write", "'vggjax[torch]'"),
    "": Format("SavedModel", _KERAS, "write_saved_model", _TF),
}
"""The formats by the ending of the file; a name without one is a SavedModel's folder."""


@dataclass(frozen=True)
class Exported:
    """What was written."""

    path: Path
    metadata: dict[str, str]
    notes: tuple[str, ...] = ()
    """What differs from `predict`."""


def export_run(
    run: str | os.PathLike[str], out: str | os.PathLike[str], *, license: str | None = None
) -> Exported:
    """Write the classifier of a finished run to `out`, in the format of its ending.

    Args:
        run: the run's folder, or `hf://user/name` on a model hub.
        out: the file to write, which may exist, or for a SavedModel a new folder.
        license: the license of the weights, for the metadata; None states what the run records.

    Raises:
        WeightsError: there is no finished model, or it is damaged.
        ConfigError: an unknown ending, a place that cannot be written, or a missing package.
    """
    out = Path(out).expanduser()
    kind = FORMATS.get(out.suffix.lower())
    if kind is None:
        raise ConfigError(
            f"The file to export to must end in {', '.join(filter(None, FORMATS))}, or be a new "
            f"folder without an ending for a SavedModel; got {printable(out.name)!r}. Weights "
            "alone, for Keras (.h5) or torch (.pth), are written by vggjax convert."
        )
    if out.suffix:
        check_output_file(out, field="OUT")
    elif os.path.lexists(out) or not out.parent.is_dir():
        raise ConfigError(
            f"A SavedModel needs a new folder in an existing one; got {printable(out)}."
        )
    model, info = load_model(os.fspath(run))
    try:
        write: Writer = getattr(importlib.import_module(kind.module), kind.writer)
    except ImportError as error:
        raise ConfigError(
            f"{out.suffix or 'SavedModel'} needs a package that is not installed ({error.name}): "
            f"pip install {kind.install}."
        ) from None
    metadata = {"format": kind.title} | describe(info, resized=not kind.resizes, license=license)
    try:
        _write_whole(write, out, model, info, metadata)
    except OSError as error:
        raise ConfigError(f"Cannot write {printable(out)}: {error.strerror or error}.") from None
    notes: tuple[str, ...] = ()
    if info.dtype != "float32":
        notes = (
            f"This file computes in float32, and predict of this run in {info.dtype}: their "
            "probabilities differ by about 0.01.",
        )
    return Exported(out, metadata, notes)


def _write_whole(
    write: Writer, out: Path, model: Network, info: ModelInfo, metadata: dict[str, str]
) -> None:
    """Write into a folder beside `out`, and move what is there to its place when it is complete."""
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as folder:
        write(Path(folder, out.name), model, info, metadata)
        written = [path for path in Path(folder).iterdir() if path.is_file()]
        for path in written:  # also what lies beside the file itself
            check_output_file(out.parent / path.name, field="OUT")
        for path in written:
            with atomic_write(out.parent / path.name, sync=True) as temporary:
                os.replace(path, temporary)
        if not out.suffix:
            os.replace(Path(folder, out.name), out)


def print_export(exported: Exported) -> None:
    """Print what was written and which images it takes."""
    path, metadata = exported.path, exported.metadata
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    megabytes = sum(file.stat().st_size for file in files) / 1e6
    print(f"Export   {printable(path)}: {metadata['format']}, {megabytes:.1f} MB")
    print(f"Input    {metadata['input']}")
    print(f"License  {metadata['license']}")
    for note in exported.notes:
        print(f"Note     {note}")
