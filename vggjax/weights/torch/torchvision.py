"""The names and orders of torchvision's and timm's VGG, and what they mean here.

torchvision: `features.N.weight`, where N counts convolutions, batch normalizations, relus and
poolings alike, and `classifier.0`, `.3`, `.6`. timm (0.4 and later): the same `features`, and the
top as convolutions, `pre_logits.fc1` (7x7), `pre_logits.fc2` (1x1), and `head.fc`.
Kernels are turned from OIHW to HWIO; the first dense layer's inputs from channel, row, column to
row, column, channel, once and for all. `num_batches_tracked` is left out.
"""

import math
import re
from typing import TYPE_CHECKING, Literal

from vggjax.errors import WeightsError, printable
from vggjax.weights.compatibility import Check
from vggjax.weights.layout import CONV, DENSE, VECTOR, Turn, flattened, read_turned, window
from vggjax.weights.names import in_base
from vggjax.weights.safetensors import Tensor, check_weights

if TYPE_CHECKING:
    from vggjax.models.params import Weights

Style = Literal["torchvision", "timm"]

_NAME = re.compile(
    r"(features\.\d{1,3}|classifier\.\d{1,3}|pre_logits\.fc[12]|head\.fc)"
    r"\.(weight|bias|running_mean|running_var|num_batches_tracked)"
)
TRACKED = "num_batches_tracked"
NORM = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
LINEAR = {"weight": "kernel", "bias": "bias"}
TIMM_TOP = ("pre_logits.fc1", "pre_logits.fc2", "head.fc")
_WRAPPERS = ("module.", "model.")

Modules = dict[str, dict[str, Tensor]]
"""torch's module -> parameter -> tensor."""

Plan = dict[str, dict[str, tuple[Tensor, Turn]]]
"""Layer -> parameter -> the tensor, and how it is to be turned."""


def is_torch(tensors: dict[str, Tensor]) -> bool:
    """Whether any of the names could be torchvision's or timm's."""
    return any(_NAME.fullmatch(_unwrapped(key)) for key in tensors)


def style_of(tensors: dict[str, Tensor]) -> Style:
    """Says whose names the tensors bear; a base alone is called the same by both."""
    tops = tuple(f"{top}." for top in TIMM_TOP)
    timm = any(_unwrapped(key).startswith(tops) for key in tensors)
    return "timm" if timm else "torchvision"


def read_torch(
    tensors: dict[str, Tensor],
    *,
    name: str,
    check: Check | None = None,
    notes: list[str] | None = None,
) -> "Weights":
    """Reads the tensors of an open file.

    Raises:
        WeightsError: names or shapes that are no VGG's, or numbers that weights cannot be.
    """
    modules = _modules(tensors, name)
    check_weights((t for params in modules.values() for t in params.values()), notes=notes)
    plan = _plan(modules, name)
    if check is not None:
        check({k: {p: turn.ours(t.shape) for p, (t, turn) in v.items()} for k, v in plan.items()})
    return {
        layer: {param: read_turned(tensor, turn) for param, (tensor, turn) in params.items()}
        for layer, params in plan.items()
    }


def _unwrapped(key: str) -> str:
    """Takes off what DataParallel and trainers put before every name."""
    for wrapper in _WRAPPERS:
        key = key.removeprefix(wrapper)
    return key


def _modules(tensors: dict[str, Tensor], name: str) -> Modules:
    modules: Modules = {}
    for key, tensor in tensors.items():
        match = _NAME.fullmatch(_unwrapped(key))
        if not match:
            raise WeightsError(
                f"{name} holds {printable(key)!r}; a VGG of torchvision or timm has features.N, "
                f"classifier.N, {', '.join(TIMM_TOP)}, each with .weight, .bias ...",
                code="E_UNEXPECTED",
            )
        module, param = match.groups()
        if param == TRACKED:
            continue
        if param in modules.setdefault(module, {}):
            raise WeightsError(f"{name} holds {match[0]!r} twice.", code="E_DUPLICATE")
        modules[module][param] = tensor
    return modules


def _plan(modules: Modules, name: str) -> Plan:
    plan: Plan = {}
    width = 0
    for module, layer in _base_names(modules, name).items():
        if "_bn" in layer:
            params = _params(modules, module, NORM, 1, name)
            plan[layer] = {param: (tensor, VECTOR) for param, tensor in params.items()}
        else:
            plan[layer] = _linear(modules, module, CONV, 4, name)
            width = plan[layer]["kernel"][0].shape[0]
    for module, layer in _top_names(modules, name).items():
        first = not any(map(_is_top, plan))
        if module.startswith("pre_logits"):
            plan[layer] = _linear(modules, module, window(1), 4, name)
        else:
            turn = flattened(width) if first else DENSE
            plan[layer] = _linear(modules, module, turn, 2, name)
        shape = plan[layer]["kernel"][0].shape
        inputs = math.prod(shape[1:])
        if inputs % width if first else inputs != width:
            raise WeightsError(
                f"{name}: {module}.weight takes {inputs:,} inputs; the layer before it gives "
                f"{width:,}{' a pixel' * first}.",
                code="E_SHAPE",
            )
        width = shape[0]
    return plan


def _is_top(layer: str) -> bool:
    return not in_base(layer)


def _linear(modules: Modules, module: str, turn: Turn, rank: int, name: str) -> dict:
    params = _params(modules, module, LINEAR, rank, name)
    return {
        param: (tensor, turn if param == "kernel" else VECTOR) for param, tensor in params.items()
    }


def _params(
    modules: Modules, module: str, names: dict[str, str], rank: int, name: str
) -> dict[str, Tensor]:
    """Gives a module's tensors by our names: all of them, of the right ranks and lengths."""
    given = modules[module]
    if missing := [f"{module}.{key}" for key in names if key not in given]:
        raise WeightsError(f"{name} lacks {', '.join(missing)}.", code="E_MISSING")
    if surplus := [f"{module}.{key}" for key in given if key not in names]:
        raise WeightsError(
            f"{name} holds {', '.join(surplus)}, where a VGG has another kind of layer.",
            code="E_UNEXPECTED",
        )
    outputs = given["weight"].shape[0]
    for key, tensor in given.items():
        shape = tensor.shape
        if len(shape) != (rank if key == "weight" else 1) or shape[0] != outputs:
            expected = f"{rank} axes" if key == "weight" else f"({outputs},)"
            raise WeightsError(
                f"{tensor.where} has shape {shape}; expected is {expected}.", code="E_SHAPE"
            )
    return {names[key]: given[key] for key in names}


def _base_names(modules: Modules, name: str) -> dict[str, str]:
    """Finds each module's layer by its number: behind a pooling the next one stands one further."""
    numbers = sorted(int(m.split(".")[1]) for m in modules if m.startswith("features."))
    norm = any("running_mean" in modules[f"features.{i}"] for i in numbers)
    names: dict[str, str] = {}
    block, conv, wanted = 1, 0, 0
    while numbers:
        at = numbers.pop(0)
        if at == wanted + 1 and conv:
            block, conv = block + 1, 1
        elif at == wanted:
            conv += 1
        else:
            raise WeightsError(
                f"{name} has features.{at} where a VGG's next layer is features.{wanted}"
                f"{f' or features.{wanted + 1}' if conv else ''}.",
                code="E_MISSING" if at > wanted else "E_UNEXPECTED",
            )
        if max(block, conv) > 9:
            raise WeightsError(f"{name} has more layers than any VGG.", code="E_ARCH")
        names[f"features.{at}"] = f"block{block}_conv{conv}"
        if norm:
            if numbers[:1] != [at + 1]:
                raise WeightsError(
                    f"{name} lacks features.{at + 1}, the batch normalization behind "
                    f"features.{at}.",
                    code="E_MISSING",
                )
            names[f"features.{numbers.pop(0)}"] = f"block{block}_bn{conv}"
        wanted = at + 2 + norm
    if not names:
        raise WeightsError(f"{name} has no features, the convolutional base.", code="E_MISSING")
    return names


def _top_names(modules: Modules, name: str) -> dict[str, str]:
    timm = [module for module in TIMM_TOP if module in modules]
    plain = sorted((m for m in modules if m.startswith("classifier.")), key=_number)
    if timm and plain:
        raise WeightsError(
            f"{name} has both timm's {timm[0]} and torchvision's {plain[0]}.", code="E_UNEXPECTED"
        )
    if timm and timm != list(TIMM_TOP[: len(timm)]):
        missing = [module for module in TIMM_TOP if module not in timm]
        raise WeightsError(f"{name} lacks {', '.join(missing)}.", code="E_MISSING")
    if timm:
        return dict(zip(timm, ("fc1", "fc2", "predictions"), strict=False))
    hidden = [f"fc{i}" for i in range(1, len(plain))]
    return dict(zip(plain, [*hidden, "predictions"], strict=False))


def _number(module: str) -> int:
    return int(module.split(".")[1])
