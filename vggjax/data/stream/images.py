"""Resolve what a user names into a stream of images, each once, in a fixed order.

In: files, folders, globs, lists (.txt), tar shards, Parquet files, `-` for names on the standard
input. Out: a `StreamedImage` at a time, so that memory does not grow with their number: of a folder
one directory's names are held, of shards (shards.py) one image. What cannot be used is an item with
its reason; nothing but the decoder looks into an image.
"""

import glob
import hashlib
import itertools
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from vggjax.data.images.decode import DecodedImage, Rendering, read_image
from vggjax.data.images.formats import ENDINGS, format_of_file
from vggjax.data.stream.shards import SHARD_ENDINGS, is_shard, shard_images
from vggjax.errors import ConfigError, DataError, nearest_name, printable

T = TypeVar("T")


class StreamedImage(NamedTuple):
    """An image that can be read, or the reason why it cannot."""

    path: Path
    """The file; of an image in a shard, the shard's path and then the image's name in it."""
    reason: str = ""
    """Why it cannot be read, if that is known already."""
    content: bytes | None = None
    """The bytes of an image in a shard; None of a file."""

    @property
    def is_shard(self) -> bool:
        """Return whether this is a file of many images, which `open_shards` opens."""
        return self.content is None and not self.reason and is_shard(self.path)

    def read(self, rendering: Rendering) -> DecodedImage:
        """Decode the image; raise `DataError` with nothing but the reason."""
        if self.reason:
            raise DataError(self.reason)
        return read_image(self.path if self.content is None else self.content, rendering)


@dataclass(frozen=True)
class Part:
    """One of several equal parts of a stream."""

    index: int
    """From 1 on."""
    count: int

    @classmethod
    def parse(cls, text: str) -> "Part":
        """Parse `3/16`, the third of sixteen parts.

        Raises:
            ConfigError: another form, or a part that is not one of them.
        """
        match = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
        index, count = map(int, match.groups()) if match else (0, 0)
        if not 1 <= index <= count:
            raise ConfigError(f"`shard` is written PART/PARTS, as in 3/16; got {text!r}.")
        return cls(index, count)

    def has(self, image: StreamedImage) -> bool:
        """Return whether an image is in this part; its name decides, whatever other images are."""
        return name_hash(printable(image.path)) % self.count == self.index - 1


def name_hash(name: str) -> int:
    """Return 64 bits of a name's hash."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def open_images(
    patterns: Sequence[str | os.PathLike[str]],
    *,
    outside: Mapping[str, str | None] | None = None,
    part: Part | None = None,
    with_shards_open: bool = True,
) -> Iterator[StreamedImage]:
    """Return a stream of the images that patterns name, each once, in order.

    A file that is named, or that a glob matches, is an image whatever its ending, but for shards
    and lists, which are opened; in a folder the ending decides, and hidden names are skipped. A
    folder without images may have shards. A list has a name on each line, relative to its folder.

    Args:
        patterns: what the user named; `-` reads names from the standard input, one a line or
            separated by null bytes.
        outside: setting -> a folder whose files are skipped, or None.
        part: keeps the images of one of several parts.
        with_shards_open: False yields a shard as one item.

    Raises:
        DataError: nothing was named, or nothing is left.
    """
    first, images = peek(_resolve_all([os.fspath(pattern) for pattern in patterns]), 1)
    if not first:
        raise DataError("No images were named. Give files, folders or globs.")
    if with_shards_open:
        images = open_shards(images)
    for field, folder in (outside or {}).items():
        if folder is not None:
            first, images = peek(_outside(images, folder), 1)
            if not first:
                raise DataError(f"All images are in `{field}` {printable(folder)}; give another.")
    if part is not None:
        images = filter(part.has, images)
    return images


def open_shards(images: Iterable[StreamedImage]) -> Iterator[StreamedImage]:
    """Yield the images, in place of a shard those in it."""
    for image in images:
        if image.is_shard:
            yield from _images_in_shard(image.path)
        else:
            yield image


def peek(items: Iterable[T], count: int) -> tuple[list[T], Iterator[T]]:
    """Return the first `count` items, or all if there are fewer, and an iterator over all."""
    items = iter(items)
    first = list(itertools.islice(items, count))
    return first, itertools.chain(first, items)


def peek_usable(images: Iterable[StreamedImage]) -> Iterator[StreamedImage]:
    """Return the stream, once it is known that an image in it may be readable.

    Raises:
        DataError: none is.
    """
    images = iter(images)
    unusable: list[StreamedImage] = []
    for image in images:
        if not image.reason:
            return itertools.chain(unusable, [image], images)
        unusable.append(image)
    first = unusable[0] if unusable else StreamedImage(Path())
    raise nothing_usable(len(unusable), first.path, first.reason)


def nothing_usable(count: int, path: Path, reason: str) -> DataError:
    """Return the error for `count` images none of which can be used; the reason is the first's."""
    if not count:
        return DataError("No image is in this `shard`; there are fewer images than parts.")
    subject = f"None of the {count:,} images can" if count > 1 else "The image cannot"
    message = f"{subject} be used; {printable(path)}: {printable(reason)}"
    return DataError(message if message.endswith((".", "?")) else f"{message}.")


def _outside(images: Iterable[StreamedImage], folder: str) -> Iterator[StreamedImage]:
    """Yield the images that are not below a folder."""
    root = Path(os.path.realpath(Path(folder).expanduser()))
    return (
        image for image in images if not Path(os.path.realpath(image.path)).is_relative_to(root)
    )


def _resolve_all(patterns: list[str]) -> Iterator[StreamedImage]:
    """Yield the images of all patterns; those that are named twice only the first time."""
    # Nothing is twice in one folder, so nothing need be remembered.
    is_folder = len(patterns) == 1 and os.path.isdir(patterns[0])
    known: set[int] | None = None if is_folder else set()
    for pattern in patterns:
        names = _names_on_stdin() if pattern == "-" else [pattern]
        for image in itertools.chain.from_iterable(map(_resolve, names)):
            if known is not None:
                key = hash(image.path)
                if key in known:
                    continue
                known.add(key)
            yield image


def _names_on_stdin() -> Iterator[str]:
    data = sys.stdin.buffer.read()
    names = data.split(b"\0") if b"\0" in data else data.splitlines()
    return (os.fsdecode(name) for name in names if name.strip())


def _resolve(name: str) -> Iterator[StreamedImage]:
    if not os.path.lexists(name):
        yield from _resolve_glob(name)
    elif os.path.isdir(name):
        yield from _images_in_folder(Path(name))
    elif name.lower().endswith((".csv", ".tsv")) and format_of_file(name) is None:
        yield StreamedImage(Path(name), "a table: give a list (.txt) with a name on each line")
    elif name.lower().endswith(".txt") and format_of_file(name) is None:
        yield from _images_in_list(Path(name))
    else:
        yield StreamedImage(Path(name))


def _resolve_glob(name: str) -> Iterator[StreamedImage]:
    if re.match(r"[a-z][a-z0-9+]+://", name, re.IGNORECASE):
        yield StreamedImage(Path(name), "an address: download the image and give the file")
        return
    if not glob.has_magic(name):
        yield StreamedImage(Path(name), f"no such file or folder{_suggestion(name)}")
        return
    is_matched = has_images = False
    for match in sorted(glob.glob(name, recursive=True)):
        is_matched, path = True, Path(match)
        for below in _files_below(path, ENDINGS) if path.is_dir() else [path]:
            has_images = True
            yield StreamedImage(below)
    if not has_images:
        yield StreamedImage(Path(name), "has no images" if is_matched else "no file matches")


def _images_in_folder(folder: Path) -> Iterator[StreamedImage]:
    paths, _ = peek(_files_below(folder, ENDINGS), 1)
    has_images = False
    for path in _files_below(folder, ENDINGS if paths else SHARD_ENDINGS):
        has_images = True
        yield StreamedImage(path)
    if not has_images:
        reason = f"the folder has no images; their names end in {', '.join(ENDINGS)}"
        yield StreamedImage(folder, reason)


def _files_below(folder: Path, endings: tuple[str, ...]) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.lower().endswith(endings) and not name.startswith("."):
                yield Path(root, name)


def _images_in_list(path: Path) -> Iterator[StreamedImage]:
    is_empty = True
    with open(path, "rb") as file:
        for line in file:
            if line := line.strip():
                is_empty = False
                name = path.parent / os.fsdecode(line)
                yield StreamedImage(name, "" if os.path.lexists(name) else "no such file")
    if is_empty:
        yield StreamedImage(path, "an empty list")


def _images_in_shard(path: Path) -> Iterator[StreamedImage]:
    """Yield the images of a shard; a last one has the reason why the rest cannot be read."""
    known: dict[str, int] = {}
    is_empty = True
    try:
        for name, content in shard_images(path):
            is_empty = False
            known[name] = count = known.get(name, 0) + 1
            own = name if count == 1 else f"{name}#{count}"  # as every row has a name of its own
            yield StreamedImage(path / own, content=content)
    except DataError as error:
        yield StreamedImage(path, str(error))
    else:
        if is_empty:
            yield StreamedImage(path, "has no images")


def _suggestion(name: str) -> str:
    path = Path(name)
    try:
        near = nearest_name(path.name, os.listdir(path.parent))
    except OSError:
        return ""
    return f"; did you mean {printable(path.parent / near)!r}?" if near else ""
