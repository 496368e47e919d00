"""PyTorch's own files, `.pth` and `.pt`: state dicts, and nothing that would have to be run.

Such a file is a pickle, which can call anything. So its opcodes are looked through first, without
running one: whatever names more than tensors and the dicts around them is refused. Then torch
reads it, `weights_only=True`, where torch is installed. Two layouts are read, the zip archive of
today and the pickles in a row of before 2020; the zip archive is written.
"""

import ctypes
import importlib.util
import io
import math
import mmap
import os
import pickle
import pickletools
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np

from vggjax.errors import WeightsError, printable
from vggjax.weights.archive import check_contents, open_archive
from vggjax.weights.safetensors import Tensor, TensorToWrite

MAX_PICKLE_BYTES = 2**22
"""The pickle of VGG19 with batch normalization has some 20 kB, without the numbers."""

_STORAGES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_GLOBALS = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    *(f"torch {kind}Storage" for kind in _STORAGES),
}
"""All that the state dict of a VGG names."""

_OPCODES = {
    "PROTO", "STOP", "MARK", "POP", "GLOBAL", "REDUCE", "BUILD", "BINPERSID", "NONE", "NEWTRUE",
    "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE",
    "SHORT_BINSTRING", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "EMPTY_SET", "TUPLE", "TUPLE1",
    "TUPLE2", "TUPLE3", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "BINPUT", "LONG_BINPUT",
    "BINGET", "LONG_BINGET",
}  # fmt: skip
"""Those that torch's own reader of weights takes, but for the ones that make objects."""

_LEGACY_MAGIC = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
_DAMAGE = (
    pickle.UnpicklingError, RuntimeError, OSError, ValueError, TypeError, LookupError,
    AttributeError, EOFError, AssertionError, ArithmeticError, MemoryError, struct.error,
)  # fmt: skip
"""What torch raises for a damaged file, depending on where the damage lies."""

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_NOTE = "vggjax"


def is_pickle(start: bytes) -> bool:
    """Whether a file that begins so is a pickle of protocol 2 to 5."""
    return start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")


def is_torch_archive(names: Iterable[str]) -> bool:
    """Whether the members of an archive are those that torch writes."""
    return any(name.endswith("/data.pkl") or name == "data.pkl" for name in names)


def load_tensors(
    file: IO[bytes], path: Path, *, name: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Gives the tensors of an open file, not copied yet, and this package's metadata.

    `path` is the file's, by which torch maps an archive instead of reading all of it at once.

    Raises:
        WeightsError: code in the file, no state dict, damaged, or torch is not installed.
    """
    file.seek(0)
    zipped = not is_pickle(file.read(2))
    _refuse_code(file, zipped, name)
    state = _load(path if zipped else file, zipped, name)
    for wrapper in _WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
            break
    tensors = _tensors(state, name)
    _check_storage(tensors, name)
    noted = getattr(state, "_metadata", None)
    noted = noted.get("", {}).get(_NOTE, {}) if isinstance(noted, dict) else {}
    metadata = {k: v for k, v in noted.items() if isinstance(k, str) and isinstance(v, str)}
    found = {
        key: _tensor(tensor, where=f"{name}: {printable(key)!r}", mapped=zipped)
        for key, tensor in tensors.items()
    }
    return found, metadata


def _refuse_code(file: IO[bytes], zipped: bool, name: str) -> None:
    if not zipped:
        file.seek(0)
        _scan(file.read(MAX_PICKLE_BYTES), 5, name)
        return
    with open_archive(file) as archive:
        members = archive.infolist()
        pickles = [info for info in members if is_torch_archive([info.filename])]
        if any("/code/" in info.filename for info in members):
            raise WeightsError(
                f"{name} is a TorchScript archive, which holds code; nothing of it was run. Save "
                f"the model's state_dict() instead.",
                code="E_CODE",
            )
        if len(pickles) != 1 or pickles[0].file_size > MAX_PICKLE_BYTES:
            raise WeightsError(
                f"{name} is an archive with {len(pickles)} data.pkl, or a far too long one; a "
                f"state dict has one.",
                code="E_ZIP",
            )
        if any(info.compress_type != zipfile.ZIP_STORED for info in members):
            raise WeightsError(f"{name} is packed, as torch packs no file.", code="E_ZIP")
        _scan(archive.read(pickles[0]), 1, name)
        check_contents(archive)  # torch itself passes over the checksums


def _scan(text: bytes, pickles: int, name: str) -> None:
    """Looks through opcodes without running one.

    Raises:
        WeightsError: one that calls or makes what a state dict does not hold.
    """
    stream = io.BytesIO(text)
    try:
        for i in range(pickles):
            for opcode, value, _ in pickletools.genops(stream):
                if opcode.name == "GLOBAL" and value in _GLOBALS:
                    continue
                if opcode.name not in _OPCODES or opcode.name == "GLOBAL":
                    raise _code(name, value if opcode.name == "GLOBAL" else opcode.name)
            if i == 0 and pickles > 1 and _LEGACY_MAGIC not in text[:16]:
                raise WeightsError(
                    f"{name} is a pickle and no state dict of torch. Save weights with "
                    f"torch.save(model.state_dict(), FILE) or as safetensors.",
                    code="E_FORMAT",
                )
    except WeightsError:
        raise
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise _damaged(name, error) from None


def _code(name: str, what: object) -> WeightsError:
    return WeightsError(
        f"{name} holds code in its pickle: {printable(what)!r}, which no state dict has; nothing of it "
        f"was run. If it is a whole model or a training's checkpoint that you trust, load it where "
        f"it was made and save model.state_dict() alone.",
        code="E_CODE",
    )


def _damaged(name: str, error: Exception) -> WeightsError:
    why = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return WeightsError(
        f"{name} is damaged or no state dict, torch cannot read it ({printable(why)[:200]}). Fetch or "
        f"write it again.",
        code="E_FORMAT",
    )


def need_torch(name: str) -> None:
    """Refuses where torch is not installed.

    Raises:
        WeightsError: with what to do instead.
    """
    if importlib.util.find_spec("torch") is None:
        raise WeightsError(
            f"{name} is a file of PyTorch's own, and torch is not installed here. Install it (pip "
            f"install torch), or use safetensors: where torch is, safetensors.torch.save_file("
            f"torch.load(FILE, weights_only=True), 'weights.safetensors') makes one.",
            code="E_WEIGHTS",
        )


def _load(source: IO[bytes] | Path, zipped: bool, name: str) -> Any:
    need_torch(name)
    import torch

    if not zipped:
        source.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own plans for its classes
            return torch.load(source, map_location="cpu", weights_only=True, mmap=zipped)
    except _DAMAGE as error:
        raise _damaged(name, error) from None


def _tensors(state: Any, name: str) -> dict[str, Any]:
    import torch

    if not isinstance(state, dict) or not state:
        raise WeightsError(
            f"{name} holds {type(state).__name__} and no state dict: names and tensors.",
            code="E_FORMAT",
        )
    for key, tensor in state.items():
        if not isinstance(key, str) or not isinstance(tensor, torch.Tensor):
            raise WeightsError(
                f"{name} holds {printable(repr(key))[:80]} of type {type(tensor).__name__} among its "
                f"tensors; save model.state_dict() alone.",
                code="E_FORMAT",
            )
    return state


def _check_storage(tensors: dict[str, Any], name: str) -> None:
    """Each tensor has all its numbers, and none of another's."""
    places = []
    for key, tensor in tensors.items():
        reach = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        if tensor.numel() and reach != tensor.numel():
            raise WeightsError(
                f"{name}: {printable(key)!r} has shape {tuple(tensor.shape)}, and numbers for a part "
                f"of it or for more.",
                code="E_ALIAS",
            )
        start = tensor.data_ptr()
        places.append((start, start + tensor.numel() * tensor.element_size(), key))
    places.sort()
    for (_, end, first), (start, _, second) in zip(places, places[1:], strict=False):
        if start < end:
            raise WeightsError(
                f"{name}: {printable(first)!r} and {printable(second)!r} share numbers.",
                code="E_ALIAS",
            )


def _tensor(tensor: Any, *, where: str, mapped: bool) -> Tensor:
    import torch

    floats = {torch.float16: "<f2", torch.float32: "<f4", torch.float64: "<f8"}
    dtype = floats.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))
    mapped = mapped and tensor.is_contiguous()

    def rows(start: int, stop: int) -> np.ndarray:
        part = tensor.detach()[start:stop].numpy()
        if not mapped:
            return part
        copy = part.copy()
        _let_go(part)
        return copy

    return Tensor(where, tuple(tensor.shape), dtype, rows)


def _let_go(part: np.ndarray) -> None:
    """Gives a mapped file's pages back to the system, which would count them until the end."""
    madvise = getattr(ctypes.CDLL(None) if os.name == "posix" else None, "madvise", None)
    advice = getattr(mmap, "MADV_DONTNEED", None)
    start = -(-part.ctypes.data // mmap.PAGESIZE) * mmap.PAGESIZE
    length = part.ctypes.data + part.nbytes - start
    if madvise is not None and advice is not None and length > 0:
        madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), advice)


def write_torch_file(
    path: Path, tensors: Iterable[TensorToWrite], metadata: dict[str, str]
) -> None:
    """Writes a state dict; torch's strict `load_state_dict` takes it.

    The metadata lies in the dict's `_metadata`, where torch keeps its modules' versions.

    Raises:
        WeightsError: torch is not installed.
    """
    need_torch(printable(path.name))
    import torch

    state = OrderedDict()
    for tensor in tensors:
        whole = np.empty(math.prod(tensor.shape), {"F32": "f4", "I64": "i8"}[tensor.dtype])
        at = 0
        for block in tensor.blocks():
            whole[at : at + block.size] = block.reshape(-1)
            at += block.size
        state[tensor.name] = torch.from_numpy(whole).reshape(tensor.shape)
    state._metadata = OrderedDict({"": {"version": 1, _NOTE: dict(sorted(metadata.items()))}})
    with open(path, "wb") as file:  # by its name, the file's would stand in it
        torch.save(state, file)
