"""Find and read the arrays of NumPy's `.npz`, a zip archive with an `.npy` for each array.

Each member is read to its end, so that its checksum is verified. An array of Python objects is a
pickle, which is never loaded. Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np

from vggjax.errors import WeightsError, printable
from vggjax.weights.archive import open_archive
from vggjax.weights.tensor_spans import BLOCK_BYTES, Readable, Span, open_regular

_MAX_HEADER_BYTES = 10_000  # NumPy's own limit
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@dataclass(frozen=True)
class MemberSpan(Span):
    """An array that is a member of a zip archive."""

    member: str = ""

    def blocks(self, file: Readable) -> Iterator[tuple[int, int, np.ndarray]]:
        """Yield (start, stop, rows) in blocks, in one go where the first axis changes fastest."""
        with open_archive(cast(IO[bytes], file)) as archive, archive.open(self.member) as member:
            shape, is_fortran, _ = _read_header(member)
            if is_fortran:
                array = np.frombuffer(member.read(), self.dtype).reshape(shape, order="F")
                yield 0, self.shape[0], array.reshape(self.shape)
                return
            row_bytes = self.nbytes // self.shape[0]
            step = max(1, BLOCK_BYTES // row_bytes)
            for start in range(0, self.shape[0], step):
                stop = min(start + step, self.shape[0])
                rows = np.frombuffer(member.read((stop - start) * row_bytes), self.dtype)
                yield start, stop, rows.reshape(stop - start, *self.shape[1:])
            if member.read(1):  # which verifies the checksum as well
                raise WeightsError(f"{self.where} has more numbers than it says.", code="E_ZIP")


def is_npz(names: Iterable[str]) -> bool:
    """Return whether an archive with these members holds NumPy's arrays and nothing else."""
    names = list(names)
    return bool(names) and all(name.endswith(".npy") for name in names)


def read_npz(path: Path) -> dict[str, Span]:
    """Return an archive's arrays by name; a type other than floats keeps NumPy's name."""
    spans: dict[str, Span] = {}
    with open_regular(path) as file, open_archive(file) as archive:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            where = repr(printable(name))
            with archive.open(info) as member:
                shape, _, dtype = _read_header(member)
            if dtype.hasobject:
                raise WeightsError(
                    f"{where} holds Python objects, a pickle, which is never loaded. If you trust "
                    f"it, save its arrays alone with numpy.savez.",
                    code="E_CODE",
                )
            if math.prod(shape) * dtype.itemsize > info.file_size:
                raise WeightsError(
                    f"{where} claims the shape {shape} of {dtype.name}, more than the "
                    f"{info.file_size:,} bytes that it has.",
                    code="E_TRUNCATED",
                )
            kind = dtype.str if dtype.kind == "f" else dtype.name
            spans[name] = MemberSpan(where, shape, kind, member=info.filename)
    return spans


def _read_header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Return the shape, whether the first axis changes fastest, and the type of an array."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # headers that Python 2 wrote
            read = _HEADERS[np.lib.format.read_magic(member)]
            return read(member, max_header_size=_MAX_HEADER_BYTES)
    except (ValueError, KeyError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise WeightsError(
            f"its member {printable(getattr(member, 'name', ''))!r} is not an array of NumPy "
            f"({printable(reason)[:120]}).",
            code="E_HEADER",
        ) from None
