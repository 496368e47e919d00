"""The training of one run, top to bottom: step, report, evaluate, keep the best, stop.

Where a run stands is one integer, its step: order is a function of (seed, epoch), randomness of
(seed, step), so a rerun with the same settings goes on as if it had never been killed.
"""

import dataclasses
import time
from collections.abc import Callable
from contextlib import closing

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console

from vggjax.data.loader import Batch, prefetch
from vggjax.models.network import Network
from vggjax.models.params import extract
from vggjax.training.batches import epoch_batches, images_seen, stack_batches, stack_size
from vggjax.training.cache.features import cached_features
from vggjax.training.collapse.recovery import CollapseMonitor, resume_from_eval_params
from vggjax.training.config import Config
from vggjax.training.console import ProgressConsole, print_run_summary, progress_bar
from vggjax.training.freezing import label_layers, make_optimizer, make_schedules
from vggjax.training.prepare import RunContext, prepare_run
from vggjax.training.progress import CompiledStep, MetricAccumulator, Throughput, TrainProgress
from vggjax.training.reading import adapted, left_out, read_images, report_adapted
from vggjax.training.run_dir.checkpoint import Checkpoints
from vggjax.training.run_dir.folder import lock_workdir, make_workdir
from vggjax.training.run_dir.log import Log
from vggjax.training.run_dir.run_result import RunResult, load_run_result
from vggjax.training.run_dir.saved_model import assemble_model, save_model
from vggjax.training.signals import Interrupted as Interrupted
from vggjax.training.signals import Stop, stop_signals
from vggjax.training.stages import Stage
from vggjax.training.step import TrainState, make_eval_step, make_state, make_train_step


def train(config: Config, *, console: Console | None = None) -> RunResult:
    """Trains, or goes on training, and saves the best weights in the run folder.

    Raises:
        VggjaxError: settings, data or weights that cannot be used, or a collapse that ends the run.
        Interrupted: a Ctrl-C or SIGTERM; the run was saved and can go on.
    """
    console = console or Console()
    with progress_bar(console, "comparing images") as progress:
        run = prepare_run(config, progress=progress)
    config = run.config
    if (run.workdir / "model.json").exists():
        console.print(f"{run.workdir} is trained already.", markup=False, soft_wrap=True)
        return load_run_result(run.workdir, require_data=True)

    print_run_summary(console, run)
    with ProgressConsole(console, config.num_epochs) as screen:
        read_images(run, screen)
        said = adapted(run)
        make_workdir(run.workdir, config, run.source, run.splits, run.duplicates)
        with (
            lock_workdir(run.workdir),
            stop_signals() as stop,
            Checkpoints(run.workdir) as checkpoints,
        ):
            position = TrainProgress(**(checkpoints.latest_progress() or {}))
            where = {"step": position.step, "recoveries": position.recoveries}
            with Log(run.workdir, **where, tensorboard=config.tensorboard) as log:
                if position.step:
                    screen.print(f"Going on from step {position.step:,}.")
                    checkpoints.restore_model(run.model, position.step)
                for stage in run.stages:
                    _train_stage(run, stage, position, checkpoints, log, screen, stop)
            checkpoints.restore_model(run.model, position.best_step)
            stop.check(run.workdir)
        report_adapted(run, screen, said=said)  # where they were read while the network trained
    info = dataclasses.replace(run.info, left_out=left_out(run))
    save_model(run.workdir, run.model, info)
    return RunResult(
        workdir=run.workdir,
        config=config,
        model=assemble_model(info, extract(run.model)),
        info=info,
        source=run.source,
        splits=run.splits,
        duplicates=run.duplicates,
        left_out=info.left_out,
    )


def _train_stage(
    run: RunContext,
    stage: Stage,
    position: TrainProgress,
    checkpoints: Checkpoints,
    log: Log,
    screen: ProgressConsole,
    stop: Stop,
) -> None:
    last_step = (stage.first_epoch + stage.epochs) * run.steps_per_epoch
    if position.step < last_step:
        with cached_features(run, stage, screen, stop) as (kept, cut):
            through = False
            while not through:
                through = _train_epochs(
                    kept, stage, cut, last_step, position, checkpoints, log, screen, stop
                )


def _train_epochs(
    run: RunContext,
    stage: Stage,
    cut: str | None,
    last_step: int,
    position: TrainProgress,
    checkpoints: Checkpoints,
    log: Log,
    screen: ProgressConsole,
    stop: Stop,
) -> bool:
    """Trains what a stage has left; False where the run went back after a collapse."""
    config, placement, steps_per_epoch = run.config, run.placement, run.steps_per_epoch
    log_every_steps = min(config.log_every_steps, max(1, steps_per_epoch // 4))
    plan = run.feature_plans[stage.name] if cut else None
    size = stack_size(run.model, plan, run.batch_size, most=log_every_steps)
    state, train_step, rates = _begin_stage(run, stage, cut, size > 1, position, checkpoints)
    train_step = CompiledStep(train_step, lambda said: screen.print(f"{stage.name}: {said}"))
    mode = config.preprocessing.mode
    eval_step = CompiledStep(make_eval_step(run.model, placement=placement, mode=mode, after=cut))
    watch = CollapseMonitor(run, stage, position, checkpoints, log, screen)

    def put(item: tuple[int, Batch]) -> tuple[int, dict[str, jax.Array]]:
        return item[0], placement.put_batch(item[1], stack_batches=size > 1)

    saved_s = time.monotonic()
    while position.step < last_step:
        if stage is run.stages[-1] and 0 < config.patience <= position.stale_epochs:
            screen.print(f"No better {config.monitor} for {config.patience} epochs: stopped.")
            break
        epoch, start = divmod(position.step, steps_per_epoch)
        epoch_ends = (epoch + 1) * steps_per_epoch
        where = {"epoch": epoch + 1, "stage": stage.name}
        screen.begin(f"epoch {epoch + 1}/{config.num_epochs}", steps_per_epoch, done=start)
        tally, clock = MetricAccumulator(placement, position.sums), Throughput(train_step)
        loader = run.loaders["train"]
        batches = epoch_batches(
            loader,
            position.step,
            epoch_ends,
            batch_size=run.batch_size,
            seed=config.seed,
            process=placement.process,
        )
        chunks = stack_batches(batches, size, step=position.step, every=log_every_steps)
        with closing(prefetch(chunks, put)) as chunks:
            for steps, batch in chunks:
                state, metrics = train_step(state, batch)  # 1. learn
                tally.add(steps, metrics)
                shown = images_seen(position.step, len(loader), run.batch_size)
                position.step += steps
                clock.add(images_seen(position.step, len(loader), run.batch_size) - shown)
                if position.step % log_every_steps == 0:  # 2. report; the only wait
                    values = _means(tally.fetch(), "train")
                    if watch.recovered(tally.sums):
                        return False
                    log.write("step", position.step, **where, **values, **rates(position.step))
                    screen.show_metrics(values, clock.images_per_s())
                screen.advance(position.step % steps_per_epoch or steps_per_epoch)
                is_due = time.monotonic() - saved_s > 60 * config.checkpoint_minutes
                if (stop.signum or is_due) and position.step % steps_per_epoch:
                    tally.fetch()
                    position.sums = dict(tally.sums)
                    checkpoints.save(placement.fetch(state), position, is_best=False)
                    saved_s = time.monotonic()
                    stop.check(run.workdir)

        tally.fetch()
        values = _means(tally.sums, "train")  # 3. evaluate
        values["images_per_s"] = clock.images_per_s()
        values |= evaluate_split(run, "val", eval_step, state)
        values["seconds"] = clock.seconds()
        values |= rates(position.step)
        if watch.recovered(tally.sums, val=values):
            return False
        value = values[config.monitor]  # 4. keep the best, and slow down where it gets no better
        is_best = position.update_best(-value if config.monitor == "val/loss" else value)
        watch.record_epoch(values, is_best=is_best)
        slower = position.reduce_on_plateau(config, values["val/loss"])
        position.sums = {}
        checkpoints.save(placement.fetch(state), position, is_best=is_best)
        saved_s = time.monotonic()
        log.write("epoch", position.step, **where, **values)
        screen.print_epoch(epoch + 1, stage.name, values, is_best=is_best)
        if slower:
            state = state._replace(factor=placement.put_state(np.float32(position.factor)))
            screen.print_plateau(config, position.factor)
        stop.check(run.workdir)
    _put_back(run.model, placement.fetch(state))
    return True


def _begin_stage(
    run: RunContext,
    stage: Stage,
    cut: str | None,
    stack_batches: bool,
    position: TrainProgress,
    checkpoints: Checkpoints,
) -> tuple[TrainState, Callable, Callable[[int], dict[str, float]]]:
    """Compiles a stage's step and makes its state, with the checkpoint's moments if resumed."""
    config = run.config
    labels = label_layers(run.model, stage.unfreeze, by_block=config.layer_decay != 1)
    schedules = make_schedules(config, stage, run.steps_per_epoch)
    tx = make_optimizer(config, labels, schedules)
    train_step = make_train_step(
        run.model,
        tx,
        labels,
        placement=run.placement,
        mode=config.preprocessing.mode,
        augmentation=config.augmentation,
        class_weights=run.class_weights,
        label_smoothing=config.label_smoothing,
        ema=config.ema,
        seed=config.seed,
        after=cut,
        stack_batches=stack_batches,
    )
    is_resumed = position.stage == stage.name
    if not is_resumed:
        position.begin_stage(stage.name)
    state = make_state(
        run.model, tx, labels, step=position.step, factor=position.factor, ema=config.ema
    )
    if is_resumed:
        state = checkpoints.restore_optimizer(state, position.step)
    if position.back_step == position.step:
        state = resume_from_eval_params(state)
    first_step = stage.first_epoch * run.steps_per_epoch

    def rates(step: int) -> dict[str, float]:
        used = {label for label in labels.values() if label in schedules}
        return {
            f"learning_rate/{label}": float(schedules[label](step - 1 - first_step))
            * position.factor
            for label in sorted(used)
        }

    return run.placement.put_state(state), train_step, rates


def evaluate_split(
    run: RunContext, split: str, eval_step: Callable, state: TrainState
) -> dict[str, float]:
    """Scores every readable image of a split once: `val/loss`, `val/accuracy`, `val/top5`."""
    tally, judged = MetricAccumulator(run.placement), state.eval_params
    batches = run.loaders[split].batches(run.batch_size, process=run.placement.process)
    with closing(prefetch(batches, run.placement.put_batch)) as batches:
        for batch in batches:
            tally.add(1, eval_step(judged, batch))
    tally.fetch()
    values = _means(tally.sums, split)
    if len(run.source.class_names) <= 5:
        del values[f"{split}/top5"]
    return values


def _put_back(model: Network, state: TrainState) -> None:
    nnx.update(model, *jax.tree.map(jnp.asarray, state.eval_params))


def _means(sums: dict[str, float], split: str) -> dict[str, float]:
    count = max(float(sums["count"]), 1.0)
    names = {"loss": "loss", "correct": "accuracy", "top5": "top5"}
    means = {f"{split}/{name}": float(sums[key]) / count for key, name in names.items()}
    if split == "train":
        del means["train/top5"]
    return means
