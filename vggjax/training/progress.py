"""The position of a run, and the sums and throughput of its epoch.

`TrainProgress` is saved with every checkpoint; beside it, order and randomness need only the step.
Metrics stay on the devices until they are asked for and are then fetched together: between two
lines of the log the host only dispatches work.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from vggjax.errors import VggjaxError
from vggjax.training.config import Config
from vggjax.training.devices.memory import describe_shortage
from vggjax.training.parallel import Placement

MIN_DELTA = 1e-4
"""The decrease of val/loss that counts as one; the default of Keras' ReduceLROnPlateau."""


@dataclass
class TrainProgress:
    """The position of a run and what depends on its past; saved as JSON in every checkpoint."""

    step: int = 0
    stage: str | None = None
    best_value: float | None = None
    best_loss: float | None = None
    """The validation loss of that epoch; None in a checkpoint of an older version."""
    best_accuracy: float | None = None
    """The validation accuracy of that epoch; None in a checkpoint of an older version."""
    best_step: int = 0
    thresholds: list[float] = field(default_factory=list)
    """With several labels per image, each class's threshold at the best step."""
    stale_epochs: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    """Metric sums of the current epoch; see `MetricAccumulator`."""
    rate_factor: float = 1.0
    """Multiplies every learning rate for the rest of the run, after a recovery from a collapse."""
    plateau_factor: float = 1.0
    """Multiplies every learning rate in this stage, with `schedule` plateau."""
    plateau_best: float | None = None
    plateau_stale_epochs: int = 0
    marks: list[list[float]] = field(default_factory=list)
    """The collapse detector's record of this stage; see `CollapseDetector`."""
    recoveries: int = 0
    """Number of recoveries from a collapse."""
    back_step: int | None = None
    """The step that the last recovery went back to."""
    good_step: int = 0
    """The last best step whose validation accuracy was better than chance; 0 if there is none."""
    warned: bool = False
    """Whether the user was warned of a collapse that still lasts."""
    gave_up: bool = False
    """Whether a later stage failed at a thousandth of its rates, which ends the run."""

    @property
    def factor(self) -> float:
        """The present factor of the schedule's learning rates."""
        return self.rate_factor * self.plateau_factor

    def begin_stage(self, name: str) -> None:
        """Reset what belongs to one stage."""
        self.stage, self.stale_epochs, self.marks = name, 0, []
        self.plateau_factor, self.plateau_best, self.plateau_stale_epochs = 1.0, None, 0

    def update_best(self, value: float, loss: float = math.inf) -> bool:
        """Record an epoch's value, higher is better; return whether its weights are to be kept.

        Of equal values, which few validation images often give, that with the lower loss is kept.
        It is no progress: patience runs on.
        """
        value = -math.inf if math.isnan(value) else value
        loss = math.inf if math.isnan(loss) else loss
        is_higher = self.best_value is None or value > self.best_value
        has_less_loss = self.best_loss is not None and loss < self.best_loss
        is_best = is_higher or (value == self.best_value and has_less_loss)
        if is_best:
            self.best_value, self.best_loss, self.best_step = value, loss, self.step
        self.stale_epochs = 0 if is_higher else self.stale_epochs + 1
        return is_best

    def reduce_on_plateau(self, config: Config, val_loss: float) -> bool:
        """Record an epoch's loss, as Keras' ReduceLROnPlateau; return whether the rates fell."""
        if config.schedule != "plateau":
            return False
        best = math.inf if self.plateau_best is None else self.plateau_best
        if val_loss < best - MIN_DELTA:
            self.plateau_best, self.plateau_stale_epochs = val_loss, 0
            return False
        self.plateau_stale_epochs += 1
        if self.plateau_stale_epochs < config.plateau_patience:
            return False
        self.plateau_factor *= config.plateau_factor
        self.plateau_stale_epochs = 0
        return True


class MetricAccumulator:
    """Sums of metrics over the examples of an epoch; `sums` holds what was fetched so far."""

    def __init__(self, placement: Placement, sums: dict[str, float] | None = None):
        self.sums = dict(sums or {})
        self._placement = placement
        self._pending: list[tuple[int, dict[str, jax.Array]]] = []

    def add(self, steps: int, metrics: dict[str, jax.Array]) -> None:
        """Add the metrics of one step, (), or of the first `steps` of a stack, (size,)."""
        self._pending.append((steps, metrics))

    def fetch(self) -> dict[str, float]:
        """Sum up what was added and return the last step's metrics; waits for the devices."""
        counts = [steps for steps, _ in self._pending]
        fetched = self._placement.fetch([metrics for _, metrics in self._pending])
        self._pending.clear()
        last: dict[str, float] = {}
        for steps, metrics in zip(counts, fetched, strict=True):
            for name, values in metrics.items():
                # One at a time: the sum does not depend on how the steps were stacked.
                for value in np.atleast_1d(values)[:steps].tolist():
                    self.sums[name] = self.sums.get(name, 0.0) + value
                    last[name] = value
        return last


class CompiledStep:
    """A compiled step that measures its compilation, and reports it to `log`.

    Implicit transfers to the devices are errors: each would make the host wait.
    """

    def __init__(self, step: Callable[..., Any], log: Callable[[str], None] | None = None):
        self._step, self._log = step, log
        self.compile_s: float | None = None
        """Seconds of the first call; None before it."""

    def __call__(self, state: Any, batch: dict[str, jax.Array]) -> Any:
        """Run the step."""
        start_s = time.monotonic()
        try:
            with jax.transfer_guard("disallow"):
                outputs = self._step(state, batch)
            if self.compile_s is None:  # the call returns when compiled; computing continues
                self.compile_s = time.monotonic() - start_s
                if self._log is not None:
                    self._log(f"compiled in {self.compile_s:.1f} s")
                jax.block_until_ready(outputs)  # a CPU's lack of memory is an error only here
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
                raise VggjaxError(describe_shortage(self._step, state, batch)) from error
            raise
        return outputs


class Throughput:
    """The duration of an epoch, and its images per second without the time of compiling."""

    def __init__(self, step: CompiledStep):
        self._step, self._was_compiled = step, step.compile_s is not None
        self._start_s, self._images = time.monotonic(), 0

    def add(self, images: int) -> None:
        """Count images that were handed to the devices."""
        self._images += images

    def seconds(self, *, without_compiling: bool = False) -> float:
        """Return the seconds since the epoch began."""
        seconds = time.monotonic() - self._start_s
        if without_compiling and not self._was_compiled:
            seconds -= self._step.compile_s or 0.0
        return round(seconds, 2)

    def images_per_s(self) -> float:
        """Return the throughput so far; call it where the devices have just been waited for."""
        return round(self._images / max(self.seconds(without_compiling=True), 1e-6), 1)
