"""How the epochs walk through the training split.

A pass shows every image once, in an order that is a function of (seed, pass). An epoch is a pass,
or with --epoch-images a stretch of so many images: the next epoch goes on where it ended, into
the next pass where one is through. So the steps of a run are the same however long its epochs are.
"""

from collections.abc import Iterator
from contextlib import closing
from itertools import islice

from vggjax.data.loader import Batch
from vggjax.training.prepare import RunContext


def epoch_batches(run: RunContext, step: int, until: int) -> Iterator[Batch]:
    """Yields the training batches of the steps from `step` to below `until`, of the whole run."""
    while step < until:
        number, start = divmod(step, run.steps_per_pass)
        count = min(until - step, run.steps_per_pass - start)
        batches = run.loaders["train"].batches(
            run.batch_size,
            seed=run.config.seed,
            epoch=number,
            shuffle=True,
            start=start,
            process=run.placement.process,
        )
        with closing(batches):
            yield from islice(batches, count)
        step += count


def images_seen(run: RunContext, step: int) -> int:
    """Counts the images that the steps before `step` show."""
    number, start = divmod(step, run.steps_per_pass)
    size = len(run.loaders["train"])
    return number * size + min(start * run.batch_size, size)
