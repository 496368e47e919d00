"""Cuts a data set into train, val and test: by class, by seed, the data set's own splits first.

In:  a `Source`.  Out: {"train", "val", "test"} -> sorted int64 indices into it, disjoint, every
class in each. They depend on the labels, the fractions and the seed, and on nothing of the
machine. A split that the data set brings is never touched, save that one which it lacks is cut
from its train split.
"""

import numpy as np

from vggjax.data.source import Source
from vggjax.errors import ConfigError, DataError

SPLITS = ("train", "val", "test")
FRACTIONS = (0.8, 0.1, 0.1)


def parse_split(text: str) -> tuple[float, float, float]:
    """Reads `"0.8,0.1,0.1"`: the shares of train, val and test, above 0, with the sum 1."""
    try:
        fractions = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            f"--split takes three numbers such as 0.8,0.1,0.1; got {text!r}."
        ) from None
    _check_fractions(fractions)
    return fractions


def make_splits(
    source: Source, fractions: tuple[float, float, float] = FRACTIONS, seed: int = 0
) -> dict[str, np.ndarray]:
    """Gives the indices of train, val and test.

    The number of a class' examples in a split is its share, rounded by the largest remainder, and
    at least one. Where the data set has splits of its own, a missing one is cut from its train
    split with its share renormalised: 0.1 beside 0.8 is one ninth.

    Raises:
        DataError: a class with too few examples, or one that a split lacks, with the counts.
    """
    _check_fractions(fractions)
    if seed < 0:
        raise ConfigError(f"--seed must be 0 or more; got {seed}.")
    own = dict(source.splits or {"train": np.arange(len(source.labels))})
    missing = [name for name in SPLITS if name not in own]
    share = dict(zip(SPLITS, fractions, strict=True))
    if missing:
        names = ["train", *missing]
        total = sum(share[name] for name in names)
        shares = [share[name] / total for name in names]
        own.update(
            _cut(source, np.asarray(own["train"]), dict(zip(names, shares, strict=True)), seed)
        )
    splits = {name: np.sort(np.asarray(own[name], np.int64)) for name in SPLITS}
    _check_classes(source, splits)
    return splits


def _cut(
    source: Source, indices: np.ndarray, shares: dict[str, float], seed: int
) -> dict[str, np.ndarray]:
    parts: dict[str, list[np.ndarray]] = {name: [] for name in shares}
    owed = dict.fromkeys(shares, 0.0)
    labels = source.labels[indices]
    for label, class_name in enumerate(source.class_names):
        members = indices[labels == label]
        if len(members) < len(shares):
            raise DataError(
                f"Class {class_name!r} has {len(members)} example"
                f"{'' if len(members) == 1 else 's'}, too few for one in each of "
                f"{', '.join(shares)}. Add some, or take the class out."
            )
        members = np.random.default_rng((seed, label)).permutation(members)
        start = 0
        for name, count in _counts(len(members), shares, owed).items():
            owed[name] += len(members) * shares[name] - count
            parts[name].append(members[start : start + count])
            start += count
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def _counts(total: int, shares: dict[str, float], owed: dict[str, float]) -> dict[str, int]:
    """Shares `total` out by the largest remainder, at least one to each.

    Ties go to the split that the classes before have given the least of its due: without that,
    fifteen examples in each of many classes would make val twice as large as test.
    """
    exact = {name: total * share for name, share in shares.items()}
    counts = {name: max(1, int(value + 1e-9)) for name, value in exact.items()}

    def due(name: str) -> tuple[float, float]:
        return round(exact[name] - counts[name], 6), round(owed[name], 6)

    while sum(counts.values()) < total:
        counts[max(counts, key=due)] += 1
    while sum(counts.values()) > total:
        counts[min((name for name in counts if counts[name] > 1), key=due)] -= 1
    return counts


def _check_fractions(fractions: tuple[float, ...]) -> None:
    received = ",".join(f"{value:g}" for value in fractions)
    if len(fractions) != 3:
        raise ConfigError(f"--split takes three shares, train,val,test; got {received!r}.")
    if not all(value > 0 for value in fractions):
        raise ConfigError(
            f"--split needs three shares above 0: val chooses the best weights and test judges "
            f"them; got {received!r}. Try 0.8,0.1,0.1."
        )
    if abs(sum(fractions) - 1) > 1e-6:
        raise ConfigError(
            f"--split must add up to 1; got {received!r}, which is {sum(fractions):g}."
        )


def _check_classes(source: Source, splits: dict[str, np.ndarray]) -> None:
    classes = len(source.class_names)
    counts = {n: np.bincount(source.labels[i], minlength=classes) for n, i in splits.items()}
    for label, class_name in enumerate(source.class_names):
        here = {name: int(count[label]) for name, count in counts.items()}
        if not all(here.values()):
            listed = ", ".join(f"{name} {count}" for name, count in here.items())
            raise DataError(
                f"Class {class_name!r} is not in every split: {listed}. "
                f"Each split needs at least one example of each class."
            )
