"""Whether the layers of a file are those of a model: by name and shape, before any number is read.

Shapes are `{layer: {parameter: shape}}` on both sides. What does not fit is worded once, here, with
the way out where the convolutional base does fit.
"""

from collections.abc import Callable, Mapping

from vggjax.errors import WeightsError
from vggjax.models.arch import ARCHS
from vggjax.weights.names import in_base

Shapes = Mapping[str, Mapping[str, tuple[int, ...]]]
"""Layer -> parameter -> shape."""

Check = Callable[[Shapes], None]
"""Is given a file's shapes before its numbers are read, and raises where they do not fit."""


def network_of(shapes: Shapes) -> str | None:
    """Names the network of the table whose convolutional base this is, layer for layer."""
    base = {layer: params.get("kernel") for layer, params in shapes.items() if in_base(layer)}
    for name, arch in ARCHS.items():
        wanted = dict.fromkeys(layer for layer in arch.layers() if "_pool" not in layer)
        wanted |= {layer: (3, 3, *io) for layer, io in arch.conv_channels().items()}
        if base == wanted:
            return name
    return None


def check_fits(shapes: Shapes, expected: Shapes, *, name: str, model: str) -> None:
    """Compares a file's layers with a model's.

    Args:
        shapes: the file's.
        expected: the model's.
        name: of the file, for the message.
        model: what it is for, as in "vgg16 without a top".

    Raises:
        WeightsError: missing, unexpected or wrong-shape parameters, listed by name; E_TOP where
            only the top differs, E_ARCH where the file is another network of the table.
    """
    given = _flat(shapes)
    wanted = _flat(expected)
    missing = [key for key in wanted if key not in given]
    unexpected = [key for key in given if key not in wanted]
    wrong = [key for key in wanted if key in given and given[key] != wanted[key]]
    if not missing and not unexpected and not wrong:
        return
    lists = {
        "missing": missing,
        "unexpected": unexpected,
        "wrong shape": [f"{key} is {given[key]}, the model has {wanted[key]}" for key in wrong],
    }
    problems = "; ".join(f"{label}: {join_names(keys)}" for label, keys in lists.items() if keys)
    code = "E_MISSING" if missing else "E_UNEXPECTED" if unexpected else "E_SHAPE"
    way_out = ""
    if all(not in_base(key.split("/")[0]) for key in (*missing, *unexpected, *wrong)):
        code, way_out = "E_TOP", _way_out(shapes, expected)
    elif (found := network_of(shapes)) and found != network_of(expected):
        code, way_out = "E_ARCH", f" The file holds {found}: give --model {found}."
    raise WeightsError(f"{name}: These weights do not fit {model}: {problems}.{way_out}", code=code)


def _flat(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    return {
        f"{layer}/{param}": tuple(shape)
        for layer, params in shapes.items()
        for param, shape in params.items()
    }


def join_names(names: list[str], *, most: int = 8) -> str:
    """Joins the first of the names, and counts the rest."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _way_out(shapes: Shapes, expected: Shapes) -> str:
    """Says how to ask for what the file may have been meant for, where its base does fit."""
    file_top = [layer for layer in shapes if not in_base(layer)]
    model_top = [layer for layer in expected if not in_base(layer)]
    if not model_top:
        return f" Ask with base_only=True to leave out the file's top ({', '.join(file_top)})."
    if not file_top:
        return (
            " The file has no top. Ask with include_top=False for the base alone, or give a head= "
            "and base_only=True for a head that starts random."
        )
    return (
        " The base fits and the top does not. Ask with include_top=False, head= and base_only=True "
        "for a head that starts random."
    )
