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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vggjax.errors import WeightsError, join_names, printable
from vggjax.weights.layout import AS_IS, CONV, DENSE, Layout, TensorToWrite, flattened, whole_map
from vggjax.weights.names import (
    TABLE_NAME,
    block_names,
    in_base,
    in_table_order,
    natural_order,
    start_of_norms,
)
from vggjax.weights.parsed_file import Plan
from vggjax.weights.tensor_spans import Span, check_span

if TYPE_CHECKING:
    from vggjax.models.params import Weights

TIMM_TOP = {"pre_logits.fc1": "fc1", "pre_logits.fc2": "fc2", "head.fc": "predictions"}
"""timm's modules on top of the base -> the layer table's names."""

_NORM = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
_LINEAR = {"weight": "kernel", "bias": "bias"}
_TRACKED = "num_batches_tracked"
_PARAM = rf"({'|'.join(_NORM)}|{_TRACKED})"
_NAME = re.compile(
    rf"(features\.\d{{1,3}}|classifier\.\d{{1,3}}|pre_logits\.fc[12]|head\.fc)\.{_PARAM}"
)
_IN_BASE = re.compile(rf"((?:.*\.)?)features\.\d{{1,3}}\.{_PARAM}")
_NUMBERED = re.compile(rf"((?:.*\.)?)(\d{{1,3}}\.{_PARAM})")

_PARAMETRIZED = re.compile(
    r"(?<=\.)(weight_(orig|mask|[guv])|parametrizations\.weight\.(original\d?|\d.*))$"
)
"""Arrays that `torch.nn.utils` makes of a kernel."""

_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module"}
"""Parts of names that DataParallel, torch.compile and FSDP insert, anywhere."""

_COPIES = {"ema", "swa", "teacher", "avg", "averaged", "shadow", "target", "momentum"}
"""Words in the names of a copy of a network."""

_DROPOUT_FIRST = ["classifier.1", "classifier.4", "classifier.6"]
"""torchvision's top before 2017, and that of Caffe's VGG in torch's format."""

Modules = dict[str, dict[str, Span]]
"""torch's module -> parameter -> array."""


@dataclass(frozen=True)
class TorchLayers:
    """The layers of a file with torch's axis orders."""

    style: str
    """The library whose names these are; a base without a top has the same in both."""
    plan: Plan
    left_out: list[str]
    """A line about each array or group of arrays that is not in `plan`."""
    doubt: str = ""
    """Why these weights may expect other pixels than torchvision's."""


def find_layers(spans: Mapping[str, Span]) -> TorchLayers | None:
    """Find a VGG's layers under torchvision's or timm's names, or under similar ones.

    A common prefix and the parts that wrappers insert are taken off, and the modules of `features`
    alone may have bare numbers. A top that is neither library's is left out, and so are all other
    arrays. Return None if there is no base under these names.

    Raises:
        WeightsError: the base is incomplete or not a VGG's, or there are several.
    """
    _refuse_parametrized(spans)
    spans = _without_wrappers(spans)
    prefixes = _prefixes(_IN_BASE, spans)
    original, left_out = _original(prefixes, spans)
    if original is None:
        renamed = _numbered(spans)
    else:
        renamed = {k: k.removeprefix(original) for k in spans if k.startswith(original)}
    if not renamed:
        return None
    modules, others = _group_by_module({short: spans[name] for name, short in renamed.items()})
    try:
        base = _base_layers(modules)
    except WeightsError:
        if original is None and find_in_order(spans):
            return None
        raise
    extra = [m for m in modules if m.startswith("features.") and m not in base]
    others += [f"{module}.{param}" for module in extra for param in modules.pop(module)]
    plan = _plan_layers(modules, base)
    others += [k for k in spans if k not in renamed and not k.startswith(tuple(prefixes) or "\0")]
    style = "timm" if any(module in TIMM_TOP for module in modules) else "torchvision"
    in_top = [name for name in others if name.startswith(("classifier.", "pre_logits.", "head."))]
    top: dict[str, str] = {}
    try:
        if in_top:
            raise WeightsError("it has modules of other names", code="E_UNEXPECTED")
        top = _top_layers(modules)
        plan |= _plan_layers(modules, top, width=_width(plan))
    except WeightsError as error:
        names = [*(m for m in modules if m not in base), *in_top]
        left_out.append(
            f"left out the top ({join_names(map(printable, names))}), neither torchvision's nor "
            f"timm's: {printable(error).rstrip('.')}"
        )
    if others := [printable(name) for name in others if name not in in_top]:
        left_out.append(f"left out what is not a VGG's: {join_names(others)}")
    doubt = ""
    if list(top) == _DROPOUT_FIRST:
        doubt = (
            f"{', '.join(_DROPOUT_FIRST)} are the names of torchvision before 2017, whose weights "
            f"expect torch, and of Caffe's VGG in torch's format, whose weights expect caffe"
        )
    if extra:
        doubt = (
            "convolutions follow the base, as in SSD, whose VGG is Caffe's and expects caffe; "
            "torchvision's expects torch"
        )
    return TorchLayers(style, plan, left_out, doubt)


def _refuse_parametrized(names: Iterable[str]) -> None:
    """Refuse kernels that torch computes from several arrays."""
    for name in names:
        if match := _PARAMETRIZED.search(name):
            is_pruned = match[0].startswith(("weight_orig", "weight_mask"))
            call = (
                "prune.remove(module, 'weight')"
                if is_pruned
                else ("parametrize.remove_parametrizations(module, 'weight')")
            )
            raise WeightsError(
                f"it stores kernels in parts, {printable(name)} and others, as pruning and weight "
                f"normalization do. Join them with torch.nn.utils.{call} for each convolution, and "
                f"save the state dict again.",
                code="E_NAME",
            )


def _without_wrappers(spans: Mapping[str, Span]) -> dict[str, Span]:
    plain: dict[str, Span] = {}
    for name, span in spans.items():
        short = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
        if short in plain:
            raise WeightsError(f"it holds {printable(short)!r} twice.", code="E_DUPLICATE")
        plain[short] = span
    return plain


def _prefixes(pattern: re.Pattern[str], names: Iterable[str]) -> list[str]:
    matches = (pattern.fullmatch(name) for name in names)
    return list(dict.fromkeys(match[1] for match in matches if match))


def _original(prefixes: list[str], spans: Mapping[str, Span]) -> tuple[str | None, list[str]]:
    """Return the prefix of the one network that is no copy, and a line about the copies."""
    networks: dict[str, list[Any]] = {}
    for prefix in prefixes:
        start = f"{prefix}features."
        network = [
            (k.removeprefix(prefix), v.start) for k, v in spans.items() if k.startswith(start)
        ]
        if network not in networks.values():  # a model may have one module under two names
            networks[prefix] = network
    originals = [p for p in networks if not is_copy(p)]
    originals = originals if len(networks) > 1 else list(networks)
    if networks and len(originals) != 1:
        raise several_networks(f"{prefix}features" for prefix in networks)
    copies = [printable(f"{prefix}features") for prefix in networks if prefix not in originals]
    left_out = (
        [f"read {printable(originals[0])}features, left out {join_names(copies)}"] if copies else []
    )
    return next(iter(originals), None), left_out


def is_copy(name: str) -> bool:
    """Return whether a network's name, as in `model_ema`, is that of a copy."""
    return not _COPIES.isdisjoint(re.split(r"[^a-z]+", name.lower()))


def several_networks(networks: Iterable[str]) -> WeightsError:
    """Return the refusal of a file with several networks, of which none is the one."""
    return WeightsError(
        f"it holds several networks, {join_names(map(printable, networks))}. Save the state dict "
        f"of one alone.",
        code="E_NAME",
    )


def _numbered(spans: Mapping[str, Span]) -> dict[str, str]:
    """Return `{name: features.N.param}` for the bare numbers of `features` alone.

    They may have several prefixes, as the slices of a perceptual loss, if no number repeats; else
    those of the one prefix that has a VGG's numbers.
    """
    dense = tuple(k.removesuffix("weight") for k, span in spans.items() if span.ndim == 2)
    groups: dict[str, dict[str, str]] = {}
    for prefix in _prefixes(_NUMBERED, [name for name, span in spans.items() if span.ndim == 4]):
        matches = {name: _NUMBERED.fullmatch(name) for name in spans if not name.startswith(dense)}
        groups[prefix] = {
            name: f"features.{match[2]}"
            for name, match in matches.items()
            if match and match[1] == prefix
        }
    joined = {name: short for group in groups.values() for name, short in group.items()}
    if len(set(joined.values())) == len(joined):
        return joined
    complete = []
    for prefix, group in groups.items():
        kernels = {short: spans[name].shape for name, short in group.items()}
        norms = any(short.endswith("running_mean") for short in kernels)
        convs = sorted((k for k, shape in kernels.items() if len(shape) == 4), key=natural_order)
        numbers = _first_blocks(sorted(map(_number, convs)), step=3 if norms else 2)
        convs = convs[: len(numbers)]
        if block_names([CONV.held_shape(kernels[short]) for short in convs]):
            complete.append(prefix)
    if len(complete) > 1:
        raise several_networks(complete)
    return groups[complete[0]] if complete else {}


def find_in_order(spans: Mapping[str, Span]) -> TorchLayers | None:
    """Find a VGG's base under any names: convolutions whose channels form the chain of a VGG.

    Batch normalizations belong to them in the same order. Return None if there is no base, or if
    the order of the file and that of the names disagree.
    """
    spans = _without_wrappers(spans)
    modules: Modules = {}
    for name, span in spans.items():
        module, _, param = name.rpartition(".")
        if param in _NORM:
            modules.setdefault(module, {})[param] = span
    convs = [k for k, v in modules.items() if "weight" in v and v["weight"].ndim == 4]
    norms = [k for k, v in modules.items() if "running_mean" in v]
    layers: dict[str, str] = {}
    for order in (convs, sorted(convs, key=natural_order)):
        blocks = block_names([CONV.held_shape(modules[k]["weight"].shape) for k in order])
        candidate = dict(zip(order, blocks, strict=False))
        if layers and blocks and candidate != layers:
            return None
        layers = layers or candidate
    if not layers:
        return None
    ordered = norms if list(layers) == convs else sorted(norms, key=natural_order)
    widths = [modules[k]["weight"].shape[0] for k in layers]
    start = start_of_norms(widths, [modules[k]["running_mean"].size for k in ordered])
    if start is not None:
        named = (layer.replace("conv", "bn") for layer in layers.values())
        layers |= dict(zip(ordered[start:], named, strict=False))
    plan = in_table_order(_plan_layers(modules, layers))
    first, last = next(iter(layers)), list(layers)[len(convs) - 1]
    left_out = [
        f"named the layers by their order, from {printable(first)} (block1_conv1) to "
        f"{printable(last)} ({layers[last]})"
    ]
    used = tuple(f"{module}." for module in layers)
    if others := [printable(name) for name in spans if not name.startswith(used)]:
        left_out.append(f"left out what is not in a VGG's base: {join_names(others)}")
    return TorchLayers(
        "PyTorch",
        plan,
        left_out,
        "its names are not torchvision's, whose weights expect torch; Caffe's in torch's format "
        "expect caffe",
    )


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


def _plan_layers(modules: Modules, names: Mapping[str, str], *, width: int = 0) -> Plan:
    """Return each layer's arrays with their layouts; `width` is that of the base below a top."""
    plan: Plan = {}
    is_first_dense = True
    for module, layer in names.items():
        for span in modules[module].values():
            check_span(span)
        params = _params(modules[module], module, is_norm="_bn" in layer, in_base=in_base(layer))
        plan[layer] = {param: (span, AS_IS) for param, span in params.items()}
        if "kernel" not in params:
            continue
        kernel = params["kernel"]
        layout = _layout(module, width=width, is_first_dense=is_first_dense)
        plan[layer]["kernel"] = (kernel, CONV if in_base(layer) else layout)
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


def _width(plan: Plan) -> int:
    return [arrays["kernel"][0].shape[0] for arrays in plan.values() if "kernel" in arrays][-1]


def _group_by_module(spans: Mapping[str, Span]) -> tuple[Modules, list[str]]:
    """Return the arrays of the modules that a VGG has, and the names of all others."""
    modules: Modules = {}
    others = []
    for name, span in spans.items():
        if not (match := _NAME.fullmatch(name)):
            others.append(name)
        elif match[2] != _TRACKED:
            modules.setdefault(match[1], {})[match[2]] = span
    return modules, others


def _params(module: dict[str, Span], name: str, *, is_norm: bool, in_base: bool) -> dict[str, Span]:
    """Return a module's arrays by this package's names, complete and of fitting shapes."""
    names = _NORM if is_norm else _LINEAR
    if missing := [f"{name}.{key}" for key in names if key not in module]:
        raise WeightsError(f"it lacks {join_names(missing)}.", code="E_MISSING")
    if surplus := [f"{name}.{key}" for key in module if key not in names]:
        raise WeightsError(
            f"it holds {join_names(surplus)}, where a VGG has another kind of layer.",
            code="E_UNEXPECTED",
        )
    rank = 1 if is_norm else 4 if in_base or name.startswith("pre_logits.") else 2
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
    convs = _first_blocks([k for k in numbers if k not in norms], step=3 if norms else 2)
    numbers = [k for k in numbers if k <= max(convs, default=0) + bool(norms)]
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


def _first_blocks(numbers: list[int], *, step: int) -> list[int]:
    """Return the convolutions of the first five blocks; a gap between numbers is a pooling.

    More follow where a detector goes on with convolutions, as SSD with `vgg.31` and `vgg.33`.
    """
    ends = [i for i, (a, b) in enumerate(itertools.pairwise(numbers)) if b > a + step]
    return numbers[: ends[4] + 1] if len(ends) > 4 else numbers


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
