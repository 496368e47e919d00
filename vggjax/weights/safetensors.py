"""Read and write safetensors files, whatever their tensors are called.

The header is parsed here, because the format's own library accepts duplicate names and unknown
fields. No tensor is read before the whole header is checked: the tensors tile the rest of the file,
so that each byte belongs to exactly one. What the names mean is in names.py and
torch/torchvision.py. Format: https://huggingface.co/docs/safetensors
"""

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from vggjax.errors import WeightsError, printable
from vggjax.weights.layout import TensorToWrite
from vggjax.weights.tensor_spans import Span

MAX_HEADER_BYTES = 2**20
"""The header of VGG19 with batch normalization has about 15 kB."""

MAX_TENSORS = 10_000

_WRITTEN = {"float32": "F32", "int64": "I64"}
_FLOATS = {"F16": "<f2", "BF16": "<bf2", "F32": "<f4", "F64": "<f8"}
_SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2,
          "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8}  # fmt: skip


def is_safetensors(start: bytes) -> bool:
    """Return whether a file that starts like this has 8 bytes of length, then JSON."""
    return start[8:9] == b"{"


def read_header(file: IO[bytes]) -> tuple[dict[str, Span], dict[str, str]]:
    """Return an open file's tensors by name, in the file's order, and its metadata."""
    file_bytes = os.fstat(file.fileno()).st_size
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if file_bytes < 8 or length > MAX_HEADER_BYTES or length < 2:
        raise WeightsError(
            f"it claims a header of {length:,} bytes; it is damaged or not a weight file.",
            code="E_HEADER",
        )
    if length > file_bytes - 8:
        raise WeightsError(
            f"it is truncated: its header of {length:,} bytes is longer than the file.",
            code="E_TRUNCATED",
        )
    header = _parse(file.read(length))
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _bad_header("its metadata is not a table of strings")
    try:
        "".join([*header, *metadata, *metadata.values()]).encode()
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair
        raise WeightsError("its header has a name that is not text.", code="E_NAME") from None
    if len(header) > MAX_TENSORS:
        raise _bad_header(f"it names {len(header):,} tensors, far more than any VGG has")
    entries = {key: _entry(key, fields) for key, fields in header.items()}
    _check_tiling(entries, file_bytes - 8 - length)
    spans = {
        key: Span(repr(printable(key)), shape, _FLOATS.get(dtype, dtype), 8 + length + begin)
        for key, (dtype, shape, begin, _) in entries.items()
    }
    return spans, metadata


def _parse(text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table: dict[str, Any] = {}
        for key, value in pairs:
            if key in table:
                raise WeightsError(f"its header has {printable(key)!r} twice.", code="E_DUPLICATE")
            table[key] = value
        return table

    try:
        header = json.loads(text.decode(), object_pairs_hook=unique)
    except WeightsError:
        raise
    except (ValueError, RecursionError):
        raise _bad_header("it is not JSON") from None
    if not isinstance(header, dict):
        raise _bad_header("it is not a table of tensors")
    return header


def _bad_header(reason: str) -> WeightsError:
    return WeightsError(f"its safetensors header is invalid: {reason}.", code="E_HEADER")


def _entry(key: str, fields: Any) -> tuple[str, tuple[int, ...], int, int]:
    """Return a tensor's type, shape and range of bytes."""
    name = repr(printable(key))
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise _bad_header(f"{name} must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _SIZES:
        raise WeightsError(
            f"{name} has the type {printable(repr(dtype))[:40]}; expected F16, BF16, F32 or F64.",
            code="E_DTYPE",
        )
    valid = all(
        isinstance(numbers, list) and all(type(n) is int and 0 <= n < 2**63 for n in numbers)
        for numbers in (shape, offsets)
    )
    if not valid or len(offsets) != 2 or len(shape) > 8:
        raise _bad_header(f"{name} has a shape or offsets that are not valid lengths")
    begin, end = offsets
    if end - begin != math.prod(shape) * _SIZES[dtype]:
        raise _bad_header(f"{name} is {dtype} of shape {tuple(shape)} in {end - begin:,} bytes")
    return dtype, tuple(shape), begin, end


def _check_tiling(entries: dict[str, tuple[str, tuple[int, ...], int, int]], size: int) -> None:
    """Check that each byte of the data belongs to one tensor: no overlap, no gap, no rest."""
    position = 0
    for key, (_, _, begin, end) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != position:
            problem = "overlaps another" if begin < position else "follows bytes that belong to no"
            raise WeightsError(f"{printable(key)!r} {problem} tensor.", code="E_OVERLAP")
        position = end
    if position > size:
        raise WeightsError(
            f"it is truncated: its tensors have {position:,} bytes, of which {size:,} are there.",
            code="E_TRUNCATED",
        )
    if position < size:
        raise WeightsError(
            f"it has {size - position:,} bytes after its last tensor.", code="E_OVERLAP"
        )


def write_tensors(path: Path, tensors: Iterable[TensorToWrite], metadata: dict[str, str]) -> None:
    """Write a safetensors file block by block; the same tensors give the same bytes."""
    # The longest type first, so that each number lies at a multiple of its size.
    tensors = sorted(tensors, key=lambda tensor: -tensor.array.itemsize)
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    start = 0
    for tensor in tensors:
        end = start + tensor.array.nbytes
        dtype, shape = _WRITTEN[tensor.array.dtype.name], list(tensor.shape)
        header[tensor.name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # so that the data is aligned as well
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            for block in tensor.blocks():
                file.write(block.data.cast("B"))
