"""Read pickles of NumPy arrays in nested dicts, such as the parameters of Flax models.

The unpickler (pickled.py) knows NumPy's names, and even these stand for recorders of an array's
shape, type and bytes: nothing in the file decides what is called or allocated.
"""

import io
import pickle
import re
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np

from vggjax.errors import WeightsError, printable
from vggjax.weights.archive import MAX_UNPACKED_BYTES
from vggjax.weights.pickled import Unpickler, load_checked
from vggjax.weights.tensor_spans import LoadedSpan, Span, open_regular

_MAX_NODES = 100_000
_MAX_DEPTH = 20


class _Recorded:
    """Keeps the arguments and the state of an object of NumPy."""

    state: Any = ()

    def __init__(self, *args: Any):
        self.args = args


class _Array(_Recorded):
    """`_reconstruct(ndarray, (0,), b"b")`; the state has the shape, the type and the bytes."""


class _Buffer(_Recorded):
    """`_frombuffer(bytes, dtype, shape, order, axes)`, from protocol 5 on."""


class _DType(_Recorded):
    """`dtype("f4", False, True)`; the state has the byte order."""


class _Encoded(_Recorded):
    """`encode("...", "latin1")`: how Python 3 writes bytes in protocol 2."""


_FUNCTIONS: dict[str, Any] = {
    "collections OrderedDict": OrderedDict,
    "_codecs encode": _Encoded,
    "numpy dtype": _DType,
    "numpy.core.multiarray _reconstruct": _Array,
    "numpy._core.multiarray _reconstruct": _Array,
    "numpy.core.numeric _frombuffer": _Buffer,
    "numpy._core.numeric _frombuffer": _Buffer,
}


class _ArrayUnpickler(Unpickler):
    """Also reads the bytes of protocol 5."""

    dispatch: ClassVar[dict[int, Callable]] = dict(Unpickler.dispatch)
    read: Callable[[int], bytes]
    append: Callable[[Any], None]

    def __init__(self, file: IO[bytes]):
        super().__init__(file, _FUNCTIONS)
        self.encoding = "latin1"  # of what Python 2 wrote, as numpy.load's

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name of NumPy; refuse names of code with a way out for Flax."""
        try:
            return super().find_class(module, name)
        except WeightsError:
            raise WeightsError(
                f"its pickle holds code, {printable(f'{module} {name}')[:80]!r}; none of it was "
                f"run. If you trust it, load it where it was created and pickle plain dicts of "
                f"arrays: jax.tree.map(numpy.asarray, flax.serialization.to_state_dict(params)).",
                code="E_CODE",
            ) from None

    def _load_bytearray8(self) -> None:
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(self.read(min(length, MAX_UNPACKED_BYTES)))

    dispatch[pickle.BYTEARRAY8[0]] = _load_bytearray8


def read_pickle(path: Path) -> dict[str, Span]:
    """Return a pickle's arrays by their keys, as in `params/Conv_0/kernel`; loads all of it."""
    with open_regular(path) as raw, io.BufferedReader(raw) as file:
        size_bytes = file.seek(0, io.SEEK_END)
        if size_bytes > MAX_UNPACKED_BYTES:
            raise WeightsError(f"it is a pickle of {size_bytes:,} bytes.", code="E_BOMB")
        file.seek(0)
        spans = dict(_spans(load_checked(_ArrayUnpickler(file))))
    if not spans:
        raise WeightsError(
            "it is a pickle, but not a state dict of torch, and without arrays of NumPy.",
            code="E_FORMAT",
        )
    return spans


def _spans(tree: Any) -> Iterator[tuple[str, Span]]:
    """Yield the array of each path of keys; a list of two arrays is a kernel and a bias."""
    todo, count = [("", tree, 0)], 0
    while todo:
        path, node, depth = todo.pop()
        count += 1
        if count > _MAX_NODES or depth > _MAX_DEPTH:
            raise WeightsError("its pickle has more objects than any VGG.", code="E_BOMB")
        if isinstance(node, _Array | _Buffer):
            yield path, _span(path, node)
        elif isinstance(node, dict | list | tuple):
            keys = node if isinstance(node, dict) else _keys(node)
            items = node.values() if isinstance(node, dict) else node
            todo += [
                (f"{path}/{key}".lstrip("/"), item, depth + 1)
                for key, item in zip(keys, items, strict=True)
            ][::-1]


def _keys(items: list | tuple) -> list[str]:
    """Return `kernel` and `bias` for two arrays, as converters from Caffe write; else numbers."""
    if len(items) == 2 and all(isinstance(item, _Array | _Buffer) for item in items):
        return ["kernel", "bias"]
    return [str(i) for i in range(len(items))]


def _span(path: str, node: _Recorded) -> LoadedSpan:
    where = repr(printable(path))
    try:
        array = _array(node)
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise WeightsError(
            f"{where} is damaged, or not an array of numbers ({printable(error)[:200]}).",
            code="E_FORMAT",
        ) from None
    dtype = array.dtype.str if array.dtype.kind == "f" else array.dtype.name
    return LoadedSpan(where, array.shape, dtype, array=array)


def _array(node: _Recorded) -> np.ndarray:
    """Return what a recorder stands for, without copying its bytes."""
    axes = None
    if isinstance(node, _Array):
        _, shape, dtype, is_fortran, data = node.state
    else:
        data, dtype, shape, order, *rest = node.args
        is_fortran, axes = order == "F", rest[0] if order == "K" else None
    if isinstance(data, _Encoded):
        data = data.args[0]
    if isinstance(data, str):
        data = data.encode("latin1")
    kind = dtype.args[0]
    if dtype.state and kind[:1] not in ("<", ">"):
        kind = f"{dtype.state[1]}{kind}"
    if not re.fullmatch(r"[<>|=]?[fiub][1248]", kind):
        raise ValueError(f"of the type {kind!r}")
    array = np.frombuffer(data, np.dtype(kind)).reshape(shape, order="F" if is_fortran else "C")
    return array if axes is None else array.transpose(axes)
