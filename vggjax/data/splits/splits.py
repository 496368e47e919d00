"""Split a dataset into train, val and test: stratified by class, seeded, official splits first.

In:  a `Source`.  Out: {"train", "val", "test"} -> sorted int64 indices into it, disjoint. They
depend on labels, the requested split, the seed and the groups alone. An official split is never
changed, except that a missing one is split off the official train split. Images of one group stay
together (stratify.py), and each split has each class, unless a class has too few distinct images
or an official val or test split lacks it: `split_notes` describes those. Several labels per image
are stratified by their combination (`Source.strata`). A run stores its splits in `splits.csv`.
"""

import csv
import os
import shlex
from pathlib import Path

import numpy as np

from vggjax.csv_text import csv_line, csv_rows
from vggjax.data.sources.source import Source
from vggjax.data.splits.slices import looks_like_slices, parse_slices, resolve_slices
from vggjax.data.splits.stratify import count_distinct, merge_groups, stratified_split
from vggjax.errors import ConfigError, DataError, join_names, printable

SPLITS = ("train", "val", "test")
FRACTIONS = (0.8, 0.1, 0.1)

FEW_IMAGES, FEW_LABELS = 50, 10
"""A val split with fewer images, or fewer of one of several labels, is worth a note."""

SPLITS_FILE = "splits.csv"
"""In a run folder: a row `path,label,split` per image, in the order of the source. Names may hold
any bytes; those that are not UTF-8 are restored exactly."""

Fractions = tuple[float, float, float]

_COLUMNS = ["path", "label", "split"]

_SLICES_HINT = (
    " Slices keep the order of the dataset, and a folder is ordered by class; fractions such as "
    "0.8,0.1,0.1 are stratified."
)


def parse_split(text: str) -> Fractions | dict[str, str]:
    """Parse fractions of train, val and test, `0.8,0.1,0.1`, or slices, `train[:80%],test`.

    Raises:
        ConfigError: fractions that are not three, positive and with the sum 1, or bad slices.
    """
    if looks_like_slices(text):
        return parse_slices(text)
    try:
        train, val, test = (float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            f"`split` takes three fractions such as 0.8,0.1,0.1, or slices such as "
            f"'train[:80%],train[80%:90%],train[90%:]'; got {text!r}."
        ) from None
    total = train + val + test
    if not all(share > 0 for share in (train, val, test)) or abs(total - 1) > 1e-6:
        raise ConfigError(
            f"`split` must be three fractions above 0 that add up to 1, as val selects the best "
            f"weights and test evaluates them; got {text!r} (sum {total:g})."
        )
    return train, val, test


def make_splits(
    source: Source,
    split: Fractions | dict[str, str] = FRACTIONS,
    seed: int = 0,
    groups: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Return the indices of train, val and test.

    The size of a class in a split is its fraction, rounded by the largest remainder, and at least
    one. A split missing from the official ones is split off official train with its renormalized
    fraction: 0.1 next to 0.8 is one ninth. Examples with the same number in `groups`, int (N,), or
    in the source's own groups stay in the same split where this function splits; groups of one
    example change nothing.

    Raises:
        DataError: a split without images, or train, or a slice, without one of the classes; with
            the counts.
    """
    groups = merge_groups(source.groups, groups)
    if isinstance(split, dict):
        splits, fractions = resolve_slices(source, split), FRACTIONS
    else:
        splits, fractions = dict(source.splits or {"train": np.arange(len(source))}), split
    missing = [name for name in SPLITS if name not in splits]
    if missing:
        shares = _renormalized(fractions, ("train", *missing))
        train = np.asarray(splits.get("train", ()), np.int64)
        splits.update(stratified_split(source.strata, train, shares, seed, groups))
    splits = {name: np.sort(np.asarray(splits[name], np.int64)) for name in SPLITS}
    is_sliced = isinstance(split, dict)
    # A dataset's own val or test may lack a class; slices that do are a mistake, if labels are one.
    fixed = set(splits) if is_sliced and source.targets is None else {"train"}
    _check_classes(source, splits, fixed=fixed, hint=_SLICES_HINT if is_sliced else "")
    _check_not_empty(source, splits)
    return splits


def make_folds(
    source: Source, k: int, seed: int, groups: np.ndarray | None = None
) -> list[dict[str, np.ndarray]]:
    """Return the splits of each of the `k` runs of a cross-validation, two or more.

    All examples, including those of the official splits, are split into k parts as `make_splits`
    would. Part i is the test split of run i, so each example is tested once. Its val split is
    split off the rest with the default fraction, a ninth.

    Raises:
        DataError: a class with fewer distinct images than folds, or of several labels per image
            one that a fold's train split lacks.
    """
    everything = np.arange(len(source))
    groups = merge_groups(source.groups, groups)
    distinct = _count_distinct(source, groups)
    wanted = k if source.targets is None else 2  # a fold may lack a label
    few = [(n, int(c)) for n, c in zip(source.class_names, distinct, strict=True) if c < wanted]
    if few:
        least = min(count for _, count in few)
        fewer = f"Set `cross_validate` to at most {least}, or add" if least > 1 else "Add"
        raise DataError(
            f"Too few distinct images for {k} folds: {_list_classes(few)}. {fewer} images, or "
            f"remove these classes."
        )
    shares = {f"part {i}": 1 / k for i in range(k)}
    train_and_val = _renormalized(FRACTIONS, ("train", "val"))
    folds = []
    for test in stratified_split(source.strata, everything, shares, seed, groups).values():
        rest = np.setdiff1d(everything, test)
        fold = stratified_split(source.strata, rest, train_and_val, seed, groups) | {"test": test}
        fold = {name: np.sort(fold[name]) for name in SPLITS}
        _check_classes(source, fold, fixed={"train"}, hint=" Try another `seed`.")
        _check_not_empty(source, fold)
        folds.append(fold)
    return folds


def split_notes(source: Source, splits: dict[str, np.ndarray]) -> list[str]:
    """Describe the classes that some split lacks, at most four sentences."""
    counts = _count_classes(source, splits)
    official = {*(source.splits or ())}
    notes = []
    for label, name in enumerate(source.class_names):
        here = {split: int(count[label]) for split, count in counts.items()}
        without = [split for split in here if not here[split]]
        lack = f"{' and '.join(without)} lack{'s' * (len(without) == 1)} it"
        if official & {*without}:
            notes.append(
                f"Class {name!r} is not in every split of the dataset ({_list_counts(here)}): "
                f"{lack}, and averages over the classes there leave it out."
            )
        elif without:
            total = "1 image" if sum(here.values()) == 1 else "too few distinct images"
            notes.append(f"Class {name!r} has {total} ({_list_counts(here)}): {lack}.")
    if len(notes) > 3:
        notes[3:] = [f"{len(notes) - 3:,} more classes have too few images for every split."]
    return notes


def group_notes(source: Source, splits: dict[str, np.ndarray]) -> list[str]:
    """Describe the groups, or what may be groups, that have images in several splits."""
    possible = source.possible_groups
    groups = source.groups if possible is None else possible.groups
    if groups is None:
        return []
    split_of = np.full(len(source), -1)
    for number, indices in enumerate(splits.values()):
        split_of[indices] = number
    first = np.full(len(source), -1)
    _, groups, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    is_used = split_of >= 0
    first[groups[is_used]] = split_of[is_used]
    broken = np.unique(groups[is_used & (split_of != first[groups])])
    if not len(broken):
        return []
    what, hint = "groups", ""
    if possible is not None:
        by_column = possible.option == "group_column"
        what = f"values of the column {possible.value!r}" if by_column else "groups of file names"
        hint = f" Set `{possible.option}` {shlex.quote(possible.value)} to keep them in one."
    note = f"{len(broken):,} of {(sizes > 1).sum():,} {what} have images in several splits"
    if source.splits:
        note += " of the dataset, which are kept: metrics may be too good"
    return [f"{note}.{hint}"]


def small_val_notes(source: Source, splits: dict[str, np.ndarray]) -> list[str]:
    """Describe a val split of less than `FEW_IMAGES` images, in at most one sentence.

    Of several labels per image it is about classes with less than `FEW_LABELS` images there.
    """
    num_val = len(splits["val"])
    if source.targets is not None:
        counts = zip(source.class_names, source.class_counts(splits["val"]).tolist(), strict=True)
        few = [f"{name!r} {count}" for name, count in counts if count < FEW_LABELS]
        subject = f"{len(few):,} class{'es have' if len(few) > 1 else ' has'}"
        text = f"{subject} less than {FEW_LABELS} images in val ({join_names(few, most=4)})"
        return [f"{text}, so thresholds and val/mAP depend on the split."] if few else []
    if num_val >= FEW_IMAGES:
        return []
    images = f"{num_val} image{'s' * (num_val > 1)}"
    return [
        f"The val split, which selects the best epoch, has {images}: each is {100 / num_val:.1f} "
        f"points of its accuracy."
    ]


def balanced_weights(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return class weights N / (C * N_c), float32 (C,), with the mean 1 over the examples.

    The rule of King and Zeng (2001) and of scikit-learn's `class_weight="balanced"`. A class
    without examples gets 0.
    """
    counts = np.bincount(labels, minlength=num_classes)
    weights = len(labels) / (num_classes * np.maximum(counts, 1))
    return np.where(counts > 0, weights, 0).astype(np.float32)


def splits_text(source: Source, splits: dict[str, np.ndarray]) -> str:
    """Return the contents of `splits.csv`."""
    split_of = {int(i): split for split, indices in splits.items() for i in indices}
    rows = [(source.ids[i], source.label_text(i), split_of[i]) for i in sorted(split_of)]
    return "".join(map(csv_line, [_COLUMNS, *rows]))


def read_splits(folder: str | os.PathLike[str], source: Source) -> dict[str, np.ndarray] | None:
    """Read the splits of a run, as `make_splits` returned them; None if the file is missing.

    Raises:
        DataError: the file is damaged, or names images that the source lacks.
    """
    path = Path(folder) / SPLITS_FILE
    if not path.exists():
        return None
    index_of = {name: i for i, name in enumerate(source.ids)}
    splits: dict[str, list[int]] = {name: [] for name in SPLITS}
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = csv_rows(file)
            if next(rows, None) != _COLUMNS:
                raise ValueError(f"its first line is not {','.join(_COLUMNS)}")
            for image_id, label, split in rows:
                i = index_of[image_id]
                if source.label_text(i) != label:
                    raise ValueError(f"{image_id} was labeled {label}")
                splits[split].append(i)
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise DataError(
            f"{printable(path)} does not fit the dataset {printable(source.name)} "
            f"({printable(error)}). Restore the files, or start a new run in another `workdir`."
        ) from None
    return {name: np.sort(np.asarray(indices, np.int64)) for name, indices in splits.items()}


def _renormalized(fractions: Fractions, names: tuple[str, ...]) -> dict[str, float]:
    share = dict(zip(SPLITS, fractions, strict=True))
    total = sum(share[name] for name in names)
    return {name: share[name] / total for name in names}


def _count_classes(source: Source, splits: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: source.class_counts(indices) for name, indices in splits.items()}


def _count_distinct(source: Source, groups: np.ndarray | None) -> np.ndarray:
    """Count the distinct images of each class, int64 (C,): a group counts once."""
    if source.targets is None:
        return count_distinct(source.labels, groups, len(source.class_names))
    groups = np.arange(len(source)) if groups is None else groups
    return np.array([len(np.unique(groups[has_label])) for has_label in source.targets.T])


def _check_classes(
    source: Source, splits: dict[str, np.ndarray], *, fixed: set[str], hint: str
) -> None:
    """Raise if one of the `fixed` splits lacks a class."""
    counts = _count_classes(source, splits)
    lacking = np.flatnonzero(np.any([counts[name] == 0 for name in sorted(fixed)], axis=0))
    if not len(lacking):
        return
    name, *others = [source.class_names[label] for label in lacking]
    here = {split: int(count[lacking[0]]) for split, count in counts.items()}
    more = f" Other such classes: {join_names(map(repr, others), most=3)}." if others else ""
    where = "The train split" if fixed == {"train"} else "Each split"
    raise DataError(
        f"Class {name!r} is not in every split: {_list_counts(here)}. {where} needs at least one "
        f"example of each class.{more}{hint}"
    )


def _check_not_empty(source: Source, splits: dict[str, np.ndarray]) -> None:
    counts_of = _count_classes(source, splits)
    empty = [name for name in SPLITS if not counts_of[name].any()]
    if not empty:
        return
    counts = np.sum(list(counts_of.values()), axis=0).tolist()
    lack = "be empty" if source.targets is None else "have no label"
    raise DataError(
        f"Too few images, {' and '.join(empty)} would {lack}: "
        f"{_list_classes(list(zip(source.class_names, counts, strict=True)))}. A class needs three "
        f"distinct images, one for each split. Add images or remove classes."
    )


def _list_classes(counts: list[tuple[str, int]]) -> str:
    return "class " + join_names((f"{name!r} has {count}" for name, count in counts), most=5)


def _list_counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())
