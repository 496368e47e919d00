"""Recognize an HDF5 file, and read the arrays that it stores in chunks, without the HDF5 library.

The process that parses a file (keras/child.py) finds and checks the chunks. gzip, shuffle and
fletcher32 are in HDF5's specification, IV.A.2.l
(https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html).
"""

import itertools
import math
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vggjax.errors import WeightsError
from vggjax.weights.tensor_spans import Readable, Span, numbers_of, to_float32

SIGNATURE = b"\x89HDF\r\n\x1a\n"

GZIP, SHUFFLE, FLETCHER32 = 1, 2, 3
"""HDF5's numbers of the filters that are supported."""


@dataclass(frozen=True)
class ChunkedSpan(Span):
    """An array stored in chunks, or inside the header of its dataset."""

    chunk: tuple[int, ...] = ()
    """Shape of a chunk; chunks at the array's edges are full-size, too."""
    filters: tuple[int, ...] = ()
    """The filters, in the order in which they were applied on writing."""
    pieces: tuple[tuple[int, int, int], ...] = ()
    """(first byte in the file, number of bytes, mask of skipped filters) of each chunk, in
    row-major order of the chunks' positions."""
    inline: str = ""
    """The numbers in hexadecimal, if the dataset's header holds them."""

    def byte_ranges(self) -> Sequence[tuple[int, int]]:
        """Return (first byte, number of bytes) of each chunk."""
        return [(start, length) for start, length, _ in self.pieces]

    def read(self, file: Readable) -> np.ndarray:
        """Read the array as finite float32; allocate the array and one chunk."""
        if self.inline:
            numbers = numbers_of(bytes.fromhex(self.inline), self.dtype)
            return to_float32(numbers.reshape(self.shape).copy(), self.where)
        array = np.empty(self.shape, np.float32)
        corners = itertools.product(
            *(range(0, n, length) for n, length in zip(self.shape, self.chunk, strict=True))
        )
        for corner, (start, length, skipped) in zip(corners, self.pieces, strict=True):
            file.seek(start)
            contents = _unfiltered(file.read(length), self, skipped)
            numbers = numbers_of(contents, self.dtype).reshape(self.chunk)
            part = array[tuple(slice(i, i + n) for i, n in zip(corner, self.chunk, strict=True))]
            with np.errstate(over="ignore"):  # to_float32 counts the infinite values
                part[...] = numbers[tuple(map(slice, part.shape))]
        return to_float32(array, self.where)


def signature_start(file: Readable) -> int | None:
    """Return where HDF5's signature is: at byte 0, 512, 1024, 2048 ..., or None."""
    start, size_bytes = 0, file.seek(0, os.SEEK_END)
    while start < size_bytes:
        file.seek(start)
        if file.read(len(SIGNATURE)) == SIGNATURE:
            return start
        start = max(512, 2 * start)
    return None


def _unfiltered(contents: bytes, span: ChunkedSpan, skipped: int) -> bytes:
    """Undo the filters of a chunk, the last one first."""
    itemsize = int(span.dtype[-1])
    chunk_bytes = itemsize * math.prod(span.chunk)
    for i, filter_id in reversed(list(enumerate(span.filters))):
        if skipped >> i & 1:
            continue
        if filter_id == FLETCHER32:
            contents, checksum = contents[:-4], contents[-4:]
            if _fletcher32(contents) != _halves(checksum):
                raise _damaged(span, "has a chunk with a wrong checksum")
        elif filter_id == GZIP:
            inflate = zlib.decompressobj()
            try:
                # A checksum may lie inside the compressed bytes.
                contents = inflate.decompress(contents, chunk_bytes + 4)
            except zlib.error:
                raise _damaged(span, "has a chunk that gzip cannot unpack") from None
        elif filter_id == SHUFFLE:
            count = len(contents) // itemsize
            planes = np.frombuffer(contents, np.uint8, count * itemsize).reshape(itemsize, count)
            contents = planes.T.tobytes() + contents[count * itemsize :]
    if len(contents) != chunk_bytes:
        raise _damaged(span, f"has a chunk of {len(contents):,} bytes instead of {chunk_bytes:,}")
    return contents


def _fletcher32(contents: bytes) -> tuple[int, int]:
    """Return the two sums of Fletcher's checksum over big-endian words, modulo 65535."""
    words = np.frombuffer(contents + bytes(len(contents) % 2), ">u2")
    low = high = 0
    for start in range(0, len(words), 2**16):  # the sums of a block fit 64 bits
        block = words[start : start + 2**16].astype(np.int64)
        weighted = int(block @ np.arange(len(block), 0, -1))
        high = (high + len(block) * low + weighted) % 65535
        low = (low + int(block.sum())) % 65535
    return high, low


def _halves(checksum: bytes) -> tuple[int, int]:
    value = int.from_bytes(checksum, "little")
    return (value >> 16) % 65535, (value & 65535) % 65535


def _damaged(span: Span, what: str) -> WeightsError:
    return WeightsError(f"{span.where} {what}; the file is damaged.", code="E_FORMAT")
