"""Several steps in one dispatch, where a step is less work than its dispatch.

A head on kept features takes a millisecond to learn a batch, and Python as long to hand it over. A
chunk is up to `size` batches, one behind the other, (size, B, ...); the compiled step runs through
those that are there. It ends where the log is due, so that the log, checkpoints and signals find
the same steps, and the results are the same to the bit.
"""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from vggjax.data.loader import Batch
from vggjax.training.prepare import RunContext

MAX_BYTES = 2**26
"""Of a chunk: a few of them are on the devices at a time."""


def chunk_size(run: RunContext, stage: str, cut: str | None, *, most: int) -> int:
    """Says how many batches a stage's chunks hold; 1 is no chunk."""
    if cut is None or any("_conv" in name for name in after(run, cut)):
        return 1
    plan = run.feature_plans[stage]
    features = int(np.prod(plan.shape)) * jnp.dtype(plan.dtype).itemsize
    return int(np.clip(MAX_BYTES // (run.batch_size * features), 1, most))


def after(run: RunContext, cut: str) -> tuple[str, ...]:
    """Names the layers that run after the cut."""
    layers = run.model.layers
    return layers[layers.index(cut) + 1 :]


def stack_batches(
    batches: Iterator[Batch], size: int, *, step: int, every: int
) -> Iterator[tuple[int, Batch]]:
    """Yields (number of steps, their batches); with size 1 a batch as it is.

    `step` is the number of steps before the first batch; a chunk ends at multiples of `every`.
    """
    if size == 1:
        yield from ((1, batch) for batch in batches)
        return
    chunk: Batch = {}
    steps = 0
    for batch in batches:
        if steps == 0:
            chunk = {
                name: np.zeros((size, *rows.shape), rows.dtype) for name, rows in batch.items()
            }
            chunk["index"][:] = -1  # a batch that is not there, which the step knows by this
        for name, rows in batch.items():
            chunk[name][steps] = rows
        steps, step = steps + 1, step + 1
        if steps == size or step % every == 0:
            yield steps, chunk
            steps = 0
    if steps:
        yield steps, chunk
