"""What an exported classifier says about itself: the metadata that all formats carry."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vggjax.training.run_dir.run_result import ModelInfo

_KNOWN_LICENSES = {
    "Keras'": "CC BY 4.0, the Visual Geometry Group, University of Oxford",
    "Caffe's": "CC BY 4.0, the Visual Geometry Group, University of Oxford",
    "torchvision's": "BSD 3-Clause, torchvision's authors",
}
"""The license of published weights, by the first word of `weights_known_as` in the provenance."""


def license_of(info: ModelInfo) -> str:
    """Return what is known of the license of a model's weights, in a sentence or two."""
    provenance = info.provenance
    known = provenance.get("weights_known_as", "")
    origin = provenance.get("weights", "")
    if origin == "none":
        base = "The weights were trained from scratch."
    elif license := _KNOWN_LICENSES.get(known.split(" ")[0]):
        base = f"The network is derived from {known} ({license})."
    else:
        base = "The license of the weights that the training started from is not recorded."
    return f"{base} The license of the training images is not recorded."


def describe_input(info: ModelInfo, *, resized: bool) -> str:
    """Return which images a file takes: of any size, or already resized to the network's."""
    preprocessing = info.preprocessing
    text = "uint8 RGB, 0 to 255, of any height and width"
    if resized:
        size = preprocessing.image_size
        text = f"uint8 RGB, 0 to 255, {size} x {size} px, "
        text += f"resized by `{preprocessing.resize}` with Pillow's {preprocessing.interpolation}"
    text += ", upright (Exif orientation applied)"
    if preprocessing.pixel_range is not None:
        low, high = preprocessing.pixel_range
        text += f"; of images with more than 8 bits, {low:g} becomes 0 and {high:g} becomes 255"
    return f"{text}; transparency laid over {preprocessing.background}"


def describe(info: ModelInfo, *, resized: bool, license: str | None = None) -> dict[str, str]:
    """Return the metadata of an exported classifier, each value a text or JSON.

    Args:
        info: the classifier.
        resized: whether the file takes images of the network's size only.
        license: the license in the user's words; None is `license_of(info)`.
    """
    values: dict[str, Any] = {
        "producer": f"vggjax {version('vggjax')}",
        "arch": info.arch,
        "head": info.head,
        "task": info.task,
        "class_names": list(info.class_names),
        "input": describe_input(info, resized=resized)
        + ("" if resized else "; all images of a batch have one size"),
        "preprocess": info.preprocessing.mode,
        "preprocessing": info.preprocessing.to_json(),
        "temperature": info.temperature or 1.0,
        "thresholds": list(info.thresholds),
        "license": license or license_of(info),
        "weights": info.provenance,
    }
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in values.items()
    }


def write_beside(path: Path, metadata: dict[str, str]) -> None:
    """Write `<name>.json` beside a file whose format has no room for metadata."""
    text = json.dumps(metadata, indent=2, ensure_ascii=False)
    path.with_name(path.name + ".json").write_text(text + "\n", encoding="utf-8")
