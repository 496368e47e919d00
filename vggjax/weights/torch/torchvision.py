"""The names and axis orders of torchvision's and timm's VGG, in both directions.

torchvision: `features.N.weight`, where N counts convolutions, batch normalizations, relus and
poolings, and `classifier.0`, `.3`, `.6`. timm (0.4 and later): the same `features`, and the top as
convolutions, `pre_logits.fc1` (7x7) and `pre_logits.fc2` (1x1), and `head.fc`. Kernels go from OIHW
to HWIO, and the inputs of the first dense layer from channel, row, column to row, column, channel.
`num_batches_tracked` is ignored on reading and 0 on writing. What is written loads strictly:
`model.load_state_dict(...)` reports nothing missing and nothing unexpected.
"""

import itertools
import math
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np

from vggjax.errors import WeightsError, join_names, printable
from vggjax.weights.layout import AS_IS, CONV, DENSE, Layout, TensorToWrite, flattened, whole_map
from vggjax.weights.names import TABLE_NAME, in_base
from vggjax.weights.tensor_spans import Span, check_span

if TYPE_CHECKING:
    from vggjax.models.params import Weights

Style = Literal["torchvision", "timm"]

TIMM_TOP = {"pre_logits.fc1": "fc1", "pre_logits.fc2": "fc2", "head.fc": "predictions"}
"""timm's modules on top of the base -> the layer table's names."""

_NORM = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
_LINEAR = {"weight": "kernel", "bias": "bias"}
_TRACKED = "num_batches_tracked"
_NAME = re.compile(
    r"(features\.\d{1,3}|classifier\.\d{1,3}|pre_logits\.fc[12]|head\.fc)"
    rf"\.({'|'.join(_NORM)}|{_TRACKED})"
)
_WRAPPERS = ("module.", "model.")

Modules = dict[str, dict[str, Span]]
"""torch's module -> parameter -> array."""


def has_torch_names(names: Iterable[str]) -> bool:
    """Return whether any name is one of torchvision's or timm's VGG."""
    return any(_NAME.fullmatch(_unwrapped(name)) for name in names)


def naming_style(names: Iterable[str]) -> Style:
    """Return the library whose names these are; a base without a top has the same in both."""
    tops = tuple(f"{module}." for module in TIMM_TOP)
    return "timm" if any(_unwrapped(name).startswith(tops) for name in names) else "torchvision"


def _unwrapped(name: str) -> str:
    """Remove the prefixes of DataParallel and of training frameworks."""
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper)
    return name


def _module_names(layers: Iterable[str]) -> dict[str, str]:
    """Return `{module: layer}` for the base's layers, as torchvision numbers its modules."""
    modules: dict[str, str] = {}
    number = 0
    for layer, following in itertools.pairwise([*layers, ""]):
        modules[f"features.{number}"] = layer
        # A relu follows each convolution, or its batch normalization; a pooling ends the block.
        number += 1 if following == layer.replace("conv", "bn") else 2
        number += following.split("_")[0] != layer.split("_")[0]
    return modules


def _layout(module: str, *, width: int, is_first_dense: bool, side: int = 1) -> Layout:
    """Return the layout of a module's kernel, whose inputs have `width` channels."""
    if module.startswith("features."):
        return CONV
    if module.startswith("pre_logits."):
        return whole_map(side if is_first_dense else 1)
    return flattened(width) if is_first_dense else DENSE


def plan_layers(spans: Mapping[str, Span]) -> dict[str, dict[str, tuple[Span, Layout]]]:
    """Return each layer's arrays with their layouts, `{layer: {parameter: (span, layout)}}`."""
    modules = _group_by_module(spans)
    for arrays in modules.values():
        for span in arrays.values():
            check_span(span)
    plan: dict[str, dict[str, tuple[Span, Layout]]] = {}
    width, is_first_dense = 0, True
    for module, layer in (_base_layers(modules) | _top_layers(modules)).items():
        params = _params(modules[module], module, is_norm="_bn" in layer)
        plan[layer] = {param: (span, AS_IS) for param, span in params.items()}
        if "kernel" not in params:
            continue
        kernel = params["kernel"]
        layout = _layout(module, width=width, is_first_dense=is_first_dense)
        plan[layer]["kernel"] = (kernel, layout)
        if not in_base(layer):
            inputs = math.prod(kernel.shape[1:])
            if inputs % width if is_first_dense else inputs != width:
                raise WeightsError(
                    f"{module}.weight has {inputs:,} inputs; the layer before it has {width:,} "
                    f"outputs{' per pixel' * is_first_dense}.",
                    code="E_SHAPE",
                )
            is_first_dense = False
        width = kernel.shape[0]
    return plan


def _group_by_module(spans: Mapping[str, Span]) -> Modules:
    modules: Modules = {}
    for name, span in spans.items():
        match = _NAME.fullmatch(_unwrapped(name))
        if not match:
            raise WeightsError(
                f"it holds {printable(name)!r}; torchvision's and timm's VGG have features.N, "
                f"classifier.N, {', '.join(TIMM_TOP)}, each with .weight, .bias ...",
                code="E_UNEXPECTED",
            )
        module, param = match.groups()
        if param == _TRACKED:
            continue
        if param in modules.setdefault(module, {}):
            raise WeightsError(f"it holds {match[0]!r} twice.", code="E_DUPLICATE")
        modules[module][param] = span
    return modules


def _params(module: dict[str, Span], name: str, *, is_norm: bool) -> dict[str, Span]:
    """Return a module's arrays by this package's names, complete and of fitting shapes."""
    names = _NORM if is_norm else _LINEAR
    if missing := [f"{name}.{key}" for key in names if key not in module]:
        raise WeightsError(f"it lacks {join_names(missing)}.", code="E_MISSING")
    if surplus := [f"{name}.{key}" for key in module if key not in names]:
        raise WeightsError(
            f"it holds {join_names(surplus)}, where a VGG has another kind of layer.",
            code="E_UNEXPECTED",
        )
    rank = 1 if is_norm else 4 if name.startswith(("features.", "pre_logits.")) else 2
    outputs = module["weight"].shape[0]
    for key, span in module.items():
        if len(span.shape) != (rank if key == "weight" else 1) or span.shape[0] != outputs:
            expected = f"{rank} axes" if key == "weight" else f"({outputs},)"
            raise WeightsError(
                f"{span.where} has the shape {span.shape}; expected {expected}.", code="E_SHAPE"
            )
    return {names[key]: module[key] for key in names}


def _base_layers(modules: Modules) -> dict[str, str]:
    """Return `{module: layer}` of the base; a gap of one number is the pooling between blocks."""
    numbers = sorted(int(m.split(".")[1]) for m in modules if m.startswith("features."))
    norms = {number for number in numbers if "running_mean" in modules[f"features.{number}"]}
    layers: list[str] = []
    block, conv, following = 1, 0, 0
    for number in numbers:
        if number in norms:
            continue
        if number > following and layers:
            block, conv = block + 1, 0
        conv += 1
        following = number + (3 if norms else 2)
        layers += [f"block{block}_conv{conv}"] + [f"block{block}_bn{conv}"] * bool(norms)
        if max(block, conv) > 9:
            raise WeightsError("it has more layers than any VGG.", code="E_ARCH")
    if not layers:
        raise WeightsError("it has no features, the convolutional base.", code="E_MISSING")
    expected = _module_names(layers)
    given = [f"features.{number}" for number in numbers]
    for module, wanted in itertools.zip_longest(given, expected):
        if module == wanted:
            continue
        is_gap = module is None or (wanted is not None and _number(module) > _number(wanted))
        raise WeightsError(
            f"it holds {module or 'nothing'} where a VGG has {wanted or 'nothing'}.",
            code="E_MISSING" if is_gap else "E_UNEXPECTED",
        )
    return expected


def _top_layers(modules: Modules) -> dict[str, str]:
    """Return `{module: layer}` of the layers on top of the base."""
    timm = [module for module in TIMM_TOP if module in modules]
    plain = sorted((m for m in modules if m.startswith("classifier.")), key=_number)
    if timm and plain:
        raise WeightsError(
            f"it holds both timm's {timm[0]} and torchvision's {plain[0]}.", code="E_UNEXPECTED"
        )
    if missing := [m for m in list(TIMM_TOP)[: len(timm)] if m not in timm]:
        raise WeightsError(f"it lacks {join_names(missing)}.", code="E_MISSING")
    if timm:
        return {module: TIMM_TOP[module] for module in timm}
    hidden = [f"fc{i}" for i in range(1, len(plain))]
    return dict(zip(plain, [*hidden, "predictions"], strict=False))


def _number(module: str) -> int:
    return int(module.split(".")[1])


def to_torch(weights: "Weights", style: str) -> list[TensorToWrite]:
    """Return the tensors, under the names of `style`, of weights in the layer table's order.

    The top may be any head: its dense layers are `classifier.0`, `.3` ..., as if each were followed
    by a relu and a dropout. timm's top is two hidden layers and the last one.
    """
    if strange := [layer for layer in weights if not TABLE_NAME.fullmatch(layer)]:
        raise WeightsError(
            f"torchvision and timm have no name for the layer {printable(strange[0])!r}.",
            code="E_NAME",
        )
    modules = _module_names(layer for layer in weights if in_base(layer))
    if not modules:
        raise WeightsError("These weights have no convolutional base.", code="E_MISSING")
    top = [layer for layer in weights if not in_base(layer)]
    width = [weights[layer]["kernel"].shape[-1] for layer in weights if "_conv" in layer][-1]
    side = _check_top(weights, top, width, style) if top else 1
    if style == "timm":
        modules |= dict(zip(TIMM_TOP, top, strict=False))
    else:
        modules |= {f"classifier.{3 * i}": layer for i, layer in enumerate(top)}
    tensors: list[TensorToWrite] = []
    for module, layer in modules.items():
        is_norm = "_bn" in layer
        kernel = _layout(module, width=width, is_first_dense=layer in top[:1], side=side)
        for key, param in (_NORM if is_norm else _LINEAR).items():
            if param in weights[layer]:
                layout = kernel if param == "kernel" else AS_IS
                tensors.append(TensorToWrite(f"{module}.{key}", weights[layer][param], layout))
        if is_norm:
            tensors.append(TensorToWrite(f"{module}.{_TRACKED}", np.array(0, np.int64)))
    return tensors


def _check_top(weights: "Weights", top: list[str], width: int, style: str) -> int:
    """Return the side of the feature map that the top's first layer takes."""
    inputs = weights[top[0]]["kernel"].shape[0]
    if inputs % width:
        raise WeightsError(
            f"The kernel of {top[0]} has {inputs:,} inputs, not a multiple of the base's {width}.",
            code="E_SHAPE",
        )
    side = math.isqrt(inputs // width)
    fits = top in (["fc1", "fc2"], ["fc1", "fc2", "predictions"]) and side**2 * width == inputs
    if style == "timm" and not fits:
        raise WeightsError(
            f"timm's VGG has the top fc1, fc2, predictions on a square feature map; got "
            f"{', '.join(top)}. Write them with torchvision's names, which can have any top.",
            code="E_TOP",
        )
    return side
