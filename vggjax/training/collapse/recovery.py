"""The reaction to a collapse, as `on_collapse` says: warn, stop, or recover.

A stage after the first has good weights to return to. So it recovers unless it is to stop, also
from a setback: a first epoch that is far worse than the stage before. If a thousandth of its rates
fails as well, the run ends with the weights from before it. No stage ends worse than it began.

To recover, a run returns to its best checkpoint, if that is from the same stage and was better than
chance; otherwise to the start of the stage, with the best earlier weights (or the initial ones).
From there it continues with a tenth of its learning rates. All of this is a function of the saved
progress, so a run that is killed meanwhile ends with the same weights.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vggjax.errors import VggjaxError
from vggjax.training.collapse.detector import Collapse, CollapseDetector, PriorBaseline
from vggjax.training.console import ProgressConsole
from vggjax.training.freezing import describe_rates, label_layers
from vggjax.training.prepare import RunContext, build_model
from vggjax.training.progress import TrainProgress
from vggjax.training.run_dir.checkpoint import Checkpoints
from vggjax.training.run_dir.log import Log
from vggjax.training.settings.stages import Stage
from vggjax.training.step import TrainState

MAX_RECOVERIES = 3
"""Recoveries per run: if a thousandth of its rates fails, the rates are not the cause."""

_IN_NEW_FOLDER = "in another `workdir`"
_IN_THIS_FOLDER = "or, in this one, `on_collapse` recover"


class CollapseMonitor:
    """Checks one stage for a collapse and reacts to it."""

    def __init__(
        self,
        run: RunContext,
        stage: Stage,
        progress: TrainProgress,
        checkpoints: Checkpoints,
        log: Log,
        console: ProgressConsole,
    ):
        self._run, self._stage, self._progress = run, stage, progress
        self._checkpoints, self._log, self._console = checkpoints, log, console
        source, train, smoothing = run.source, run.splits["train"], run.config.label_smoothing
        if source.targets is None:
            baseline = PriorBaseline.from_counts(
                source.class_counts(train),
                class_weights=run.class_weights,
                label_smoothing=smoothing,
            )
        else:
            baseline = PriorBaseline.from_targets(
                source.targets[train], class_weights=run.class_weights, label_smoothing=smoothing
            )
        self._detector = CollapseDetector(
            run.config,
            stage,
            baseline,
            steps_per_epoch=run.steps_per_epoch,
            val_images=len(run.splits["val"]),
            factor=progress.factor,
        )

    def recovered(
        self, sums: Mapping[str, float], *, val: Mapping[str, float] | None = None
    ) -> bool:
        """Check for a collapse; return whether the run went back, in its model and progress.

        `sums` and `val` are as in `CollapseDetector.check`.

        Raises:
            VggjaxError: a collapse that ends the run.
        """
        progress, reaction = self._progress, self._run.config.on_collapse
        collapse = self._detector.check(progress.marks, progress.step, sums, val=val)
        is_later = self._stage.first_epoch > 0 and 0 < progress.good_step == progress.best_step
        if collapse is None and val is not None and is_later and self._is_unimproved():
            collapse = self._detector.find_setback(progress.step, val, progress.best_accuracy)
        if collapse is None:
            return False
        goes_back = is_later and (reaction == "warn" or collapse.is_setback)
        can_recover = progress.recoveries < MAX_RECOVERIES and not collapse.is_slow
        if (goes_back or reaction == "recover") and can_recover:
            self._recover(collapse)
            return True
        if goes_back and not collapse.is_slow:
            self._give_up(collapse)
            return True
        if reaction != "warn" or not collapse.is_finite:
            self._stop(collapse)
        if not progress.warned:
            progress.warned = True
            self._log.write("collapse", collapse.step, **self._values(collapse), action="warned")
            self._print(collapse, f"{_advice(collapse)}, {_IN_NEW_FOLDER}; {_IN_THIS_FOLDER}.")
        return False

    def record_epoch(self, val: Mapping[str, float], *, is_best: bool) -> None:
        """Record whether an epoch is good to return to; withdraw a warning once it learns."""
        if not self._detector.beats_chance(val):
            return
        if is_best:
            self._progress.good_step = self._progress.step
        if self._progress.warned:
            self._progress.warned = False
            self._console.print(
                "The network learns after all: its validation accuracy is better than chance."
            )

    def _is_unimproved(self) -> bool:
        """Return whether the best weights of the run are still those from before the stage."""
        first_step = self._stage.first_epoch * self._run.steps_per_epoch
        return self._progress.best_step <= first_step

    def _give_up(self, collapse: Collapse) -> None:
        """End the run with its best weights."""
        self._progress.gave_up = True
        self._log.write("collapse", collapse.step, **self._values(collapse), action="gave up")
        self._print(
            collapse,
            f"The run has recovered {MAX_RECOVERIES} times before, so it ends here, with its best "
            f"weights, those of step {self._progress.best_step:,}. {_advice(collapse)}, "
            f"{_IN_NEW_FOLDER}.",
        )

    def _recover(self, collapse: Collapse) -> None:
        run, progress = self._run, self._progress
        values = self._values(collapse)
        _go_back(run, self._stage, progress, self._checkpoints)
        target = f"step {progress.step:,}" if progress.step else "the start"
        action = f"went back to {target}, to a tenth of the rates"
        self._log.go_back(progress.step, progress.recoveries, **values, action=action)
        by_block = run.config.layer_decay != 1
        labels = label_layers(run.model, self._stage.unfreeze, by_block=by_block)
        rates = describe_rates(run.config, labels, factor=progress.factor)
        self._print(
            collapse,
            f"Going back to {target} with a tenth of the learning rates ({rates}): recovery "
            f"{progress.recoveries} of {MAX_RECOVERIES}.",
        )

    def _stop(self, collapse: Collapse) -> None:
        recoveries = self._progress.recoveries
        self._log.write("collapse", collapse.step, **self._values(collapse), action="stopped")
        verb = "collapsed" if collapse.is_finite else "diverged"
        earlier = f" The run has recovered {recoveries} times before." if recoveries else ""
        recovers = self._run.config.on_collapse == "recover"
        alternative = "" if recovers else f"; {_IN_THIS_FOLDER}"
        raise VggjaxError(
            f"Training {verb} {self._where(collapse)}: {collapse.reason}{earlier} "
            f"{_advice(collapse)}, {_IN_NEW_FOLDER}{alternative}."
        )

    def _print(self, collapse: Collapse, reaction: str) -> None:
        name = "Setback" if collapse.is_setback else "Training collapse detected"
        symptom = f"{name} {self._where(collapse)}: {collapse.symptom}."
        self._console.print("\n  ".join([symptom, collapse.explanation, reaction]))

    def _values(self, collapse: Collapse) -> dict[str, Any]:
        return {
            "epoch": self._epoch(collapse),
            "stage": self._stage.name,
            "reason": collapse.reason,
            "advice": _advice(collapse),
        }

    def _where(self, collapse: Collapse) -> str:
        return f"in epoch {self._epoch(collapse)} ({self._stage.name})"

    def _epoch(self, collapse: Collapse) -> int:
        return (collapse.step - 1) // self._run.steps_per_epoch + 1


def _advice(collapse: Collapse) -> str:
    replaced = " in place of `epochs`, `head_epochs` and `unfreeze`"
    settings = [each + replaced * each.startswith("`stages`") for each in collapse.advice]
    return f"Try {', or '.join(settings)}"


def resume_from_eval_params(state: TrainState) -> TrainState:
    """Return the state with the averaged weights, if any, in place of the collapsed ones."""
    if state.averages is None:
        return state
    params, batch_stats = jax.tree.map(jnp.copy, state.eval_params)
    return state._replace(params=params, batch_stats=batch_stats)


def _go_back(
    run: RunContext, stage: Stage, progress: TrainProgress, checkpoints: Checkpoints
) -> None:
    """Restore the model to the last good weights, and `progress` to the step to continue from."""
    first_step = stage.first_epoch * run.steps_per_epoch
    best_step = progress.best_step if progress.good_step == progress.best_step else 0
    if best_step > first_step:
        earlier = checkpoints.progress(best_step)
    else:
        earlier = TrainProgress(step=first_step)
        if best_step:
            earlier.best_value, earlier.best_loss = progress.best_value, progress.best_loss
            earlier.best_step, earlier.best_accuracy = best_step, progress.best_accuracy
            earlier.good_step, earlier.thresholds = best_step, progress.thresholds
    earlier.rate_factor = progress.rate_factor / 10
    earlier.recoveries, earlier.back_step = progress.recoveries + 1, earlier.step
    if best_step:
        checkpoints.restore_model(run.model, best_step)
    else:
        head = run.model.head
        assert head is not None  # every run has one
        fresh = build_model(run.config, head, run.weight_file)
        nnx.update(run.model, nnx.state(fresh, (nnx.Param, nnx.BatchStat)))
    checkpoints.forget(earlier.step)
    vars(progress).update(vars(earlier))
