"""Detection of a training collapse: a loss that is not finite, or a network that learns nothing.

A network learns nothing if over a stretch of steps neither its loss nor its accuracy beats the
class prior (`PriorBaseline`), and the loss is not falling. The detector reads the sums that are
fetched for the log anyway and touches no device. Its memory between checks are `marks`, plain
numbers that are saved with the run's progress, so that a resumed run detects the same.
A later stage may also set back what the stages before it reached, while it still learns
(`CollapseDetector.find_setback`). `diagnose` derives the likely causes and the settings to change
from the config.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vggjax.training.config import Config
from vggjax.training.freezing import block_of, peak_rates
from vggjax.training.settings.stages import Stage

MIN_STEPS = 32
"""A head may need as many steps to leave chance, so fewer are no evidence."""
LONG_EPOCH_STEPS = 100
"""An epoch of at least this many steps is checked before its end."""

SETBACK = 0.1
"""The part of the accuracy above chance that a stage loses, at least, to have been set back."""

_USUAL_RATES = dict.fromkeys(("adam", "nadam", "rmsprop"), (1e-5, 1e-3)) | {"sgd": (1e-3, 1e-1)}
"""Optimizer -> the range of learning rates that usually works."""

Mark = list[float]
"""[step, and since the previous mark: sum of losses, correct predictions, images]."""


@dataclass(frozen=True)
class PriorBaseline:
    """The accuracy and loss of predicting the class prior for every image."""

    classes: int
    accuracy: float
    """The share of the largest class."""
    loss: float
    """Of the best constant prediction, in nats: ln(classes) for balanced classes."""
    val_loss: float | None = None
    """Of several labels per image, the loss without class weights and label smoothing."""

    @classmethod
    def from_counts(
        cls,
        counts: np.ndarray,
        *,
        class_weights: np.ndarray | None = None,
        label_smoothing: float = 0.0,
    ) -> "PriorBaseline":
        """Return the baseline for `counts` (C,) training images per class and this loss."""
        shares = np.asarray(counts, float) / np.sum(counts)
        mass = shares if class_weights is None else shares * class_weights
        target = mass / mass.sum()
        target = (1 - label_smoothing) * target + label_smoothing / len(target)
        entropy = -float(np.sum(target * np.log(np.where(target > 0, target, 1))))
        return cls(len(shares), float(shares.max()), entropy * float(mass.sum()))

    @classmethod
    def from_targets(
        cls,
        targets: np.ndarray,
        *,
        class_weights: np.ndarray | None = None,
        label_smoothing: float = 0.0,
    ) -> "PriorBaseline":
        """Return the baseline for several labels per image, bool (N, C): the mean of the classes.

        Each class is a choice between absence and presence, whose prior is its frequency.
        """
        counts = np.stack([(~targets).sum(0), targets.sum(0)], axis=1)
        weights = [None] * len(counts) if class_weights is None else class_weights
        parts = [
            cls.from_counts(count, class_weights=weight, label_smoothing=label_smoothing)
            for count, weight in zip(counts, weights, strict=True)
        ]
        return cls(
            2,
            float(np.mean([part.accuracy for part in parts])),
            float(np.mean([part.loss for part in parts])),
            float(np.mean([cls.from_counts(count).loss for count in counts])),
        )


@dataclass(frozen=True)
class Collapse:
    """A detected collapse: what was measured, the possible causes, and settings to try."""

    step: int
    symptom: str
    causes: tuple[str, ...]
    advice: tuple[str, ...]
    """Settings and values, as in "`learning_rate` 0.001"."""
    is_finite: bool = True
    is_slow: bool = False
    """Whether the learning rate is unusually low, so that lowering it would not help."""
    is_setback: bool = False
    """Whether the network learns, but is far worse than before the stage."""

    @property
    def explanation(self) -> str:
        """The possible causes as a sentence."""
        return f"Possible causes: {'; '.join(self.causes)}."

    @property
    def reason(self) -> str:
        """The symptom and the possible causes on one line."""
        return f"{self.symptom}. {self.explanation}"


class CollapseDetector:
    """Checks one stage of a run; `factor` multiplies its learning rates at present."""

    def __init__(
        self,
        config: Config,
        stage: Stage,
        baseline: PriorBaseline,
        *,
        steps_per_epoch: int,
        val_images: int,
        factor: float = 1.0,
    ):
        self._config, self._stage, self._baseline = config, stage, baseline
        self._steps_per_epoch, self._val_images, self._factor = steps_per_epoch, val_images, factor
        self._first_step = stage.first_epoch * steps_per_epoch
        self._warmup_epochs = min(config.warmup_epochs, stage.epochs / 2)
        self._warm_step = self._first_step + self._warmup_epochs * steps_per_epoch

    def check(
        self,
        marks: list[Mark],
        step: int,
        sums: Mapping[str, float],
        *,
        val: Mapping[str, float] | None = None,
    ) -> Collapse | None:
        """Return the collapse at a line of the log or, with `val`, at the end of an epoch.

        `marks` is updated in place and empty at the beginning of the stage. `sums` has the `loss`,
        `correct` and `count` of the epoch so far, `val` its `val/loss` and `val/accuracy`.
        """
        loss = sums["loss"] / max(sums["count"], 1)
        if not math.isfinite(loss):
            return self._collapse(step, f"the loss is {loss} at step {step:,}", is_finite=False)
        self._add_mark(marks, step, sums)
        if val is None:
            done = step % self._steps_per_epoch
            is_long = self._steps_per_epoch >= LONG_EPOCH_STEPS
            if not is_long or done < 0.75 * self._steps_per_epoch or step <= self._warm_step:
                return None
            stretch = 0.75 * self._steps_per_epoch
        else:
            stretch = max(self._steps_per_epoch, MIN_STEPS)
            if self._config.ema:  # averaged weights may be good long after the others collapsed
                val = None
        if step - self._first_step < stretch or (val is not None and self.beats_chance(val)):
            return None
        return self._judge(marks, step, stretch, val)

    def find_setback(
        self, step: int, val: Mapping[str, float], before: float | None
    ) -> Collapse | None:
        """Return the setback at the end of one of the stage's first epochs, if it is one.

        The epochs are those of the warmup and the one after it. The validation accuracy must be
        significantly below `before`, that of the weights which the stage began with, and at least
        `SETBACK` of what that was above chance.
        """
        watched = (math.ceil(self._warmup_epochs) + 1) * self._steps_per_epoch
        if before is None or step - self._first_step > watched:
            return None
        accuracy, count = val["val/accuracy"], self._val_images
        _, high = _wilson_interval(accuracy * count, count)
        low, _ = _wilson_interval(before * count, count)
        allowed = before - SETBACK * (before - self._baseline.accuracy)
        if high >= low or accuracy >= allowed:
            return None
        symptom = f"validation accuracy {accuracy:.1%}, and {before:.1%} before this stage"
        causes, advice = diagnose(self._config, self._stage, factor=self._factor)
        return Collapse(step, symptom, causes, advice, is_setback=True)

    def beats_chance(self, val: Mapping[str, float]) -> bool:
        """Return whether the validation accuracy is significantly better than the prior's.

        Of several labels per image the loss may be, too: at first no probability reaches 0.5.
        """
        if self._baseline.val_loss is not None and val["val/loss"] < 0.98 * self._baseline.val_loss:
            return True
        low, _ = _wilson_interval(val["val/accuracy"] * self._val_images, self._val_images)
        return low > self._baseline.accuracy

    def _add_mark(self, marks: list[Mark], step: int, sums: Mapping[str, float]) -> None:
        """Record what was added to the sums since the last mark; a long epoch keeps 16 marks."""
        if not marks:
            marks.append([float(self._first_step), 0.0, 0.0, 0.0])
        last = marks[-1][0]
        if last >= step:
            return
        epoch_start = (step - 1) // self._steps_per_epoch * self._steps_per_epoch
        current = [sums[name] for name in ("loss", "correct", "count")]
        recorded = [mark for mark in marks if mark[0] > epoch_start]
        new = [value - sum(mark[i] for mark in recorded) for i, value in enumerate(current, 1)]
        sixteenth = self._steps_per_epoch / 16
        if last > epoch_start and last // sixteenth == step // sixteenth:
            new = [a + b for a, b in zip(new, marks.pop()[1:], strict=True)]
        marks.append([float(step), *new])
        oldest = step - max(self._steps_per_epoch, MIN_STEPS)
        while len(marks) > 1 and marks[1][0] <= oldest:
            del marks[0]

    def _judge(
        self, marks: list[Mark], step: int, stretch: float, val: Mapping[str, float] | None
    ) -> Collapse | None:
        baseline = self._baseline
        whole = _between(marks, step - stretch, step)
        before = _between(marks, step - stretch / 2, step - stretch / 4)
        last = _between(marks, step - stretch / 4, step)
        if min(whole.images, before.images, last.images) < 1 or self._is_accurate(whole, last):
            return None
        # The steps just before a collapse are ignored (`max`), except for uneven classes, where
        # the loss of half an epoch varies with the images drawn.
        is_even = baseline.loss > 0.95 * math.log(baseline.classes)
        worst = max(whole.loss, min(before.loss, last.loss)) if is_even else whole.loss
        is_below_chance = worst < 0.99 * baseline.loss or last.loss < 0.98 * baseline.loss
        current = last.loss if val is None else min(last.loss, val["val/loss"])
        if is_below_chance or self._is_falling(whole, before, last, current):
            return None
        return self._collapse(step, self._describe(last.loss, whole))

    def _is_accurate(self, whole: "_Stretch", last: "_Stretch") -> bool:
        """Return whether the accuracy is significantly above chance, or not known to be near it."""
        chance = self._baseline.accuracy
        low, _ = _wilson_interval(last.correct, last.images)
        _, high = _wilson_interval(whole.correct, whole.images)
        above = min(0.1 * chance, 0.02 * (1 - chance))
        near = min(0.05, (1 - chance) / 4)
        return low > chance + above or high > chance + near

    def _is_falling(
        self, whole: "_Stretch", before: "_Stretch", last: "_Stretch", current: float
    ) -> bool:
        """Return whether the loss falls fast enough to be learning."""
        chance = self._baseline.loss
        if whole.loss > 10 * chance and current < 1.1 * chance:
            return False  # it blew up, and then dropped to chance
        # A low rate leaves the loss at chance for long and hardly shakes it: there a thousandth is
        # a beginning. Above chance, as with a new head on pretrained features, it must fall faster.
        least = 0.001 if whole.loss < 1.005 * chance else 0.01
        return before.loss - last.loss > least * chance + 0.3 * max(before.loss - chance, 0.0)

    def _describe(self, loss: float, whole: "_Stretch") -> str:
        baseline = self._baseline
        is_even = math.isclose(baseline.loss, math.log(baseline.classes), rel_tol=0.005)
        chance = f"ln {baseline.classes} = " if is_even else ""
        prior = f"the largest of {baseline.classes} classes"
        if baseline.val_loss is not None:
            prior = "the presence or absence of each label, whichever is more frequent"
        return (
            f"loss {loss:.4g} (chance: {chance}{baseline.loss:.4g}), accuracy "
            f"{whole.correct / whole.images:.1%} (chance: {baseline.accuracy:.1%}, {prior}); the "
            "network learns nothing from the images"
        )

    def _collapse(self, step: int, symptom: str, *, is_finite: bool = True) -> Collapse:
        config, factor = self._config, self._factor
        causes, advice = diagnose(config, self._stage, is_finite=is_finite, factor=factor)
        is_slow = is_finite and _is_slow(config, factor)
        return Collapse(step, symptom, causes, advice, is_finite, is_slow)


class _Stretch(NamedTuple):
    loss: float
    """The mean over its images."""
    correct: float
    images: float


def _between(marks: list[Mark], start: float, end: float) -> _Stretch:
    """Return the sums of the marks from the last one at or before `start` to the one at `end`."""
    first = max((mark[0] for mark in marks if mark[0] <= start), default=marks[0][0])
    inside = [mark for mark in marks if first < mark[0] <= end]
    loss, correct, count = (sum(mark[i] for mark in inside) for i in (1, 2, 3))
    return _Stretch(loss / max(count, 1), correct, count)


def _wilson_interval(correct: float, count: float) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share, from `correct` successes in `count` trials."""
    z2 = 1.96**2
    center = (correct + z2 / 2) / (count + z2)
    half = 1.96 / (count + z2) * math.sqrt(correct * max(count - correct, 0) / count + z2 / 4)
    return center - half, center + half


def diagnose(
    config: Config, stage: Stage, *, is_finite: bool = True, factor: float = 1.0
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return possible causes of a collapse in `stage` and settings to try, the likeliest first.

    `is_finite` is False for a loss that is not finite, which a low rate cannot cause. `factor`
    multiplies the learning rates at present.
    """
    causes: list[str] = []
    advice: list[str] = []

    def add(cause: str, setting: str) -> None:
        causes.append(cause)
        advice.append(setting)

    rates = {name: rate * factor for name, rate in peak_rates(config).items()}
    rate = rates["head"]
    is_published = config.weights == "imagenet" and config.start_from is None
    if is_published and config.preprocessing.mode != "caffe":
        cause = f"`preprocess` {config.preprocess} yields other pixels than the weights expect"
        add(cause, "`preprocess` auto")
    if not config.pretrained and config.unfrozen != ("all",):
        add("the frozen layers are random (`weights` none)", "`unfreeze` all")
    add(*_rate_diagnosis(config, rate, is_finite=is_finite, factor=factor))
    if stage.unfreeze != ("none",) and config.pretrained:
        if stage.first_epoch == 0 and config.start_from is None:
            add(
                "pretrained layers were unfrozen at once, below a new head whose first gradients "
                "destroy them",
                f"`stages` {_gradual_stages(config)}",
            )
        fastest = max(peak for label, peak in rates.items() if label != "head")
        if fastest > 0.1 * rate:
            cause = f"pretrained layers learn at {fastest:.2g}, as fast as the head"
            add(cause, f"`backbone_learning_rate` {rate / 1000:.2g}")
    if not config.warmup_epochs:
        add("the learning rate has no warmup", "`warmup_epochs` 1")
    if not config.clip_norm:
        advice.append("`clip_norm` 1")
    if not config.pretrained and not config.model.endswith("_bn") and "vgg" in config.model:
        cause = f"{config.model} has no batch normalization, which training from scratch needs"
        add(cause, f"`model` {config.model}_bn")
    return tuple(causes), tuple(advice)


def _rate_diagnosis(
    config: Config, rate: float, *, is_finite: bool, factor: float
) -> tuple[str, str]:
    if is_finite and _is_slow(config, factor):
        cause = f"the learning rate {rate:.2g} is low for {config.optimizer}"
        return cause, f"`learning_rate` {rate * 10:.2g}"
    _, high = _USUAL_RATES[config.optimizer]
    verb = "is" if rate > high else "may be too"
    lower = rate / 10 if rate <= 100 * high else high
    cause = f"the learning rate {rate:.2g} {verb} high for {config.optimizer}"
    return cause, f"`learning_rate` {lower:.2g}"


def _is_slow(config: Config, factor: float) -> bool:
    return config.learning_rate * factor < _USUAL_RATES[config.optimizer][0]


def _gradual_stages(config: Config) -> str:
    """Return `stages` with the run's number of epochs, of which the head alone has the first."""
    epochs = config.num_epochs
    head = max(1, epochs // 3)
    rest = max(1, epochs - head)
    if config.unfrozen == ("all",):
        deep, last = max(1, rest // 2), block_of(config.base_layers[-1])
        return f"head:{head} {last}:{deep} all:{max(1, rest - deep)}"
    return f"head:{head} {'+'.join(config.unfrozen)}:{rest}"
