"""Finds arrays in HDF5 files that strangers wrote, and nothing but arrays.

Only what lies in the file itself counts: groups and datasets reached by hard links, one part of
a name at a time and each object once, of IEEE floats, wholly written, and packed by gzip, shuffle
or fletcher32 at most. Everything else is one `WeightsError`, before any number is read. Some
damaged files hang or crash HDF5 itself: all of this runs in a process that can be stopped
(reader.py). Which dataset belongs to which layer is in keras.py.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator
from typing import IO

import h5py
import numpy as np

from vggjax.errors import WeightsError, printable
from vggjax.weights.hdf5.chunks import check_chunks, check_index, unwritten
from vggjax.weights.tensor_spans import Span, check_span

MAX_NAMES = 10_000
"""The whole of VGG19 with batch normalization has 44 layers with weights."""

_MAX_NAME_BYTES = 1024
_SLAB_BYTES = 2**25  # so much of a packed array is unpacked at a time
_FLOATS = {
    "<f4": h5py.h5t.IEEE_F32LE, ">f4": h5py.h5t.IEEE_F32BE, "<f2": h5py.h5t.IEEE_F16LE,
    ">f2": h5py.h5t.IEEE_F16BE, "<f8": h5py.h5t.IEEE_F64LE, ">f8": h5py.h5t.IEEE_F64BE,
}  # fmt: skip


class Hdf5:
    """An open file. Remembers which objects were taken, and the datasets that must be unpacked."""

    def __init__(self, root: h5py.File, *, shift: int | None = 0):
        """Takes the open file; its first byte is byte `shift` of the file on disk, None: of none.

        A member of an archive lies further in; one that had to be unpacked lies nowhere.
        """
        self.root = root
        self._shift = shift
        self._taken: dict[object, str] = {}
        self._packed: dict[str, h5py.Dataset] = {}

    def take(self, group: h5py.Group, path: str) -> h5py.Group | h5py.Dataset:
        """Gives what lies at `path` below the group, by hard links alone and once.

        Raises:
            WeightsError: nothing there, a link that leads elsewhere, or an object taken before.
        """
        for part in path.split("/"):
            if part in ("", ".", ".."):
                raise WeightsError(
                    f"the name {printable(path)!r} does not stay inside {at(group)}.", code="E_NAME"
                )
            if not has(group, part):
                raise WeightsError(
                    f"{printable(path)!r} is listed, but is not in {at(group)}.", code="E_MISSING"
                )
            kind = group.id.links.get_info(part.encode()).type
            if kind != h5py.h5l.TYPE_HARD:
                word = {h5py.h5l.TYPE_SOFT: "a soft", h5py.h5l.TYPE_EXTERNAL: "an external"}
                raise WeightsError(
                    f"{printable(part)!r} in {at(group)} is {word.get(kind, 'an unknown')} link; "
                    f"weights must lie in the file itself.",
                    code="E_LINK",
                )
            group = group[part]
        info = h5py.h5o.get_info(group.id)
        if (before := self._taken.setdefault((info.fileno, info.addr), group.name)) != group.name:
            raise WeightsError(
                f"{at(group)} and {printable(before)} are one and the same object; every layer must "
                f"have its own.",
                code="E_ALIAS",
            )
        return group

    def span(self, dataset: h5py.Group | h5py.Dataset, *, layer: str) -> Span:
        """Gives an array's place and shape once everything that can be checked unread holds.

        Raises:
            WeightsError: no array, or none that weights can be.
        """
        where = at(dataset)
        if layer not in where:  # `/layers/conv2d_7/vars/0` tells nobody which one it is
            where = f"{where} (layer {printable(layer)!r})"
        if not isinstance(dataset, h5py.Dataset):
            raise WeightsError(f"{where} is a group where an array should be.", code="E_FORMAT")
        plist = dataset.id.get_create_plist()
        layout = plist.get_layout()
        if plist.get_external_count() or layout == h5py.h5d.VIRTUAL:
            raise WeightsError(f"{where} keeps its numbers in another file.", code="E_EXTERNAL")
        stored = dataset.id.get_type()
        dtype = next((name for name, kind in _FLOATS.items() if stored.equal(kind)), None)
        if dtype is None:
            raise WeightsError(
                f"{where} holds {_kind(stored)}; weights are float16, float32 or float64.",
                code="E_DTYPE",
            )
        space = dataset.id.get_space()
        simple = space.get_simple_extent_type() == h5py.h5s.SIMPLE
        shape = tuple(int(n) for n in space.get_simple_extent_dims()) if simple else ()
        span = Span(where, shape, dtype)
        check_span(span)
        size_bytes = dataset.id.get_storage_size()
        if layout == h5py.h5d.CHUNKED:
            check_chunks(dataset, plist, span)
        elif size_bytes != span.nbytes:
            raise unwritten(where)
        elif layout == h5py.h5d.CONTIGUOUS:
            offset = dataset.id.get_offset()
            if offset is None:
                raise unwritten(where)
            if self._shift is not None:
                return Span(where, shape, dtype, offset + self._shift)
        self._packed[where] = dataset
        return span

    def unpack(self, where: str) -> Iterator[np.ndarray]:
        """Yields a packed array's numbers piece by piece along its first axis, as stored."""
        dataset = self._packed[where]
        if dataset.chunks:
            check_index(dataset, where)
        rows = dataset.chunks[0] if dataset.chunks else 1
        row_bytes = dataset.dtype.itemsize * math.prod(dataset.shape[1:]) * rows
        rows *= max(1, _SLAB_BYTES // row_bytes)
        for start in range(0, dataset.shape[0], rows):
            yield np.ascontiguousarray(dataset[start : start + rows])


@contextlib.contextmanager
def open_hdf5(file: str | IO[bytes], *, shift: int | None = 0) -> Iterator[Hdf5]:
    """Opens a file by path or object for reading; what HDF5 raises becomes a WeightsError."""
    try:
        if not isinstance(file, str) and not _is_hdf5(file):
            raise WeightsError("it is no HDF5 file.", code="E_FORMAT")
        with h5py.File(file, "r") as root:
            yield Hdf5(root, shift=shift)
    except WeightsError:
        raise
    except MemoryError:
        raise WeightsError(
            "reading it takes more memory than any VGG's weights do; it is damaged or made to.",
            code="E_BOMB",
        ) from None
    except (OSError, LookupError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        # h5py raises all of these for damaged files, depending on where the damage lies.
        why = " ".join(str(error).split()) or type(error).__name__
        if "lock file" in why or "already open for write" in why:
            raise WeightsError(
                f"another program writes it, or was killed while it did ({printable(why)}). Wait, or "
                f"write it again.",
                code="E_FILE" if "lock file" in why else "E_FORMAT",
            ) from None
        cut = "truncated" in why or "eof" in why.lower()
        raise WeightsError(
            f"it is damaged or cut short, HDF5 cannot read it ({printable(why)}). "
            f"Fetch or write it again.",
            code="E_TRUNCATED" if cut else "E_FORMAT",
        ) from None


def _is_hdf5(file: IO[bytes]) -> bool:
    try:
        file.seek(0)
        return file.read(8) == b"\x89HDF\r\n\x1a\n"
    except OSError:
        return False


def has(group: h5py.Group | h5py.Dataset, part: str) -> bool:
    """Whether the group has a link of this name, wherever it leads: none is followed."""
    return isinstance(group, h5py.Group) and group.id.links.exists(part.encode())


def names(group: h5py.Group, attribute: str) -> list[str]:
    """Reads a list of names from attributes; Keras splits long ones into `name0`, `name1` ..."""
    parts = [attribute]
    if attribute not in group.attrs:
        parts, i = [], 0
        while f"{attribute}{i}" in group.attrs and i < MAX_NAMES:
            parts.append(f"{attribute}{i}")
            i += 1
    if not parts:
        raise WeightsError(f"{at(group)} lacks the attribute {attribute!r}.", code="E_FORMAT")
    found: list[str] = []
    for part in parts:
        where = f"the attribute {part!r} of {at(group)}"
        array = _attribute(group, part, where)
        # An empty list has a type all the same, and Keras' is float64.
        if np.ndim(array) != 1 or (np.size(array) and array.dtype.kind not in "SOU"):
            raise WeightsError(f"{where} is no list of names.", code="E_HEADER")
        found += [_text(name, where) for name in array]
        if len(found) > MAX_NAMES:
            raise WeightsError(f"{where} lists more than {MAX_NAMES:,} names.", code="E_BOMB")
    if twice := [name for name, count in Counter(found).items() if count > 1]:
        raise WeightsError(
            f"the attribute {attribute!r} of {at(group)} lists {printable(twice[0])!r} twice.",
            code="E_DUPLICATE",
        )
    return found


def word(group: h5py.Group, attribute: str, *, default: str, most: int = _MAX_NAME_BYTES) -> str:
    """Reads an attribute that is one string of at most `most` bytes; `default` where none is."""
    if attribute not in group.attrs:
        return default
    where = f"the attribute {attribute!r} of {at(group)}"
    return _text(_attribute(group, attribute, where, most=most), where, most=most)


def keys(group: h5py.Group) -> list[str]:
    """Lists what a group holds, following no link.

    Raises:
        WeightsError: far too much, or a name that is not UTF-8.
    """
    if len(group) > MAX_NAMES:
        raise WeightsError(f"{at(group)} holds {len(group):,} objects.", code="E_BOMB")
    return [_text(key, f"a name in {at(group)}") for key in group]


def _attribute(
    group: h5py.Group, name: str, where: str, *, most: int = _MAX_NAME_BYTES
) -> np.ndarray | bytes | str:
    stored = group.attrs.get_id(name)
    # The declared size first: HDF5 would set the memory aside.
    count = math.prod(stored.shape)
    if count > MAX_NAMES or stored.dtype.itemsize > most:
        raise WeightsError(
            f"{where} claims {count:,} values of {stored.dtype.itemsize:,} bytes, far more than "
            f"expected.",
            code="E_BOMB",
        )
    return group.attrs[name]


def _text(value: object, where: str, *, most: int = _MAX_NAME_BYTES) -> str:
    if not isinstance(value, bytes | str):
        raise WeightsError(f"{where} is no text: {printable(repr(value)[:80])}.", code="E_NAME")
    try:
        value = bytes(value) if isinstance(value, bytes) else str(value)  # plain ones, for messages
        text = value.decode() if isinstance(value, bytes) else value
        text.encode()  # h5py gives bytes that are not UTF-8 as lone surrogates
    except UnicodeError:
        raise WeightsError(
            f"{where} is not UTF-8: {printable(repr(value)[:80])}.", code="E_NAME"
        ) from None
    if "\0" in text or len(text) > most:
        raise WeightsError(f"{where} is no name: {printable(repr(text)[:80])}.", code="E_NAME")
    return text


def at(node: h5py.Group | h5py.Dataset) -> str:
    """Names an object in messages."""
    return printable(node.name or "/")


def _kind(stored: h5py.h5t.TypeID) -> str:
    kind = stored.get_class()
    if kind == h5py.h5t.FLOAT:
        return "floats of a format of their own"
    if kind in (h5py.h5t.STRING, h5py.h5t.VLEN):
        return "text"
    try:
        return str(stored.dtype)[:60]
    except (TypeError, ValueError):
        return "an unknown type"
