"""Arrays of a weight file that were located and checked, but not read yet.

A reader first returns the spans of the whole file, `{layer: {parameter: Span}}`. The caller may
refuse them by their shapes; only then are numbers read, as float32 of this machine's byte order.
"""

import io
import math
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from vggjax.errors import WeightsError, printable

FLOATS = ("<f4", ">f4", "<f2", ">f2", "<f8", ">f8")
"""The types in which weights may be stored: IEEE floats, little- or big-endian."""

MAX_ELEMENTS = 2**28
"""The most numbers in one file. VGG19 has 1.4e8, with a classifier for 331 px 2.5e8."""

BLOCK_BYTES = 2**24
"""The size of the pieces in which arrays are read, transposed and written, so that a large array
is never in memory twice."""

Readable = io.FileIO | io.BytesIO
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

    def rows(self, file: Readable, start: int, stop: int) -> np.ndarray:
        """Read the rows from `start` to `stop` along the first axis, as they are stored.

        Raises:
            WeightsError: the file ends too early.
        """
        assert self.start is not None
        array = np.empty((stop - start, *self.shape[1:]), self.dtype)
        file.seek(self.start + start * math.prod(self.shape[1:]) * array.itemsize)
        fill(file, array, self.where)
        return array

    def blocks(self, file: Readable) -> Iterator[tuple[int, int, np.ndarray]]:
        """Yield (start, stop, rows) in pieces of `BLOCK_BYTES`."""
        row_bytes = 8 * math.prod(self.shape[1:])
        step = max(1, BLOCK_BYTES // max(row_bytes, 1))
        for start in range(0, self.shape[0], step):
            stop = min(start + step, self.shape[0])
            yield start, stop, self.rows(file, start, stop)


def open_regular(path: str | os.PathLike) -> io.FileIO:
    """Open a regular file for reading: a pipe would block, and a device has no end.

    Raises:
        WeightsError: there is no such file, it is not readable, or it is not a regular file.
    """
    name = printable(path)
    try:
        # Does not wait for a writer. The type is checked on the open file, not before.
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
    """Refuse an array that no layer of a VGG can have.

    Raises:
        WeightsError: not 16, 32 or 64 bit floats, no axes, empty, or larger than any VGG.
    """
    if span.dtype not in FLOATS:
        raise WeightsError(
            f"{span.where} holds {printable(span.dtype)}; weights must be float16, float32 or "
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
            f"{span.where} claims the shape {span.shape}, more than the {MAX_ELEMENTS:,} numbers "
            f"of any VGG.",
            code="E_BOMB",
        )


def check_spans(spans: Iterable[Span], *, size_bytes: int) -> None:
    """Refuse arrays that lie outside the file, share bytes, or cannot belong together.

    Raises:
        WeightsError: any of these, with the arrays' names.
    """
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
            f"{odd.where} has another byte order than the other arrays; the file is damaged.",
            code="E_DTYPE",
        )
    ranges = sorted(
        (span.start, span.start + span.nbytes, span.where)
        for span in spans
        if span.start is not None
    )
    previous, previous_end = "", 0
    for start, end, where in ranges:
        if start < 0 or end > size_bytes:
            raise WeightsError(
                f"{where} ends at byte {end:,}, but the file has {size_bytes:,}. It is damaged or "
                f"truncated; download or write it again.",
                code="E_TRUNCATED",
            )
        if start < previous_end:
            raise WeightsError(
                f"{where} and {previous} share the same bytes; every array must have its own.",
                code="E_ALIAS",
            )
        previous, previous_end = where, end


def read_span(file: Readable, span: Span) -> np.ndarray:
    """Read an array as float32, its axes as they are stored.

    Raises:
        WeightsError: the file ends too early, or the numbers are not finite.
    """
    array = np.empty(span.shape, np.float32)
    if span.start is not None and span.dtype == _FLOAT32:
        file.seek(span.start)
        fill(file, array, span.where)
    else:
        for start, stop, rows in span.blocks(file):
            with np.errstate(over="ignore"):
                array[start:stop] = rows
    return to_float32(array, span.where)


def fill(file: Readable, array: np.ndarray, where: str) -> None:
    """Fill the array with bytes from the file's current position.

    Raises:
        WeightsError: the file ends too early.
    """
    rest = array.reshape(-1).view(np.uint8).data
    while rest:
        if not (count := file.readinto(rest)):
            raise WeightsError(
                f"{where}: the file ends in the middle of it. Download or write it again.",
                code="E_TRUNCATED",
            )
        rest = rest[count:]


def to_float32(array: np.ndarray, where: str) -> np.ndarray:
    """Cast to float32 of this machine's byte order.

    Raises:
        WeightsError: a value that is NaN or infinite, perhaps only as float32.
    """
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, np.float32)
    # min and max propagate NaN and infinity, without isfinite's array of the same length.
    if array.size and not (np.isfinite(array.min()) and np.isfinite(array.max())):
        nan = int(np.isnan(array).sum())
        infinite = array.size - nan - int(np.isfinite(array).sum())
        raise WeightsError(
            f"{where} holds NaN or infinite values: {nan:,} NaN and {infinite:,} infinite as "
            f"float32, of {array.size:,}. The file is damaged or its training diverged; use "
            f"another copy.",
            code="E_NONFINITE",
        )
    return array


def casts(spans: Iterable[Span]) -> list[str]:
    """Return a line for each stored type that reading casts to float32."""
    counts: dict[str, int] = {}
    for span in spans:
        if span.dtype != "<f4":
            order = "big-endian " if span.dtype[0] == ">" else ""
            kind = f"{order}float{8 * int(span.dtype[-1])}"
            counts[kind] = counts.get(kind, 0) + 1
    return [
        f"{count} array{'s' * (count > 1)} stored as {kind} became float32"
        for kind, count in sorted(counts.items())
    ]
