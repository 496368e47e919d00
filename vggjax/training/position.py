"""Where a run stands, beside its state: small numbers that are saved with every checkpoint.

No jax here. Order and randomness need nothing of this but the step.
"""

import math
from dataclasses import dataclass, field

from vggjax.training.config import Config

MIN_DELTA = 1e-4
"""How much lower a val/loss must be to count as lower: Keras' ReduceLROnPlateau's default."""


@dataclass
class TrainProgress:
    """Where a run stands; saved as JSON."""

    step: int = 0
    stage: str | None = None
    best_value: float | None = None
    best_step: int = 0
    stale_epochs: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    """Of the epoch that has begun: see MetricAccumulator."""
    rate_factor: float = 1.0
    """What every rate is multiplied by since the run recovered from a collapse."""
    plateau_factor: float = 1.0
    """What every rate is multiplied by in this stage, by --schedule plateau."""
    plateau_best: float | None = None
    plateau_stale_epochs: int = 0
    marks: list[list[float]] = field(default_factory=list)
    """What the guard remembers of this stage."""
    recoveries: int = 0
    """How often the run went back after a collapse."""
    back_step: int | None = None
    """Where it last went back to."""
    good_step: int = 0
    """The last best one that was better than chance; 0 is none."""
    warned: bool = False
    """Whether a collapse was said and is not over."""

    @property
    def factor(self) -> float:
        """What the schedule's rates are multiplied by now."""
        return self.rate_factor * self.plateau_factor

    def begin_stage(self, name: str) -> None:
        """Starts to count anew, and with the stage's full rates."""
        self.stage, self.stale_epochs, self.marks = name, 0, []
        self.plateau_factor, self.plateau_best, self.plateau_stale_epochs = 1.0, None, 0

    def take(self, value: float) -> bool:
        """Takes an evaluation's value, higher is better; says whether it is the best so far."""
        value = -math.inf if math.isnan(value) else value
        is_best = self.best_value is None or value > self.best_value
        if is_best:
            self.best_value, self.best_step = value, self.step
        self.stale_epochs = 0 if is_best else self.stale_epochs + 1
        return is_best

    def reduce_on_plateau(self, config: Config, val_loss: float) -> bool:
        """Takes an epoch's loss as Keras' ReduceLROnPlateau does; says whether the rates fell."""
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
