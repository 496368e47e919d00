"""The training loop: learn, report, evaluate, keep the best, checkpoint.

Where a run stands is one integer, its step: the order of images is a function of (seed, epoch), and
randomness of (seed, step), so a command with the same settings resumes as if it had never stopped.
"""

import dataclasses
import math
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console

from vggjax.errors import join_names, printable
from vggjax.models.params import Weights, extract
from vggjax.training.cache.features import FeatureCache
from vggjax.training.callbacks.callback import Callbacks
from vggjax.training.collapse.recovery import CollapseMonitor, resume_from_eval_params
from vggjax.training.config import Config
from vggjax.training.console import ProgressConsole, print_run_summary, progress_bar
from vggjax.training.devices.processes import (
    held_by_first,
    num_processes,
    on_first,
    union_over_processes,
)
from vggjax.training.freezing import solves_head
from vggjax.training.linear_probe.baselines import write_baselines
from vggjax.training.linear_probe.solve import solve_head
from vggjax.training.prepare import RunContext, prepare_run, resolve
from vggjax.training.progress import MetricAccumulator, Throughput
from vggjax.training.run_dir.checkpoint import Checkpoints, check_room, is_finite
from vggjax.training.run_dir.folder import find_workdir, lock_workdir, make_workdir, update_dataset
from vggjax.training.run_dir.log import Log
from vggjax.training.run_dir.run_result import (
    ModelInfo,
    RunResult,
    assemble_model,
    load_run_result,
    save_model,
)
from vggjax.training.settings.stages import Stage
from vggjax.training.signals import stop_signals
from vggjax.training.stage_loop import (
    StageLoop,
    checkpoint_bytes,
    evaluate_split,
    mean_metrics,
    read_images,
    report_adapted,
    report_left_out,
)
from vggjax.training.step import TrainState

MEASURED_S = 2.0
"""Seconds of training from which on a stage's time is estimated; the first steps are slow."""


def train(
    config: Config, console: Console | None = None, *, callbacks: Callbacks | None = None
) -> RunResult:
    """Train, or go on training, and save the best weights in the run folder.

    The callbacks are told of the steps and epochs that are logged.

    Raises:
        VggjaxError: settings, data or weights that cannot be used, or a collapse that ends the run.
        Interrupted: SIGINT or SIGTERM; the run was saved and can be resumed.
    """
    console = console or Console()
    if config.workdir is not None and on_first((Path(config.workdir) / "model.json").exists):
        return _load_finished(config, console)
    with progress_bar(console, "comparing images") as progress:
        context = prepare_run(config, progress=progress)
    print_run_summary(console, context)
    return Trainer(context, console, callbacks or Callbacks()).train()


def _load_finished(config: Config, console: Console) -> RunResult:
    """Return the result of a finished run; only the first of several processes has its data."""
    read: list[RunResult] = []

    def load() -> tuple[Config, ModelInfo, Weights]:
        given = resolve(config)
        workdir = find_workdir(given)  # refuses other settings
        result = load_run_result(workdir, strict=True, dataset=given.dataset)
        update_dataset(workdir, given)
        console.print(f"{printable(workdir)} is already trained.", markup=False, soft_wrap=True)
        read.append(result)
        assert result.model is not None and result.info is not None  # it is strict
        return result.config, result.info, extract(result.model) if num_processes() > 1 else {}

    config, info, weights = on_first(load)
    if read:
        return read[0]
    return RunResult(Path(config.workdir or ""), config, assemble_model(info, weights), info)


class Trainer:
    """Trains one run, from wherever it stands to its end."""

    def __init__(self, context: RunContext, console: Console, callbacks: Callbacks):
        self._context, self._callbacks = context, callbacks
        self._console = ProgressConsole(console, context.config.num_epochs)

    def train(self) -> RunResult:
        """Train all stages, save the model with the best weights, and return it with its data."""
        run = self._context
        config, workdir = run.config, run.workdir
        with self._console:
            read_images(run, self._console)
            adapted, self._left_out = run.adapted(), frozenset(run.left_out())
            lock = held_by_first(lambda: lock_workdir(workdir, "a training"))
            with lock, stop_signals() as self._stop:
                data = run.source, run.splits, run.duplicates
                on_first(lambda: make_workdir(workdir, config, *data, contents=run.contents))
                with Checkpoints(workdir, strict=config.strict_resume) as self._checkpoints:
                    self._train_stages()
                predictions = self._features.predict(run.model)
                self._features.discard()
                report_adapted(run, self._console, already=adapted)  # while the network trained
                thresholds = tuple(self._progress.thresholds)
                left_out = union_over_processes(run.left_out())
                info = dataclasses.replace(run.info, left_out=left_out, thresholds=thresholds)
                info = on_first(lambda: save_model(workdir, run.model, info))
                self._stop.agree()
                self._stop.check(workdir)
        model = assemble_model(info, extract(run.model))
        return RunResult(
            workdir,
            config,
            model,
            info,
            run.source,
            run.splits,
            run.duplicates,
            run.duplicate_groups,
            predictions=predictions,
        )

    def _train_stages(self) -> None:
        """Train what is left of all stages; leave the best weights in the model."""
        run = self._context
        self._progress = self._checkpoints.latest_progress()
        for note in self._checkpoints.notes:
            self._console.print(note)
        where = {"step": self._progress.step, "recoveries": self._progress.recoveries}
        sizes = [checkpoint_bytes(run, stage) for stage in run.stages]
        on_first(lambda: check_room(run.workdir, max(sizes)))
        record = partial(self._callbacks.record, run.workdir, run.config)
        to_events = run.config.writes_events
        with Log(run.workdir, **where, tensorboard=to_events, on_record=record) as self._log:
            if self._progress.step:
                self._console.print(f"Resuming from step {self._progress.step:,}.")
                self._checkpoints.restore_model(run.model, self._progress.step)
            alone = num_processes() == 1  # else the first one evaluates, from the images
            self._features = FeatureCache(run, self._console, self._stop, with_test=alone)
            for stage in run.stages:
                if not self._progress.gave_up:
                    self._train_stage(stage)
        self._checkpoints.restore_model(run.model, self._progress.best_step)

    def _train_stage(self, stage: Stage) -> None:
        last_step = (stage.first_epoch + stage.epochs) * self._context.steps_per_epoch
        if self._progress.step >= last_step:
            return
        with self._features.of(stage) as (run, cut):
            if cut and run.config.baselines and stage is run.stages[0]:
                self._console.print(write_baselines(run, self._features.of_splits(cut)))
            loop = self._begin_stage(run, stage, cut)
            while self._progress.step < last_step and not self._out_of_patience(stage):
                went_back = self._train_epoch(loop)
                if self._progress.gave_up:
                    return
                if went_back:
                    loop = self._begin_stage(run, stage, cut)
                else:
                    self._stop.agree()
                    self._stop.check(run.workdir)
            eval_params = run.placement.fetch(loop.state).eval_params
            nnx.update(run.model, *jax.tree.map(jnp.asarray, eval_params))

    def _train_epoch(self, loop: StageLoop) -> bool:
        """Train what is left of an epoch; return whether the run went back or gave up."""
        run, config, progress = loop.run, loop.run.config, self._progress
        epoch, first_step = divmod(progress.step, run.steps_per_epoch)
        where = {"epoch": epoch + 1, "stage": loop.stage.name}
        title = f"epoch {epoch + 1}/{config.num_epochs}"
        self._console.begin(title, run.steps_per_epoch, done=first_step, lines=True)
        metrics = MetricAccumulator(run.placement, progress.sums)
        throughput = Throughput(loop.train_step)
        if solves_head(config, loop.stage):
            self._solve_head(loop, metrics, throughput)
        elif self._learn(loop, metrics, throughput, where):
            return True
        metrics.fetch()
        values = mean_metrics(metrics.sums, "train")
        values["images_per_s"] = throughput.images_per_s()
        val = evaluate_split(run, "val", loop.eval_step, loop.state)  # 3. evaluate
        values |= val
        values["seconds"] = throughput.seconds()
        values |= loop.rates(progress.step, progress.factor)
        state = run.placement.fetch(loop.state)
        sums = metrics.sums if is_finite(state) else metrics.sums | {"loss": math.nan}
        if self._monitor.recovered(sums, val=values):
            return True
        value = values[config.best_metric]  # 4. keep the best
        loss = values["val/loss"]
        is_best = progress.update_best(-value if config.best_metric == "val/loss" else value, loss)
        if is_best:
            progress.best_accuracy = values["val/accuracy"]
            progress.thresholds = val.get("val/thresholds", [])
        self._monitor.record_epoch(values, is_best=is_best)
        lower_rates = progress.reduce_on_plateau(config, values["val/loss"])
        progress.sums = {}
        # Before the checkpoint: a resume drops the lines after it, so none is lost or there twice.
        self._log.write("epoch", progress.step, **where, **values, is_best=is_best)
        self._save(state)  # 5. checkpoint
        self._console.print_epoch(epoch + 1, loop.stage.name, values, is_best=is_best)
        self._left_out = report_left_out(self._context, self._console, already=self._left_out)
        if lower_rates:
            factor = run.placement.put_state(np.float32(progress.factor))
            loop.state = loop.state._replace(factor=factor)
            self._console.print_plateau(config, progress.factor)
        return False

    def _learn(
        self,
        loop: StageLoop,
        metrics: MetricAccumulator,
        throughput: Throughput,
        where: dict[str, Any],
    ) -> bool:
        """Take the steps that are left of an epoch; return whether the run went back."""
        run, progress = loop.run, self._progress
        last_step = (progress.step // run.steps_per_epoch + 1) * run.steps_per_epoch
        with closing(loop.batches(progress.step, last_step)) as batches:
            for steps, batch in batches:
                loop.state, step_metrics = loop.train_step(loop.state, batch)  # 1. learn
                metrics.add(steps, step_metrics)
                throughput.add(loop.num_images(progress.step, progress.step + steps))
                progress.step += steps
                if progress.step % loop.log_every_steps == 0:  # 2. report; the only wait
                    values = mean_metrics(metrics.fetch(), "train")
                    if self._monitor.recovered(metrics.sums):
                        return True
                    rates = loop.rates(progress.step, progress.factor)
                    self._log.write("step", progress.step, **where, **values, **rates)
                    self._stop.agree()
                    self._show(loop, values, throughput)
                self._console.advance(progress.step % run.steps_per_epoch or run.steps_per_epoch)
                self._save_within_epoch(loop, metrics)
        return False

    def _show(self, loop: StageLoop, values: dict[str, float], throughput: Throughput) -> None:
        """Show the metrics beside the bar and, once in a stage, how long it takes."""
        images_per_s = throughput.images_per_s()
        self._console.show_metrics(values, images_per_s)
        if not loop.is_estimated and throughput.seconds(without_compiling=True) >= MEASURED_S:
            loop.is_estimated = True
            seconds = loop.seconds_left(self._progress.step, images_per_s)
            self._console.print_estimate(self._context, loop.stage, seconds)

    def _solve_head(
        self, loop: StageLoop, metrics: MetricAccumulator, throughput: Throughput
    ) -> None:
        """Solve the head in place of an epoch's steps."""
        run, progress = loop.run, self._progress
        metrics.sums, text = solve_head(run)
        throughput.add(int(metrics.sums["count"]))
        progress.step = (progress.step // run.steps_per_epoch + 1) * run.steps_per_epoch
        state = loop.initial_state(step=progress.step, factor=progress.factor)
        loop.state = run.placement.put_state(state)
        self._console.print(f"{loop.stage.name}: {text}")

    def _begin_stage(self, run: RunContext, stage: Stage, cut: str | None) -> StageLoop:
        """Begin a stage, or the rest of one, whose batches have the features of layer `cut`.

        A later stage begins with the best weights so far, not with the last ones.
        """
        progress, console = self._progress, self._console
        loop = StageLoop(run, stage, cut, lambda text: console.print(f"{stage.name}: {text}"))
        is_resumed = progress.stage == stage.name
        if not is_resumed:
            progress.begin_stage(stage.name)
            if 0 < progress.best_step < progress.step:
                self._checkpoints.restore_model(run.model, progress.best_step)
        state = loop.initial_state(step=progress.step, factor=progress.factor)
        if is_resumed:
            state = self._checkpoints.restore_optimizer(state, progress.step)
        if progress.back_step == progress.step:
            state = resume_from_eval_params(state)
        loop.state = run.placement.put_state(state)
        self._monitor = CollapseMonitor(run, stage, progress, self._checkpoints, self._log, console)
        self._saved_s, self._saved_step = time.monotonic(), progress.step
        return loop

    def _out_of_patience(self, stage: Stage) -> bool:
        config, is_last = self._context.config, stage is self._context.stages[-1]
        if not (is_last and 0 < config.patience <= self._progress.stale_epochs):
            return False
        self._console.print(
            f"No better {config.best_metric} for {config.patience} epochs: stopping early."
        )
        return True

    def _save_within_epoch(self, loop: StageLoop, metrics: MetricAccumulator) -> None:
        """Save inside a long epoch, and when a signal asks for the end of the run."""
        run = loop.run
        is_due = time.monotonic() - self._saved_s > 60 * run.config.checkpoint_minutes
        if (self._stop.signum or is_due) and self._progress.step % run.steps_per_epoch:
            metrics.fetch()
            state = run.placement.fetch(loop.state)
            if is_finite(state):
                self._progress.sums = dict(metrics.sums)
                self._save(state)
            else:  # the next line of the log stops the run, or lets it recover
                step, saved = self._progress.step, self._saved_step
                kept = f"the checkpoint of step {saved:,}" if saved else "none: there is none yet"
                self._console.print(
                    f"Step {step:,} is not saved: its weights are not finite. Its images: "
                    f"{join_names(loop.image_ids(step - 1))}. Kept: {kept}."
                )
            self._stop.check(run.workdir)

    def _save(self, state: TrainState) -> None:
        self._checkpoints.save(state, self._progress)
        self._saved_s, self._saved_step = time.monotonic(), self._progress.step
