"""Arrays of a weight file that were located and checked, but not read yet.

A reader first returns the spans of the whole file, `{layer: {parameter: Span}}`. The caller may
refuse them by their shapes; only then are numbers read, as float32 of this machine's byte order.
"""

import io
import math
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from vggjax.errors import WeightsError, printable

FLOATS = ("<f4", ">f4", "<f2", ">f2", "<f8", ">f8", "<bf2", ">bf2")
"""The types in which weights may be stored: IEEE floats and bfloat16, little- or big-endian."""

MAX_ELEMENTS = 2**28
"""The most numbers in one file. VGG19 has 1.4e8, with a classifier for 331 px 2.5e8."""

BLOCK_BYTES = 2**24
"""The size of the blocks in which arrays are read, transposed and written, so that a large array
is never in memory twice."""

Readable = io.RawIOBase | io.BytesIO
"""An open file, or a member of an archive in memory."""

_FLOAT32 = np.dtype(np.float32).str


@dataclass(frozen=True)
class Span:
    """One array of a file: its shape, its type and where it lies."""

    where: str
    """The array's name, for messages."""
    shape: tuple[int, ...]
    dtype: str
    """One of `FLOATS`; any other type has the file's own name and is never read."""
    start: int | None = None
    """Position of the first byte in the file; None if the numbers are not stored in one piece."""

    @property
    def type_name(self) -> str:
        """The stored type, one of `FLOATS`, for display."""
        kind = "bfloat" if "bf" in self.dtype else "float"
        return f"{'big-endian ' * (self.dtype[0] == '>')}{kind}{8 * int(self.dtype[-1])}"

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements; exact, however large."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The length of the array in its stored type."""
        return self.size * int(self.dtype[-1])

    def byte_ranges(self) -> Sequence[tuple[int, int]]:
        """Return (first byte, number of bytes) of each piece of the file that holds numbers."""
        return [] if self.start is None else [(self.start, self.nbytes)]

    def rows(self, file: Readable, start: int, stop: int) -> np.ndarray:
        """Read the rows from `start` to `stop` along the first axis, bfloat16 as float32."""
        assert self.start is not None
        array = np.empty((stop - start, *self.shape[1:]), self.dtype.replace("bf", "u"))
        file.seek(self.start + start * math.prod(self.shape[1:]) * array.itemsize)
        _fill(file, array, self.where)
        return numbers_of(array, self.dtype).reshape(array.shape)

    def blocks(self, file: Readable) -> Iterator[tuple[int, int, np.ndarray]]:
        """Yield (start, stop, rows) in blocks of `BLOCK_BYTES`."""
        row_bytes = 8 * math.prod(self.shape[1:])
        step = max(1, BLOCK_BYTES // max(row_bytes, 1))
        for start in range(0, self.shape[0], step):
            stop = min(start + step, self.shape[0])
            yield start, stop, self.rows(file, start, stop)

    def read(self, file: Readable) -> np.ndarray:
        """Read the array as finite float32, its axes as they are stored."""
        array = np.empty(self.shape, np.float32)
        if self.start is not None and self.dtype == _FLOAT32:
            file.seek(self.start)
            _fill(file, array, self.where)
        else:
            for start, stop, rows in self.blocks(file):
                with np.errstate(over="ignore"):
                    array[start:stop] = rows
        return to_float32(array, self.where)


@dataclass(frozen=True)
class LoadedSpan(Span):
    """An array that is in memory."""

    array: np.ndarray = field(default_factory=lambda: np.empty(0))

    def rows(self, file: Readable, start: int, stop: int) -> np.ndarray:
        """Return the rows from `start` to `stop`; `file` is not used."""
        return self.array.reshape(self.shape)[start:stop]


def open_regular(path: str | os.PathLike) -> io.FileIO:
    """Open a regular file for reading: a pipe would block, and a device has no end."""
    name = printable(path)
    try:
        # Without waiting for the writer of a pipe. The type is checked on the open file.
        descriptor = os.open(
            path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        )
    except FileNotFoundError:
        raise WeightsError(f"There is no file {name}.", code="E_FILE") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise WeightsError(f"{name} cannot be read: {reason}.", code="E_FILE") from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise WeightsError(f"{name} is {kind}; expected a weight file.", code="E_FILE")
    return os.fdopen(descriptor, "rb", buffering=0)


def check_span(span: Span) -> None:
    """Refuse an array that no layer of a VGG can have: by its type, its rank or its size."""
    if span.dtype not in FLOATS:
        raise WeightsError(
            f"{span.where} holds {printable(span.dtype)}; expected float16, bfloat16, float32 or "
            f"float64.",
            code="E_DTYPE",
        )
    if not span.shape or 0 in span.shape:
        raise WeightsError(
            f"{span.where} is empty or a single number: shape {span.shape}; expected an array.",
            code="E_SHAPE",
        )
    if min(span.shape) < 0 or span.size > MAX_ELEMENTS:
        raise WeightsError(
            f"{span.where} claims the shape {span.shape}; a VGG has at most {MAX_ELEMENTS:,} "
            f"numbers.",
            code="E_BOMB",
        )


def check_spans(spans: Iterable[Span], *, size_bytes: int) -> None:
    """Refuse arrays that lie outside the file, share bytes, or cannot belong together."""
    spans = list(spans)
    for span in spans:
        check_span(span)
    if (total := sum(span.size for span in spans)) > MAX_ELEMENTS:
        raise WeightsError(
            f"its arrays claim {total:,} numbers together, more than any VGG has.", code="E_BOMB"
        )
    if len({span.dtype[0] for span in spans}) > 1:
        odd = min(spans, key=lambda span: sum(other.dtype[0] == span.dtype[0] for other in spans))
        raise WeightsError(
            f"{odd.where} has another byte order than the other arrays.", code="E_DTYPE"
        )
    ranges = sorted(
        (start, start + length, span.where)
        for span in spans
        for start, length in span.byte_ranges()
    )
    previous, previous_end = "", 0
    for start, end, where in ranges:
        if start < 0 or end > size_bytes:
            raise WeightsError(
                f"{where} ends at byte {end:,}, but the file has {size_bytes:,}.",
                code="E_TRUNCATED",
            )
        if start < previous_end:
            raise WeightsError(f"{where} shares bytes with {previous}.", code="E_ALIAS")
        previous, previous_end = where, end


def _fill(file: Readable, array: np.ndarray, where: str) -> None:
    rest = array.reshape(-1).view(np.uint8).data
    while rest:
        if not (count := file.readinto(rest)):
            raise WeightsError(f"{where}: the file ends in the middle of it.", code="E_TRUNCATED")
        rest = rest[count:]


def numbers_of(contents: bytes | np.ndarray, dtype: str) -> np.ndarray:
    """Return the numbers of bytes that are stored as `dtype`, bfloat16 as float32."""
    if "bf" not in dtype:
        return np.frombuffer(contents, dtype)
    upper_halves = np.frombuffer(contents, dtype.replace("bf", "u"))
    return (upper_halves.astype(np.uint32) << 16).view(np.float32)


def to_float32(array: np.ndarray, where: str) -> np.ndarray:
    """Cast to float32 of this machine's byte order; refuse a value that is then not finite."""
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, np.float32)
    # min and max propagate NaN and infinity, without isfinite's array of the same length.
    if array.size and not (np.isfinite(array.min()) and np.isfinite(array.max())):
        nan, infinite = int(np.isnan(array).sum()), int(np.isinf(array).sum())
        raise WeightsError(
            f"{where} holds NaN or infinite values: {nan:,} NaN and {infinite:,} infinite as "
            f"float32, of {array.size:,}. The file is damaged or its training diverged.",
            code="E_NONFINITE",
        )
    return array
