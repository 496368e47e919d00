"""Finds what is wrong with a dataset: reads every image once, and changes nothing.

What a training would refuse with an error is a finding here. Which kinds there are, which of them
are problems and which are remarks, is the table `KINDS` of findings.py. The cleaned copy is
written by clean.py, the page by results/doctor_page.py.
"""

from collections import defaultdict
from collections.abc import Callable

import numpy as np

from vggjax.data.images.decode import FLAW
from vggjax.data.images.formats import format_named, format_of_file
from vggjax.data.quality.duplicates import Duplicates, find_duplicates
from vggjax.data.quality.findings import Findings, Gathered
from vggjax.data.sources.open import scan_source
from vggjax.data.sources.source import Scan, Source
from vggjax.data.splits.class_weights import balanced_weights
from vggjax.data.splits.splits import make_splits, remarks_on_splits
from vggjax.errors import DataError

MIN_SIDE_PX = 32
MAX_ASPECT = 4.0
IMBALANCE, UNEVEN = 10.0, 3.0
"""Images of the largest class for one of the smallest."""

MAX_UNREADABLE = 0.05
"""The share that a training lets pass unless it is told otherwise."""

_REASONS = {
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
"""How a reason of images.py begins -> the kind; the first that fits."""


def examine(
    dataset: str,
    *,
    data_dir: str | None = None,
    num_threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Findings:
    """Examines a folder, a list (CSV), a tfds dataset or `digits`.

    `progress` is called with (done, of) while images are read.

    Raises:
        DataError: nothing is there that could be looked at.
    """
    scan = scan_source(dataset, data_dir=data_dir)
    found = Gathered()
    for fault in scan.faults:
        found.add("refused", fault)
    for name in scan.empty:
        found.add("empty_class", name)
    for name in scan.missing:
        found.add("missing", name)
    for name in scan.loose:
        found.add("loose", name)
    source, duplicates, weights = scan.source, None, None
    if source is not None:
        duplicates = find_duplicates(source, num_threads=num_threads, progress=progress)
        _add_unreadable(found, source, duplicates.unreadable)
        _add_duplicates(found, source, duplicates)
        _add_shapes(found, duplicates)
        _add_formats(found, source, duplicates)
        weights = _add_classes(found, scan, source, duplicates)
        for note in source.notes:
            found.add("note", note)
    return Findings(dataset, source, duplicates, found.items(), weights)


def _add_unreadable(found: Gathered, source: Source, unreadable: dict[int, str]) -> None:
    for i, reason in unreadable.items():
        kind = next((k for start, k in _REASONS.items() if reason.startswith(start)), "unreadable")
        found.add(kind, reason, i)
    bad = np.fromiter(unreadable, np.int64, len(unreadable))
    classes = len(source.class_names)
    here = np.bincount(source.labels, minlength=classes)
    lost = np.bincount(source.labels[bad], minlength=classes)
    for label in np.flatnonzero((here > 0) & (lost == here)):
        name = source.class_names[label]
        found.add("refused", f"No image of class {name!r} can be read: 0 of {here[label]}.")
    if len(bad) > max(1, MAX_UNREADABLE * len(source)):
        found.add(
            "refused",
            f"More than {MAX_UNREADABLE:.0%} of the images cannot be read: {len(bad):,} of "
            f"{len(source):,}. Mend or delete them, or raise --max-unreadable.",
        )


def _add_duplicates(found: Gathered, source: Source, duplicates: Duplicates) -> None:
    split_of: dict[int, str] = {}
    for name, indices in (source.splits or {}).items():
        split_of |= dict.fromkeys(indices.tolist(), name)
    for group in duplicates.members(exact=True):
        found.add("exact_duplicate", "", *group, count=len(group) - 1)
    for group in duplicates.members():
        exact: dict[int, list[int]] = defaultdict(list)
        for i in group:
            exact[int(duplicates.exact_groups[i])].append(i)
        if len(exact) > 1:
            found.add("near_duplicate", "", *group, count=len(exact) - 1)
        for kind, differ in (
            ("label_conflict", lambda members: len({int(source.labels[i]) for i in members}) > 1),
            ("leaked", lambda members: len({split_of.get(i) for i in members} - {None}) > 1),
        ):
            equal = [members for members in exact.values() if differ(members)]
            for members in equal:
                found.add(kind, "equal pixels", *members)
            if not equal and differ(group):
                found.add(kind, "near duplicates", *group)


def _add_shapes(found: Gathered, duplicates: Duplicates) -> None:
    width, height = duplicates.sizes[:, 0], duplicates.sizes[:, 1]
    readable = width > 0
    tiny = readable & (np.minimum(width, height) < MIN_SIDE_PX)
    # Where most are small (digits, MNIST) it is the dataset's nature, and no mistake.
    kind = "tiny" if 2 * tiny.sum() < readable.sum() else "small_pictures"
    for i in np.flatnonzero(tiny).tolist():
        found.add(kind, f"{width[i]}x{height[i]} px", i)
    long, short = np.maximum(width, height), np.minimum(width, height)
    for i in np.flatnonzero(readable & (long > MAX_ASPECT * short)).tolist():
        found.add("extreme_aspect", f"{width[i]}x{height[i]} px", i)


def _add_formats(found: Gathered, source: Source, duplicates: Duplicates) -> None:
    adapted: dict[str, list[int]] = defaultdict(list)
    for i, notes in enumerate(duplicates.notes):
        if FLAW in notes:
            found.add("damaged", FLAW, i)
        for note in notes:
            if note != FLAW:
                adapted[note].append(i)
        path = source.path(i)
        if i in duplicates.unreadable or path is None:
            continue
        named, true = format_named(path.name), format_of_file(path)
        if true is not None and named != true:
            found.add("misnamed", f"is {true}", i)
    for note, images in sorted(adapted.items()):
        found.add("adapted", note, *images, count=len(images))


def _add_classes(
    found: Gathered, scan: Scan, source: Source, duplicates: Duplicates
) -> np.ndarray | None:
    """Adds what is wrong with the classes' sizes; gives the weights that would make up for it."""
    classes = len(source.class_names)
    train = (source.splits or {}).get("train", np.arange(len(source)))
    if not scan.faults:
        try:
            splits = make_splits(source, groups=duplicates.groups)
        except DataError as error:
            found.add("refused", str(error))
        else:
            train = splits["train"]
            for remark in remarks_on_splits(source, splits):
                found.add("note", remark)
    readable = np.setdiff1d(np.arange(len(source)), list(duplicates.unreadable))
    counts = np.bincount(source.labels[readable], minlength=classes)
    present = np.flatnonzero(counts)
    if len(present) > 1:
        least = min(present, key=lambda label: counts[label])
        most = max(present, key=lambda label: counts[label])
        ratio = counts[most] / counts[least]
        text = (
            f"{counts[most]:,} of class {source.class_names[most]!r}, {counts[least]:,} of "
            f"{source.class_names[least]!r}: {ratio:.1f} to 1"
        )
        if ratio >= UNEVEN:
            found.add("imbalance" if ratio >= IMBALANCE else "uneven", text)
    return balanced_weights(source.labels[train], classes) if len(train) else None
