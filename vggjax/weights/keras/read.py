"""Reads Keras' files, `.h5`, `.weights.h5` and `.keras`: found in another process, read in this.

The process of reader.py says which layers there are and where each array lies. This one checks
that, asks whether the shapes are wanted, and takes the numbers from the file itself; only packed
arrays come through the pipe. No file is written, none of the file's code is run, and no Keras
model is rebuilt.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vggjax.errors import WeightsError, printable
from vggjax.weights.compatibility import Check
from vggjax.weights.hdf5.worker import Reader
from vggjax.weights.tensor_spans import FLOATS, Span, casts, check_spans, open_regular, read_span

if TYPE_CHECKING:
    from vggjax.models.params import Weights

_WAY_OUT = "Save the weights again with model.save_weights, or use another copy of the file."
_HAS_WAY_OUT = re.compile(r"\b(again|Save|Pack|another copy)\b")


def read_keras_h5(
    path: str | os.PathLike,
    *,
    name: str | None = None,
    check: Check | None = None,
    notes: list[str] | None = None,
    reader: Reader | None = None,
) -> "Weights":
    """Reads an HDF5 file that Keras wrote, of any layout.

    Args:
        path: the file.
        name: what messages call it; its path where there is none.
        check: is given the shapes before any number is read.
        notes: is added a line for each kind of number that was cast, and for what was left out.
        reader: a process to use; its own where there is none.

    Raises:
        WeightsError: damaged, not of a known layout, or holding what weights cannot be.
    """
    return _read(path, "h5", name=name, check=check, notes=notes, reader=reader)


def read_keras_zip(
    path: str | os.PathLike,
    *,
    name: str | None = None,
    check: Check | None = None,
    notes: list[str] | None = None,
    reader: Reader | None = None,
) -> "Weights":
    """Reads the weights of a `.keras` archive, as `read_keras_h5`.

    Raises:
        WeightsError: a damaged or unsafe archive, one without weights, or damaged weights in it.
    """
    return _read(path, "zip", name=name, check=check, notes=notes, reader=reader)


class KerasFile:
    """A Keras file, parsed once in another process (`kind` is "h5" or "zip").

    `facts` holds the `layout` and what this package noted in the file on writing. The process
    stays only where arrays are packed, and until `read` or `close`.

    Raises:
        WeightsError: damaged, not of a known layout, or holding what weights cannot be.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        kind: str,
        *,
        name: str | None = None,
        reader: Reader | None = None,
    ):
        self._path, self._name = path, name
        self._resources = contextlib.ExitStack()
        self._reader = reader or self._resources.enter_context(Reader())
        try:
            with _named(path, name), open_regular(path) as file:
                answer = self._reader.find(path, kind)
                self.facts: dict[str, str] = answer["facts"]
                self.remarks: list[str] = answer["remarks"]
                self._layers = {
                    layer: {param: _span(*fields) for param, fields in params.items()}
                    for layer, params in answer["layers"].items()
                }
                check_spans(self._spans(), size_bytes=os.fstat(file.fileno()).st_size)
        except BaseException:
            self.close()
            raise
        if all(span.start is not None for span in self._spans()):
            self.close()

    @property
    def shapes(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """Each parameter's shape."""
        return {k: {p: span.shape for p, span in v.items()} for k, v in self._layers.items()}

    def read(self, *, notes: list[str] | None = None) -> "Weights":
        """Read all arrays as float32; `notes` is extended by what was cast or left out.

        Raises:
            WeightsError: the file ends too early, or numbers are not finite.
        """
        spans = self._spans()
        packed = [span for span in spans if span.start is None]
        with _named(self._path, self._name), open_regular(self._path) as file:
            unpacked = self._reader.unpack(packed) if packed else {}
            weights = {
                layer: {
                    param: unpacked.pop(span.where) if span.start is None else read_span(file, span)
                    for param, span in params.items()
                }
                for layer, params in self._layers.items()
            }
        if notes is not None:
            notes += [*casts(spans), *self.remarks]
        return weights

    def close(self) -> None:
        """End the process, unless it was handed in."""
        self._resources.close()

    def _spans(self) -> list[Span]:
        return [span for params in self._layers.values() for span in params.values()]


def read_keras_facts(path: str | os.PathLike, *, kind: str) -> dict[str, str]:
    """Return the `layout` of an `h5` or a `zip`, and what this package noted in it on writing.

    Raises:
        WeightsError: as reading it, but for its numbers.
    """
    file = KerasFile(path, kind)
    file.close()
    return file.facts


def is_hdf5(path: str | os.PathLike) -> bool:
    """Whether the file has HDF5's signature where it may be: at 0, 512, 1024, 2048 ... bytes."""
    with open_regular(path) as file:
        start, size_bytes = 0, os.fstat(file.fileno()).st_size
        while start < size_bytes:
            file.seek(start)
            if file.read(8) == b"\x89HDF\r\n\x1a\n":
                return True
            start = max(512, 2 * start)
    return False


def _read(
    path: str | os.PathLike,
    kind: str,
    *,
    name: str | None,
    check: Check | None,
    notes: list[str] | None,
    reader: Reader | None,
) -> "Weights":
    file = KerasFile(path, kind, name=name, reader=reader)
    try:
        if check is not None:
            with _named(path, name):
                check(file.shapes)
        return file.read(notes=notes)
    finally:
        file.close()


@contextlib.contextmanager
def _named(path: str | os.PathLike, name: str | None) -> Iterator[None]:
    """Puts the file's name before every refusal that lacks it, and a way out behind it."""
    name = name or printable(path)
    try:
        yield
    except WeightsError as error:
        message = str(error)
        if name in message:
            raise
        way_out = "" if _HAS_WAY_OUT.search(message) else f" {_WAY_OUT}"
        raise WeightsError(f"{name}: {message}{way_out}", code=error.code) from None


def _span(where: str, shape: list[int], dtype: str, start: int | None) -> Span:
    assert dtype in FLOATS and all(type(n) is int for n in shape), (where, dtype, shape)
    return Span(where, tuple(shape), dtype, start)
