"""Several steps in one dispatch, and a loop that waits for nobody: the same, to the bit."""

import jax
import numpy as np
import pytest
from test_step import BN, PLAIN, make_batch

from vggjax.data.loader import Batch
from vggjax.models.head import Head
from vggjax.models.network import VGG
from vggjax.training.batches import stack_batches
from vggjax.training.config import Config
from vggjax.training.freezing import label_layers, make_optimizer, make_schedules, plan_stages
from vggjax.training.parallel import Placement
from vggjax.training.progress import CompiledStep, MetricAccumulator, Throughput
from vggjax.training.step import make_eval_step, make_state, make_train_step


def make_batches(count, *, masked=0) -> list[Batch]:
    rng = np.random.default_rng(1)
    batches = []
    for i in range(count):
        batch = make_batch(8, masked=masked * (i == count - 1))
        del batch["images"]
        batch["features"] = rng.random((8, 8), np.float32)
        batch["index"] = np.where(batch["mask"] > 0, np.arange(8), -1)
        batches.append(batch)
    return batches


def head_step(placement, *, chunks):
    model = VGG(PLAIN, head=Head.parse("gap-16-0.5-3"), image_size=32)
    config = Config(optimizer="nadam", augment="none", epochs=4)
    labels = label_layers(model, ("none",))
    tx = make_optimizer(config, labels, make_schedules(config, plan_stages(config)[-1], 5))
    options = dict(placement=placement, mode="torch", seed=5, after="gap", stack_batches=chunks)
    step = make_train_step(model, tx, labels, **options)
    return step, placement.put_state(make_state(model, tx, labels))


def test_a_chunk_ends_where_it_is_full_where_the_log_is_due_and_with_the_epoch():
    def steps(first, count=9):
        made = list(stack_batches(iter(make_batches(count)), 4, step=first, every=6))
        for number, chunk in made:
            assert {rows.shape[0] for rows in chunk.values()} == {4}
            is_there = (chunk["index"] >= 0).any(1).tolist()
            assert is_there == [True] * number + [False] * (4 - number)
        return [number for number, _ in made]

    assert steps(0) == [4, 2, 3]
    assert steps(5) == [1, 4, 2, 2]
    assert steps(9, count=3) == [3]


def test_a_chunk_s_rows_are_the_batches_rows():
    batches = make_batches(3)
    ((_, chunk),) = stack_batches(iter(batches), 4, step=0, every=100)
    for i, batch in enumerate(batches):
        for name, rows in batch.items():
            np.testing.assert_array_equal(chunk[name][i], rows)


@pytest.mark.parametrize(("kind", "devices"), [("jit", 1), ("jit", 4), ("pmap", 4)])
def test_a_chunk_learns_what_its_batches_learn_one_by_one_to_the_bit(kind, devices):
    # The last batch has six rows of padding: of four devices three see none of its images.
    batches = make_batches(5, masked=6)
    placement = Placement(kind, num_devices=devices)
    step, state = head_step(placement, chunks=False)
    expected = []
    for batch in batches:
        state, metrics = step(state, placement.put_batch(batch))
        expected.append(placement.fetch(metrics))
    for size in (5, 3):
        step, learned = head_step(placement, chunks=True)
        found = MetricAccumulator(placement)
        for steps, chunk in stack_batches(iter(batches), size, step=0, every=5):
            learned, metrics = step(learned, placement.put_batch(chunk, stack_batches=True))
            found.add(steps, metrics)
        last = found.fetch()
        ours, theirs = placement.fetch(learned), placement.fetch(state)
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            # Under pmap the two programs may add the devices' sums in another order.
            np.testing.assert_allclose(
                a, b, rtol=1e-6 if kind == "pmap" else 0, atol=1e-9 if kind == "pmap" else 0
            )
        assert last == pytest.approx({name: float(v) for name, v in expected[-1].items()})
        assert found.sums["count"] == 34


def test_a_tally_s_sums_do_not_depend_on_when_they_are_fetched():
    placement = Placement(num_devices=1)
    values = np.random.default_rng(0).random(7).astype(np.float32)
    often, once, chunked = (MetricAccumulator(placement, {"loss": 0.1}) for _ in range(3))
    for value in values:
        often.add(1, {"loss": placement.put_state(value)})
        assert often.fetch() == {"loss": float(value)}
        once.add(1, {"loss": placement.put_state(value)})
    once.fetch()
    padded = np.append(values, np.float32(np.nan))
    chunked.add(7, {"loss": placement.put_state(padded)})
    assert chunked.fetch() == {"loss": float(values[-1])}
    assert often.sums == once.sums == chunked.sums
    assert chunked.fetch() == {}


@pytest.mark.parametrize(("kind", "devices"), [("jit", 1), ("pmap", 4)])
def test_steps_move_nothing_to_the_devices_by_the_way_and_compile_once(kind, devices):
    placement = Placement(kind, num_devices=devices)
    traced = []
    compiled = placement.compile

    def compile_(function, **options):
        def counted(state, batch):
            traced.append(function.__name__)
            return function(state, batch)

        return compiled(counted, **options)

    placement.compile = compile_
    model = VGG(BN, head=Head.parse("gap-16-0.5-3"), image_size=32)
    config, labels = Config(weights="none", unfreeze="all"), label_layers(model, ("all",))
    tx = make_optimizer(config, labels, make_schedules(config, plan_stages(config)[-1], 5))
    options = dict(placement=placement, mode="torch")
    said = []
    step = make_train_step(model, tx, labels, **options, augmentation=config.augmentation)
    train_step, eval_step = (
        CompiledStep(step, said.append),
        CompiledStep(make_eval_step(model, **options)),
    )
    state = placement.put_state(make_state(model, tx, labels))
    for masked in (0, 0, 5):  # the odd last batch has the same shape
        batch = placement.put_batch(make_batch(8, masked=masked))
        state, _ = train_step(state, batch)
        eval_step((state.params, state.batch_stats), batch)
    assert sorted(traced) == ["eval_step", "train_step"]
    assert len(said) == 1 and said[0].startswith("compiled in ")


def test_images_per_s_leave_out_what_compiles(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def compiles(state, batch):
        now[0] += 10.0
        return state

    program = CompiledStep(compiles)
    clock = Throughput(program)
    now[0] += 1.0
    program(None, {})
    clock.add(32)
    now[0] += 1.0
    assert (clock.images_per_s(), clock.seconds()) == (16.0, 12.0)
    clock = Throughput(program)  # the next epoch
    clock.add(32)
    now[0] += 4.0
    assert clock.images_per_s() == 8.0
