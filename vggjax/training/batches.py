"""The order of training batches, and several of them in one dispatch.

A pass visits every image once, in an order that is a function of (seed, pass). An epoch is one
pass, or with `epoch_images` about that number of images: the next epoch continues where it ended,
so the steps of a run do not depend on the length of its epochs.

A head on cached features learns a batch in about a millisecond, and Python takes as long to
dispatch it. So up to `size` batches are stacked to (size, B, ...) and one compiled call steps
through them (`multi_step`). Stacks end where the log is due: logs, checkpoints and signals see the
same steps, and the results are bit-identical.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vggjax.data.loader import Batch, Process, SplitLoader
from vggjax.models.network import Network
from vggjax.training.cache.plan import FeaturePlan
from vggjax.training.parallel import Placement

MAX_STACK_BYTES = 2**26
"""Of one stack of batches; a few of them are on the devices at a time."""


def epoch_batches(
    loader: SplitLoader,
    step: int,
    until: int,
    *,
    batch_size: int,
    seed: int,
    process: Process,
) -> Iterator[Batch]:
    """Yield the training batches of the run's steps from `step` to before `until`."""
    steps_per_pass = -(-len(loader) // batch_size)
    while step < until:
        epoch, start = divmod(step, steps_per_pass)
        count = min(until - step, steps_per_pass - start)
        batches = loader.batches(
            batch_size, seed=seed, epoch=epoch, shuffle=True, start=start, process=process
        )
        with closing(batches):  # type: ignore[type-var]  # generators, which have close()
            yield from islice(batches, count)
        step += count


def images_seen(step: int, num_images: int, batch_size: int) -> int:
    """Return the number of images in the batches before `step`, without padding."""
    passes, start = divmod(step, -(-num_images // batch_size))
    return passes * num_images + start * batch_size


def stack_size(model: Network, plan: FeaturePlan | None, batch_size: int, *, most: int) -> int:
    """Return how many batches of a plan's features to stack, at most `most`; 1 stacks none.

    Batches are stacked where no convolution is left to compute: such steps are short.
    """
    if plan is None:
        return 1
    remaining = model.layers[model.layers.index(plan.cut) + 1 :]
    if any("_conv" in name for name in remaining):
        return 1
    batch_bytes = batch_size * int(np.prod(plan.shape)) * jnp.dtype(plan.dtype).itemsize
    return int(np.clip(MAX_STACK_BYTES // batch_bytes, 1, most))


def stack_batches(
    batches: Iterator[Batch], size: int, *, step: int, every: int
) -> Iterator[tuple[int, Batch]]:
    """Yield (number of steps, stacked batches); with `size` 1, (1, batch) unstacked.

    `step` is the number of steps before the first batch. A stack ends at multiples of `every`;
    missing batches at its end have `index` -1 in all rows.
    """
    if size == 1:
        yield from ((1, batch) for batch in batches)
        return
    stack: Batch = {}
    steps = 0
    for batch in batches:
        if steps == 0:
            stack = {k: np.zeros((size, *rows.shape), rows.dtype) for k, rows in batch.items()}
            stack["index"][:] = -1
        for name, rows in batch.items():
            stack[name][steps] = rows
        steps, step = steps + 1, step + 1
        if steps == size or step % every == 0:
            yield steps, stack
            steps = 0
    if steps:
        yield steps, stack


def multi_step(train_step: Callable[..., Any], placement: Placement) -> Callable[..., Any]:
    """Return a function that runs `train_step` on each batch of a stack.

    It returns the last state and every metric as (size,), 0 for missing batches.
    """

    def train_steps(state: Any, stack: dict[str, jax.Array]) -> tuple[Any, dict[str, jax.Array]]:
        # (size,), the missing ones last; a device may hold only padding of a batch that is present
        is_present = placement.sum((stack["index"] >= 0).any(1).astype(jnp.int32)) > 0
        first = jax.tree.map(lambda rows: rows[0], stack)
        shapes = jax.eval_shape(train_step, state, first)[1]
        metrics = jax.tree.map(lambda x: jnp.zeros(is_present.shape, x.dtype), shapes)

        def body(i: jax.Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            state, metrics = carry
            state, new = train_step(state, jax.tree.map(lambda rows: rows[i], stack))
            return state, jax.tree.map(lambda values, x: values.at[i].set(x), metrics, new)

        return lax.fori_loop(0, is_present.sum(), body, (state, metrics))

    return train_steps
