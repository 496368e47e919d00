"""The learning rate range test: find the learning rate by a few steps at increasing rates.

Smith, "Cyclical Learning Rates for Training Neural Networks" (arXiv:1506.01186), in the form that
fastai made common: the rate grows by a constant factor per step until the loss diverges. The test
runs the first stage of a run, with its optimizer, batches and augmentation, on cached features if
its steps see every image. All learning rates of the run stay in proportion to `learning_rate`. The
network that was trained in the test is discarded.
"""

import dataclasses
import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field

import jax.numpy as jnp
import numpy as np
from rich.console import Console

from vggjax.training.cache.features import FeatureCache
from vggjax.training.config import Config
from vggjax.training.console import ProgressConsole
from vggjax.training.freezing import peak_rates
from vggjax.training.prepare import RunContext
from vggjax.training.signals import Stop
from vggjax.training.stage_loop import StageLoop, read_images

FIRST_RATE, LAST_RATE = 1e-6, 10.0
MIN_STEPS, MAX_STEPS = 100, 200
"""Bounds of the number of steps, which otherwise are those of an epoch."""

_SMOOTHING = 0.9
_DIVERGED = 4.0
"""fastai's: the test ends when the smoothed loss is this many times its minimum."""


@dataclass(frozen=True)
class RateTest:
    """The curve of a range test and the learning rates read from it; None if there is none."""

    stage: str
    rates: tuple[float, ...] = field(repr=False)
    losses: tuple[float, ...] = field(repr=False)
    """Loss of each step, before its update."""
    smoothed: tuple[float, ...] = field(repr=False)
    """Centered moving average of the losses."""
    steepest: float | None = None
    """Where the loss falls fastest."""
    least: float | None = None
    """Where the loss is lowest."""
    diverged: float | None = None
    """Where the loss diverged."""

    @property
    def suggestion(self) -> float | None:
        """The rate of the steepest descent, at most a third of the lowest loss's: two digits."""
        if self.steepest is None or self.least is None:
            return None
        return float(f"{min(self.steepest, self.least / 3):.1e}")

    def __str__(self) -> str:
        """Return the result in a line or two."""
        tested = f"{self.stage}: {len(self.rates)} rates from {self.rates[0]:.0e} up"
        end = f"; it diverges at {self.diverged:.1e}" if self.diverged else ""
        if self.suggestion is None:
            return (
                f"{tested}{end}. The loss does not fall, so no rate can be read from it. Check the "
                "weights, the preprocessing and what is unfrozen."
            )
        return (
            f"{tested}: the loss falls fastest at {self.steepest:.1e} and is lowest at "
            f"{self.least:.1e}{end}."
        )

    def flags(self, config: Config) -> str | None:
        """Return the suggestion as flags; the backbone's own rate stays in proportion."""
        if self.suggestion is None:
            return None
        flags = f"--learning-rate {self.suggestion:.1e}"
        if config.backbone_learning_rate is not None:
            backbone = config.backbone_learning_rate * self.suggestion / config.learning_rate
            flags += f" --backbone-learning-rate {backbone:.1e}"
        return flags


def try_rates(run: RunContext, console: Console) -> RateTest:
    """Run a range test on the run's first stage; write nothing."""
    stage = run.stages[0]
    steps = min(max(run.steps_per_pass, MIN_STEPS), MAX_STEPS)
    rates = np.geomspace(FIRST_RATE, LAST_RATE, steps).tolist()
    plan = run.feature_plans.get(stage.name)
    plans = {}
    # Cache features if that takes no more work than computing them in each step.
    if plan and plan.where == "memory" and steps >= len(plan.views) * run.steps_per_pass:
        plans[stage.name] = plan
    loaders = {"train": run.loaders["train"]}
    run = dataclasses.replace(run, loaders=loaders, feature_plans=plans)
    with ProgressConsole(console, stage.epochs) as progress_console:
        read_images(run, progress_console)
        with FeatureCache(run, progress_console, Stop()).of(stage) as (run, cut):
            losses = _losses(run, cut, rates, progress_console)
    return read_curve(stage.name, rates[: len(losses)], losses)


def _losses(
    run: RunContext, cut: str | None, rates: Sequence[float], console: ProgressConsole
) -> list[float]:
    """Return the loss of each step, up to the one where it diverges."""
    # One constant rate, which the state's factor then scales.
    config = dataclasses.replace(run.config, schedule="constant", warmup_epochs=0.0, ema=0.0)
    run = dataclasses.replace(run, config=config)
    loop = StageLoop(
        run, run.stages[0], cut, lambda text: console.print(f"rate test: {text}"), stacked=False
    )
    state = run.placement.put_state(loop.initial_state())
    peak = peak_rates(config)["head"]
    losses: list[float] = []
    smoothed, least = 0.0, math.inf
    console.begin("testing rates", len(rates))
    with closing(loop.batches(0, len(rates))) as batches:
        for done, (rate, (_, batch)) in enumerate(zip(rates, batches, strict=False), start=1):
            factor = run.placement.put_state(jnp.asarray(rate / peak, jnp.float32))
            state, metrics = loop.train_step(state._replace(factor=factor), batch)
            metrics = run.placement.fetch(metrics)
            loss = float(metrics["loss"]) / max(float(metrics["count"]), 1.0)
            losses.append(loss)
            console.advance(done)
            smoothed = _SMOOTHING * smoothed + (1 - _SMOOTHING) * loss
            unbiased = smoothed / (1 - _SMOOTHING**done)
            least = min(least, unbiased) if done > 10 else math.inf
            if not math.isfinite(loss) or unbiased > _DIVERGED * least:
                break
    return losses


def read_curve(stage: str, rates: Sequence[float], losses: Sequence[float]) -> RateTest:
    """Read the rates of the steepest descent, the lowest loss and the divergence from a curve.

    `losses` has one loss per rate.
    """
    losses = [loss if math.isfinite(loss) else math.inf for loss in losses]
    used = next((i for i, loss in enumerate(losses) if loss == math.inf), len(losses))
    smoothed = _smooth(np.array(losses[:used]))
    test = RateTest(
        stage=stage,
        rates=tuple(rates[:used]),
        losses=tuple(losses[:used]),
        smoothed=tuple(smoothed.tolist()),
        diverged=rates[used] if used < len(losses) else None,
    )
    if used < 10:
        return test
    least = int(smoothed.argmin())
    beyond = np.flatnonzero(smoothed[least:] > _DIVERGED * smoothed[least])
    if test.diverged is None and len(beyond):
        test = dataclasses.replace(test, diverged=rates[least + int(beyond[0])])
    if not _falls(test.losses, smoothed, least):
        return test
    slopes = np.gradient(smoothed, np.log(rates[:used]))[: least + 1]
    return dataclasses.replace(test, steepest=rates[int(slopes.argmin())], least=rates[least])


def _falls(losses: Sequence[float], smoothed: np.ndarray, least: int) -> bool:
    """Return whether the lowest smoothed loss is below the first ones by more than noise."""
    num_first = max(5, least // 3)
    if least < 2 * num_first:
        return False
    noise = 1.48 * float(np.median(np.abs(np.array(losses[:least]) - smoothed[:least])))
    num_smoothed = 2 * math.sqrt(math.pi) * _width(len(losses))  # effective steps of the Gaussian
    margin = 4 * noise * math.sqrt(1 / num_smoothed + 1 / num_first)
    start = float(np.mean(losses[:num_first]))
    return start - smoothed[least] > max(margin, 1e-3 * start)


def _smooth(losses: np.ndarray) -> np.ndarray:
    """Average over neighbors with a Gaussian of 1/40 of the steps, normalized at the ends."""
    steps = np.arange(len(losses), dtype=float)
    weights = np.exp(-(((steps[:, None] - steps[None, :]) / _width(len(losses))) ** 2) / 2)
    return (weights * losses[None, :]).sum(1) / weights.sum(1)


def _width(steps: int) -> float:
    return max(steps / 40, 1.0)
