"""List a dataset's folders and files: what is an image, what is skipped, how files are described.

Sorted, as the disk's order is arbitrary. Hidden files and those of systems and file browsers, such
as `__MACOSX`, are never returned. Links are followed, but never into an ancestor and never twice
into the same folder.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from vggjax.data.images.formats import ENDINGS, FORMAT_ENDINGS, format_of_content
from vggjax.errors import DataError, join_names, printable

_SYSTEM_FOLDERS = {
    *("__MACOSX", "__pycache__", "lost+found", "$RECYCLE.BIN", "System Volume Information"),
    *("@eaDir", "#recycle"),  # of a Synology disk station, with thumbnails in the first
}

ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar")
_WAYS_OUT = {
    ("-ubyte", "-ubyte.gz", "data_batch_1"): (
        "Give a well-known dataset by its name: mnist, fashion_mnist, cifar10, cifar100."
    ),
    ARCHIVES: "Unpack the archive and give the folder that it makes.",
    (".xlsx", ".xls", ".xlsm", ".ods", ".numbers"): (
        "Save the spreadsheet as a CSV, in UTF-8, and give that."
    ),
    (".yaml", ".yml"): "Give the folder with the images that it describes.",
    (".json", ".xml"): "Write the labels as a CSV with the columns path,label.",
    (".npz", ".npy", ".h5", ".hdf5", ".mat", ".pkl", ".pickle", ".bin"): (
        "Arrays are not read: save each image as a file, FOLDER/<class>/<number>.png."
    ),
    (".tfrecord", ".tfrecords", ".tfrec", ".rec", ".parquet", ".arrow", ".lmdb", ".mdb"): (
        "Records are not read: save each image as a file, FOLDER/<class>/<number>.png."
    ),
    ENDINGS: "To classify a single image, use vggjax predict.",
}
"""Endings of files that are no dataset -> the way out."""


def _walk(top: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walk a folder as os.walk does, links included; a folder that cannot be listed is an error."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{printable(error.filename)} cannot be read: {error.strerror}.") from None

    return os.walk(top, onerror=refuse, followlinks=True)


def _walk_once(top: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder and its files' names: no hidden folder, no ancestor, and none twice."""
    parent = Path(os.path.abspath(top)).parent.resolve()
    entered = {str(folder) for folder in (parent, *parent.parents)}
    for folder, folders, names in _walk(top):
        real = os.path.realpath(folder)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = visible(sorted(folders))  # os.walk enters these, in this order
        yield folder, names


def list_folder(top: Path) -> tuple[list[str], list[str]]:
    """Return the names of the folders, hidden ones too, and of the files directly below."""
    _, folders, files = next(_walk(top))
    return sorted(folders), sorted(files)


def list_subfolders(top: Path) -> list[str]:
    """Return the names of the folders directly below."""
    return visible(list_folder(top)[0])


def list_tree(root: Path, below: str) -> tuple[list[tuple[str, int]], list[str]]:
    """Return (path, bytes) of all images below a folder, and the paths of the other files.

    Paths are relative to `root`, with `/`. The size of a dangling link is -1.
    """
    images: list[tuple[str, int]] = []
    others: list[str] = []
    for folder, names in _walk_once(root / below):
        relative = Path(folder).relative_to(root).as_posix()
        prefix = "" if relative == "." else f"{relative}/"
        here, rest = sort_out(names)
        others += [f"{prefix}{name}" for name in rest]
        images += [(f"{prefix}{name}", _size(os.path.join(folder, name))) for name in here]
    return sorted(images), sorted(others)


def has_image(top: Path) -> bool:
    """Return whether an image is anywhere below a folder."""
    return any(sort_out(files)[0] for _, files in _walk_once(top))


def filled_folders(top: Path) -> list[str]:
    """Return the folders with images directly below a folder, which may not exist."""
    names = list_subfolders(top) if top.is_dir() else []
    return [name for name in names if has_image(top / name)]


def visible(names: Iterable[str]) -> list[str]:
    """Return the names that are neither hidden nor the system's, in their order."""
    return [name for name in names if not name.startswith(".") and name not in _SYSTEM_FOLDERS]


def sort_out(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the images and the other files, in their order."""
    names = visible(names)
    images = [name for name in names if name.lower().endswith(ENDINGS)]
    skipped = (*ENDINGS, "/thumbs.db", "/desktop.ini", "/icon\r")
    return images, [name for name in names if not f"/{name.lower()}".endswith(skipped)]


def by_ending(files: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Return (extension, files) of all extensions, the most frequent first."""
    groups = defaultdict(list)
    for name in files:
        groups[PurePosixPath(name).suffix.lower() or "without an extension"].append(name)
    return sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))


def describe_endings(root: Path, files: Iterable[str]) -> str:
    """Describe files by extension, and by their first bytes if these are an image format's."""
    texts = []
    for ending, paths in by_ending(files)[:5]:
        content = format_of_content(root / paths[0])
        text = f"{len(paths):,} {printable(ending)}"
        texts.append(f"{text} ({content})" if content else text)
    return ", ".join(texts)


def way_to_read(root: Path, files: Iterable[str]) -> str:
    """Return how images whose names do not end as images' do become ones that are read."""
    found = {format_of_content(root / paths[0]) for _, paths in by_ending(files)}
    endings = [FORMAT_ENDINGS[name][0] for name in FORMAT_ENDINGS if name in found]
    if not endings:
        return "Save them as .jpg or .png."
    others = "; save the others as .jpg or .png" if found - {*FORMAT_ENDINGS} else ""
    return f"Rename those that can be read to end in {join_names(endings)}{others}."


def way_out_of(names: Iterable[str]) -> str:
    """Return how to make a dataset of files that are none; empty if their names do not tell."""
    plain = [re.sub(r"(\.tfrecord)-.*", r"\1", name.lower()) for name in names]
    return next(
        (way for ends, way in _WAYS_OUT.items() if any(n.endswith(ends) for n in plain)), ""
    )


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # a dangling link: reading it as an image gives the reason
        return -1
