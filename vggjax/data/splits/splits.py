"""Cuts a dataset into train, val and test: by class, by seed, the dataset's own splits first.

In:  a `Source`.  Out: {"train", "val", "test"} -> sorted int64 indices into it, disjoint. They
depend on labels, the wanted split, the seed and the groups, and on nothing of the machine. A split
that the dataset brings is never touched, save that one which it lacks is cut from its train split.
Where this file cuts, the images of one group stay together (cut.py), and each split has each
class, unless a class has too few different images: `remarks_on_splits` words that. A split that
lacks a class otherwise, or that has no image, is an error.
"""

import numpy as np

from vggjax.data.sources.source import Source
from vggjax.data.splits.slices import (
    Instructions,
    looks_like_instructions,
    resolve_instructions,
)
from vggjax.data.splits.stratify import count_different, cut
from vggjax.errors import ConfigError, DataError

SPLITS = ("train", "val", "test")
FRACTIONS = (0.8, 0.1, 0.1)

Fractions = tuple[float, float, float]

_SLICES_HINT = (
    " Slices keep the order of the dataset, and a folder's is by class: shares, as in "
    "0.8,0.1,0.1, take some of each."
)


def parse_split(text: str) -> Fractions | Instructions:
    """Reads `"0.8,0.1,0.1"`, shares of train, val and test, or `"train[:80%],test"`.

    Shares are above 0, with the sum 1. Otherwise it is two or three of tfds' instructions, for
    train and test, or for train, val and test.
    """
    if looks_like_instructions(text):
        return Instructions.parse(text)
    try:
        fractions = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            f"--split takes three numbers such as 0.8,0.1,0.1, or slices such as "
            f"'train[:80%],train[80%:90%],train[90%:]'; got {text!r}."
        ) from None
    _check_fractions(fractions)
    return fractions


def make_splits(
    source: Source,
    split: Fractions | Instructions = FRACTIONS,
    seed: int = 0,
    groups: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Gives the indices of train, val and test.

    The number of a class' examples in a split is its share, rounded by the largest remainder, and
    at least one. Where the dataset has splits of its own, a missing one is cut from its train
    split with its share renormalized: 0.1 beside 0.8 is one ninth. Examples with the same number
    in `groups`, (N,), come into the same split where they are cut; without two such the groups
    change nothing.

    Raises:
        DataError: a split without any image, or one that lacks a class, with the counts.
    """
    _check_seed(seed)
    if isinstance(split, Instructions):
        own, fractions = resolve_instructions(source, split), FRACTIONS
    else:
        _check_fractions(split)
        own, fractions = dict(source.splits or {"train": np.arange(len(source))}), split
    given = {name for name in own if name != "train"}
    missing = [name for name in SPLITS if name not in own]
    if missing:
        shares = _renormalized(fractions, ("train", *missing))
        train = np.asarray(own.get("train", ()), np.int64)
        own.update(cut(source.labels, train, shares, seed, groups))
    splits = {name: np.sort(np.asarray(own[name], np.int64)) for name in SPLITS}
    hint = _SLICES_HINT if isinstance(split, Instructions) else ""
    _check_classes(source, splits, whole=given | {"train"}, hint=hint)
    _check_not_empty(source, splits)
    return splits


def make_folds(
    source: Source, k: int, seed: int, groups: np.ndarray | None = None
) -> list[dict[str, np.ndarray]]:
    """Gives the splits of each of the `k` runs of a cross-validation.

    All examples, those of the dataset's own splits as well, are cut into k parts as `make_splits`
    would cut them. Part i is the i-th run's test split: each example is tested once. Its val split
    is cut from the rest with the default share, a ninth.

    Raises:
        ConfigError: fewer than two folds.
        DataError: a class with fewer different images than folds.
    """
    _check_seed(seed)
    if k < 2:
        raise ConfigError(f"--cross-validate takes 2 folds or more; got {k}.")
    everything = np.arange(len(source))
    different = count_different(source.labels, everything, groups, len(source.class_names))
    if few := [(n, int(c)) for n, c in zip(source.class_names, different, strict=True) if c < k]:
        least = min(count for _, count in few)
        fewer = f"Give --cross-validate at most {least}, or add" if least > 1 else "Add"
        raise DataError(
            f"Too few different images for {k} folds: {_counted(few)}. {fewer} images, or take "
            f"out what has too few."
        )
    parts = cut(source.labels, everything, {f"part {i}": 1 / k for i in range(k)}, seed, groups)
    folds = []
    for test in parts.values():
        rest = np.setdiff1d(everything, test)
        shares = _renormalized(FRACTIONS, ("train", "val"))
        fold = cut(source.labels, rest, shares, seed, groups) | {"test": test}
        fold = {name: np.sort(fold[name]) for name in SPLITS}
        _check_not_empty(source, fold)
        folds.append(fold)
    return folds


def remarks_on_splits(source: Source, splits: dict[str, np.ndarray]) -> list[str]:
    """Words what a person should know of the splits: classes that not all of them have."""
    counts = _count_classes(source, splits)
    found = []
    for label, name in enumerate(source.class_names):
        here = {split: int(count[label]) for split, count in counts.items()}
        without = [split for split in here if not here[split]]
        if without:
            say = "say" if len(without) > 1 else "says"
            few = (
                "has only 1 image, in train alone"
                if sum(here.values()) == 1
                else f"has too few different images for every split ({_listed(here)})"
            )
            found.append(f"Class {name!r} {few}: {' and '.join(without)} {say} nothing about it.")
    if len(found) > 3:
        found[3:] = [f"{len(found) - 3:,} more classes have too few images for every split."]
    return found


def _renormalized(fractions: Fractions, names: tuple[str, ...]) -> dict[str, float]:
    share = dict(zip(SPLITS, fractions, strict=True))
    total = sum(share[name] for name in names)
    return {name: share[name] / total for name in names}


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise ConfigError(f"--seed must be 0 or more; got {seed}.")


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


def _count_classes(source: Source, splits: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    classes = len(source.class_names)
    return {name: np.bincount(source.labels[i], minlength=classes) for name, i in splits.items()}


def _check_classes(
    source: Source, splits: dict[str, np.ndarray], *, whole: set[str], hint: str = ""
) -> None:
    """Refuses a split of `whole`, those that were not cut off, without one of the classes."""
    counts = _count_classes(source, splits)
    lacking = np.any([counts[name] == 0 for name in sorted(whole)], axis=0)
    labels = np.flatnonzero(lacking)
    if len(labels):
        here = {name: int(count[labels[0]]) for name, count in counts.items()}
        others = [source.class_names[label] for label in labels[1:4]]
        more = (
            f" Nor are {len(labels) - 1:,} others, such as {', '.join(map(repr, others))}."
            if others
            else ""
        )
        raise DataError(
            f"Class {source.class_names[labels[0]]!r} is not in every split: {_listed(here)}. "
            f"Each split needs at least one example of each class.{more}{hint}"
        )


def _check_not_empty(source: Source, splits: dict[str, np.ndarray]) -> None:
    empty = [name for name in SPLITS if not len(splits[name])]
    if not empty:
        return
    together = np.concatenate(list(splits.values()))
    counts = np.bincount(source.labels[together], minlength=len(source.class_names)).tolist()
    raise DataError(
        f"There are too few images for {' and '.join(empty)}, which would be empty: "
        f"{_counted(list(zip(source.class_names, counts, strict=True)))}. A class needs three "
        f"different images, one for each split. Add some, or take classes out."
    )


def _counted(pairs: list[tuple[str, int]], most: int = 5) -> str:
    text = ", ".join(f"class {name!r} has {count}" for name, count in pairs[:most])
    return text + (f", and {len(pairs) - most:,} more" if len(pairs) > most else "")


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())
