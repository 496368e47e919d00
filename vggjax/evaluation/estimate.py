"""Estimate a dataset's accuracy before training: a linear head on frozen features, and its curve.

The images of train and val pass through the frozen base once. A linear head is then fitted to 10,
30 and 100 % of four fifths of them and judged on the last fifth, five times over (duplicates stay
together; the test split stays closed). The error falls with the number of images about as a power
of it (Cortes et al., "Learning curves", 1993), which gives the accuracy of the whole training split
and of four times as many images.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vggjax.data.images.preprocess import preprocess
from vggjax.data.loader import SplitLoader, prefetch
from vggjax.data.splits.stratify import merge_groups, stratified_split
from vggjax.errors import ConfigError, DataError
from vggjax.evaluation.metrics import wilson_interval
from vggjax.models.network import Network
from vggjax.training.config import Config
from vggjax.training.linear_probe.fit import STRENGTHS, LinearFit, fit_linear
from vggjax.training.prepare import Progress, RunContext, prepare_run
from vggjax.training.step import map_microbatches

SHARES = (0.1, 0.3, 1.0)
"""Of the images of four folds, what the linear head learns from."""

FOLDS = 5
MIN_IMAGES, MAX_IMAGES = 20, 2000

LIMIT_S, SMALLEST_PART = 100.0, 250
"""Where the features of `MAX_IMAGES` would take longer, those of a half or a quarter are used."""

_RESAMPLES = 1000


@dataclass(frozen=True)
class CurvePoint:
    """The accuracy of heads that learned from a number of images."""

    images: int
    accuracy: float
    interval: tuple[float, float]
    """95 %, Wilson, over all images of train and val."""


@dataclass(frozen=True)
class Estimate:
    """What to expect of a dataset."""

    dataset: str
    model: str
    classes: int
    images: int
    """That were passed through the base."""
    most_images: int | None
    """That would have been passed through the base, if that took less time; None if all were."""
    train_images: int
    """Of the training split, which `accuracy` is for."""
    test_images: int
    majority: float
    """The share of the most frequent class, which the accuracy has to beat."""
    curve: tuple[CurvePoint, ...]
    accuracy: float
    interval: tuple[float, float]
    """Of the accuracy on the test split, with 95 %: of the estimate and of the test images."""
    more_images: int
    """Four times the training images."""
    more_accuracy: float
    more_interval: tuple[float, float]
    """95 %, of resampled images; that the curve goes on as it began is not in it."""
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return every field as JSON values."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """Return the lines for people."""
        lines = [f"{'images':>10}  accuracy of a linear head on frozen {self.model} features"]
        for point in self.curve:
            lines.append(f"{point.images:>10,}  {_percent(point.accuracy, point.interval)}")
        lines.append(
            f"Expect about {_percent(self.accuracy, self.interval)} of the {self.test_images:,} "
            f"test images after training on {self.train_images:,}; always guessing the most "
            f"frequent class gives {100 * self.majority:.0f} %."
        )
        if self.most_images is not None:
            lines.append(
                f"This is from {self.images:,} images, since {self.most_images:,} would take too "
                f"long here; set `images` to {self.most_images} to use them."
            )
        lines.append(
            f"Four times the images, {self.more_images:,}, would give about "
            f"{_percent(self.more_accuracy, self.more_interval)}."
        )
        return "\n".join(lines)


def estimate(
    config: Config, *, max_images: int | None = None, progress: Progress | None = None
) -> Estimate:
    """Estimate the accuracy of a run on its test split, with its base frozen. Nothing is written.

    Args:
        config: the run's settings, of which data, model, weights, split and seed count.
        max_images: pass no more images of train and val through the base. None is 2,000, or a half
            or a quarter of them where they would take more than `LIMIT_S`.
        progress: called with (done, total) while they are.

    Raises:
        VggjaxError: settings, data or weights that cannot be used, or too few images.
    """
    start_s = time.monotonic()
    if config.task != "multiclass":
        raise ConfigError("An estimate needs one label per image; got `task` multilabel.")
    if max_images is not None and max_images < MIN_IMAGES:
        raise ConfigError(f"`images` must be at least {MIN_IMAGES}; got {max_images}.")
    run = prepare_run(dataclasses.replace(config, cache_features="off"))
    known = np.concatenate([run.splits["train"], run.splits["val"]])
    rng = np.random.default_rng(config.seed)
    indices = known[_choose(run.source.labels[known], max_images or MAX_IMAGES, rng)]
    ends = [len(indices)]
    if max_images is None:
        indices, ends = _nested_parts(run.source.labels, indices, rng)
    is_readable, features = pooled_features(run, indices, ends=ends, progress=progress)
    is_cut, indices = len(is_readable) < len(indices), indices[: len(is_readable)][is_readable]
    order = np.argsort(indices)  # of whatever parts they came in
    indices, features = indices[order], features[order]
    labels = run.source.labels[indices]
    near = run.duplicate_groups.groups if run.duplicate_groups else None
    groups = merge_groups(run.source.groups, near)
    own_groups = None if groups is None else groups[indices]
    sizes, correct = learning_curve(features, labels, own_groups, seed=config.seed)
    train, test = len(run.splits["train"]), len(run.splits["test"])
    (accuracy, more), drawn = extrapolate(sizes, correct, (train, 4 * train), seed=config.seed)
    low, high = np.quantile(drawn[:, 1], [0.025, 0.975])
    return Estimate(
        dataset=config.dataset,
        model=config.model,
        classes=len(run.source.class_names),
        images=len(labels),
        most_images=ends[-1] if is_cut else None,
        train_images=train,
        test_images=test,
        majority=float(np.bincount(run.source.labels).max() / len(run.source.labels)),
        curve=tuple(
            CurvePoint(size, float(row.mean()), wilson_interval(int(row.sum()), len(row)))
            for size, row in zip(sizes, correct, strict=True)
        ),
        accuracy=float(accuracy),
        interval=interval_on_test(float(accuracy), drawn[:, 0], test),
        more_images=4 * train,
        more_accuracy=float(more),
        more_interval=(float(low), float(high)),
        seconds=round(time.monotonic() - start_s, 1),
    )


def _nested_parts(
    labels: np.ndarray, indices: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, list[int]]:
    """Return `indices` in an order in which the first quarter and half are stratified; their ends.

    Parts of fewer than 250 images are not among the ends.
    """
    half = indices[_choose(labels[indices], len(indices) // 2, rng)]
    quarter = half[_choose(labels[half], len(half) // 2, rng)]
    parts = quarter, np.setdiff1d(half, quarter), np.setdiff1d(indices, half)
    ends = [end for end in (len(quarter), len(half)) if end >= SMALLEST_PART]
    return np.concatenate(parts), [*ends, len(indices)]


def pooled_features(
    run: RunContext,
    indices: np.ndarray,
    *,
    ends: Sequence[int] = (),
    progress: Progress | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return which images are readable, bool (N,), and the features of those, float32 (M, F).

    They are the means and the maxima over the pixels of the base's last layer, each of unit length.
    `ends` are numbers of images, rising to that of all: at each, the work ends if it would take
    more than `LIMIT_S` to the next one. N is the one that was reached.
    """
    loader = SplitLoader(
        run.source, indices, run.config.preprocessing, cache_mb=0,
        num_threads=run.config.num_threads, max_unreadable=run.config.max_unreadable,
    )  # fmt: skip
    step, batch_size = _make_pooled_step(run.model, run.config.preprocessing.mode), run.batch_size
    rows: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    start_s, end = time.monotonic(), len(loader)
    with closing(prefetch(loader.batches(batch_size), lambda batch: batch)) as batches:
        for batch in batches:
            is_own = batch["index"] >= 0
            rows.append(np.asarray(step(batch["images"]))[is_own])
            masks.append(batch["mask"][is_own] > 0)
            done, previous = sum(map(len, rows)), sum(map(len, rows[:-1]))
            if progress is not None:
                progress(done, len(loader))
            seconds_each = (time.monotonic() - start_s) / done
            passed = [i for i, each in enumerate(ends[:-1]) if previous < each <= done]
            if passed and seconds_each * ends[passed[-1] + 1] > LIMIT_S:
                end = ends[passed[-1]]
                break
    is_readable = np.concatenate(masks)[:end]
    return is_readable, np.concatenate(rows)[:end][is_readable]


def _make_pooled_step(model: Network, mode: str) -> Callable[[np.ndarray], jax.Array]:
    model.eval()
    graphdef, state = nnx.split(model)
    last = [name for name in model.layers if name.startswith("block")][-1]

    def pool(state: nnx.State, images: jax.Array) -> jax.Array:
        network = nnx.merge(graphdef, state)
        maps = network(preprocess(images, mode), until=last)
        parts = (maps.mean((1, 2)), maps.max((1, 2)))
        unit = [x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-9) for x in parts]
        return jnp.concatenate(unit, axis=-1)

    compiled = jax.jit(lambda state, x: map_microbatches(lambda part: pool(state, part), x))
    return lambda images: compiled(state, images)


def learning_curve(
    features: np.ndarray, labels: np.ndarray, groups: np.ndarray | None = None, *, seed: int = 0
) -> tuple[list[int], np.ndarray]:
    """Fit heads to `SHARES` of all folds but one and predict that one, for each fold.

    Args:
        features: (N, F).
        labels: int (N,).
        groups: int (N,); images of one group stay in one fold.
        seed: of the folds and of the shares.

    Returns:
        The mean numbers of images that were learned from, and which images were then classified
        correctly, bool (len(SHARES), N).

    Raises:
        DataError: fewer than 20 images, fewer than two classes with two images, or one group alone.
    """
    counts = np.bincount(labels)
    if len(labels) < MIN_IMAGES or (counts >= 2).sum() < 2:
        raise DataError(
            f"An estimate needs at least {MIN_IMAGES} readable images in train and val, and two "
            f"classes with two of them; got {len(labels)} in {(counts > 0).sum()} classes."
        )
    rng, everything = np.random.default_rng(seed), np.arange(len(labels))
    shares = {str(i): 1 / FOLDS for i in range(FOLDS)}
    num_classes = int(labels.max()) + 1

    def fit(chosen: np.ndarray, judged: np.ndarray, strengths: Sequence[float]) -> LinearFit:
        rows = features[chosen], labels[chosen], features[judged], labels[judged]
        return fit_linear(*rows, num_classes=num_classes, strengths=strengths)

    correct = np.zeros((len(SHARES), len(labels)), bool)
    sizes: list[list[int]] = [[] for _ in SHARES]
    penalty = None
    for held_out in stratified_split(labels, everything, shares, seed, groups).values():
        train = np.setdiff1d(everything, held_out)
        if not len(held_out):
            continue  # there are fewer groups than folds
        if not len(train):
            raise DataError("An estimate needs different images; all of these are near-duplicates.")
        if penalty is None:  # once, within the first fold's training images
            fitted = train[_choose(labels[train], round(0.8 * len(train)), rng)]
            rest = np.setdiff1d(train, fitted)  # empty if each class has an image or two
            chosen_fit = fit(fitted, rest if len(rest) else fitted, STRENGTHS)
            penalty = chosen_fit.strength * len(fitted)  # on the sum of the losses
        for row, share in enumerate(SHARES):
            chosen = train[_choose(labels[train], round(share * len(train)), rng)]
            logits = fit(chosen, held_out, [penalty / len(chosen)]).logits(features[held_out])
            correct[row, held_out] = logits.argmax(1) == labels[held_out]
            sizes[row].append(len(chosen))
    return [round(float(np.mean(each))) for each in sizes], correct


def extrapolate(
    sizes: Sequence[int], correct: np.ndarray, targets: Sequence[int], *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Fit error = a * n^-b to a learning curve, through its last point, which is known best.

    Args:
        sizes: (K,), numbers of images, rising.
        correct: bool (K, N), which of N images were classified correctly.
        targets: (T,), numbers of images to go to.
        seed: of the resampling.

    Returns:
        The accuracies for `targets`, (T,), and those of resamples of the N images, (R, T).
    """
    num = correct.shape[1]
    rng, positions = np.random.default_rng(seed), np.log(np.asarray(sizes, float))

    def predict(rows: np.ndarray) -> np.ndarray:
        wrong = (~rows).sum(1) + 0.5  # half an error where there is none
        logs = np.log(wrong / (num + 1))
        # The variance of a logarithm of a count is its inverse.
        slope = np.polyfit(positions, logs, 1, w=np.sqrt(wrong))[0]
        steps = np.log(np.asarray(targets, float)) - positions[-1]
        return 1 - np.exp(np.minimum(logs[-1] + min(slope, 0.0) * steps, 0.0))

    drawn = rng.integers(0, num, (_RESAMPLES, num))
    return predict(correct), np.array([predict(correct[:, rows]) for rows in drawn])


def interval_on_test(accuracy: float, resamples: np.ndarray, images: int) -> tuple[float, float]:
    """Return 95 % of the accuracy that a test split of `images` will show: it is a sample as well.

    `resamples` are estimates of that accuracy, (R,).
    """
    spread = max(accuracy, 1e-9) * max(1 - accuracy, 0.5 / images)
    count = spread / (float(np.var(resamples)) + spread / images)
    return wilson_interval(float(accuracy * count), float(count))


def _choose(labels: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return positions of about `count` images, the same share of each class, at least one."""
    if count >= len(labels):
        return np.arange(len(labels))
    parts = []
    for label in np.unique(labels):
        positions = rng.permutation(np.flatnonzero(labels == label))
        parts.append(positions[: max(1, math.floor(len(positions) * count / len(labels) + 0.5))])
    return np.sort(np.concatenate(parts))


def _percent(accuracy: float, interval: tuple[float, float]) -> str:
    """Return `91 % (88-94)`, with another digit where a whole percent says little."""
    low, high = interval
    digits = 1 if high > 0.95 or high - low < 0.03 else 0
    return f"{100 * accuracy:.{digits}f} % ({100 * low:.{digits}f}-{100 * high:.{digits}f})"
