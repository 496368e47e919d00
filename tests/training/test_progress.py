"""Where a run stands, what its epoch adds up to, and how fast it is."""

import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx
from rich.console import Console
from support.steps import make_batch, make_step

from vggjax.data.augment.settings import PRESETS
from vggjax.errors import VggjaxError
from vggjax.training.console import ProgressConsole, draws_bars, progress_bar
from vggjax.training.devices import memory
from vggjax.training.parallel import Placement
from vggjax.training.progress import CompiledStep, MetricAccumulator, Throughput, TrainProgress
from vggjax.training.stage_loop import StageLoop
from vggjax.training.step import make_eval_step


def test_sums_do_not_depend_on_when_they_are_fetched_or_how_steps_are_stacked():
    placement = Placement(num_devices=1)
    values = np.random.default_rng(0).random(7).astype(np.float32)
    often, once, stacked = (MetricAccumulator(placement, {"loss": 0.1}) for _ in range(3))
    for value in values:
        often.add(1, {"loss": placement.put_state(value)})
        assert often.fetch() == {"loss": float(value)}
        once.add(1, {"loss": placement.put_state(value)})
    once.fetch()
    padded = np.append(values, np.float32(np.nan))
    stacked.add(7, {"loss": placement.put_state(padded)})
    assert stacked.fetch() == {"loss": float(values[-1])}
    assert often.sums == once.sums == stacked.sums
    assert stacked.fetch() == {}


@pytest.mark.parametrize(
    ("kind", "devices"), [("jit", 1), pytest.param("pmap", 4, marks=pytest.mark.slow)]
)
def test_steps_compile_once_and_transfer_nothing_implicitly(kind, devices, caplog):
    placement, messages = Placement(kind, num_devices=devices), []
    step = make_step(placement=placement, augmentation=PRESETS["flip"], unfreeze="none")
    evaluate = make_eval_step(step.model, placement=placement, mode="torch")
    train_step, eval_step = CompiledStep(step.run, messages.append), CompiledStep(evaluate)
    state = step.state
    for number, masked in enumerate((0, 0, 5)):  # the padded last batch has the same shape
        batch = placement.put_batch(make_batch(masked=masked))
        caplog.clear()
        with jax.log_compiles():
            state, _ = train_step(state, batch)
            eval_step((state.params, state.batch_stats), batch)
        assert bool(caplog.records) == (number == 0)
    assert len(messages) == 1 and messages[0].startswith("compiled in ")


def test_an_implicit_transfer_to_the_devices_is_an_error():
    step = make_step(after="gap", unfreeze="none")
    evaluate = make_eval_step(step.model, placement=step.placement, mode="torch", after="gap")
    state = nnx.split(step.model, nnx.Param, nnx.BatchStat)[1:]
    batch = {"features": np.ones((4, 8), np.float32), "label": np.zeros(4, np.int32),
             "mask": np.ones(4, np.float32)}  # fmt: skip
    with pytest.raises(Exception, match="[Dd]isallowed"):
        CompiledStep(evaluate)(state, batch)
    CompiledStep(evaluate)(state, step.placement.put_batch(batch))


def test_images_per_s_leave_out_the_time_of_compiling(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def compile_slowly(state, batch):
        now[0] += 10.0

    step = CompiledStep(compile_slowly)
    throughput = Throughput(step)
    now[0] += 1.0
    step(None, {})
    throughput.add(32)
    now[0] += 1.0
    assert (throughput.images_per_s(), throughput.seconds()) == (16.0, 12.0)
    throughput = Throughput(step)  # of the next epoch
    throughput.add(32)
    now[0] += 4.0
    assert throughput.images_per_s() == 8.0


def test_the_best_value_is_the_first_of_the_highest_and_nan_is_none():
    progress, best = TrainProgress(), []
    for step, value in enumerate([math.nan, 0.5, 0.5, 0.7, math.nan], start=1):
        progress.step = step
        best.append(progress.update_best(value))
    assert best == [True, True, False, True, False]
    assert (progress.best_value, progress.best_step, progress.stale_epochs) == (0.7, 4, 1)


def test_of_equal_values_the_lower_loss_is_kept_and_is_no_progress():
    progress, best = TrainProgress(), []
    for step, loss in enumerate([0.17, 0.2, 0.1, math.nan, 0.1], start=1):
        progress.step = step
        best.append(progress.update_best(1.0, loss))
    assert best == [True, False, True, False, False]
    assert (progress.best_step, progress.best_loss, progress.stale_epochs) == (3, 0.1, 4)
    older = TrainProgress(best_value=1.0, best_step=2)  # of a checkpoint without the loss
    assert not older.update_best(1.0, 0.0) and older.best_step == 2


def test_a_new_stage_has_its_full_rates_except_for_a_recovery():
    progress = TrainProgress(rate_factor=0.1, plateau_factor=0.5, plateau_best=1.0)
    progress.begin_stage("head+block5")
    assert (progress.factor, progress.plateau_best) == (0.1, None)


@pytest.mark.parametrize(
    ("limit_mb", "advice"),
    [(1e6, "`batch_size` 32 would"), (10, "`batch_size` (2|4|8|16) would"), (1e-6, "A smaller ")],
)
@pytest.mark.parametrize("is_async", [False, True])
def test_out_of_memory_names_the_batch_size_that_fits(monkeypatch, limit_mb, advice, is_async):
    monkeypatch.setattr(memory, "memory_limit", lambda: int(1e6 * limit_mb))
    sizes = jax.jit(lambda state, batch: state + batch["images"].sum())

    class Full:
        lower = sizes.lower

        def __call__(self, state, batch):
            return self if is_async else self.block_until_ready()

        def block_until_ready(self):
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    state = jax.device_put(np.float32(0))
    state.delete()  # as a step that takes over its memory does
    batch = jax.device_put({"images": np.ones((64, 500_000), np.uint8), "mask": np.ones(64)})
    with pytest.raises(VggjaxError, match=f"step of 64 images. .*{advice}"):
        CompiledStep(Full())(state, batch)


def test_other_errors_of_a_step_stay_what_they_are():
    def fail(state, batch):
        raise RuntimeError("INTERNAL: a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        CompiledStep(fail)(None, {})


def test_long_work_prints_a_line_a_tenth_where_there_is_no_terminal(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def lines(work, seconds_each):
        for done in range(1, 41):
            now[0] += seconds_each
            work(done)
        return capsys.readouterr().out.splitlines()

    console = ProgressConsole(Console(), epochs=1)
    with console:
        console.begin("features", 40, lines=True)
        slow = lines(console.advance, 3.0)
        assert slow[0] == "features: 10 %, 4 of 40, about 2 min left" and len(slow) == 9
        assert slow[-1] == "features: 90 %, 36 of 40, about 12 s left"
        console.begin("features", 40, lines=True)
        assert [line.split()[1] for line in lines(console.advance, 1.2)] == ["20", "40", "60", "90"]
        console.begin("features", 40, lines=True)
        assert not lines(console.advance, 0.1)  # done within seconds
        console.begin("an epoch, which has its own line", 40)
        assert not lines(console.advance, 9.0)
    with progress_bar(Console(), "evaluating test") as move:
        assert len(lines(lambda done: move(done, 40), 3.0)) == 9
    with progress_bar(Console(force_terminal=True), "evaluating test") as move:
        assert not any("left" in line for line in lines(lambda done: move(done, 40), 3.0))


def test_a_stage_s_time_counts_its_steps_and_its_evaluations(capsys):
    loop = object.__new__(StageLoop)
    loaders = {"train": range(30), "val": range(10)}
    stages = [
        SimpleNamespace(name=name, first_epoch=i * 2, epochs=2) for i, name in enumerate("ab")
    ]
    config = SimpleNamespace(patience=3)
    loop.run = SimpleNamespace(
        steps_per_epoch=4, batch_size=8, loaders=loaders, stages=stages, config=config
    )
    for stage, step, images in (
        (stages[0], 1, 22 + 30 + 2 * 10 / 2),
        (stages[1], 12, 30 + 10 / 2),
    ):
        loop.stage = stage
        seconds = loop.seconds_left(step, images_per_s=0.5)
        assert seconds == pytest.approx(images / 0.5)
        ProgressConsole(Console(), epochs=4).print_estimate(loop.run, stage, seconds)
    expected = ["a: about 2 min until epoch 2; then b", "b: at most 70 s until epoch 4"]
    assert capsys.readouterr().out.splitlines() == expected


@pytest.mark.parametrize("has_widgets", [True, False])
def test_a_notebook_has_bars_where_ipywidgets_can_draw_them(has_widgets, monkeypatch):
    spec = object() if has_widgets else None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    assert draws_bars(Console(force_jupyter=True)) == has_widgets
    assert not draws_bars(Console(force_jupyter=False, force_terminal=False))
    assert draws_bars(Console(force_jupyter=False, force_terminal=True))
