"""Notices a training that learns nothing from the images, or whose loss is not finite.

It looks at sums that were fetched for the log anyway: none of it touches a device. Learning nothing
means that over a stretch of steps neither loss nor accuracy is better than those of guessing by the
classes' shares, and that the loss is not on its way down. What it needs from one look to the next
are `marks`, plain numbers that belong to the run's position, so that a resumed run sees the same.
What is then said is in advice.py; what is done about it in recovery.py.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vggjax.training.collapse.advice import causes_and_advice, is_slow
from vggjax.training.config import Config
from vggjax.training.stages import Stage

MIN_STEPS = 32
"""Fewer steps than these say nothing: a head may need as many to leave chance."""
LONG_EPOCH_STEPS = 100
"""From so many steps on an epoch is looked at before its end."""

Mark = list[float]
"""[step, and since the mark before it: sum of losses, right guesses, images]."""


@dataclass(frozen=True)
class PriorBaseline:
    """What is had without looking at the images, by guessing as the classes are shared out."""

    classes: int
    accuracy: float
    """The commonest class's share."""
    loss: float
    """Of the best constant guess, in nats: ln(classes) where all are equally common."""

    @classmethod
    def of(
        cls,
        counts: np.ndarray,
        *,
        class_weights: np.ndarray | None = None,
        label_smoothing: float = 0.0,
    ) -> "PriorBaseline":
        """Finds it from the training images of each class, (C,), and from what the loss is."""
        shares = np.asarray(counts, float) / np.sum(counts)
        mass = shares if class_weights is None else shares * class_weights
        target = mass / mass.sum()
        target = (1 - label_smoothing) * target + label_smoothing / len(target)
        entropy = -float(np.sum(target * np.log(np.where(target > 0, target, 1))))
        return cls(len(shares), float(shares.max()), entropy * float(mass.sum()))


@dataclass(frozen=True)
class Collapse:
    """What was seen, why it may be so and what to do about it, each in words for the user."""

    step: int
    seen: str
    causes: tuple[str, ...]
    advice: tuple[str, ...]
    finite: bool = True
    too_slow: bool = False
    """Whether the rate is rather too low: a tenth of it would be no cure."""

    @property
    def wrong(self) -> str:
        """What may be wrong, as a sentence."""
        return f"What may be wrong: {'; '.join(self.causes)}."

    @property
    def reason(self) -> str:
        """What was seen and what may be wrong, in one line."""
        return f"{self.seen}. {self.wrong}"


class CollapseDetector:
    """Looks at one stage of a run.

    Args:
        config: of the run.
        stage: the one that trains.
        chance: for the training loss.
        steps_per_epoch: of the run.
        val_images: how many images the validation split has.
        factor: what the rates are multiplied by, after a recovery or on a plateau.
    """

    def __init__(
        self,
        config: Config,
        stage: Stage,
        chance: PriorBaseline,
        *,
        steps_per_epoch: int,
        val_images: int,
        factor: float = 1.0,
    ):
        self._config, self._stage, self._chance = config, stage, chance
        self._steps_per_epoch, self._val_images = steps_per_epoch, val_images
        self._factor = factor
        self._first_step = stage.first_epoch * steps_per_epoch
        warmup_epochs = min(config.warmup_epochs, stage.epochs / 2)
        self._warm_step = self._first_step + warmup_epochs * steps_per_epoch

    def look(
        self,
        marks: list[Mark],
        step: int,
        sums: Mapping[str, float],
        *,
        val: Mapping[str, float] | None = None,
    ) -> Collapse | None:
        """Looks where the log is due, or with `val` where an epoch has ended and was judged.

        `marks` is empty where a stage begins and is changed here; `sums` are the epoch's so far:
        `loss`, `correct` and `count`.
        """
        loss = sums["loss"] / max(sums["count"], 1)
        if not math.isfinite(loss):
            return self._collapse(step, f"the loss is {loss} at step {step:,}", finite=False)
        self._add(marks, step, sums)
        if val is None:
            done = step % self._steps_per_epoch
            is_long = self._steps_per_epoch >= LONG_EPOCH_STEPS
            if not is_long or done < 0.75 * self._steps_per_epoch or step <= self._warm_step:
                return None
            stretch = 0.75 * self._steps_per_epoch
        else:
            stretch = max(self._steps_per_epoch, MIN_STEPS)
            if self._config.ema:  # averaged weights outlive those that learn
                val = None
        if step - self._first_step < stretch or (val is not None and self.learns(val)):
            return None
        return self._judge(marks, step, stretch, val)

    def _add(self, marks: list[Mark], step: int, sums: Mapping[str, float]) -> None:
        """Notes what came since the last mark; a long epoch's marks are joined, not its end's."""
        if not marks:
            marks.append([float(self._first_step), 0.0, 0.0, 0.0])
        last = marks[-1][0]
        if last >= step:
            return
        begin = (step - 1) // self._steps_per_epoch * self._steps_per_epoch
        now = [sums[name] for name in ("loss", "correct", "count")]
        noted = [mark for mark in marks if mark[0] > begin]
        new = [value - sum(mark[i] for mark in noted) for i, value in enumerate(now, start=1)]
        sixteenth = self._steps_per_epoch / 16
        if last > begin and last // sixteenth == step // sixteenth:
            new = [a + b for a, b in zip(new, marks.pop()[1:], strict=True)]
        marks.append([float(step), *new])
        oldest = step - max(self._steps_per_epoch, MIN_STEPS)
        while len(marks) > 1 and marks[1][0] <= oldest:
            del marks[0]

    def learns(self, val: Mapping[str, float]) -> bool:
        """Says whether the validation split is judged better than by chance."""
        low, _ = _interval(val["val/accuracy"] * self._val_images, self._val_images)
        return low > self._chance.accuracy

    def _judge(
        self, marks: list[Mark], step: int, stretch: float, val: Mapping[str, float] | None
    ) -> Collapse | None:
        chance = self._chance
        whole, before, last = (
            _between(marks, step - stretch, step),
            _between(marks, step - stretch / 2, step - stretch / 4),
            _between(marks, step - stretch / 4, step),
        )
        if min(whole.count, before.count, last.count) < 1:
            return None
        low, _ = _interval(last.correct, last.count)
        _, high = _interval(whole.correct, whole.count)
        # Better than chance by more than the luck of the draw, or not known to lie near it.
        better = min(0.1 * chance.accuracy, 0.02 * (1 - chance.accuracy))
        near = min(0.05, (1 - chance.accuracy) / 4)
        if low > chance.accuracy + better or high > chance.accuracy + near:
            return None
        # A few steps from before the collapse are passed over, but where classes are uneven: there
        # the losses of half an epoch vary by which images it drew.
        even = chance.loss > 0.95 * math.log(chance.classes)
        worst = max(whole.loss, min(before.loss, last.loss)) if even else whole.loss
        if worst < 0.99 * chance.loss or last.loss < 0.98 * chance.loss:
            return None
        # On its way down? A low rate leaves the loss at chance for long, and hardly shakes it: a
        # thousandth is a beginning; with higher ones a hundredth. Above chance, as with a new head
        # on pretrained features, the loss has further to go and goes faster. But what blew up and
        # then fell onto chance is not on its way.
        now = last.loss if val is None else min(last.loss, val["val/loss"])
        blew_up = whole.loss > 10 * chance.loss and now < 1.1 * chance.loss
        above = max(before.loss - chance.loss, 0.0)
        least = 0.001 if whole.loss < 1.005 * chance.loss else 0.01
        if not blew_up and before.loss - last.loss > least * chance.loss + 0.3 * above:
            return None
        return self._collapse(step, self._describe(last.loss, whole))

    def _describe(self, loss: float, whole: "_Stretch") -> str:
        chance = self._chance
        even = math.isclose(chance.loss, math.log(chance.classes), rel_tol=0.005)
        known = f"ln {chance.classes}" if even else f"the {chance.loss:.3f} of guessing by shares"
        sign = "=" if math.isclose(loss, chance.loss, rel_tol=0.005) else "against"
        return (
            f"loss {loss:.4g} {sign} {known}, accuracy {_percent(whole.correct / whole.count)} of "
            f"{chance.classes} classes (the commonest has {_percent(chance.accuracy)}): nothing is "
            "learned from the images"
        )

    def _collapse(self, step: int, seen: str, *, finite: bool = True) -> Collapse:
        found = causes_and_advice(self._config, self._stage, finite=finite, factor=self._factor)
        return Collapse(step, seen, *found, finite, finite and is_slow(self._config, self._factor))


@dataclass(frozen=True)
class _Stretch:
    loss: float
    """The mean."""
    correct: float
    count: float


def _between(marks: list[Mark], start: float, end: float) -> _Stretch:
    """Adds up what lies behind the last mark at or before `start`, up to that of `end`."""
    first = max((mark[0] for mark in marks if mark[0] <= start), default=marks[0][0])
    found = [mark for mark in marks if first < mark[0] <= end]
    loss, correct, count = (sum(mark[i] for mark in found) for i in (1, 2, 3))
    return _Stretch(loss / max(count, 1), correct, count)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _interval(correct: float, count: float) -> tuple[float, float]:
    """Gives the 95 % interval (Wilson's) of a share of which `correct` out of `count` were seen."""
    z2 = 1.96**2
    middle = (correct + z2 / 2) / (count + z2)
    half = 1.96 / (count + z2) * math.sqrt(correct * max(count - correct, 0) / count + z2 / 4)
    return middle - half, middle + half
