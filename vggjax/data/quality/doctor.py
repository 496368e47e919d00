"""Examine a dataset for problems; every image is decoded once, and nothing is changed.

What training would refuse with an error is a finding here. The table `KINDS` of findings.py says
which kinds of findings are problems. Cleaned copies are written by clean.py.
"""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import permutations
from pathlib import PurePosixPath

import numpy as np

from vggjax.data.images.decode import BLANKS, FLAW
from vggjax.data.images.formats import format_named, format_of_file
from vggjax.data.quality.duplicates import (
    Duplicates,
    dark_notes,
    find_blank_fault,
    find_duplicates,
)
from vggjax.data.quality.findings import KINDS, Entry, Finding, Findings
from vggjax.data.sources.open import scan_source
from vggjax.data.sources.options import DEFAULT_OPTIONS, DatasetOptions
from vggjax.data.sources.rendering import render_source
from vggjax.data.sources.source import Scan, Source
from vggjax.data.splits.splits import (
    balanced_weights,
    group_notes,
    make_splits,
    small_val_notes,
    split_notes,
)
from vggjax.errors import DataError, join_names

MIN_SIDE_PX = 32
MAX_ASPECT = 4.0
IMBALANCE, UNEVEN = 10.0, 3.0
"""Ratios of the largest class to the smallest."""

MASK_VALUES, MAX_MASK_CLASSES = 8, 20
"""The colors of a mask, and up to how many classes are compared."""

MIN_SHORTCUT = 10
"""Images of a class that have something in common by more than chance."""

MAX_UNREADABLE = 0.05
"""The fraction that training tolerates by default."""

_KIND_OF_REASON = {
    "truncated": "truncated",
    "empty file": "empty_file",
    "corrupt": "corrupt",
    "not an image": "not_an_image",
    "unsupported": "unsupported",
    "too ": "too_large",
    "no permission": "no_permission",
    "not a": "not_a_file",
    "no such file": "missing",
}
"""Prefix of a decoder's reason -> the kind; the first match counts."""


_Entries = defaultdict[str, list[Entry]]
"""Kind -> its entries."""


def examine(
    dataset: str,
    *,
    source: Source | None = None,
    duplicates: Duplicates | None = None,
    data_dir: str | None = None,
    options: DatasetOptions = DEFAULT_OPTIONS,
    num_threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Findings:
    """Examine a folder, a CSV, a tfds dataset or `digits`.

    Args:
        dataset: the name of the dataset.
        source: the dataset, if it is open already; it is then not scanned again.
        duplicates: `find_duplicates(source)`, if that was called already; no image is then decoded
            again. From `near=False`, near-duplicates are missing.
        data_dir: where tfds stores datasets.
        options: how to read the dataset.
        num_threads: threads that decode; None is one per core.
        progress: called with (done, total) while images are decoded.

    Raises:
        DataError: there is no such dataset.
        ConfigError: an option that does not apply to it.
    """
    if source is not None:
        scan = Scan(source)
    else:
        scan = scan_source(dataset, data_dir=data_dir, options=options)
        if scan.source is not None:
            rendered, _ = render_source(scan.source, options, num_threads=num_threads)
            scan = dataclasses.replace(scan, source=rendered)
    entries: _Entries = defaultdict(list)
    for kind, texts in (
        ("refused", scan.faults),
        ("empty_class", scan.empty),
        ("missing", scan.missing),
        *((seen.kind, seen.cases or (seen.note,)) for seen in scan.observations),
    ):
        entries[kind] += [Entry(text=text) for text in texts]
    source, weights = scan.source, None
    if source is not None:
        if duplicates is None:
            duplicates = find_duplicates(source, num_threads=num_threads, progress=progress)
        _add_unreadable(entries, source, duplicates.unreadable)
        _add_duplicates(entries, source, duplicates)
        _add_sizes(entries, duplicates)
        _add_formats(entries, source, duplicates)
        _add_shortcuts(entries, source, duplicates)
        entries["dark"] += [Entry(text=note) for note in dark_notes(duplicates)]
        _add_masks(entries, source)
        weights = _add_classes(entries, scan, source, duplicates)
        listed = {seen.note for seen in scan.observations}
        entries["note"] += [Entry(text=note) for note in source.notes if note not in listed]
    items = tuple(Finding(kind, tuple(entries[kind])) for kind in KINDS if entries[kind])
    return Findings(dataset, source, duplicates, items, weights)


def _add_unreadable(entries: _Entries, source: Source, unreadable: dict[int, str]) -> None:
    for i, reason in unreadable.items():
        kinds = (kind for prefix, kind in _KIND_OF_REASON.items() if reason.startswith(prefix))
        entries[next(kinds, "unreadable")].append(Entry((i,), reason))
    sizes = source.class_counts(np.arange(len(source)))
    lost = source.class_counts(np.array(list(unreadable), np.int64))
    for label in np.flatnonzero((lost == sizes) & (lost > 0)):
        name = source.class_names[label]
        text = f"No image of class {name!r} is readable: 0 of {sizes[label]}."
        entries["refused"].append(Entry(text=text))
    if len(unreadable) > max(1, MAX_UNREADABLE * len(source)):
        text = (
            f"More than {MAX_UNREADABLE:.0%} of the images are unreadable: {len(unreadable):,} of "
            f"{len(source):,}. Fix or delete them, or raise `max_unreadable`."
        )
        entries["refused"].append(Entry(text=text))


def _add_duplicates(entries: _Entries, source: Source, duplicates: Duplicates) -> None:
    def differ(values: np.ndarray, images: list[int]) -> bool:
        return len(set(values[images].tolist()) - {""}) > 1

    def parts(group: list[int], groups: np.ndarray) -> list[list[int]]:
        by_group: dict[int, list[int]] = defaultdict(list)
        for i in group:
            by_group[int(groups[i])].append(i)
        return list(by_group.values())

    for group in duplicates.members(duplicates.exact_groups):
        entries["exact_duplicate"].append(Entry(tuple(group), count=len(group) - 1))
    for group in duplicates.members(duplicates.near_groups):
        by_pixels = parts(group, duplicates.exact_groups)
        if len(by_pixels) > 1:
            entries["near_duplicate"].append(Entry(tuple(group), count=len(by_pixels) - 1))
        for kind, values in (("label_conflict", source.labels), ("leaked", source.split_of)):
            exact = [images for images in by_pixels if differ(values, images)]
            entries[kind] += [Entry(tuple(images), "equal pixels") for images in exact]
            if not exact and differ(values, group):
                entries[kind].append(Entry(tuple(group), "near-duplicates"))
    for group in duplicates.members(duplicates.groups):
        turned = parts(group, duplicates.near_groups)
        if len(turned) > 1:
            entries["turned_copy"].append(Entry(tuple(group), count=len(turned) - 1))
            is_listed = any(differ(source.split_of, images) for images in turned)
            if differ(source.split_of, group) and not is_listed:
                entries["leaked"].append(Entry(tuple(group), "mirrored or rotated"))


def _add_sizes(entries: _Entries, duplicates: Duplicates) -> None:
    width, height = duplicates.sizes[:, 0], duplicates.sizes[:, 1]
    short, long = np.minimum(width, height), np.maximum(width, height)
    readable = width > 0
    tiny = readable & (short < MIN_SIDE_PX)
    # If most images are small (digits, MNIST), the dataset is meant to be so.
    small_kind = "tiny" if 2 * tiny.sum() < readable.sum() else "small_pictures"
    extreme = readable & (long > MAX_ASPECT * short)
    for kind, mask in ((small_kind, tiny), ("extreme_aspect", extreme)):
        images = np.flatnonzero(mask).tolist()
        entries[kind] += [Entry((i,), f"{width[i]}x{height[i]} px") for i in images]


def _add_formats(entries: _Entries, source: Source, duplicates: Duplicates) -> None:
    converted: dict[str, list[int]] = defaultdict(list)
    for i, notes in enumerate(duplicates.notes):
        for note in notes:
            if note == FLAW or note in BLANKS:
                kind = "damaged" if note == FLAW else "blank"
                entries[kind].append(Entry((i,), note))
            else:
                converted[note].append(i)
        path = source.path(i)
        if i in duplicates.unreadable or path is None:
            continue
        actual = format_of_file(path)
        if actual is not None and format_named(path.name) != actual:
            entries["misnamed"].append(Entry((i,), f"is {actual}"))
    for note, images in sorted(converted.items()):
        entries["adapted"].append(Entry(tuple(images), note, len(images)))


def _add_shortcuts(entries: _Entries, source: Source, duplicates: Duplicates) -> None:
    """Add what all images of a class have in common and no other image has: gray, format, size."""
    if source.targets is not None:
        return
    readable = [i for i in range(len(source)) if i not in duplicates.unreadable]
    grays = [any(note.startswith("gray") for note in notes) for notes in duplicates.notes]
    sizes = [f"{width}x{height} px" for width, height in duplicates.sizes.tolist()]
    formats = [format_named(source.ids[i]) or "" for i in range(len(source))]
    colors = ["gray" if is_gray else "in color" for is_gray in grays]
    shared: dict[int, list[str]] = defaultdict(list)
    for values in (colors, formats, sizes):
        by_class: dict[int, Counter[str]] = defaultdict(Counter)
        for i in readable:
            by_class[int(source.labels[i])][values[i]] += 1
        total = sum(by_class.values(), Counter[str]())
        for label, counts in by_class.items():
            ((value, count),) = counts.most_common(1)
            is_alone = len(counts) == 1 and total[value] == count <= total.total() - count
            if is_alone and count >= MIN_SHORTCUT:
                shared[label].append(value)
    for label in sorted(shared)[: 1 if len(source.class_names) == 2 else None]:
        text = (
            f"All images of class {source.class_names[label]!r} are {join_names(shared[label])}, "
            f"and no others are: a network may learn that alone. Convert all images alike."
        )
        entries["shortcut"].append(Entry(text=text))


def _add_masks(entries: _Entries, source: Source) -> None:
    """Add a class of few gray values whose files are named like those of another class."""
    num_classes = len(source.class_names)
    if entries["masks"] or num_classes > MAX_MASK_CLASSES or source.targets is not None:
        return
    stems: list[set[str]] = [set() for _ in range(num_classes)]
    for label, image_id in zip(source.labels.tolist(), source.ids, strict=True):
        stems[label].add(PurePosixPath(image_id).stem)
    for label, other in permutations(range(num_classes), 2):
        shared = len(stems[label] & stems[other])
        if shared < 2 or shared < 0.9 * len(stems[label]):
            continue
        if _has_few_values(source, label) and not _has_few_values(source, other):
            name, image = source.class_names[label], source.class_names[other]
            text = (
                f"{shared:,} of {len(stems[label]):,} images of class {name!r} are named like one "
                f"of class {image!r} and have at most {MASK_VALUES} colors: are they its masks?"
            )
            entries["masks"].append(Entry(text=text))
            return


def _has_few_values(source: Source, label: int) -> bool:
    """Return whether the first images of a class have two to `MASK_VALUES` colors each."""
    for i in np.flatnonzero(source.labels == label)[:3].tolist():
        try:
            colors = np.unique(source.read(i).pixels.reshape(-1, 3), axis=0)
        except DataError:
            return False
        if not 2 <= len(colors) <= MASK_VALUES:
            return False
    return True


def _add_classes(
    entries: _Entries, scan: Scan, source: Source, duplicates: Duplicates
) -> np.ndarray | None:
    """Add findings on the class sizes; return the balanced class weights, if it has one each."""
    names = source.class_names
    train = (source.splits or {}).get("train", np.arange(len(source)))
    if fault := find_blank_fault(duplicates):
        entries["refused"].append(Entry(text=fault))
    elif not scan.faults:
        try:
            splits = make_splits(source, groups=duplicates.groups)
        except DataError as error:
            entries["refused"].append(Entry(text=str(error)))
        else:
            train = splits["train"]
            notes = split_notes(source, splits)
            if "val" in (source.splits or ()):  # otherwise more images would be the only way out
                notes += small_val_notes(source, splits)
            entries["note"] += [Entry(text=note) for note in notes]
            possible = source.possible_groups
            kind = "note" if possible and possible.option == "group_pattern" else "kin"
            entries[kind] += [Entry(text=note) for note in group_notes(source, splits)]
    readable = np.setdiff1d(np.arange(len(source)), list(duplicates.unreadable))
    counts = source.class_counts(readable)
    labels = np.flatnonzero(counts)
    counts = counts[labels]
    if len(labels):
        least, most = int(counts.argmin()), int(counts.argmax())
        ratio = counts[most] / counts[least]
        if ratio >= UNEVEN:
            text = (
                f"{counts[most]:,} of class {names[labels[most]]!r}, {counts[least]:,} of "
                f"{names[labels[least]]!r}: {ratio:.1f} to 1"
            )
            entries["imbalance" if ratio >= IMBALANCE else "uneven"].append(Entry(text=text))
    if source.targets is not None or not len(train):
        return None
    return balanced_weights(source.labels[train], len(names))
