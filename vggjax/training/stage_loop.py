"""A stage on the devices: its compiled steps, its batches and its state."""

import math
from collections import Counter
from collections.abc import Callable, Collection, Generator
from contextlib import closing
from typing import Any

import jax
import numpy as np

from vggjax.data.loader import Batch, epoch_order, prefetch
from vggjax.data.multilabel import choose_thresholds, epoch_metrics, f1_score
from vggjax.errors import printable
from vggjax.training.batches import epoch_batches, images_seen, stack_batches, stack_size
from vggjax.training.console import ProgressConsole
from vggjax.training.freezing import label_layers, make_optimizer, make_schedules
from vggjax.training.prepare import RunContext
from vggjax.training.progress import CompiledStep, MetricAccumulator
from vggjax.training.settings.stages import Stage
from vggjax.training.step import TrainState, make_eval_step, make_state, make_train_step

MAX_NAMED = 20
"""Unreadable images to print by name; model.json names all of them."""


class StageLoop:
    """The train and eval steps of one stage, its batches, and its `state` on the devices.

    Args:
        run: with features in its loaders if `after` is given.
        stage: one of the run's.
        after: the layer whose features the batches have; None for images.
        log: reports the compilation.
        stacked: run several short steps in one dispatch.
    """

    state: TrainState
    is_estimated = False
    """Whether its time was printed."""

    def __init__(
        self,
        run: RunContext,
        stage: Stage,
        after: str | None,
        log: Callable[[str], None],
        *,
        stacked: bool = True,
    ):
        config, model, placement = run.config, run.model, run.placement
        self.run, self.stage = run, stage
        self.log_every_steps = min(config.log_every_steps, max(1, run.steps_per_epoch // 4))
        can_stack = stacked and placement.process.count == 1  # others send what a batch takes
        plan = run.feature_plans[stage.name] if after and can_stack else None
        self._stack_size = stack_size(model, plan, run.batch_size, most=self.log_every_steps)
        self._labels = label_layers(model, stage.unfreeze, by_block=config.layer_decay != 1)
        self._schedules = make_schedules(config, stage, run.steps_per_epoch)
        self._tx = make_optimizer(config, self._labels, self._schedules)
        mode = config.preprocessing.mode
        train_step = make_train_step(
            model,
            self._tx,
            self._labels,
            placement=placement,
            mode=mode,
            augmentation=config.augmentation,
            class_weights=run.class_weights,
            label_smoothing=config.label_smoothing,
            ema=config.ema,
            seed=config.seed,
            after=after,
            stack_batches=self._stack_size > 1,
            remat=config.remat,
        )
        self.train_step = CompiledStep(train_step, log)
        eval_step = make_eval_step(
            model, placement=placement, mode=mode, after=after, multilabel=run.is_multilabel
        )
        self.eval_step = CompiledStep(eval_step)

    def initial_state(self, *, step: int = 0, factor: float = 1.0) -> TrainState:
        """Return the state to start from at `step` of the run, with the model's parameters."""
        run, ema = self.run, self.run.config.ema
        return make_state(run.model, self._tx, self._labels, step=step, factor=factor, ema=ema)

    def rates(self, step: int, factor: float) -> dict[str, float]:
        """Return the learning rate of each label at a step of the run, times `factor`."""
        position = step - 1 - self.stage.first_epoch * self.run.steps_per_epoch
        return {
            f"learning_rate/{label}": float(self._schedules[label](position)) * factor
            for label in sorted(self._schedules.keys() & set(self._labels.values()))
        }

    def batches(
        self, step: int, until: int
    ) -> Generator[tuple[int, dict[str, jax.Array]], None, None]:
        """Return (number of steps, their batches on the devices) of the steps before `until`."""
        run, is_stacked = self.run, self._stack_size > 1
        batches = epoch_batches(
            run.loaders["train"],
            step,
            until,
            batch_size=run.batch_size,
            seed=run.config.seed,
            process=run.placement.process,
        )

        def put(stack: tuple[int, Batch]) -> tuple[int, dict[str, jax.Array]]:
            steps, batch = stack
            return steps, run.placement.put_batch(batch, stack_batches=is_stacked)

        stacks = stack_batches(batches, self._stack_size, step=step, every=self.log_every_steps)
        return prefetch(stacks, put)

    def seconds_left(self, step: int, images_per_s: float) -> float:
        """Return about how long the rest of the stage takes after `step` of the run.

        Evaluating an image counts as half of training on it: a third if all layers train, because
        a backward pass takes as long as two forward ones, and more where layers are frozen.
        """
        stage, steps_per_epoch = self.stage, self.run.steps_per_epoch
        last_epoch = stage.first_epoch + stage.epochs
        evaluations = last_epoch - step // steps_per_epoch
        images = self.num_images(step, last_epoch * steps_per_epoch)
        images_evaluated = evaluations * len(self.run.loaders["val"])
        return (images + images_evaluated / 2) / max(images_per_s, 1e-6)

    def image_ids(self, step: int) -> list[str]:
        """Return the ids of the images in the batch of a step, in the batch's order."""
        loader, size, seed = self.run.loaders["train"], self.run.batch_size, self.run.config.seed
        epoch, batch = divmod(step, -(-len(loader) // size))
        order = epoch_order(len(loader), seed=seed, epoch=epoch, shuffle=True)
        images = loader.indices[order[batch * size : (batch + 1) * size]]
        return [self.run.source.ids[i] for i in images]

    def num_images(self, step: int, until: int) -> int:
        """Return the number of images in the steps from `step` to before `until`."""
        size, batch_size = len(self.run.loaders["train"]), self.run.batch_size
        return images_seen(until, size, batch_size) - images_seen(step, size, batch_size)


def checkpoint_bytes(run: RunContext, stage: Stage) -> int:
    """Return the size of a checkpoint of a stage before its compression, in bytes."""
    loop = StageLoop(run, stage, None, lambda text: None)
    state = jax.eval_shape(loop.initial_state)
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def read_images(run: RunContext, console: ProgressConsole) -> None:
    """Decode the splits that fit in memory, and report unreadable and converted images."""
    for name, loader in run.loaders.items():
        console.begin(f"reading {name}", len(loader), lines=True)
        loader.prepare(lambda done, _: console.advance(done))
    report_left_out(run, console)
    report_adapted(run, console)


def report_left_out(
    run: RunContext, console: ProgressConsole, *, already: Collection[str] = ()
) -> frozenset[str]:
    """Name the images that cannot be read, but those reported already; return all of them."""
    left_out = run.left_out()
    new = [id for id in left_out if id not in already]
    for id in new[:MAX_NAMED]:
        console.print(f"left out: {printable(id)}: {printable(left_out[id])}")
    if len(new) > MAX_NAMED:
        console.print(f"left out: {len(new) - MAX_NAMED:,} more; model.json will name them")
    return frozenset(left_out)


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
) -> dict[str, Any]:
    """Evaluate every readable image of a split once: `val/loss`, `val/accuracy`, `val/top5`.

    Of several labels per image they are `epoch_metrics`, and `val/thresholds`, which have the best
    F1 of each class.
    """
    outputs = []
    batches = run.loaders[split].batches(run.batch_size, process=run.placement.process)
    with closing(prefetch(batches, run.placement.put_batch)) as placed_batches:
        for batch in placed_batches:
            outputs.append(eval_step(state.eval_params, batch))
    if run.is_multilabel:
        return _multilabel_metrics(run.placement.fetch(outputs), split)
    metrics = MetricAccumulator(run.placement)
    for sums in outputs:
        metrics.add(1, sums)
    metrics.fetch()
    values = mean_metrics(metrics.sums, split)
    if len(run.source.class_names) <= 5:
        del values[f"{split}/top5"]
    return values


def _multilabel_metrics(outputs: list[dict[str, np.ndarray]], split: str) -> dict[str, Any]:
    probs, targets = (
        np.concatenate([output[key][output["mask"] > 0] for output in outputs])
        for key in ("probs", "label")
    )
    values = {f"{split}/{name}": value for name, value in epoch_metrics(probs, targets).items()}
    return values | {f"{split}/thresholds": choose_thresholds(probs, targets).tolist()}


def mean_metrics(sums: dict[str, float], split: str) -> dict[str, float]:
    """Return the means over the examples, as `train/loss` and `train/accuracy`.

    Of several labels per image there is `train/f1`, too, the micro F1.
    """
    count = max(float(sums["count"]), 1.0)
    names = {"loss": "loss", "correct": "accuracy"}
    if split != "train":
        names["top5"] = "top5"
    values = {f"{split}/{name}": float(sums[key]) / count for key, name in names.items()}
    if "hits" in sums:
        f1 = f1_score(sums["hits"], sums["predicted"], sums["positive"])
        values[f"{split}/f1"] = float(f1)
    return values
