"""Copy weights between a model and numpy: `{layer: {"kernel": ndarray, "bias": ndarray}}`.

`assign` is the only way by which pretrained weights enter a model; it is strict about names and
shapes. Batch normalization has `scale`, `bias`, `mean` and `var`. weights/ reads the files.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vggjax.errors import WeightsError, join_names
from vggjax.models.network import Network

Weights = dict[str, dict[str, np.ndarray]]
"""Layer name -> parameter name -> float32 array; kernels are HWIO or (in, out)."""


T = TypeVar("T")


def _variables(state: nnx.State) -> dict[tuple[str, str], nnx.Variable[Any]]:
    flat = nnx.to_flat_state(state)
    return {(str(layer), str(name)): variable for (layer, name), variable in flat}


def _by_layer(model: Network, convert: Callable[[nnx.Variable[Any]], T]) -> dict[str, dict[str, T]]:
    by_layer: dict[str, dict[str, T]] = {}
    state = nnx.state(model, (nnx.Param, nnx.BatchStat))
    for (layer, name), variable in _variables(state).items():
        by_layer.setdefault(layer, {})[name] = convert(variable)
    return {layer: by_layer[layer] for layer in model.layers if layer in by_layer}


def shapes(model: Network) -> dict[str, dict[str, tuple[int, ...]]]:
    """Return every parameter's shape by layer; also of a model made by `nnx.eval_shape`."""
    return _by_layer(model, lambda variable: tuple(variable.shape))


def extract(model: Network) -> Weights:
    """Copy the model's parameters and running statistics to numpy, in layer order."""
    return _by_layer(model, lambda variable: np.asarray(jax.device_get(variable.get_value())))


def assign(
    model: Network, weights: Mapping[str, Mapping[str, np.ndarray]], *, skip: Iterable[str] = ()
) -> None:
    """Copy weights into the model in place, or raise and leave the model unchanged.

    Args:
        model: may come from `nnx.eval_shape`; all its parameters but those of `skip` then get
            their values here.
        weights: one array for every parameter of the model, and no others.
        skip: layers to ignore on both sides, such as a new head.

    Raises:
        WeightsError: parameters are missing, unexpected or of another shape; each is listed.
    """
    skip, state = set(skip), nnx.state(model, (nnx.Param, nnx.BatchStat))
    variables = {path: v for path, v in _variables(state).items() if path[0] not in skip}
    given = {
        (layer, name): array
        for layer, arrays in weights.items()
        if layer not in skip
        for name, array in arrays.items()
    }
    problems = {
        "missing": ["/".join(path) for path in variables if path not in given],
        "unexpected": ["/".join(path) for path in given if path not in variables],
        "wrong shape": [
            f"{'/'.join(path)} is {np.shape(given[path])}, the model has {tuple(variable.shape)}"
            for path, variable in variables.items()
            if path in given and np.shape(given[path]) != tuple(variable.shape)
        ],
    }
    if any(problems.values()):
        listed = (f"{kind}: {join_names(names)}" for kind, names in problems.items() if names)
        head = f"with the head {model.head}" if model.head else "without a top"
        raise WeightsError(
            f"These weights do not fit {model.arch.name} {head}: {'; '.join(listed)}."
        )
    for path, variable in variables.items():
        variable.set_value(jnp.asarray(given[path], jnp.float32))
    nnx.update(model, state)
