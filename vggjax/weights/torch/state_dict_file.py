"""State dicts in PyTorch's own files, `.pth`, `.pt` and `.ckpt`, read without torch and without
running any code.

Both formats are read: the zip archive of today, whose pickle names one member for each tensor's
numbers, and the sequence of pickles from before 2020, which the numbers follow. Neither the device
that a tensor was on nor torch's version matters. A checkpoint may hold the state dict under any
key, beside the optimizer's state and settings, or a whole pickled model. The zip archive is
written, with torch.
"""

import importlib.util
import io
import math
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from vggjax.errors import WeightsError, join_names, printable
from vggjax.weights.archive import check_contents, member_start, open_archive
from vggjax.weights.layout import TensorToWrite
from vggjax.weights.pickled import MAX_PICKLE_BYTES, Inert, PickledDict, Unpickler, load_checked
from vggjax.weights.tensor_spans import Readable, Span, open_regular, to_float32
from vggjax.weights.torch.torchvision import is_copy, several_networks

_DTYPES = {
    "Float": "f4", "Double": "f8", "Half": "f2", "BFloat16": "bf2", "Long": "i8",
    "Int": "i4", "Short": "i2", "Char": "i1", "Byte": "u1", "Bool": "b1",
}  # fmt: skip
"""torch's types of storage -> the types of a `Span` without the byte order."""

_UNKNOWN = "numbers of an unknown type"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_PREFERRED = ("state_dict", "model_state_dict", "model", "net")
"""Keys of checkpoints; decide between several state dicts."""

_NUM_BLOCKS = 5
_MAX_DEPTH = 5
_METADATA_KEY = "vggjax"


@dataclass(frozen=True)
class _Storage:
    dtype: str
    key: str
    size: int


@dataclass(frozen=True)
class _Tensor:
    """A view of a storage; offset and strides count numbers."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class PermutedSpan(Span):
    """An array whose axes lie in another order in the file, as in torch's channels_last."""

    axes: tuple[int, ...] = ()
    """The axes in the order of the file, the slowest first."""

    def rows(self, file: Readable, start: int, stop: int) -> np.ndarray:
        """Read the rows from `start` to `stop` along the first axis."""
        stored = Span(self.where, tuple(self.shape[i] for i in self.axes), self.dtype, self.start)
        if self.axes[0] == 0:
            return stored.rows(file, start, stop).transpose(np.argsort(self.axes))
        return stored.rows(file, 0, stored.shape[0]).transpose(np.argsort(self.axes))[start:stop]

    def read(self, file: Readable) -> np.ndarray:
        """Read the array as finite float32."""
        return to_float32(self.rows(file, 0, self.shape[0]), self.where)


@dataclass(frozen=True)
class StateDict:
    """The tensors of a file of torch, not read yet, and what stands beside them."""

    spans: dict[str, Span]
    metadata: dict[str, str] = field(default_factory=dict)
    """What this package noted in it."""
    left_out: list[str] = field(default_factory=list)


def is_pickle(start: bytes) -> bool:
    """Return whether a file that starts like this is a pickle of protocol 2 to 5."""
    return start[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def is_torch_pickle(start: bytes) -> bool:
    """Return whether a pickle that starts like this is torch's format from before 2020."""
    return _LEGACY_MAGIC.to_bytes(10, "little") in start[:16]


def is_torch_archive(names: Iterable[str]) -> bool:
    """Return whether an archive with these members was written by torch."""
    return any(name.endswith("/data.pkl") or name == "data.pkl" for name in names)


def require_torch(name: str) -> None:
    """Refuse to write the file called `name` if torch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise WeightsError(
            f"{name} is a file of PyTorch, and torch, which writes it, is not installed. Install "
            f"it (pip install torch), or write .safetensors, which torch reads as well.",
            code="E_WEIGHTS",
        )


def read_state_dict(path: Path) -> StateDict:
    """Locate the tensors of a file's one state dict; the caller checks where they lie.

    Raises:
        WeightsError: damaged, holding code, or without one state dict of a network.
    """
    with open_regular(path) as file:
        is_legacy = is_pickle(file.read(2))
        root, storages, order = _read_legacy(file) if is_legacy else _read_archive(file)
    state, left_out = _choose(_state_dicts(root))
    spans, others = {}, []
    for key, tensor in state.items():
        if isinstance(tensor, _Tensor):
            spans[key] = _span(key, tensor, storages, order)
        else:
            others.append(printable(key))
    if others:
        left_out.append(f"left out what is no array of numbers: {join_names(others)}")
    noted: Any = getattr(state, "state", None)
    for key in ("_metadata", "", _METADATA_KEY):
        noted = noted.get(key) if isinstance(noted, dict) else None
    items = noted.items() if isinstance(noted, dict) else ()
    metadata = {k: v for k, v in items if isinstance(k, str) and isinstance(v, str)}
    return StateDict(spans, metadata, left_out)


class _TorchUnpickler(Unpickler):
    """Unpickles tensors as views of storages that are not read."""

    def __init__(self, file: IO[bytes]):
        functions = {
            "collections OrderedDict": PickledDict,
            "torch._utils _rebuild_tensor": _rebuild_tensor,
            "torch._utils _rebuild_tensor_v2": _rebuild_tensor,
            "torch._utils _rebuild_parameter": _first,
            "torch._utils _rebuild_parameter_with_state": _first,
            "torch._tensor _rebuild_from_type_v2": _rebuild_from_type,
        }
        super().__init__(file, functions | {f"torch {k}Storage": v for k, v in _DTYPES.items()})
        self.storages: dict[str, _Storage] = {}

    def persistent_load(self, pid: Any) -> Any:
        """Return the storage that the pickle refers to."""
        if pid[0] == "module":
            return pid[1]  # a class of a whole model with its source code, in old files
        _, dtype, key, _, size, *view = pid
        if not isinstance(key, str) or not isinstance(size, int) or any(view):
            raise WeightsError("its pickle refers to numbers in an unknown way.", code="E_FORMAT")
        storage = _Storage(dtype if isinstance(dtype, str) else _UNKNOWN, key, size)
        return self.storages.setdefault(key, storage)


def _rebuild_tensor(storage: Any, offset: int, shape: Any, strides: Any, *_: Any) -> Any:
    if not isinstance(storage, _Storage):
        return Inert()
    numbers = (offset, *shape, *strides)
    if not all(type(n) is int and n >= 0 for n in numbers) or len(shape) != len(strides):
        raise WeightsError("its pickle holds a tensor of an impossible shape.", code="E_SHAPE")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _first(tensor: Any, *_: Any) -> Any:
    return tensor


def _rebuild_from_type(function: Any, _: Any, args: Any, *__: Any) -> Any:
    return function(*args) if function in (_rebuild_tensor, _first) else Inert()


def _read_archive(file: IO[bytes]) -> tuple[Any, dict[str, tuple[int, int]], str]:
    """Return the pickled object, (first byte, number of bytes) of each storage, the byte order."""
    with open_archive(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in members if is_torch_archive([name])]
        if any("/code/" in name for name in members):
            raise WeightsError(
                "it is a TorchScript archive, which holds code; none of it was run. Save the "
                "model's state_dict() instead.",
                code="E_CODE",
            )
        if len(pickles) != 1 or members[pickles[0]].file_size > MAX_PICKLE_BYTES:
            raise WeightsError(
                f"it has {len(pickles)} data.pkl, or one of more than {MAX_PICKLE_BYTES:,} bytes.",
                code="E_ZIP",
            )
        if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
            raise WeightsError("it is compressed, but torch compresses no file.", code="E_ZIP")
        root = pickles[0].removesuffix("data.pkl")
        state = load_checked(_TorchUnpickler(io.BytesIO(archive.read(pickles[0]))))
        check_contents(archive)
        is_big = f"{root}byteorder" in members and archive.read(f"{root}byteorder") == b"big"
        storages = {
            name.removeprefix(f"{root}data/"): (member_start(file, info), info.file_size)
            for name, info in members.items()
            if name.startswith(f"{root}data/")
        }
    return state, storages, ">" if is_big else "<"


def _read_legacy(file: IO[bytes]) -> tuple[Any, dict[str, tuple[int, int]], str]:
    """Return the same of the format before 2020: five pickles, then the storages in order."""
    file_bytes = file.seek(0, io.SEEK_END)
    file.seek(0)
    stream = io.BytesIO(file.read(MAX_PICKLE_BYTES))
    if load_checked(_TorchUnpickler(stream)) != _LEGACY_MAGIC:
        raise WeightsError("it is a pickle, but not a state dict of torch.", code="E_FORMAT")
    _, system = load_checked(_TorchUnpickler(stream)), load_checked(_TorchUnpickler(stream))
    unpickler = _TorchUnpickler(stream)
    state, keys = load_checked(unpickler), load_checked(_TorchUnpickler(stream))
    storages, position = {}, stream.tell()
    for key in keys if isinstance(keys, list) else ():
        if not isinstance(key, str) or key not in unpickler.storages:
            raise WeightsError("it is damaged: its numbers belong to no tensor.", code="E_FORMAT")
        file.seek(position)
        count = int.from_bytes(file.read(8), "little")
        if (dtype := unpickler.storages[key].dtype) == _UNKNOWN:
            raise WeightsError(f"it holds {_UNKNOWN}.", code="E_DTYPE")
        num_bytes = count * int(dtype[-1])
        storages[key] = position + 8, num_bytes
        if (position := position + 8 + num_bytes) > file_bytes:
            raise WeightsError("it is truncated: numbers are missing.", code="E_TRUNCATED")
    is_big = isinstance(system, dict) and system.get("little_endian") is False
    return state, storages, ">" if is_big else "<"


def _state_dicts(root: Any) -> dict[str, dict[str, Any]]:
    """Return the dicts that hold a network's kernels, by key, the shallowest in the object."""
    level, visited = {"": root}, set()
    for _ in range(_MAX_DEPTH):
        states = {key: _entries(node) for key, node in level.items()}
        states = {key: state for key, state in states.items() if _is_network(state)}
        if states:
            return states
        children: dict[str, Any] = {}
        for path, node in level.items():
            for key, child in _children(node):
                is_node = isinstance(child, dict | list | tuple | Inert) and "optim" not in str(key)
                if is_node and id(child) not in visited:
                    visited.add(id(child))
                    children[f"{path}.{key}".strip(".")] = child
        level = children
    return {}


def _is_network(state: dict[str, Any]) -> bool:
    kernels = (v for v in state.values() if isinstance(v, _Tensor) and len(v.shape) == 4)
    return sum(1 for _ in kernels) >= _NUM_BLOCKS  # one alone may be a mean of pixels


def _children(node: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(node, Inert):
        node = node.state
    if isinstance(node, dict):
        return [(k, v) for k, v in node.items() if isinstance(k, str)]
    return enumerate(node) if isinstance(node, list | tuple) else ()


def _entries(node: Any) -> dict[str, Any]:
    """Return a dict's entries, or the state dict of a whole model."""
    if isinstance(node, Inert):
        return dict(_module_tensors(node, "", depth=0))
    return node if isinstance(node, dict) and all(isinstance(key, str) for key in node) else {}


def _module_tensors(module: Any, prefix: str, *, depth: int) -> Iterator[tuple[str, Any]]:
    state = module.state if isinstance(module, Inert) else None
    if not isinstance(state, dict) or depth > 4 * _MAX_DEPTH:
        return
    for group in ("_parameters", "_buffers"):
        for name, tensor in _children(state.get(group)):
            if isinstance(tensor, _Tensor):
                yield f"{prefix}{name}", tensor
    for name, child in _children(state.get("_modules")):
        yield from _module_tensors(child, f"{prefix}{name}.", depth=depth + 1)


def _choose(states: dict[str, dict[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """Return the one state dict that the file is about, and a line about the others."""
    if not states:
        raise WeightsError(
            "it holds no state dict of a convolutional network, in which names stand for tensors.",
            code="E_FORMAT",
        )
    names = [key for key in states if not is_copy(key)]
    preferred = [key for key in _PREFERRED if key in names]
    names = preferred[:1] or names or list(states)
    if len(names) > 1:
        raise several_networks(names)
    others = [printable(key) for key in states if key != names[0]]
    return states[names[0]], [
        f"read {printable(names[0])}, and left out {join_names(others)}"
    ] * bool(others)


def _span(key: str, tensor: _Tensor, storages: dict[str, tuple[int, int]], order: str) -> Span:
    """Return where a tensor's numbers lie, which must be as many as it has."""
    storage, where = tensor.storage, repr(printable(key))
    if storage.dtype == _UNKNOWN or "f" not in storage.dtype:
        integers = _UNKNOWN if storage.dtype == _UNKNOWN else np.dtype(storage.dtype).name
        return Span(where, tensor.shape, integers)
    dtype = order + storage.dtype
    itemsize, size = int(dtype[-1]), math.prod(tensor.shape)
    start, num_bytes = storages.get(storage.key, (0, -1))
    if num_bytes != storage.size * itemsize:
        raise WeightsError(f"it is damaged: the numbers of {where} are missing.", code="E_FORMAT")
    axes = sorted(
        range(len(tensor.shape)), key=lambda i: -tensor.strides[i] * (tensor.shape[i] > 1)
    )
    expected = 1
    for axis in reversed(axes):
        if tensor.shape[axis] > 1 and tensor.strides[axis] != expected:
            raise WeightsError(
                f"the numbers of {where}, {tensor.shape}, are not exactly those of its storage.",
                code="E_ALIAS",
            )
        expected *= tensor.shape[axis]
    if tensor.offset + size > storage.size:
        raise WeightsError(f"{where} ends behind its storage.", code="E_TRUNCATED")
    start += tensor.offset * itemsize
    wide = [axis for axis in axes if tensor.shape[axis] > 1]
    if wide == sorted(wide):
        return Span(where, tensor.shape, dtype, start)
    return PermutedSpan(where, tensor.shape, dtype, start, axes=tuple(axes))


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
