"""Arrays of a weight file that were found and checked, and not yet read: where each one lies.

A reader first gives the spans of a whole file, `{layer: {parameter: Span}}`. Whoever asked may
refuse them by their shapes; only then are numbers read, into float32 of this machine's byte order.
"""

import math
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO

import numpy as np

from vggjax.errors import WeightsError, printable

FLOATS = ("<f4", ">f4", "<f2", ">f2", "<f8", ">f8")
"""What numbers may be stored as: IEEE's formats, little- or big-endian."""

MAX_ELEMENTS = 2**28
"""Of all arrays together. VGG19 with its top has 1.4e8 numbers, at 331 px 2.5e8."""


@dataclass(frozen=True)
class Span:
    """One array of a file: its shape, how its numbers are stored, and where.

    `start` is the first byte's place in the file; None where the numbers are packed and come from
    the reader that unpacks them. `where` names the array in messages.
    """

    where: str
    shape: tuple[int, ...]
    dtype: str
    start: int | None = None

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
        """The length of the array as it is stored, unpacked."""
        return self.size * int(self.dtype[-1])


def open_regular(path: str | os.PathLike) -> IO[bytes]:
    """Opens a file for reading that is one: a pipe would wait for ever, a device has no end.

    Raises:
        WeightsError: there is none, it may not be read, or it is something else.
    """
    name = printable(path)
    try:
        # Without waiting for a writer, and looked at once it is open: it may be exchanged before.
        number = os.open(
            path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        )
    except FileNotFoundError:
        raise WeightsError(f"There is no file {name}.", code="E_FILE") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise WeightsError(f"{name} cannot be read: {why}.", code="E_FILE") from None
    mode = os.fstat(number).st_mode
    if not stat.S_ISREG(mode):
        os.close(number)
        kind = "a folder" if stat.S_ISDIR(mode) else "no regular file"
        raise WeightsError(f"{name} is {kind}; a weight file is wanted.", code="E_FILE")
    return os.fdopen(number, "rb", buffering=0)


def check_span(span: Span) -> None:
    """Refuses an array that no layer of a VGG can have.

    Raises:
        WeightsError: no axes, empty, or larger than all of a VGG.
    """
    if not span.shape or 0 in span.shape:
        raise WeightsError(
            f"{span.where} is empty or a single number: shape {span.shape}; expected is an array.",
            code="E_SHAPE",
        )
    if min(span.shape) < 0 or span.size > MAX_ELEMENTS:
        raise WeightsError(
            f"{span.where} claims {span.shape}, more than any VGG has; {MAX_ELEMENTS:,} numbers "
            f"are expected at most.",
            code="E_BOMB",
        )


def check_spans(spans: Iterable[Span], *, size_bytes: int) -> None:
    """Refuses arrays that lie outside the file, share bytes, or do not go together.

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
    before, end = None, 0
    for span in sorted((s for s in spans if s.start is not None), key=lambda span: span.start):
        if span.start < 0 or span.start + span.nbytes > size_bytes:
            raise WeightsError(
                f"{span.where} ends at byte {span.start + span.nbytes:,}, and the file has "
                f"{size_bytes:,}. It is damaged or cut short; fetch or write it again.",
                code="E_TRUNCATED",
            )
        if span.start < end:
            raise WeightsError(
                f"{span.where} and {before.where} share the same bytes; every array must have "
                f"its own.",
                code="E_ALIAS",
            )
        before, end = span, span.start + span.nbytes


def read_span(file: IO[bytes], span: Span) -> np.ndarray:
    """Reads an array that lies in the file as it is, in one piece.

    Raises:
        WeightsError: the file ends too early, or the numbers are not finite.
    """
    file.seek(span.start)
    array = np.empty(span.shape, span.dtype)
    fill(file, array, span.where)
    return to_float32(array, span.where)


def fill(file: IO[bytes], array: np.ndarray, where: str) -> None:
    """Reads as many bytes as the array takes, from where the file stands.

    Raises:
        WeightsError: the file ends too early.
    """
    rest = memoryview(array.reshape(-1).view(np.uint8))
    while rest:
        if not (count := file.readinto(rest)):
            raise WeightsError(
                f"{where}: the file ends in the midst of it. Fetch or write it again.",
                code="E_TRUNCATED",
            )
        rest = rest[count:]


def to_float32(array: np.ndarray, where: str) -> np.ndarray:
    """Casts to float32 of the machine's byte order; NaN and infinity are refused.

    Raises:
        WeightsError: a value that is not finite, or that is not as float32.
    """
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, np.float32)
    # min and max carry NaN and infinity through, without isfinite's array of the same length.
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
    """Says in one line each which arrays are stored otherwise than they are given."""
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
