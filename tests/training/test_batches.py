"""The order of batches, and several steps in one dispatch."""

import jax
import numpy as np
import pytest
from support.steps import make_feature_batch, make_step

from vggjax.data.loader import Process
from vggjax.models.head import Head
from vggjax.models.network import VGG
from vggjax.training.batches import (
    MAX_STACK_BYTES,
    epoch_batches,
    images_seen,
    stack_batches,
    stack_size,
)
from vggjax.training.cache.plan import FeaturePlan
from vggjax.training.parallel import Placement
from vggjax.training.progress import MetricAccumulator


class Loader:
    """Yields (pass, number) for each batch of ten images."""

    def __len__(self):
        return 10

    def batches(self, batch_size, *, seed, epoch, shuffle, start, process):
        assert (seed, shuffle, process) == (7, True, Process(1, 2))
        yield from ((epoch, number) for number in range(start, -(-10 // batch_size)))


def test_steps_continue_from_pass_to_pass_wherever_they_begin():
    options = dict(batch_size=4, seed=7, process=Process(1, 2))
    whole = list(epoch_batches(Loader(), 0, 7, **options))
    assert whole == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0)]
    for start in range(8):
        assert list(epoch_batches(Loader(), start, 7, **options)) == whole[start:]


def test_images_seen_leave_out_the_padding_of_each_pass():
    assert [images_seen(step, 10, 4) for step in range(8)] == [0, 4, 8, 10, 14, 18, 20, 24]


def test_only_short_steps_are_stacked_and_within_their_memory():
    model = VGG("tiny", head=Head.parse("gap-3"), image_size=32)

    def size(cut, shape, most=20):
        plan = FeaturePlan(cut, shape, "float32", (0,), False, 0, "memory")
        return stack_size(model, plan, 8, most=most)

    assert size("gap", (8,)) == 20
    assert size("block4_pool", (2, 2, 8)) == 1  # convolutions are left to compute
    assert size("gap", (MAX_STACK_BYTES // (4 * 8 * 3),)) == 3
    assert size("gap", (MAX_STACK_BYTES,)) == 1
    assert stack_size(model, None, 8, most=20) == 1


def make_batches(count, *, masked=0):
    return [
        make_feature_batch(masked=masked if i == count - 1 else 0, seed=i) for i in range(count)
    ]


def test_a_stack_ends_where_it_is_full_where_the_log_is_due_and_with_the_epoch():
    def steps(first, count=9):
        stacks = list(stack_batches(iter(make_batches(count)), 4, step=first, every=6))
        for number, stack in stacks:
            assert {rows.shape[0] for rows in stack.values()} == {4}
            is_present = (stack["index"] >= 0).any(1).tolist()
            assert is_present == [True] * number + [False] * (4 - number)
        return [number for number, _ in stacks]

    assert steps(0) == [4, 2, 3]
    assert steps(5) == [1, 4, 2, 2]
    assert steps(9, count=3) == [3]


def test_a_stack_holds_the_rows_of_its_batches():
    batches = make_batches(3)
    ((_, stack),) = stack_batches(iter(batches), 4, step=0, every=100)
    for i, batch in enumerate(batches):
        for name, rows in batch.items():
            np.testing.assert_array_equal(stack[name][i], rows)
    assert next(stack_batches(iter(batches), 1, step=0, every=100)) == (1, batches[0])


@pytest.mark.parametrize(
    ("kind", "devices"),
    [
        ("jit", 1),
        pytest.param("jit", 4, marks=pytest.mark.slow),
        pytest.param("pmap", 4, marks=pytest.mark.slow),
    ],
)
def test_a_stack_learns_what_its_batches_learn_one_by_one(kind, devices):
    # The last batch has six rows of padding: of four devices three see none of its images.
    batches = make_batches(5, masked=6)
    placement = Placement(kind, num_devices=devices)
    settings = dict(placement=placement, after="gap", unfreeze="none", optimizer="nadam")
    step = make_step(**settings)
    expected, metrics = step.state, {}
    for batch in batches:
        expected, metrics = step(expected, batch)
    last = {name: float(value) for name, value in placement.fetch(metrics).items()}
    step, results = make_step(**settings, stack_batches=True), []
    for every in (5, 2, 1):
        state, sums = step.state, MetricAccumulator(placement)
        for steps, stack in stack_batches(iter(batches), 5, step=0, every=every):
            state, metrics = step(state, stack)
            sums.add(steps, metrics)
        assert sums.fetch() == pytest.approx(last, rel=1e-5)
        assert sums.sums["count"] == 34
        results.append(jax.tree.leaves(placement.fetch(state)))
    for result in results:
        # One program, so the same to the bit however the batches are grouped.
        for a, b in zip(result, results[0], strict=True):
            np.testing.assert_array_equal(a, b)
    for a, b in zip(results[0], jax.tree.leaves(placement.fetch(expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
