"""Find the arrays of an untrusted HDF5 file, and check each before a number is read.

Only what lies in the file itself is accepted: groups and datasets reached by hard links, one part
of a path at a time and each object once, of IEEE floats, completely written, and packed by gzip,
shuffle or fletcher32 at most. Anything else raises a `WeightsError`.

Some damaged files hang or crash the HDF5 library. Import this module only in the process that
keras/read.py starts and can stop. Which dataset belongs to which layer is in keras/layers.py.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import h5py

from vggjax.errors import WeightsError, printable
from vggjax.weights.hdf5.unpack import FLETCHER32, GZIP, SHUFFLE, ChunkedSpan
from vggjax.weights.tensor_spans import Span, check_span

MAX_NAMES = 10_000
"""Entries in a group or a list of names; VGG19 with batch normalization has 35 layers."""

_MAX_NAME_BYTES = 1024
_MAX_CHUNKS = 100_000
_MAX_RATIO = 100  # gzip makes trained weights a tenth smaller, not a hundred times
_FREE_BYTES = 2**24  # a small array may be compressed at any ratio
_FLOATS = {
    "<f4": h5py.h5t.IEEE_F32LE, ">f4": h5py.h5t.IEEE_F32BE, "<f2": h5py.h5t.IEEE_F16LE,
    ">f2": h5py.h5t.IEEE_F16BE, "<f8": h5py.h5t.IEEE_F64LE, ">f8": h5py.h5t.IEEE_F64BE,
}  # fmt: skip
_TYPES = {
    h5py.h5t.FLOAT: "floats of an unknown format", h5py.h5t.INTEGER: "integers",
    h5py.h5t.STRING: "text", h5py.h5t.VLEN: "text",
}  # fmt: skip


class CheckedFile:
    """An open HDF5 file that returns each of its objects at most once."""

    def __init__(self, root: h5py.File, *, offset: int = 0):
        """Wrap an open file, whose first byte is byte `offset` of the file on disk."""
        self.root = root
        self._offset = offset
        self._names: dict[object, str] = {}

    def get(self, group: h5py.Group, path: str) -> h5py.Group | h5py.Dataset:
        """Return the object at `path` below `group`, reached by hard links only."""
        for part in path.split("/"):
            if part in ("", ".", ".."):
                raise WeightsError(
                    f"the name {printable(path)!r} does not stay inside {name_of(group)}.",
                    code="E_NAME",
                )
            if not has_link(group, part):
                raise WeightsError(
                    f"{printable(path)!r} is listed, but is not in {name_of(group)}.",
                    code="E_MISSING",
                )
            link = group.id.links.get_info(part.encode()).type
            if link != h5py.h5l.TYPE_HARD:
                kinds = {h5py.h5l.TYPE_SOFT: "a soft", h5py.h5l.TYPE_EXTERNAL: "an external"}
                raise WeightsError(
                    f"{printable(part)!r} in {name_of(group)} is {kinds.get(link, 'an unknown')} "
                    f"link; weights must lie in the file itself.",
                    code="E_LINK",
                )
            group = group[part]
        info = h5py.h5o.get_info(group.id)
        first_name = self._names.setdefault((info.fileno, info.addr), group.name)
        if first_name != group.name:
            raise WeightsError(
                f"{name_of(group)} and {printable(first_name)} are the same object.", code="E_ALIAS"
            )
        return group

    def span(self, dataset: h5py.Group | h5py.Dataset, *, layer: str) -> Span:
        """Return an array's shape and where it lies, after all checks that need no numbers."""
        where = name_of(dataset)
        if layer not in where:  # `/layers/conv2d_7/vars/0` does not say which layer it is
            where = f"{where} (layer {printable(layer)!r})"
        if not isinstance(dataset, h5py.Dataset):
            raise WeightsError(f"{where} is a group where an array should be.", code="E_FORMAT")
        plist = dataset.id.get_create_plist()
        storage = plist.get_layout()
        if plist.get_external_count() or storage == h5py.h5d.VIRTUAL:
            raise WeightsError(f"{where} keeps its numbers in another file.", code="E_EXTERNAL")
        stored = dataset.id.get_type()
        dtype = next((name for name, kind in _FLOATS.items() if stored.equal(kind)), None)
        if stored.get_class() == h5py.h5t.OPAQUE and stored.get_size() == 2:
            dtype = "<bf2"  # as Keras stores bfloat16, which HDF5 does not know
        if dtype is None:
            stored_kind = _TYPES.get(stored.get_class(), "values of another type")
            raise WeightsError(
                f"{where} holds {stored_kind}; expected float16, bfloat16, float32 or float64.",
                code="E_DTYPE",
            )
        space = dataset.id.get_space()
        simple = space.get_simple_extent_type() == h5py.h5s.SIMPLE
        shape = tuple(int(n) for n in space.get_simple_extent_dims()) if simple else ()
        span = Span(where, shape, dtype)
        check_span(span)
        if storage == h5py.h5d.CHUNKED:
            return self._chunked_span(dataset, plist, span)
        if dataset.id.get_storage_size() != span.nbytes:
            raise _unwritten(where)
        if storage == h5py.h5d.COMPACT:
            return ChunkedSpan(where, shape, dtype, inline=dataset[()].tobytes().hex())
        start = dataset.id.get_offset()
        if start is None:
            raise _unwritten(where)
        return Span(where, shape, dtype, start + self._offset)

    def _chunked_span(
        self, dataset: h5py.Dataset, plist: h5py.h5p.PropDCID, span: Span
    ) -> ChunkedSpan:
        """Return where the chunks lie, after checking that they tile the array."""
        filters = tuple(plist.get_filter(i)[0] for i in range(plist.get_nfilters()))
        if unknown := set(filters) - {GZIP, SHUFFLE, FLETCHER32}:
            raise WeightsError(
                f"{span.where} is packed by the filter {min(unknown)}; supported are gzip, "
                f"shuffle and fletcher32.",
                code="E_FILTER",
            )
        chunk = plist.get_chunk()
        grid = [range(0, n, length) for n, length in zip(span.shape, chunk, strict=True)]
        num_chunks = math.prod(map(len, grid))
        # Chunks at the edges are not full, but stored whole.
        max_size = 8 * span.size + 2**20
        if num_chunks > _MAX_CHUNKS or num_chunks * math.prod(chunk) > max_size:
            raise WeightsError(
                f"{span.where} is cut into chunks of {chunk}, which no weights are.", code="E_BOMB"
            )
        pieces: dict[tuple[int, ...], tuple[int, int, int]] = {}

        def add(info: h5py.h5d.StoreInfo) -> None:
            position = tuple(map(int, info.chunk_offset))
            start = int(info.byte_offset) + self._offset
            pieces[position] = start, int(info.size), int(info.filter_mask)

        dataset.id.chunk_iter(add)
        # Only gzip may leave a chunk as it is, where it would grow.
        masks = {0, *(1 << i for i, filter_id in enumerate(filters) if filter_id == GZIP)}
        if not masks.issuperset(skipped for _, _, skipped in pieces.values()):
            raise WeightsError(f"{span.where} has a chunk that skipped a filter.", code="E_FILTER")
        positions = list(itertools.product(*grid))
        stored_bytes = sum(size for _, size, _ in pieces.values())
        if pieces.keys() != set(positions) or stored_bytes == 0:
            raise _unwritten(span.where)
        if span.nbytes > max(_FREE_BYTES, _MAX_RATIO * stored_bytes):
            raise WeightsError(
                f"{span.where} would unpack to {span.nbytes / stored_bytes:,.0f} times its size, "
                f"which no weights do.",
                code="E_BOMB",
            )
        return ChunkedSpan(
            span.where,
            span.shape,
            span.dtype,
            chunk=chunk,
            filters=filters,
            pieces=tuple(pieces[position] for position in positions),
        )


def _unwritten(where: str) -> WeightsError:
    return WeightsError(f"not all numbers of {where} were ever written.", code="E_UNWRITTEN")


@contextlib.contextmanager
def open_hdf5(file: str | io.RawIOBase, *, offset: int = 0) -> Iterator[CheckedFile]:
    """Open a path or a file object for reading; turn HDF5's exceptions into WeightsError."""
    try:
        with h5py.File(file, "r") as root:
            yield CheckedFile(root, offset=offset)
    except WeightsError:
        raise
    except MemoryError:
        raise WeightsError("parsing it takes more memory than any VGG.", code="E_BOMB") from None
    except (OSError, LookupError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        # h5py raises all of these for damaged files, depending on where the damage lies.
        reason = " ".join(str(error).split()) or type(error).__name__
        if "lock file" in reason or "already open for write" in reason:
            raise WeightsError(
                f"another program is writing it, or was killed while writing "
                f"({printable(reason)}). Wait for it to finish.",
                code="E_FILE" if "lock file" in reason else "E_FORMAT",
            ) from None
        truncated = "truncated" in reason or "eof" in reason.lower()
        raise WeightsError(
            f"it is damaged or truncated: HDF5 cannot read it ({printable(reason)}).",
            code="E_TRUNCATED" if truncated else "E_FORMAT",
        ) from None


def name_of(node: h5py.Group | h5py.Dataset) -> str:
    """Return an object's path, safe to print."""
    return printable(node.name or "/")


def has_link(group: h5py.Group | h5py.Dataset, name: str) -> bool:
    """Return whether the group has a link of this name, of whatever kind."""
    return isinstance(group, h5py.Group) and group.id.links.exists(name.encode())


def link_names(group: h5py.Group) -> list[str]:
    """Return the names of a group's links, of whatever kind."""
    if len(group) > MAX_NAMES:
        raise WeightsError(f"{name_of(group)} holds {len(group):,} objects.", code="E_BOMB")
    return [_text(key, f"a name in {name_of(group)}") for key in group]


def text_list(group: h5py.Group, attribute: str) -> list[str]:
    """Return the list of distinct names that an attribute holds.

    Keras splits a long list over several attributes: `layer_names0`, `layer_names1` ...
    """
    parts = [attribute]
    if attribute not in group.attrs:
        parts = []
        while f"{attribute}{len(parts)}" in group.attrs and len(parts) < MAX_NAMES:
            parts.append(f"{attribute}{len(parts)}")
    if not parts:
        raise WeightsError(f"{name_of(group)} lacks the attribute {attribute!r}.", code="E_FORMAT")
    names: list[str] = []
    for part in parts:
        where = f"the attribute {part!r} of {name_of(group)}"
        value = _attribute(group, part, where)
        # An empty list has a type all the same, and Keras' is float64.
        if getattr(value, "ndim", 0) != 1 or (value.size and value.dtype.kind not in "SOU"):
            raise WeightsError(f"{where} is not a list of names.", code="E_HEADER")
        names += [_text(name, where) for name in value]
        if len(names) > MAX_NAMES:
            raise WeightsError(f"{where} lists more than {MAX_NAMES:,} names.", code="E_BOMB")
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise WeightsError(
            f"{name_of(group)} lists {printable(repeated[0])!r} twice in {attribute!r}.",
            code="E_DUPLICATE",
        )
    return names


def text(
    group: h5py.Group, attribute: str, *, default: str, max_bytes: int = _MAX_NAME_BYTES
) -> str:
    """Return an attribute that holds one string of at most `max_bytes`, or `default`."""
    if attribute not in group.attrs:
        return default
    where = f"the attribute {attribute!r} of {name_of(group)}"
    value = _attribute(group, attribute, where, max_bytes=max_bytes)
    return _text(value, where, max_bytes=max_bytes)


def _attribute(
    group: h5py.Group, name: str, where: str, *, max_bytes: int = _MAX_NAME_BYTES
) -> Any:
    stored = group.attrs.get_id(name)
    # Check the declared size first: HDF5 would allocate it.
    count = math.prod(stored.shape)
    if count > MAX_NAMES or stored.dtype.itemsize > max_bytes:
        raise WeightsError(
            f"{where} claims {count:,} values of {stored.dtype.itemsize:,} bytes.", code="E_BOMB"
        )
    return group.attrs[name]


def _text(value: object, where: str, *, max_bytes: int = _MAX_NAME_BYTES) -> str:
    if not isinstance(value, bytes | str):
        raise _no_name(where, "text", value)
    value = bytes(value) if isinstance(value, bytes) else str(value)  # NumPy's have another repr
    try:
        string = value.decode() if isinstance(value, bytes) else value
        string.encode()  # h5py returns bytes that are not UTF-8 as lone surrogates
    except UnicodeError:
        raise _no_name(where, "UTF-8", value) from None
    if "\0" in string or len(string) > max_bytes:
        raise _no_name(where, "a name", value)
    return string


def _no_name(where: str, expected: str, value: object) -> WeightsError:
    return WeightsError(f"{where} is not {expected}: {printable(repr(value)[:80])}.", code="E_NAME")
