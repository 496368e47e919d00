"""Write a cleaned copy of a dataset; the original is never changed.

The copy is a new folder with the same layout and byte-identical files; of a CSV, a folder
`[split/]class/name`. Left out: unreadable and damaged images; all but one of the images with equal
pixels, where official splits share it the one in test, then val, then train stays; every copy of
an image with two labels. Near-duplicates stay: choosing between them is up to a person. Files get
the extension of their content and names that every operating system accepts. The copy is written
under another name and renamed when complete; `OUT.doctor.csv` next to it lists every change.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from unicodedata import normalize

import numpy as np

from vggjax.atomic import atomic_write
from vggjax.csv_text import csv_line
from vggjax.data.images.formats import ending_of, format_named, format_of_file
from vggjax.data.quality.findings import Findings
from vggjax.data.sources.listing import visible
from vggjax.data.sources.source import SPLIT_WORDS, Source
from vggjax.data.sources.tfds import is_tfds_name
from vggjax.errors import DataError, join_names, printable

_MARKER = ".vggjax-doctor"
"""A file in an incomplete copy, which allows a later call to delete it."""

_PREFERENCE = ("test", "val", "", "train")
"""Which split keeps an image that several splits share."""

MAX_NAME_BYTES = 255


@dataclass(frozen=True)
class Change:
    """A file that is left out or renamed."""

    id: str
    action: str
    """`left out` or `renamed`."""
    reason: str
    target: str = ""
    """The new path below the copy, if renamed."""


@dataclass(frozen=True)
class CleanCopy:
    """A cleaned copy on disk."""

    folder: Path
    images: int
    changes: tuple[Change, ...]
    table: Path
    """The CSV of the changes."""


def check_output(
    dataset: str, out: str | os.PathLike[str], *, files: Iterable[Path] = ()
) -> tuple[Path, Path, Path]:
    """Return the full paths of the copy, of the incomplete copy and of the table of changes.

    Without `files`, the dataset's images, this checks what it can before any image is decoded.

    Raises:
        DataError: the dataset has no files to copy, or `out` is unsuitable.
    """
    folder = os.path.expanduser(dataset)
    if not os.path.exists(folder) and (dataset == "digits" or is_tfds_name(dataset)):
        raise DataError(_describe_without_files(dataset))
    out = Path(os.path.abspath(os.path.expanduser(out)))
    partial, table = (out.with_name(out.name + ending) for ending in (".partial", ".doctor.csv"))
    if os.path.isdir(folder):
        folders = {
            Path(os.path.realpath(path))
            for path in {Path(folder), *(file.parent for file in files)}
        }
        destination = Path(os.path.realpath(out))
        if any(destination.is_relative_to(path) for path in folders):
            raise DataError(f"{printable(out)} is inside the dataset. Give a folder outside of it.")
        if any(path.is_relative_to(destination) for path in folders):
            raise DataError(f"{printable(out)} contains the dataset. Give a new folder.")
    if os.path.lexists(out) and (out.is_symlink() or not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{printable(out)} exists and is not an empty folder. Give a new folder.")
    if os.path.lexists(table) and os.path.realpath(table) == os.path.realpath(folder):
        raise DataError(
            f"{printable(table)}, the dataset, would be overwritten. Give another `fix`."
        )
    if os.path.lexists(partial) and not (partial / _MARKER).exists():
        raise DataError(f"{printable(partial)} is in the way. Move it, or give another `fix`.")
    return out, partial, table


def write_clean_copy(
    findings: Findings,
    out: str | os.PathLike[str],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> CleanCopy:
    """Write the cleaned copy into the new folder `out`, completely or not at all.

    `progress` is called with (done, total) while files are copied.

    Raises:
        DataError: the dataset has no files to copy, no image is left, `out` is unsuitable, or
            writing failed.
    """
    source = findings.source
    if source is None or not len(source):
        raise DataError(f"{printable(findings.dataset)} has no labeled images to copy.")
    if source.targets is not None:
        raise DataError(
            f"A cleaned copy has one folder per class, and the images of "
            f"{printable(findings.dataset)} have several labels. Remove the rows that `doctor` "
            "names from the CSV."
        )
    files = [path for path in map(source.path, range(len(source))) if path is not None]
    if not files:
        raise DataError(_describe_without_files(findings.dataset))
    out, partial, table = check_output(findings.dataset, out, files=files)
    targets, changes = _plan(findings, source, files)
    if not targets:
        raise DataError(
            f"No image of {printable(findings.dataset)} is usable; nothing was written."
        )
    shutil.rmtree(partial, ignore_errors=True)  # left behind by a killed call
    try:
        with atomic_write(table) as partial_table:
            partial.mkdir(parents=True)
            (partial / _MARKER).touch()
            for done, (i, target) in enumerate(targets.items(), 1):
                (partial / target).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(files[i], partial / target)  # the file behind a link
                if progress is not None:
                    progress(done, len(targets))
            _write_table(partial_table, changes)
            if out.exists():
                out.rmdir()  # empty, see check_output
            partial.rename(out)
            (out / _MARKER).unlink()
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"The copy to {printable(out)} failed and was removed: {reason}.") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return CleanCopy(out, len(targets), tuple(changes), table)


def _images_to_leave_out(findings: Findings, source: Source) -> dict[int, str]:
    """Return index -> reason of the images that a cleaned copy leaves out."""
    duplicates, split_of = findings.duplicates, source.split_of
    assert duplicates is not None
    reasons = dict(duplicates.unreadable)
    for entry in findings.of("damaged"):
        reasons |= dict.fromkeys(entry.images, entry.text)
    if source.splits:
        for i in np.flatnonzero(split_of == "").tolist():
            reasons.setdefault(i, "in none of the official splits")
    for group in duplicates.members(duplicates.exact_groups):
        labels = sorted({source.label_text(i) for i in group})
        kept = min(
            (i for i in group if i not in reasons),
            key=lambda i: (_PREFERENCE.index(split_of[i]), i),
            default=None,
        )
        for i in group:
            if len(labels) > 1:
                reasons.setdefault(
                    i, f"the same image with {len(labels)} labels: {join_names(labels)}"
                )
            elif i != kept and kept is not None:
                reasons.setdefault(i, f"the same pixels as {source.ids[kept]}")
    return reasons


def safe_name(name: str) -> str:
    """Return a file or folder name that every operating system accepts and that is not hidden.

    A name that is safe already is unchanged.
    """
    text = "".join(c if c.isprintable() and c not in '<>:"/\\|?*' else "_" for c in name)
    text = re.sub(r"^\.", "_", text)
    text = re.sub(r"[. ]+$", "_", text)
    if re.match(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|$)", text, re.IGNORECASE):  # Windows
        text = "_" + text
    if text and not visible([text]):  # a folder scan skips it, as it does __MACOSX
        text = "_" + text.lstrip("_@$#")
    return text or "_"


class SafeNames:
    """Assigns safe names that differ on every file system; equal folders get equal names.

    Windows and macOS ignore case (`Cat` is `cat`), and macOS Unicode normalization.
    """

    def __init__(self) -> None:
        self._folders: dict[tuple[str, ...], tuple[str, ...]] = {(): ()}
        self._taken: set[tuple[str, ...]] = set()

    def folder(self, parts: tuple[str, ...]) -> tuple[str, ...]:
        """Return the safe path of a folder."""
        if parts not in self._folders:
            parent = self.folder(parts[:-1])
            self._folders[parts] = (*parent, self._assign(parent, safe_name(parts[-1]), ""))
        return self._folders[parts]

    def file(self, parts: tuple[str, ...], stem: str, ending: str) -> tuple[str, ...]:
        """Return the safe path of a new file in the folder `parts`."""
        parent = self.folder(parts)
        safe_stem = safe_name(stem + ending).removesuffix(ending)
        return (*parent, self._assign(parent, safe_stem, ending))

    def _assign(self, parent: tuple[str, ...], stem: str, ending: str) -> str:
        """Return the stem, truncated to `MAX_NAME_BYTES`, with a number if the name is taken."""
        for number in count(1):
            end = ending if number == 1 else f"_{number}{ending}"
            name = stem.encode()[: MAX_NAME_BYTES - len(end.encode())].decode(errors="ignore") + end
            # What a file system compares that ignores case and Unicode normalization.
            folded = normalize("NFC", normalize("NFC", name).casefold())
            if (*parent, folded) not in self._taken:
                break
        self._taken.add((*parent, folded))
        return name


def _plan(
    findings: Findings, source: Source, files: list[Path]
) -> tuple[dict[int, str], list[Change]]:
    """Return index -> path below the copy, and the changes."""
    reasons = _images_to_leave_out(findings, source)
    names = SafeNames()
    targets: dict[int, str] = {}
    changes = []
    for i, image_id in enumerate(source.ids):
        if i in reasons:
            changes.append(Change(image_id, "left out", reasons[i]))
            continue
        *folders, file = _path_parts(source, i, files[i].name)
        stem, ending = os.path.splitext(file)
        actual = format_of_file(files[i])
        why = []
        if actual is not None and format_named(file) != actual:
            # An extension that is not an image's is part of the name: photo.2020
            stem = stem if format_named(file) else file
            ending = ending_of(actual)
            why.append(f"its content is {actual}")
        target = "/".join(names.file(tuple(folders), stem, ending))
        if target != "/".join((*folders, stem + ending)):
            why.append("its name is taken, or not accepted by every operating system")
        targets[i] = target
        if why:
            changes.append(Change(image_id, "renamed", "; ".join(why), target))
    return targets, changes


def _path_parts(source: Source, i: int, name: str) -> list[str]:
    """Return the folders and the file name of an image in the copy, before they are made safe."""
    if source.root is not None:
        return source.ids[i].split("/")
    label = source.class_names[source.labels[i]]
    # A folder scan would take a class called `test` for a split.
    label = f"{label}_" if label.lower() in SPLIT_WORDS else label
    return [*filter(None, [str(source.split_of[i])]), label, name]


def _describe_without_files(dataset: str) -> str:
    return (
        f"`fix` copies files, and {printable(dataset)} has none of its own. Give a folder of "
        f"images or a CSV."
    )


def _write_table(path: Path, changes: list[Change]) -> None:
    with open(path, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        rows = [(change.id, change.action, change.target, change.reason) for change in changes]
        file.writelines(map(csv_line, [("path", "action", "target", "reason"), *rows]))
