"""Moves weights between a model and plain numpy, `{layer: {"kernel": ndarray, "bias": ndarray}}`.

The only door through which pretrained numbers enter a model: strict, by name and by shape. Batch
normalization has `scale`, `bias`, `mean` and `var`. Reading files is not here (see weights/).
"""

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vggjax.errors import WeightsError

Weights = dict[str, dict[str, np.ndarray]]
"""Layer name -> parameter name -> array; kernels HWIO or (in, out), all float32."""


def _variables(model: nnx.Module) -> dict[tuple[str, str], nnx.Variable]:
    state = nnx.state(model, (nnx.Param, nnx.BatchStat))
    return {tuple(path): variable for path, variable in nnx.to_flat_state(state)}


def shapes(model: nnx.Module) -> dict[str, dict[str, tuple[int, ...]]]:
    """Gives every parameter's shape; costs nothing on a model made by `nnx.eval_shape`."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for (layer, name), variable in _variables(model).items():
        found.setdefault(layer, {})[name] = tuple(variable.shape)
    return {layer: found[layer] for layer in model.layers if layer in found}


def extract(model: nnx.Module) -> Weights:
    """Copies the model's parameters and running statistics to numpy, in the order of its layers."""
    arrays: Weights = {}
    for (layer, name), variable in _variables(model).items():
        arrays.setdefault(layer, {})[name] = np.asarray(jax.device_get(variable.get_value()))
    return {layer: arrays[layer] for layer in model.layers if layer in arrays}


def _listed(names: list[str], *, most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def assign(
    model: nnx.Module,
    weights: Mapping[str, Mapping[str, np.ndarray]],
    *,
    skip: Iterable[str] = (),
) -> None:
    """Puts the weights into the model in place, or raises and leaves it as it was.

    Args:
        model: also one made by `nnx.eval_shape`, whose parameters are then all given their values
            (with `skip`, the skipped ones stay abstract).
        weights: a value for every parameter of the model, and no others.
        skip: layers to leave out on both sides, as a new head is, in so many words.

    Raises:
        WeightsError: missing, unexpected or wrong-shape parameters, listed by name.
    """
    skip = set(skip)
    variables = {path: v for path, v in _variables(model).items() if path[0] not in skip}
    given = {
        (layer, name): array
        for layer, arrays in weights.items()
        if layer not in skip
        for name, array in arrays.items()
    }
    missing = ["/".join(path) for path in variables if path not in given]
    unexpected = ["/".join(path) for path in given if path not in variables]
    wrong = [
        f"{'/'.join(path)} is {np.shape(given[path])}, the model has {tuple(variable.shape)}"
        for path, variable in variables.items()
        if path in given and np.shape(given[path]) != tuple(variable.shape)
    ]
    problems = [
        f"{label}: {_listed(names)}"
        for label, names in [
            ("missing", missing),
            ("unexpected", unexpected),
            ("wrong shape", wrong),
        ]
        if names
    ]
    if problems:
        raise WeightsError(
            f"These weights do not fit {model.arch.name}"
            f"{f' with the head {model.head}' if model.head else ' without a top'}: "
            f"{'; '.join(problems)}."
        )
    state = nnx.state(model, (nnx.Param, nnx.BatchStat))
    for path, variable in nnx.to_flat_state(state):
        if tuple(path) in variables:
            variable.set_value(jnp.asarray(given[tuple(path)], jnp.float32))
    nnx.update(model, state)
