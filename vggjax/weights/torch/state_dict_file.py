"""State dicts in PyTorch's own files, `.pth` and `.pt`, read without running any code.

Such a file is a pickle, which can call any function. So its opcodes are scanned first, and a pickle
that names anything but tensors and dicts is refused. Then torch, if it is installed, loads the file
with `weights_only=True`. The zip archive of today and the sequence of pickles from before 2020 are
read; the zip archive is written.
"""

import ctypes
import importlib.util
import io
import mmap
import os
import pickle
import pickletools
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from vggjax.errors import WeightsError, printable
from vggjax.weights.archive import check_contents, open_archive
from vggjax.weights.layout import TensorToWrite
from vggjax.weights.tensor_spans import Readable, Span, open_regular

MAX_PICKLE_BYTES = 2**22
"""The pickle of VGG19 with batch normalization has about 20 kB, without the numbers."""

_STORAGES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_GLOBALS = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    *(f"torch {kind}Storage" for kind in _STORAGES),
}
"""Everything that the state dict of a VGG names."""

_OPCODES = {
    "PROTO", "STOP", "MARK", "POP", "GLOBAL", "REDUCE", "BUILD", "BINPERSID", "NONE", "NEWTRUE",
    "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE",
    "SHORT_BINSTRING", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "EMPTY_SET", "TUPLE", "TUPLE1",
    "TUPLE2", "TUPLE3", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "BINPUT", "LONG_BINPUT",
    "BINGET", "LONG_BINGET",
}  # fmt: skip
"""Those that torch's `weights_only` unpickler accepts, except the ones that create objects."""

_LEGACY_MAGIC = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
_LOAD_ERRORS = (
    pickle.UnpicklingError, RuntimeError, OSError, ValueError, TypeError, LookupError,
    AttributeError, EOFError, AssertionError, ArithmeticError, MemoryError, struct.error,
)  # fmt: skip
"""What torch raises for a damaged file, depending on where the damage is."""

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_METADATA_KEY = "vggjax"


@dataclass(frozen=True)
class TorchSpan(Span):
    """An array that torch has loaded or mapped into memory."""

    tensor: Any = None
    is_mapped: bool = False

    def rows(self, file: Readable, start: int, stop: int) -> np.ndarray:
        """Return the rows from `start` to `stop`; `file` is not used."""
        part = self.tensor.detach()[start:stop].numpy()
        if not self.is_mapped:
            return part
        copy = part.copy()
        _release_pages(part)
        return copy


def is_pickle(start: bytes) -> bool:
    """Return whether a file that starts like this is a pickle of protocol 2 to 5."""
    return start[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def is_torch_archive(names: Iterable[str]) -> bool:
    """Return whether an archive with these members was written by torch."""
    return any(name.endswith("/data.pkl") or name == "data.pkl" for name in names)


def require_torch(name: str) -> None:
    """Refuse the file called `name` if torch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise WeightsError(
            f"{name} is a file of PyTorch, and torch is not installed. Install it (pip install "
            f"torch), or convert the file where torch is installed: safetensors.torch.save_file("
            f"torch.load(FILE, weights_only=True), 'weights.safetensors').",
            code="E_WEIGHTS",
        )


def read_state_dict(path: Path) -> tuple[dict[str, Span], dict[str, str]]:
    """Return a file's tensors, not copied yet, and the metadata that this package noted in it."""
    with open_regular(path) as file:
        is_archive = not is_pickle(file.read(2))
        _refuse_code(file, is_archive)
        require_torch(printable(path))
        file.seek(0)
        # By its path torch maps an archive instead of reading all of it.
        state = _load(path if is_archive else file, mapped=is_archive)
    for wrapper in _WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
            break
    _check_tensors(state)
    _check_storage(state)
    noted = getattr(state, "_metadata", None)
    noted = noted.get("", {}).get(_METADATA_KEY, {}) if isinstance(noted, dict) else {}
    metadata = {k: v for k, v in noted.items() if isinstance(k, str) and isinstance(v, str)}
    return {key: _span(key, tensor, mapped=is_archive) for key, tensor in state.items()}, metadata


def _refuse_code(file: IO[bytes], is_archive: bool) -> None:
    if not is_archive:
        file.seek(0)
        _scan(file.read(MAX_PICKLE_BYTES), num_pickles=5)
        return
    with open_archive(file) as archive:
        members = archive.infolist()
        pickles = [info for info in members if is_torch_archive([info.filename])]
        if any("/code/" in info.filename for info in members):
            raise WeightsError(
                "it is a TorchScript archive, which holds code; none of it was run. Save the "
                "model's state_dict() instead.",
                code="E_CODE",
            )
        if len(pickles) != 1 or pickles[0].file_size > MAX_PICKLE_BYTES:
            raise WeightsError(
                f"it has {len(pickles)} data.pkl, or one of more than {MAX_PICKLE_BYTES:,} bytes.",
                code="E_ZIP",
            )
        if any(info.compress_type != zipfile.ZIP_STORED for info in members):
            raise WeightsError("it is compressed, but torch compresses no file.", code="E_ZIP")
        _scan(archive.read(pickles[0]), num_pickles=1)
        check_contents(archive)  # torch itself ignores the checksums


def _scan(text: bytes, *, num_pickles: int) -> None:
    """Check all opcodes of the pickles without running one."""
    stream = io.BytesIO(text)
    try:
        for i in range(num_pickles):
            for opcode, value, _ in pickletools.genops(stream):
                if opcode.name == "GLOBAL" and value in _GLOBALS:
                    continue
                if opcode.name not in _OPCODES or opcode.name == "GLOBAL":
                    code = value if opcode.name == "GLOBAL" else opcode.name
                    raise WeightsError(
                        f"its pickle holds code, {printable(code)!r}; none of it was run. If you "
                        f"trust it, load it where it was created and save its state_dict().",
                        code="E_CODE",
                    )
            if i == 0 and num_pickles > 1 and _LEGACY_MAGIC not in text[:16]:
                raise WeightsError(
                    "it is a pickle, but not a state dict of torch.", code="E_FORMAT"
                )
    except WeightsError:
        raise
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise _damage_error(error) from None


def _damage_error(error: Exception) -> WeightsError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return WeightsError(
        f"it is damaged or not a state dict: torch cannot read it ({printable(reason)[:200]}).",
        code="E_FORMAT",
    )


def _load(source: IO[bytes] | Path, *, mapped: bool) -> Any:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's deprecations of its own classes
            return torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
    except _LOAD_ERRORS as error:
        raise _damage_error(error) from None


def _check_tensors(state: Any) -> None:
    import torch

    if not isinstance(state, dict) or not state:
        raise WeightsError(
            f"it holds {type(state).__name__}, not a state dict of names and tensors.",
            code="E_FORMAT",
        )
    for key, tensor in state.items():
        if not isinstance(key, str) or not isinstance(tensor, torch.Tensor):
            raise WeightsError(
                f"it holds {printable(repr(key))[:80]} of type {type(tensor).__name__} among its "
                f"tensors; expected model.state_dict() alone.",
                code="E_FORMAT",
            )


def _check_storage(tensors: dict[str, Any]) -> None:
    """Check that each tensor has all its numbers, and shares none with another."""
    ranges = []
    for key, tensor in tensors.items():
        extent = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        if tensor.numel() and extent != tensor.numel():
            raise WeightsError(
                f"the numbers of {printable(key)!r}, {tuple(tensor.shape)}, are not exactly those "
                f"of its storage.",
                code="E_ALIAS",
            )
        start = tensor.data_ptr()
        ranges.append((start, start + tensor.numel() * tensor.element_size(), key))
    ranges.sort()
    for (_, end, first), (start, _, second) in zip(ranges, ranges[1:], strict=False):
        if start < end:
            raise WeightsError(
                f"{printable(first)!r} and {printable(second)!r} share numbers.", code="E_ALIAS"
            )


def _span(key: str, tensor: Any, *, mapped: bool) -> TorchSpan:
    import torch

    floats = {torch.float16: "<f2", torch.float32: "<f4", torch.float64: "<f8"}
    dtype = floats.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))
    name, shape = repr(printable(key)), tuple(tensor.shape)
    is_mapped = mapped and tensor.is_contiguous()
    return TorchSpan(name, shape, dtype, tensor=tensor, is_mapped=is_mapped)


def _release_pages(part: np.ndarray) -> None:
    """Release the pages of a mapped file, which would otherwise count as memory until the end."""
    madvise = getattr(ctypes.CDLL(None) if os.name == "posix" else None, "madvise", None)
    advice = getattr(mmap, "MADV_DONTNEED", None)
    start = -(-part.ctypes.data // mmap.PAGESIZE) * mmap.PAGESIZE
    length = part.ctypes.data + part.nbytes - start
    if madvise is not None and advice is not None and length > 0:
        madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), advice)


def write_state_dict(
    path: Path, tensors: Iterable[TensorToWrite], metadata: dict[str, str]
) -> None:
    """Write a state dict that torch's strict `load_state_dict` accepts.

    The metadata is in the dict's `_metadata`, where torch keeps the versions of modules.
    """
    import torch

    state = OrderedDict()
    for tensor in tensors:
        array = np.empty(tensor.array.size, tensor.array.dtype)
        start = 0
        for block in tensor.blocks():
            array[start : start + block.size] = block.reshape(-1)
            start += block.size
        state[tensor.name] = torch.from_numpy(array).reshape(tensor.shape)
    noted = {_METADATA_KEY: dict(sorted(metadata.items()))}
    state._metadata = OrderedDict({"": {"version": 1, **noted}})  # type: ignore[attr-defined]
    with open(path, "wb") as file:  # given a path, torch would store the file's name
        torch.save(state, file)
