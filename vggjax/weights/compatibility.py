"""Compare the shapes of a weight file with a model's, before any number is read."""

from collections.abc import Callable

from vggjax.errors import WeightsError, join_names
from vggjax.models.arch import ARCHS, Shapes, list_problems, shape_problems
from vggjax.models.convnets import find_arch
from vggjax.weights.names import BATCH_NORM, in_base

Check = Callable[[Shapes], None]
"""Called with a file's shapes before its numbers are read; raises if they do not fit."""


def expected_base(model: str) -> dict[str, dict[str, tuple[int, ...]]]:
    """Return the shape of every parameter of a network's convolutional base."""
    arch = find_arch(model)
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for layer, (width_in, width) in arch.conv_channels().items():
        shapes[layer] = {"kernel": (3, 3, width_in, width), "bias": (width,)}
        if (norm := layer.replace("conv", "bn")) in arch.layers():
            shapes[norm] = dict.fromkeys(BATCH_NORM, (width,))
    return shapes


def network_of(shapes: Shapes) -> str | None:
    """Return the network of the table with the base's layers and kernels, or None."""
    base = {layer: params.get("kernel") for layer, params in shapes.items() if in_base(layer)}
    for name in ARCHS:
        if base == {k: params.get("kernel") for k, params in expected_base(name).items()}:
            return name
    return None


def check_fits(shapes: Shapes, expected: Shapes, *, name: str, model: str) -> None:
    """Check that a file has exactly a model's layers.

    `name` is the file and `model` the model in the message, as in "vgg16 without a top".

    Raises:
        WeightsError: missing, unexpected or wrong-shape parameters, listed by name; E_TOP if only
            the top differs, E_ARCH if the file holds another network of the table.
    """
    problems = shape_problems(shapes, expected)
    if not problems:
        return
    codes = {"missing": "E_MISSING", "unexpected": "E_UNEXPECTED", "wrong shape": "E_SHAPE"}
    code = codes[next(iter(problems))]
    way_out = ""
    if not any(in_base(key.split("/")[0]) for keys in problems.values() for key in keys):
        code, way_out = "E_TOP", _way_out(shapes, expected)
    elif (network := network_of(shapes)) and network != network_of(expected):
        code, way_out = "E_ARCH", f" The file holds {network}: set `model` to {network}."
    raise WeightsError(
        f"{name}: These weights do not fit {model}: {list_problems(problems)}.{way_out}", code=code
    )


def _way_out(shapes: Shapes, expected: Shapes) -> str:
    """Return which arguments load the file, whose base fits."""
    file_top = [layer for layer in shapes if not in_base(layer)]
    if not any(not in_base(layer) for layer in expected):
        return f" Pass base_only=True to leave out the file's top ({join_names(file_top)})."
    if not file_top:
        return (
            " The file has no top of a VGG. Pass include_top=False for the base alone, or a head= "
            "and base_only=True for a randomly initialized head."
        )
    return (
        " The base fits and the top does not. Pass include_top=False, a head= and base_only=True "
        "for a randomly initialized head."
    )
