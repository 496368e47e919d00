"""Writes a cleaned copy of a dataset, and never touches the original.

Out: a new folder of the same layout, its files byte for byte those of the original; of a list (CSV)
a folder `[split/]class/name`. Left out: what cannot be read or is damaged; copies of equal pixels
beyond the first, and where the dataset's own splits share one, that of train before that of val
and test; every copy of an image that has two labels. Near duplicates stay: which of them is the
better one is for a person to say. Files get the ending of their content, and names that every
system can hold. The copy is made under another name and renamed when it is complete; what was done
is in `OUT.doctor.csv` beside it, a line for each change.
"""

import csv
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from vggjax.atomic import atomic_write
from vggjax.data.images.formats import ending_of, format_named, format_of_file
from vggjax.data.quality.findings import Findings
from vggjax.data.quality.safe_names import Names
from vggjax.data.sources.source import SPLIT_WORDS, Source
from vggjax.data.sources.tfds import is_tfds_name
from vggjax.errors import DataError, printable

_MARK = ".vggjax-doctor"
"""Lies in a copy that is not complete: by it a later call knows that it may delete it."""

_PREFERRED = ("test", "val", "", "train")
"""Where the one copy of a leaked image stays."""


@dataclass(frozen=True)
class Change:
    """What became of one file, if not the same."""

    id: str
    action: str
    """`left out` or `renamed`."""
    reason: str
    target: str = ""
    """The new path below the copy, where it was renamed."""


@dataclass(frozen=True)
class CleanCopy:
    """A cleaned copy that was written."""

    folder: Path
    images: int
    changes: tuple[Change, ...]
    table: Path
    """A CSV of the changes."""

    @property
    def left_out(self) -> list[Change]:
        """Lists what is not in the copy."""
        return [change for change in self.changes if change.action == "left out"]


def check_out(dataset: str, out: str | os.PathLike[str]) -> None:
    """Refuses what can be seen before any image is read.

    Raises:
        DataError: a dataset without files of its own, or a place that will not do.
    """
    folder = os.path.expanduser(dataset)
    if not os.path.exists(folder) and (dataset == "digits" or is_tfds_name(dataset)):
        raise DataError(
            f"--fix copies files, and {printable(dataset)} has none of its own; it takes a folder of "
            f"images or a list (CSV)."
        )
    out = Path(os.path.abspath(os.path.expanduser(out)))
    if os.path.isdir(folder):
        _check_apart(out, [os.path.realpath(folder)])
    if os.path.lexists(out) and (out.is_symlink() or not out.is_dir() or any(out.iterdir())):
        raise DataError(
            f"{printable(out)} is there already, and not an empty folder; give a new one."
        )


def write_clean_copy(
    findings: Findings,
    out: str | os.PathLike[str],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> CleanCopy:
    """Writes the cleaned copy into the new folder `out`, or nothing at all.

    `progress` is called with (done, of) while files are copied.

    Raises:
        DataError: a dataset without files, nothing left to copy, a place that will not do, or a
            disk that is full.
    """
    source = findings.source
    if source is None or not len(source):
        raise DataError(f"{printable(findings.dataset)} has no labeled image to copy.")
    if source.path(0) is None:
        raise DataError(
            f"--fix copies files, and {printable(findings.dataset)} has none of its own; it takes a "
            f"folder of images or a list (CSV)."
        )
    out = Path(os.path.abspath(os.path.expanduser(out)))
    partial = out.with_name(f"{out.name}.partial")
    table = out.with_name(f"{out.name}.doctor.csv")
    _check_place(findings.dataset, source, out, partial, table)
    reasons = choose(findings)
    targets, changes = _plan(source, findings.split_of, reasons)
    if not targets:
        raise DataError(
            f"Nothing of {printable(findings.dataset)} is fit to be kept; nothing written."
        )
    try:
        with atomic_write(table) as written:
            partial.mkdir(parents=True)
            (partial / _MARK).touch()
            for done, (i, target) in enumerate(targets.items(), 1):
                (partial / target).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source.path(i), partial / target)  # a link's file, not the link
                if progress is not None:
                    progress(done, len(targets))
            _write_table(written, changes)
            if out.exists():
                out.rmdir()  # empty, as _check_place saw
            partial.rename(out)
            (out / _MARK).unlink()
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            raise DataError(
                f"The copy to {printable(out)} failed, and is gone: {reason}."
            ) from None
        raise
    return CleanCopy(out, len(targets), tuple(changes), table)


def choose(findings: Findings) -> dict[int, str]:
    """Says which images are left out of a cleaned copy, and why."""
    source, duplicates = findings.source, findings.duplicates
    split_of = findings.split_of
    reasons = dict(duplicates.unreadable)
    for entry in findings.of("damaged"):
        reasons |= dict.fromkeys(entry.images, entry.text)
    if source.splits:
        for i in range(len(source)):
            if not split_of[i]:
                reasons.setdefault(i, "in none of the dataset's splits")
    for group in duplicates.members(exact=True):
        labels = sorted({source.class_names[source.labels[i]] for i in group})
        kept = min(
            (i for i in group if i not in reasons),
            key=lambda i: (_PREFERRED.index(split_of[i]), i),
            default=None,
        )
        for i in group:
            if len(labels) > 1:
                reasons.setdefault(i, f"the same image under {len(labels)} labels: {labels}")
            elif i != kept and kept is not None:
                reasons.setdefault(i, f"the same pixels as {source.ids[kept]}")
    return reasons


def _plan(
    source: Source, split_of: list[str], reasons: dict[int, str]
) -> tuple[dict[int, str], list[Change]]:
    """Gives index -> path below the copy, and what is not as it was."""
    names, targets, changes = Names(), {}, []
    for i, name in enumerate(source.ids):
        if i in reasons:
            changes.append(Change(name, "left out", reasons[i]))
            continue
        path = source.path(i)
        *folders, file = _parts(source, i, split_of[i])
        stem, ending = os.path.splitext(file)
        true, why = format_of_file(path), []
        if true is not None and format_named(file) != true:
            # An ending that is no image's is a part of the name: photo.2020
            stem = stem if format_named(file) else file
            ending = ending_of(true)
            why.append(f"its content is {true}")
        target = "/".join(names.file(tuple(folders), stem, ending))
        if target != "/".join((*folders, stem + ending)):
            why.append("its name would not do on every system, or is taken")
        targets[i] = target
        if why:
            changes.append(Change(name, "renamed", "; ".join(why), target))
    return targets, changes


def _parts(source: Source, i: int, split: str) -> list[str]:
    """Gives the folders and the name that an image has in the copy, before they are made safe."""
    if source.root is not None:
        return source.ids[i].split("/")
    label = source.class_names[source.labels[i]]
    # A class called `test` is none to a folder scan.
    label = f"{label}_" if label.lower() in SPLIT_WORDS else label
    return [*([split] if split else []), label, source.path(i).name]


def _check_place(dataset: str, source: Source, out: Path, partial: Path, table: Path) -> None:
    check_out(dataset, out)
    if source.root is not None:
        folders = {os.path.realpath(source.root)}
        parents = {source.path(i).parent for i in range(len(source))}
        _check_apart(out, folders | {os.path.realpath(folder) for folder in parents})
    if os.path.lexists(table) and os.path.realpath(table) == os.path.realpath(dataset):
        raise DataError(
            f"{printable(table)}, the dataset, would be written over; give another place."
        )
    if os.path.lexists(partial):
        if not (partial / _MARK).exists():
            raise DataError(f"{printable(partial)} is in the way; move it, or give another place.")
        shutil.rmtree(partial)  # what a call that was killed left behind


def _check_apart(out: Path, folders: Iterable[str]) -> None:
    place = Path(os.path.realpath(out))
    for folder in folders:
        if place.is_relative_to(folder):
            raise DataError(
                f"{printable(out)} lies in the dataset itself; give a place outside of it."
            )
        if Path(folder).is_relative_to(place):
            raise DataError(f"{printable(out)} holds the dataset itself; give a new folder.")


def _write_table(path: Path, changes: list[Change]) -> None:
    with open(path, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "action", "target", "reason"])
        writer.writerows([c.id, c.action, c.target, c.reason] for c in changes)
