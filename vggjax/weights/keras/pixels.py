"""Find which preprocessing a Keras model's configuration does inside the model.

Only the configuration's JSON is read, and no layer is built: the layers in front of the first
convolution, those of nested models included, decide. Whoever takes the base alone must then do what
they did.
"""

import json
from collections.abc import Iterator
from typing import Any

from vggjax.errors import join_names, printable

_CONTAINERS = {"Sequential", "Functional", "Model"}
_NEUTRAL = {
    "InputLayer", "Resizing", "CenterCrop", "ZeroPadding2D", "Dropout", "SpatialDropout2D",
    "GaussianNoise", "Identity", "AugMix", "AutoContrast", "CutMix", "MixUp", "RandAugment",
    "Pipeline", "Layer", "Cast",
}  # fmt: skip
"""Layers that leave the scale of pixels, besides those that are called Random..."""

_CAFFE_OPERATIONS = {
    "GetItem", "Stack", "Add", "Subtract", "__operators__.getitem", "nn.bias_add", "stack",
}  # fmt: skip
"""What `preprocess_input` of Keras' VGG becomes in the configuration, of Keras 3 and 2."""

_CAFFE_MEAN = "103.93"
_TORCH_MEAN, _TORCH_VARIANCE = (0.485, 0.456, 0.406), (0.229**2, 0.224**2, 0.225**2)
_MAX_DEPTH = 12


def find_preprocessing(configuration: bytes) -> tuple[str | None, str]:
    """Return the mode that a configuration determines, if one, and why it is in doubt, if it is.

    Neither is known of a model without such layers, or of a configuration that cannot be read.
    """
    try:
        layers = list(_before_first_convolution(json.loads(configuration), depth=0))
    except (ValueError, RecursionError):
        return None, ""
    if not layers:
        return None, ""
    names = [_class_of(layer) for layer in layers]
    if set(names) <= _CAFFE_OPERATIONS and _CAFFE_MEAN in json.dumps(layers):
        return "caffe", ""
    if _scales_to_unit(layers[0]):
        if len(layers) == 1:
            return "unit", ""
        if len(layers) == 2 and _normalizes_as_torch(layers[1]):
            return "torch", ""
    steps = join_names([_describe(layer) for layer in layers])
    known = {"Rescaling", "Normalization", "TrueDivide"}.issuperset(names)
    scaled = "scaled" if known else "may have scaled"
    return None, f"the model {scaled} its own pixels, in front of its first convolution: {steps}"


def _before_first_convolution(node: Any, *, depth: int) -> Iterator[dict[str, Any]]:
    """Yield the layers that may change pixels, in order, up to the first convolution."""
    for layer in _flat(node, depth=depth):
        name = _class_of(layer)
        if name in ("Conv2D", "Convolution2D"):
            return
        if name not in _NEUTRAL and not name.startswith("Random"):
            yield layer


def _flat(node: Any, *, depth: int) -> Iterator[dict[str, Any]]:
    if not isinstance(node, dict) or depth > _MAX_DEPTH:
        return
    config = node.get("config")
    children = config.get("layers") if isinstance(config, dict) else config
    if node.get("class_name") in _CONTAINERS and isinstance(children, list):
        for child in children:
            yield from _flat(child, depth=depth + 1)
    elif depth:
        yield node


def _class_of(layer: dict[str, Any]) -> str:
    """Return a layer's class, or the function that Keras 2 wrapped into a layer."""
    name = layer.get("class_name")
    if name in ("TFOpLambda", "SlicingOpLambda"):
        name = _settings(layer).get("function")
    return name if isinstance(name, str) else "a layer without a class"


def _settings(layer: dict[str, Any]) -> dict[str, Any]:
    config = layer.get("config")
    return config if isinstance(config, dict) else {}


def _scales_to_unit(layer: dict[str, Any]) -> bool:
    config, name = _settings(layer), _class_of(layer)
    if name in ("TrueDivide", "Divide", "math.truediv", "math.divide"):
        return "255.0" in json.dumps(layer.get("inbound_nodes"))
    return name == "Rescaling" and _near(config.get("scale"), 1 / 255) and not config.get("offset")


def _normalizes_as_torch(layer: dict[str, Any]) -> bool:
    config = _settings(layer)
    return _class_of(layer) == "Normalization" and all(
        isinstance(given, list)
        and len(given) == 3
        and all(_near(a, b) for a, b in zip(given, expected, strict=True))
        for given, expected in (
            (config.get("mean"), _TORCH_MEAN),
            (config.get("variance"), _TORCH_VARIANCE),
        )
    )


def _near(value: Any, expected: float) -> bool:
    return isinstance(value, int | float) and abs(value - expected) < 1e-3 * expected


def _describe(layer: dict[str, Any]) -> str:
    """Return a layer with the numbers that it states, as in "Rescaling (scale 0.00784)"."""
    config = _settings(layer)
    numbers = [
        f"{key} {json.dumps(config[key])[:60]}"
        for key in ("scale", "offset", "mean", "variance")
        if config.get(key) is not None
    ]
    return printable(f"{_class_of(layer)[:40]}{f' ({join_names(numbers)})' if numbers else ''}")
