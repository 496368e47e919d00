"""Safetensors files as such: a header that is checked throughout, tensors read block by block.

The header is read by this module itself, because the format's own reader lets pass what cannot be
meant: a name twice, unknown fields. Nothing is read before the whole header holds: the tensors tile
the rest of the file, each byte belongs to one of them. Which name means which layer is not here
(see native.py and torchvision.py).
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from vggjax.errors import WeightsError, printable
from vggjax.weights.tensor_spans import FLOATS, casts, check_span, fill

MAX_HEADER_BYTES = 2**20
"""The header of VGG19 with batch normalization takes some 15 kB."""

MAX_TENSORS = 10_000
BLOCK_BYTES = 2**24
"""What is read, turned or written at a time: large arrays are never there twice."""

_FLOATS = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}
_SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2,
          "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """One array of a file, not read yet."""

    where: str
    """The file and the tensor, for messages."""
    shape: tuple[int, ...]
    dtype: str
    """As numpy calls it, for floats: "<f4"; everything else as the file calls it, never read."""
    rows: Callable[[int, int], np.ndarray]
    """Gives the rows (start, stop) along the first axis, as the file has them."""

    @property
    def size(self) -> int:
        """The number of elements; exact, however large."""
        return math.prod(self.shape)

    def blocks(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """Gives (start, stop, rows) of `BLOCK_BYTES` each, whatever the rows' length."""
        count = self.shape[0]
        row_bytes = 8 * math.prod(self.shape[1:])
        step = max(1, BLOCK_BYTES // max(row_bytes, 1))
        for start in range(0, count, step):
            stop = min(start + step, count)
            yield start, stop, self.rows(start, stop)


@dataclass(frozen=True)
class TensorToWrite:
    """One array that is to be written: its blocks, one behind the other, are its bytes."""

    name: str
    shape: tuple[int, ...]
    blocks: Callable[[], Iterable[np.ndarray]]
    dtype: str = "F32"


def is_safetensors(start: bytes) -> bool:
    """Whether a file that begins so claims to be one: 8 bytes of length, then JSON."""
    return start[8:9] == b"{"


def read_header(file: IO[bytes], *, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads the header of an open file: (tensors by name in the file's order, metadata).

    The tensors can be read for as long as the file is open.

    Raises:
        WeightsError: a header that contradicts itself, the format or the file's length.
    """
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > MAX_HEADER_BYTES or length < 2:
        raise WeightsError(
            f"{name} claims a header of {length:,} bytes; it is damaged or no weight file.",
            code="E_HEADER",
        )
    if length > size - 8:
        raise WeightsError(
            f"{name} is cut short: its header of {length:,} bytes is longer than the file. "
            f"Fetch or write it again.",
            code="E_TRUNCATED",
        )
    header = _parse(file.read(length), name)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _header(name, "its metadata is no table of texts")
    _check_texts([*header, *metadata, *metadata.values()], name)
    if len(header) > MAX_TENSORS:
        raise _header(name, f"it names {len(header):,} tensors, far more than any VGG has")
    entries = [(key, *_entry(key, fields, name)) for key, fields in header.items()]
    _check_tiling(entries, size - 8 - length, name)
    tensors = {
        key: Tensor(
            f"{name}: {printable(key)!r}",
            shape,
            _FLOATS.get(dtype, dtype),
            _rows(
                file,
                f"{name}: {printable(key)!r}",
                8 + length + begin,
                shape,
                _FLOATS.get(dtype, "u1"),
            ),
        )
        for key, dtype, shape, begin, _ in entries
    }
    return tensors, metadata


def _parse(text: bytes, name: str) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))
            raise WeightsError(
                f"{name} has {printable(twice)!r} twice in its header; which one counts?",
                code="E_DUPLICATE",
            )
        return found

    try:
        header = json.loads(text.decode(), object_pairs_hook=once)
    except WeightsError:
        raise
    except (ValueError, RecursionError):
        raise WeightsError(
            f"{name} is damaged or no safetensors file: its header is no JSON. Fetch or write it "
            f"again.",
            code="E_HEADER",
        ) from None
    if not isinstance(header, dict):
        raise _header(name, "it is no table of tensors")
    return header


def _check_texts(texts: Iterable[str], name: str) -> None:
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:  # JSON can spell half a character
            raise WeightsError(
                f"{name} has a name in its header that is no text: {printable(text)!r}.",
                code="E_NAME",
            ) from None


def _header(name: str, why: str) -> WeightsError:
    return WeightsError(
        f"{name} has a header that cannot be: {why}. Fetch or write it again.", code="E_HEADER"
    )


def _entry(key: str, fields: Any, name: str) -> tuple[str, tuple[int, ...], int, int]:
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise _header(name, f"{printable(key)!r} does not have dtype, shape and data_offsets alone")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _SIZES:
        raise WeightsError(
            f"{name}: {printable(key)!r} is of the type {printable(repr(dtype))[:40]}; weights are F16, "
            f"F32 or F64.",
            code="E_DTYPE",
        )
    whole = all(
        isinstance(numbers, list) and all(type(n) is int and 0 <= n < 2**63 for n in numbers)
        for numbers in (shape, offsets)
    )
    if not whole or len(offsets) != 2 or len(shape) > 8:
        raise _header(name, f"{printable(key)!r} has a shape or offsets that are no lengths")
    begin, end = offsets
    if end - begin != math.prod(shape) * _SIZES[dtype]:
        raise _header(
            name,
            f"{printable(key)!r} is {dtype} of shape {tuple(shape)} and takes {end - begin:,} bytes",
        )
    return dtype, tuple(shape), begin, end


def _check_tiling(entries: list, size: int, name: str) -> None:
    """Each byte of the data belongs to one tensor: no overlap, no hole, nothing behind the last."""
    at = 0
    for key, _, _, begin, end in sorted(entries, key=lambda entry: entry[3:]):
        if begin != at:
            kind = "shares bytes with another" if begin < at else "lies behind bytes of no"
            raise WeightsError(
                f"{name}: {printable(key)!r} {kind} tensor. Fetch or write the file again.",
                code="E_OVERLAP",
            )
        at = end
    if at > size:
        raise WeightsError(
            f"{name} is cut short: its tensors take {at:,} bytes and {size:,} are there. "
            f"Fetch or write it again.",
            code="E_TRUNCATED",
        )
    if at < size:
        raise WeightsError(
            f"{name} has {size - at:,} bytes behind its last tensor. Fetch or write it again.",
            code="E_OVERLAP",
        )


def _rows(
    file: IO[bytes], where: str, offset: int, shape: tuple[int, ...], dtype: str
) -> Callable[[int, int], np.ndarray]:
    def rows(start: int, stop: int) -> np.ndarray:
        array = np.empty((stop - start, *shape[1:]), dtype)
        file.seek(offset + start * math.prod(shape[1:]) * array.itemsize)
        fill(file, array, where)
        return array

    return rows


def check_weights(tensors: Iterable[Tensor], *, notes: list[str] | None = None) -> None:
    """Refuses what no layer of a VGG can have, before it is read, and notes what will be cast.

    Raises:
        WeightsError: other numbers than 16, 32 or 64 bit floats; a scalar; too many; none at all.
    """
    tensors = list(tensors)
    for tensor in tensors:
        if tensor.dtype not in FLOATS:
            raise WeightsError(
                f"{tensor.where} holds {printable(tensor.dtype)}; weights are float16, float32 or "
                f"float64.",
                code="E_DTYPE",
            )
        check_span(tensor)
    if notes is not None:
        notes += casts(tensors)


def write_tensors(path: Path, tensors: Iterable[TensorToWrite], metadata: dict[str, str]) -> None:
    """Writes a safetensors file, block by block; the same tensors give the same bytes."""
    # The longest numbers first, so that each lies at a multiple of its size.
    tensors, header, at = sorted(tensors, key=lambda tensor: -_SIZES[tensor.dtype]), {}, 0
    header["__metadata__"] = dict(sorted(metadata.items()))
    for tensor in tensors:
        end = at + math.prod(tensor.shape) * _SIZES[tensor.dtype]
        header[tensor.name] = {
            "dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [at, end],
        }  # fmt: skip
        at = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers begin at a multiple of their size
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            for block in tensor.blocks():
                file.write(memoryview(np.ascontiguousarray(block)).cast("B"))
