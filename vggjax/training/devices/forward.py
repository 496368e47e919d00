"""The forward pass in pieces, between which devices exchange rows or memory is saved.

By the cut law the pieces together are the network.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from vggjax.models.network import Network
from vggjax.training.freezing import block_of
from vggjax.training.parallel import Placement


def run_pieces(
    model: Network,
    x: Any,
    *,
    after: str | None,
    placement: Placement,
    remat: bool = False,
    **options: Any,
) -> jax.Array:
    """Call the model, its fully connected layers one by one, with their rows where they need them.

    With `remat`, of each block only the input is kept for the backward pass.
    """

    def run(model: Network, x: Any) -> jax.Array:
        return model(x, after=after, until=piece[-1], **options)

    layers = model.layers[model.layers.index(after) + 1 if after else 0 :]
    for piece in _cut(model, layers, blocks=remat):
        x = placement.split_rows(x, after=after, before=piece[0]) if after else x
        x, after = (nnx.remat(run) if remat else run)(model, x), piece[-1]
    return x


def _cut(model: Network, layers: Sequence[str], *, blocks: bool) -> list[list[str]]:
    """Cut layers before and after each fully connected one, and with `blocks` between blocks."""
    pieces = [[layers[0]]]
    for last, layer in itertools.pairwise(layers):
        is_end = block_of(last) != block_of(layer) and last not in model.uncut_layers
        if is_end and (blocks or last.startswith("fc") or layer.startswith("fc")):
            pieces.append([])
        pieces[-1].append(layer)
    return pieces
