"""The rate range test: which learning rate to take, found by trying rising ones for a few steps.

Smith, "Cyclical Learning Rates for Training Neural Networks" (arXiv:1506.01186), in the form that
fastai made usual: the rate rises by the same factor at each step, until the loss has gone out of
hand. It is of the run's first stage, which is where a run begins: what trains there, its optimizer,
batches and augmentation, on kept features where those steps see each image again. All rates of a
run are in proportion to --learning-rate, and rise together. Nothing is trained: the network that
was tried is thrown away.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from rich.console import Console

from vggjax.data.loader import prefetch
from vggjax.errors import ConfigError
from vggjax.training.batches import epoch_batches
from vggjax.training.cache.features import cached_features
from vggjax.training.config import Config
from vggjax.training.console import ProgressConsole
from vggjax.training.freezing import label_layers, make_optimizer, make_schedules, peak_rates
from vggjax.training.prepare import RunContext
from vggjax.training.progress import CompiledStep
from vggjax.training.reading import read_images
from vggjax.training.signals import Stop
from vggjax.training.step import TrainState, make_state, make_train_step

FIRST_RATE, LAST_RATE = 1e-6, 10.0
MIN_STEPS, MAX_STEPS = 100, 200
"""About an epoch's, within these bounds."""

_SMOOTHING = 0.9
_DIVERGED = 4.0
"""fastai's: the test ends where the smoothed loss is this many times its least."""


@dataclass(frozen=True)
class RateTest:
    """What a rate range test saw, and the rates that can be read from it; None where none can."""

    stage: str
    rates: tuple[float, ...]
    losses: tuple[float, ...]
    """Of each step, before it was learned from."""
    smoothed: tuple[float, ...]
    """Around each step: it lags behind neither way."""
    steepest: float | None = None
    """Where the loss falls fastest."""
    least: float | None = None
    """Where the loss is least."""
    diverged: float | None = None
    """Where the loss went out of hand."""

    @property
    def suggestion(self) -> float | None:
        """The steepest descent's rate, but a third of the least loss's at most; to two digits.

        Beyond the least loss lies the rate that ruins the run, often not far.
        """
        if self.steepest is None or self.least is None:
            return None
        return float(f"{min(self.steepest, self.least / 3):.1e}")

    def __str__(self) -> str:
        """Says in a line or two what was seen."""
        tried = f"{self.stage}: {len(self.rates)} rates from {self.rates[0]:.0e} up"
        out = f"; out of hand at {self.diverged:.1e}" if self.diverged else ""
        if self.suggestion is None:
            return (
                f"{tried}{out}. The loss fell nowhere: no rate is to be read from it. Look at the "
                "weights, --preprocess and what is unfrozen."
            )
        return (
            f"{tried}: the loss falls fastest at {self.steepest:.1e} and is least at "
            f"{self.least:.1e}{out}."
        )

    def flags(self, config: Config) -> str | None:
        """Gives the suggestion as it is typed; a backbone's own rate stays in proportion."""
        if self.suggestion is None:
            return None
        told = f"--learning-rate {self.suggestion:.1e}"
        if config.backbone_learning_rate is not None:
            backbone = config.backbone_learning_rate * self.suggestion / config.learning_rate
            told += f" --backbone-learning-rate {backbone:.1e}"
        return told


def read_curve(stage: str, rates: Sequence[float], losses: Sequence[float]) -> RateTest:
    """Reads the rates to take from the losses that each rate gave, one a step."""
    losses = [loss if math.isfinite(loss) else math.inf for loss in losses]
    used = next((i for i, loss in enumerate(losses) if loss == math.inf), len(losses))
    smoothed = _smooth(np.array(losses[:used]))
    diverged = rates[used] if used < len(losses) else None
    test = RateTest(
        stage, tuple(rates[:used]), tuple(losses[:used]), tuple(smoothed.tolist()),
        diverged=diverged,
    )  # fmt: skip
    if used < 10:
        return test
    least = int(smoothed.argmin())
    beyond = np.flatnonzero(smoothed[least:] > _DIVERGED * smoothed[least])
    if diverged is None and len(beyond):
        test = dataclasses.replace(test, diverged=rates[least + int(beyond[0])])
    if not _falls(test.losses, smoothed, least):
        return test
    slopes = np.gradient(smoothed, np.log(rates[:used]))[: least + 1]
    return dataclasses.replace(test, steepest=rates[int(slopes.argmin())], least=rates[least])


def _falls(losses: Sequence[float], smoothed: np.ndarray, least: int) -> bool:
    """Says whether the least loss lies lower than the luck of the batches can have it."""
    first = max(5, least // 3)
    if least < 2 * first:
        return False
    scatter = 1.48 * float(np.median(np.abs(np.array(losses[:least]) - smoothed[:least])))
    around = 2 * math.sqrt(math.pi) * _width(len(losses))  # so many steps make a smoothed loss
    luck = 4 * scatter * math.sqrt(1 / around + 1 / first)
    start = float(np.mean(losses[:first]))
    return start - smoothed[least] > max(luck, 1e-3 * start)


def _smooth(losses: np.ndarray) -> np.ndarray:
    """Averages over neighbors by a Gaussian of 1/40 of the steps, at the ends over fewer."""
    at = np.arange(len(losses), dtype=float)
    weights = np.exp(-(((at[:, None] - at[None, :]) / _width(len(losses))) ** 2) / 2)
    return (weights * losses[None, :]).sum(1) / weights.sum(1)


def _width(steps: int) -> float:
    return max(steps / 40, 1.0)


def try_rates(run: RunContext, console: Console) -> RateTest:
    """Tries rising rates on the run's first stage; writes nothing.

    Raises:
        VggjaxError: images that cannot be read.
    """
    stage = run.stages[0]
    steps = min(max(run.steps_per_pass, MIN_STEPS), MAX_STEPS)
    rates = np.geomspace(FIRST_RATE, LAST_RATE, steps).tolist()
    run = dataclasses.replace(run, loaders={"train": run.loaders["train"]})
    with ProgressConsole(console, stage.epochs) as screen:
        read_images(run, screen)
        with _features(run, steps, screen) as (run, cut):
            losses = _losses(run, cut, rates, screen)
    return read_curve(stage.name, rates[: len(losses)], losses)


@contextmanager
def _features(
    run: RunContext, steps: int, screen: ProgressConsole
) -> Iterator[tuple[RunContext, str | None]]:
    """Keeps the frozen layers' outputs where that is less work than computing them each time."""
    plan = run.feature_plans.get(run.stages[0].name)
    if plan is None or plan.where != "memory" or steps < run.steps_per_pass:
        yield run, None
        return
    with cached_features(run, run.stages[0], screen, Stop()) as (kept, cut):
        yield kept, cut


def _losses(
    run: RunContext, cut: str | None, rates: Sequence[float], screen: ProgressConsole
) -> list[float]:
    """Gives the loss of each step, as far as they go before they are out of hand."""
    step, state = _first_step(run, cut)
    step = CompiledStep(step, lambda said: screen.print(f"rate test: {said}"))
    highest = peak_rates(run.config)["head"]
    losses: list[float] = []
    smoothed, least = 0.0, math.inf
    screen.begin("trying rates", len(rates))
    batches = epoch_batches(
        run.loaders["train"],
        0,
        len(rates),
        batch_size=run.batch_size,
        seed=run.config.seed,
        process=run.placement.process,
    )
    with closing(prefetch(batches, run.placement.put_batch)) as batches:
        for done, (rate, batch) in enumerate(zip(rates, batches, strict=False), start=1):
            factor = run.placement.put_state(jnp.asarray(rate / highest, jnp.float32))
            state, metrics = step(state._replace(factor=factor), batch)
            metrics = run.placement.fetch(metrics)
            loss = float(metrics["loss"]) / max(float(metrics["count"]), 1.0)
            losses.append(loss)
            screen.advance(done)
            smoothed = _SMOOTHING * smoothed + (1 - _SMOOTHING) * loss
            unbiased = smoothed / (1 - _SMOOTHING**done)
            least = min(least, unbiased) if done > 10 else math.inf
            if not math.isfinite(loss) or unbiased > _DIVERGED * least:
                break
    return losses


def _first_step(run: RunContext, cut: str | None) -> tuple[Callable, TrainState]:
    """Compiles the first stage's step, at one rate throughout, and makes its state."""
    config = dataclasses.replace(run.config, schedule="constant", warmup_epochs=0.0, ema=0.0)
    labels = label_layers(run.model, run.stages[0].unfreeze)
    tx = make_optimizer(config, labels, make_schedules(config, run.stages[0], run.steps_per_epoch))
    step = make_train_step(
        run.model,
        tx,
        labels,
        placement=run.placement,
        mode=config.preprocessing.mode,
        augmentation=config.augmentation,
        class_weights=run.class_weights,
        label_smoothing=config.label_smoothing,
        seed=config.seed,
        after=cut,
    )
    return step, run.placement.put_state(make_state(run.model, tx, labels))


def check_rate_test(config: Config) -> None:
    """Refuses --lr-find where there is no one run that it is of.

    Raises:
        ConfigError: with --cross-validate.
    """
    if config.cross_validate:
        raise ConfigError(
            f"--lr-find tries the rates of one run; leave --cross-validate "
            f"{config.cross_validate} out, and add it when you train."
        )
