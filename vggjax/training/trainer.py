"""The training loop: learn, report, evaluate, keep the best, checkpoint.

Where a run stands is one integer, its step: the order of images is a function of (seed, epoch), and
randomness of (seed, step), so a command with the same settings resumes as if it had never stopped.
"""

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich.console import Console

from vggjax.data.loader import Batch, prefetch
from vggjax.errors import printable
from vggjax.models.params import extract
from vggjax.training.batches import epoch_batches, images_seen, stack_batches, stack_size
from vggjax.training.cache.features import cached_features
from vggjax.training.collapse.recovery import CollapseMonitor, resume_from_eval_params
from vggjax.training.config import Config
from vggjax.training.console import ProgressConsole, print_run_summary, progress_bar
from vggjax.training.freezing import Labels, label_layers, make_optimizer, make_schedules
from vggjax.training.prepare import RunContext, prepare_run, resolve
from vggjax.training.progress import CompiledStep, MetricAccumulator, Throughput, TrainProgress
from vggjax.training.run_dir.checkpoint import Checkpoints
from vggjax.training.run_dir.folder import find_workdir, lock_workdir, make_workdir
from vggjax.training.run_dir.log import Log
from vggjax.training.run_dir.run_result import RunResult, load_run_result
from vggjax.training.run_dir.saved_model import assemble_model, save_model
from vggjax.training.signals import Stop, stop_signals
from vggjax.training.stages import Stage
from vggjax.training.step import TrainState, make_eval_step, make_state, make_train_step

MAX_NAMED = 20
"""Unreadable images to print by name; model.json names all of them."""


def train(config: Config, console: Console | None = None) -> RunResult:
    """Train, or go on training, and save the best weights in the run folder.

    Raises:
        VggjaxError: settings, data or weights that cannot be used, or a collapse that ends the run.
        Interrupted: SIGINT or SIGTERM; the run was saved and can be resumed.
    """
    console = console or Console()
    finished = _load_finished(config)
    if finished is not None:
        name = printable(finished.workdir)
        console.print(f"{name} is trained already.", markup=False, soft_wrap=True)
        return finished
    with progress_bar(console, "comparing images") as progress:
        context = prepare_run(config, progress=progress)
    print_run_summary(console, context)
    return Trainer(context, console).train()


def _load_finished(config: Config) -> RunResult | None:
    if config.workdir is None or not (Path(config.workdir) / "model.json").exists():
        return None
    workdir = find_workdir(resolve(config))  # refuses other settings
    return load_run_result(workdir, require_data=True)


class Trainer:
    """Trains one run, from wherever it stands to its end.

    Args:
        context: what the run needs.
        console: where to report progress.
    """

    _checkpoints: Checkpoints
    _log: Log
    _progress: TrainProgress
    _stop: Stop
    _saved_s: float

    def __init__(self, context: RunContext, console: Console):
        self._context = context
        self._console = ProgressConsole(console, context.config.num_epochs)

    def train(self) -> RunResult:
        """Train all stages, save the model with the best weights, and return it with its data.

        Raises:
            VggjaxError: unreadable images, a folder in use, or a collapse that ends the run.
            Interrupted: SIGINT or SIGTERM; the run was saved and can be resumed.
        """
        run = self._context
        config, workdir = run.config, run.workdir
        with self._console:
            read_images(run, self._console)
            adapted = run.adapted()
            with lock_workdir(workdir), stop_signals() as self._stop:
                make_workdir(workdir, config, run.source, run.splits, run.duplicates)
                with Checkpoints(workdir) as self._checkpoints:
                    self._train_stages()
                report_adapted(run, self._console, already=adapted)  # while the network trained
                info = dataclasses.replace(run.info, left_out=run.left_out())
                save_model(workdir, run.model, info)
                self._stop.check(workdir)
        return RunResult(
            workdir=workdir,
            config=config,
            model=assemble_model(info, extract(run.model)),
            info=info,
            source=run.source,
            splits=run.splits,
            duplicates=run.duplicates,
            left_out=info.left_out,
            duplicate_groups=run.duplicate_groups,
        )

    def _train_stages(self) -> None:
        """Train what is left of all stages; leave the best weights in the model."""
        run = self._context
        self._progress = TrainProgress(**(self._checkpoints.latest_progress() or {}))
        where = {"step": self._progress.step, "recoveries": self._progress.recoveries}
        with Log(run.workdir, **where, tensorboard=run.config.tensorboard) as self._log:
            if self._progress.step:
                self._console.print(f"Resuming from step {self._progress.step:,}.")
                self._checkpoints.restore_model(run.model, self._progress.step)
            for stage in run.stages:
                self._train_stage(stage)
        self._checkpoints.restore_model(run.model, self._progress.best_step)

    def _train_stage(self, stage: Stage) -> None:
        last_step = (stage.first_epoch + stage.epochs) * self._context.steps_per_epoch
        if self._progress.step >= last_step:
            return
        with cached_features(self._context, stage, self._console, self._stop) as (run, cut):
            loop = self._begin_stage(run, stage, cut)
            while self._progress.step < last_step and not self._out_of_patience(stage):
                went_back = self._train_epoch(loop)
                if went_back:
                    loop = self._begin_stage(run, stage, cut)
                else:
                    self._stop.check(run.workdir)
            eval_params = run.placement.fetch(loop.state).eval_params
            nnx.update(run.model, *jax.tree.map(jnp.asarray, eval_params))

    def _train_epoch(self, loop: "_StageLoop") -> bool:
        """Train what is left of an epoch; return whether the run went back after a collapse."""
        run, config, progress = loop.run, loop.run.config, self._progress
        epoch, first_step = divmod(progress.step, run.steps_per_epoch)
        where = {"epoch": epoch + 1, "stage": loop.stage.name}
        self._console.begin(
            f"epoch {epoch + 1}/{config.num_epochs}", run.steps_per_epoch, done=first_step
        )
        metrics = MetricAccumulator(run.placement, progress.sums)
        throughput = Throughput(loop.train_step)
        with closing(loop.batches(progress.step, (epoch + 1) * run.steps_per_epoch)) as batches:
            for steps, batch in batches:
                loop.state, step_metrics = loop.train_step(loop.state, batch)  # 1. learn
                metrics.add(steps, step_metrics)
                throughput.add(loop.num_images(progress.step, progress.step + steps))
                progress.step += steps
                if progress.step % loop.log_every_steps == 0:  # 2. report; the only wait
                    values = _means(metrics.fetch(), "train")
                    if loop.monitor.recovered(metrics.sums):
                        return True
                    rates = loop.stage_step.rates(progress.step, progress.factor)
                    self._log.write("step", progress.step, **where, **values, **rates)
                    self._console.show_metrics(values, throughput.images_per_s())
                self._console.advance(progress.step % run.steps_per_epoch or run.steps_per_epoch)
                self._save_within_epoch(loop, metrics)

        metrics.fetch()
        values = _means(metrics.sums, "train")
        values["images_per_s"] = throughput.images_per_s()
        values |= evaluate_split(run, "val", loop.eval_step, loop.state)  # 3. evaluate
        values["seconds"] = throughput.seconds()
        values |= loop.stage_step.rates(progress.step, progress.factor)
        if loop.monitor.recovered(metrics.sums, val=values):
            return True
        value = values[config.monitor]  # 4. keep the best
        is_best = progress.update_best(-value if config.monitor == "val/loss" else value)
        loop.monitor.record_epoch(values, is_best=is_best)
        lower_rates = progress.reduce_on_plateau(config, values["val/loss"])
        progress.sums = {}
        self._save(loop, is_best=is_best)  # 5. checkpoint
        self._log.write("epoch", progress.step, **where, **values)
        self._console.print_epoch(epoch + 1, loop.stage.name, values, is_best=is_best)
        if lower_rates:
            factor = run.placement.put_state(np.float32(progress.factor))
            loop.state = loop.state._replace(factor=factor)
            self._console.print_plateau(config, progress.factor)
        return False

    def _begin_stage(self, run: RunContext, stage: Stage, cut: str | None) -> "_StageLoop":
        """Compile a stage, or the rest of one, whose batches have the features of layer `cut`."""
        config, progress = run.config, self._progress
        log_every_steps = min(config.log_every_steps, max(1, run.steps_per_epoch // 4))
        plan = run.feature_plans[stage.name] if cut else None
        size = stack_size(run.model, plan, run.batch_size, most=log_every_steps)
        stage_step = make_stage_step(run, stage, after=cut, stack_batches=size > 1)
        is_resumed = progress.stage == stage.name
        if not is_resumed:
            progress.begin_stage(stage.name)
        state = make_state(
            run.model,
            stage_step.tx,
            stage_step.labels,
            step=progress.step,
            factor=progress.factor,
            ema=config.ema,
        )
        if is_resumed:
            state = self._checkpoints.restore_optimizer(state, progress.step)
        if progress.back_step == progress.step:
            state = resume_from_eval_params(state)
        eval_step = make_eval_step(
            run.model, placement=run.placement, mode=config.preprocessing.mode, after=cut
        )
        self._saved_s = time.monotonic()
        return _StageLoop(
            run=run,
            stage=stage,
            stage_step=stage_step,
            state=run.placement.put_state(state),
            train_step=CompiledStep(
                stage_step.train_step, lambda text: self._console.print(f"{stage.name}: {text}")
            ),
            eval_step=CompiledStep(eval_step),
            monitor=CollapseMonitor(
                run, stage, progress, self._checkpoints, self._log, self._console
            ),
            stack_size=size,
            log_every_steps=log_every_steps,
        )

    def _out_of_patience(self, stage: Stage) -> bool:
        config, is_last = self._context.config, stage is self._context.stages[-1]
        if not (is_last and 0 < config.patience <= self._progress.stale_epochs):
            return False
        self._console.print(
            f"No better {config.monitor} for {config.patience} epochs: stopping early."
        )
        return True

    def _save_within_epoch(self, loop: "_StageLoop", metrics: MetricAccumulator) -> None:
        """Save inside a long epoch, and where a signal asks for the end of the run."""
        run = loop.run
        is_due = time.monotonic() - self._saved_s > 60 * run.config.checkpoint_minutes
        if (self._stop.signum or is_due) and self._progress.step % run.steps_per_epoch:
            metrics.fetch()
            self._progress.sums = dict(metrics.sums)
            self._save(loop, is_best=False)
            self._stop.check(run.workdir)

    def _save(self, loop: "_StageLoop", *, is_best: bool) -> None:
        state = loop.run.placement.fetch(loop.state)
        self._checkpoints.save(state, self._progress, is_best=is_best)
        self._saved_s = time.monotonic()


@dataclass(frozen=True)
class StageStep:
    """The compiled train step of one stage, and what it was made from."""

    train_step: Callable
    tx: optax.GradientTransformationExtraArgs
    labels: Labels
    schedules: dict[str, optax.Schedule]
    first_step: int
    """Steps of the run before the stage."""

    def rates(self, step: int, factor: float) -> dict[str, float]:
        """Return the learning rate of each label at a step of the run, times `factor`."""
        labels = sorted(label for label in set(self.labels.values()) if label in self.schedules)
        position = step - 1 - self.first_step
        return {
            f"learning_rate/{label}": float(self.schedules[label](position)) * factor
            for label in labels
        }


def make_stage_step(
    run: RunContext, stage: Stage, *, after: str | None, stack_batches: bool = False
) -> StageStep:
    """Build the train step of a stage; `after` is the layer whose features the batches have."""
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
        after=after,
        stack_batches=stack_batches,
    )
    return StageStep(train_step, tx, labels, schedules, stage.first_epoch * run.steps_per_epoch)


@dataclass
class _StageLoop:
    """What the epochs of a stage share; `state` changes with every step."""

    run: RunContext
    """Its loaders give features where the stage keeps them."""
    stage: Stage
    stage_step: StageStep
    state: TrainState
    train_step: CompiledStep
    eval_step: CompiledStep
    monitor: CollapseMonitor
    stack_size: int
    log_every_steps: int

    def batches(
        self, step: int, until: int
    ) -> Generator[tuple[int, dict[str, jax.Array]], None, None]:
        """Return (number of steps, their batches on the devices) of the steps before `until`."""
        batches = run_batches(self.run, step, until)
        stacks = stack_batches(batches, self.stack_size, step=step, every=self.log_every_steps)

        def put(stack: tuple[int, Batch]) -> tuple[int, dict[str, jax.Array]]:
            steps, batch = stack
            return steps, self.run.placement.put_batch(batch, stack_batches=self.stack_size > 1)

        return prefetch(stacks, put)

    def num_images(self, step: int, until: int) -> int:
        """Return the number of images in the steps from `step` to before `until`."""
        size, batch_size = len(self.run.loaders["train"]), self.run.batch_size
        return images_seen(until, size, batch_size) - images_seen(step, size, batch_size)


def run_batches(run: RunContext, step: int, until: int) -> Iterator[Batch]:
    """Yield the training batches of the run's steps from `step` to before `until`."""
    return epoch_batches(
        run.loaders["train"],
        step,
        until,
        batch_size=run.batch_size,
        seed=run.config.seed,
        process=run.placement.process,
    )


def read_images(run: RunContext, console: ProgressConsole) -> None:
    """Decode the splits that fit in memory, and report unreadable and converted images."""
    for name, loader in run.loaders.items():
        console.begin(f"reading {name}", len(loader))
        loader.prepare(lambda done, _: console.advance(done))
    for name, reason in list(run.left_out().items())[:MAX_NAMED]:
        console.print(f"left out: {printable(name)}: {printable(reason)}")
    report_adapted(run, console)


def report_adapted(
    run: RunContext, console: ProgressConsole, *, already: Counter[str] | None = None
) -> None:
    """Report how many images were converted to RGB, unless these counts were reported already."""
    counts = run.adapted()
    if counts and counts != already:
        text = "; ".join(f"{count:,} {note}" for note, count in counts.most_common())
        console.print(f"adapted: {text}")


def evaluate_split(
    run: RunContext, split: str, eval_step: Callable, state: TrainState
) -> dict[str, float]:
    """Evaluate every readable image of a split once: `val/loss`, `val/accuracy`, `val/top5`."""
    metrics = MetricAccumulator(run.placement)
    batches = run.loaders[split].batches(run.batch_size, process=run.placement.process)
    with closing(prefetch(batches, run.placement.put_batch)) as placed_batches:
        for batch in placed_batches:
            metrics.add(1, eval_step(state.eval_params, batch))
    metrics.fetch()
    values = _means(metrics.sums, split)
    if len(run.source.class_names) <= 5:
        del values[f"{split}/top5"]
    return values


def _means(sums: dict[str, float], split: str) -> dict[str, float]:
    count = max(float(sums["count"]), 1.0)
    names = {"loss": "loss", "correct": "accuracy"}
    if split != "train":
        names["top5"] = "top5"
    return {f"{split}/{name}": float(sums[key]) / count for key, name in names.items()}
