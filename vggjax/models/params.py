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

from vggjax.errors import WeightsError
from vggjax.models.arch import list_problems, shape_problems
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
    given = {layer: {k: np.shape(v) for k, v in weights[layer].items()} for layer in weights}
    problems = shape_problems(
        *({k: v for k, v in layers.items() if k not in skip} for layers in (given, shapes(model)))
    )
    if problems:
        head = f"with the head {model.head}" if model.head else "without a top"
        raise WeightsError(
            f"These weights do not fit {model.arch.name} {head}: {list_problems(problems)}."
        )
    for (layer, name), variable in _variables(state).items():
        if layer not in skip:
            variable.set_value(jnp.asarray(weights[layer][name], jnp.float32))
    nnx.update(model, state)
