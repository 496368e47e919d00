"""The published archives of a dataset: found on this machine or downloaded, and read safely.

No name in an archive ever becomes a path: members are read into memory, one at a time, so a link or
a path that leads outside has no effect. Their number and sizes are bounded.
"""

import contextlib
import gzip
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from vggjax.download import DownloadError, MoveBar, RemoteFile, byte_bar, download
from vggjax.errors import DataError, join_names, printable

OWN_FOLDER = "vggjax"
"""The folder in tfds' `data_dir` that this package keeps its copies in."""

MAX_MEMBERS = 200_000
MAX_MEMBER_BYTES = 2**28
"""256 MB; the largest of the known archives, cifar100's train.bin, has 154 MB."""
MAX_BYTES = 2**33
"""8 GB unpacked; imagenette, the largest, has 1.6 GB."""

UNPACK_ERRORS = (tarfile.TarError, zipfile.BadZipFile, zlib.error, gzip.BadGzipFile, EOFError)
"""What reading a damaged archive raises."""


def download_folder(data_dir: Path) -> Path:
    """Return the folder of this package's downloads, which are deleted once they are unpacked."""
    return data_dir / OWN_FOLDER / "downloads"


def remove_downloads(paths: Mapping[str, Path], data_dir: Path) -> None:
    """Delete the archives among `paths` that this package downloaded, none put there by hand."""
    for path in paths.values():
        if path.parent == download_folder(data_dir):
            with contextlib.suppress(OSError):
                path.unlink()


def fetch_archives(dataset: str, archives: Sequence[RemoteFile], data_dir: Path) -> dict[str, Path]:
    """Return the verified archives by name, of which those that are not here are downloaded.

    Raises:
        DataError: one is neither here nor can be downloaded; the message names those to download
            by hand, and the folder to put them into.
    """
    paths: dict[str, Path] = {}
    skipped: list[str] = []
    for archive in archives:
        path = _find(dataset, archive, data_dir, skipped)
        if path is not None:
            paths[archive.name] = path
    for archive in archives:
        if archive.name in paths:
            continue
        target = download_folder(data_dir) / archive.name
        try:
            with byte_bar(archive.name) as progress:
                download(archive, target, progress=progress)
        except DownloadError as error:
            missing = [archive.name for archive in archives if archive.name not in paths]
            listed = f" Skipped: {'; '.join(skipped)}." if skipped else ""
            raise DataError(
                f"{dataset} is not on this machine yet, and {archive.url} cannot be downloaded "
                f"({error}).{listed} Run the same command again where there is a network; or "
                f"download {join_names(missing)} elsewhere into "
                f"{printable(data_dir / 'downloads' / 'manual')}; or give a folder of images as "
                f"`dataset`, or a `data_dir` where it is prepared."
            ) from None
        paths[archive.name] = target
    return paths


def _find(dataset: str, archive: RemoteFile, data_dir: Path, skipped: list[str]) -> Path | None:
    """Return a copy of an archive, under any name; append others of its name to `skipped`."""
    downloads = data_dir / "downloads"  # tfds' own; it names files by their address and checksum
    folders = (data_dir, downloads, downloads / "manual", downloads / dataset)
    for folder in (*folders, download_folder(data_dir)):
        try:
            with os.scandir(folder) as entries:
                files = [entry for entry in entries if entry.is_file()]
        except OSError:
            continue
        sizes = {}
        for entry in files:
            with contextlib.suppress(OSError):  # another process has just completed or deleted it
                sizes[entry.name] = entry.stat().st_size
        named = [archive.name] if archive.name in sizes else []
        same_size = [name for name, size in sizes.items() if size == archive.size_bytes]
        for name in dict.fromkeys(named + sorted(same_size)):
            path = folder / name
            try:
                problem = archive.problem(path)
            except OSError as error:
                problem = error.strerror or str(error)
            if problem is None:
                return path
            if name == archive.name:
                skipped.append(f"{printable(path)} ({problem})")
    return None


def tar_members(path: Path, pattern: str, progress: MoveBar) -> Iterator[tuple[re.Match, bytes]]:
    """Yield the files of a tar archive, compressed or not, whose whole name matches `pattern`."""
    total, budget = path.stat().st_size, _Budget(path)
    with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r|*") as archive:
        for member in archive:
            budget.spend(member.size)
            match = re.fullmatch(pattern, member.name)
            content = archive.extractfile(member) if match and member.isreg() else None
            if match and content is not None:
                yield match, content.read()
                progress(file.tell(), total)


def zip_members(path: Path, pattern: str, progress: MoveBar) -> Iterator[tuple[re.Match, bytes]]:
    """Yield the files of a zip archive whose whole name matches `pattern`."""
    budget, done = _Budget(path), 0
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        total = sum(member.compress_size for member in members)
        for member in members:
            budget.spend(member.file_size)
            done += member.compress_size
            if match := re.fullmatch(pattern, member.filename):
                with archive.open(member) as content:
                    yield match, _read_bounded(content, path)
                progress(done, total)


def gzip_content(path: Path) -> bytes:
    """Return the contents of a file that gzip compressed."""
    with gzip.open(path) as content:
        return _read_bounded(content, path)


def _read_bounded(content: IO[bytes] | gzip.GzipFile, path: Path) -> bytes:
    data = content.read(MAX_MEMBER_BYTES + 1)  # whatever size is declared
    if len(data) > MAX_MEMBER_BYTES:
        raise _too_large(path)
    return data


class _Budget:
    """Counts the members of an archive and their bytes, and refuses too many."""

    def __init__(self, path: Path):
        self._path, self._members, self._bytes = path, 0, 0

    def spend(self, size_bytes: int) -> None:
        self._members += 1
        self._bytes += size_bytes
        if size_bytes > MAX_MEMBER_BYTES or self._bytes > MAX_BYTES or self._members > MAX_MEMBERS:
            raise _too_large(self._path)


def _too_large(path: Path) -> DataError:
    return DataError(
        f"{printable(path)} holds more than {MAX_MEMBERS:,} files, {MAX_MEMBER_BYTES / 2**20:,.0f} "
        f"MB in one of them, or {MAX_BYTES / 2**30:,.0f} GB in all, so it was not unpacked."
    )
