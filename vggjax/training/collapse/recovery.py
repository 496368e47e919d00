"""What is done about a collapse: it is said, the run is stopped, or it goes back (--on-collapse).

A run goes back to its best checkpoint if that belongs to the stage and was better than chance, or
else to the stage's start, with the best weights from before it or those that the run began with;
its rates are then a tenth of what they were. All of that is a function of the run's position, so
that a run which is killed meanwhile comes to the same end.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vggjax.errors import VggjaxError
from vggjax.training.collapse.detector import Collapse, CollapseDetector, PriorBaseline
from vggjax.training.console import ProgressConsole
from vggjax.training.freezing import label_layers, peak_rates
from vggjax.training.position import TrainProgress
from vggjax.training.prepare import RunContext, build_model
from vggjax.training.run_dir.checkpoint import Checkpoints
from vggjax.training.run_dir.log import Log
from vggjax.training.stages import Stage
from vggjax.training.step import TrainState

MOST_RECOVERIES = 3
"""Of a run: at a thousandth of its rates it is not the rate."""

_ELSEWHERE = "in another --workdir"
_HERE = "or, in this one, --on-collapse recover"


class CollapseMonitor:
    """Watches over one stage, and does what --on-collapse says."""

    def __init__(
        self,
        run: RunContext,
        stage: Stage,
        position: TrainProgress,
        checkpoints: Checkpoints,
        log: Log,
        screen: ProgressConsole,
    ):
        self._run, self._stage, self._position = run, stage, position
        self._checkpoints, self._log, self._screen = checkpoints, log, screen
        labels = run.source.labels[run.splits["train"]]
        chance = PriorBaseline.of(
            np.bincount(labels, minlength=len(run.source.class_names)),
            class_weights=run.class_weights,
            label_smoothing=run.config.label_smoothing,
        )
        self._guard = CollapseDetector(
            run.config,
            stage,
            chance,
            steps_per_epoch=run.steps_per_epoch,
            val_images=len(run.splits["val"]),
            factor=position.factor,
        )

    def recovered(
        self, sums: Mapping[str, float], *, val: Mapping[str, float] | None = None
    ) -> bool:
        """Looks as the guard does; True where the run went back, its model and position changed.

        Raises:
            VggjaxError: a collapse that ends the run.
        """
        collapse = self._guard.look(self._position.marks, self._position.step, sums, val=val)
        if collapse is None:
            return False
        way, position = self._run.config.on_collapse, self._position
        if way == "recover" and position.recoveries < MOST_RECOVERIES and not collapse.too_slow:
            self._recover(collapse)
            return True
        if way != "warn" or not collapse.finite:
            self._stop(collapse)
        if not position.warned:
            position.warned = True
            told = self._told(collapse)
            self._log.write("collapse", collapse.step, **told, action="warned")
            self._say(collapse, f"{told['advice']}, {_ELSEWHERE}; {_HERE}.")
        return False

    def note(self, val: Mapping[str, float], *, is_best: bool) -> None:
        """Notes where the run can go back to; takes a warning back where it learns after all."""
        if not self._guard.learns(val):
            return
        if is_best:
            self._position.good_step = self._position.step
        if self._position.warned:
            self._position.warned = False
            self._screen.say("It learns after all: validation is better than chance.")

    def _recover(self, collapse: Collapse) -> None:
        position, told = self._position, self._told(collapse)
        _go_back(self._run, self._stage, position, self._checkpoints)
        begin = f"step {position.step:,}" if position.step else "the start"
        action = f"went back to {begin}, to a tenth of the rates"
        self._log.go_back(position.step, position.recoveries, **told, action=action)
        by_block = self._run.config.layer_decay != 1
        labels = label_layers(self._run.model, self._stage.unfreeze, by_block=by_block).values()
        rates = ", ".join(
            f"{label} {rate * position.factor:.2g}"
            for label, rate in peak_rates(self._run.config).items()
            if label in labels
        )
        which = f"recovery {position.recoveries} of {MOST_RECOVERIES}"
        self._say(collapse, f"Back to {begin}, to a tenth of the rates ({rates}): {which}.")

    def _stop(self, collapse: Collapse) -> None:
        told, times = self._told(collapse), self._position.recoveries
        self._log.write("collapse", collapse.step, **told, action="stopped")
        verb = "collapsed" if collapse.finite else "diverged"
        again = f" It went back {times} times before." if times else ""
        here = "" if self._run.config.on_collapse == "recover" else f"; {_HERE}"
        raise VggjaxError(
            f"Training {verb} {self._where(collapse)}: {told['reason']}{again} {told['advice']}, "
            f"{_ELSEWHERE}{here}."
        )

    def _say(self, collapse: Collapse, then: str) -> None:
        seen = f"COLLAPSE {self._where(collapse)}: {collapse.seen}."
        self._screen.say("\n  ".join([seen, collapse.wrong, then]))

    def _told(self, collapse: Collapse) -> dict[str, Any]:
        advice = f"Try {', or '.join(collapse.advice)}"
        told = {"reason": collapse.reason, "advice": advice}
        return {"epoch": self._epoch(collapse), "stage": self._stage.name} | told

    def _where(self, collapse: Collapse) -> str:
        return f"in epoch {self._epoch(collapse)} ({self._stage.name})"

    def _epoch(self, collapse: Collapse) -> int:
        return (collapse.step - 1) // self._run.steps_per_epoch + 1


def resume_from_eval_params(state: TrainState) -> TrainState:
    """Goes on from the averaged weights, with --ema: they were good, the others may have died."""
    if state.averages is None:
        return state
    params, batch_stats = jax.tree.map(jnp.copy, state.eval_params)
    return state._replace(params=params, batch_stats=batch_stats)


def _go_back(
    run: RunContext, stage: Stage, position: TrainProgress, checkpoints: Checkpoints
) -> None:
    first_step = stage.first_epoch * run.steps_per_epoch
    best_step = position.best_step if position.good_step == position.best_step else 0
    if best_step > first_step:
        before = TrainProgress(**checkpoints.progress(best_step))
    else:
        before = TrainProgress(step=first_step)
        if best_step:
            kept = ("best_value", "best_step", "good_step")
            before = dataclasses.replace(before, **{name: getattr(position, name) for name in kept})
    before.rate_factor = position.rate_factor / 10
    before.recoveries, before.back_step = position.recoveries + 1, before.step
    if best_step:
        checkpoints.restore_model(run.model, best_step)
    else:
        fresh = build_model(run.config, run.model.head, run.weight_file)
        nnx.update(run.model, nnx.state(fresh, (nnx.Param, nnx.BatchStat)))
    checkpoints.forget(before.step)
    vars(position).update(vars(before))
