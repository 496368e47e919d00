"""Read Keras' files, `.h5`, `.weights.h5` and `.keras`: parsed in another process, read in this.

Some damaged files hang or crash the HDF5 library, and no signal can interrupt it. So one process a
file (child.py; numpy and h5py alone, 0.2 s) parses, and is killed when it takes too long. It
answers with the layers and where their arrays lie. This process checks that, lets the caller check
the shapes, and reads the numbers from the file itself. No file is written, no code in the file is
run, and no Keras model is rebuilt.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import vggjax.errors
from vggjax.errors import WeightsError, printable
from vggjax.weights.archive import open_archive
from vggjax.weights.hdf5.unpack import ChunkedSpan, check_pieces, read_chunked, signature_start
from vggjax.weights.keras.write import MEMBER
from vggjax.weights.tensor_spans import (
    Readable,
    Span,
    casts,
    check_spans,
    open_regular,
    read_span,
)

if TYPE_CHECKING:
    from vggjax.models.params import Weights

TIMEOUT_S = 10.0
"""CPU time for parsing a file, with a second more for each 20 MB; three times that in all."""

_BYTES_PER_S = 20e6
_WAY_OUT = "Save the weights again with model.save_weights, or use another copy of the file."
_HAS_WAY_OUT = re.compile(r"\b(again|Save|Pack|another copy)\b")
_CODE = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from vggjax.weights.keras.child import main
main()
"""


@dataclass(frozen=True)
class KerasFile:
    """A Keras file that was parsed: its layers and where their arrays lie."""

    path: str | os.PathLike
    layout: str
    """`legacy`, `whole model`, `weights.h5` or `archive`."""
    metadata: dict[str, str]
    """What this package noted on writing; empty for other files."""
    layers: dict[str, dict[str, Span]]
    notes: list[str] = field(default_factory=list)
    """A line about each kind of number that is cast, and about what is left out."""
    compressed: bool = False
    """Whether it is an archive with compressed weights, from whose start the spans count."""

    @property
    def shapes(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """The shapes of the arrays, `{layer: {parameter: shape}}`."""
        return {k: {n: span.shape for n, span in v.items()} for k, v in self.layers.items()}

    def read(self) -> Weights:
        """Read the arrays as float32.

        Raises:
            WeightsError: a damaged array, or numbers that are not finite.
        """
        with _named(self.path), open_regular(self.path) as disk, contextlib.ExitStack() as stack:
            file: Readable = disk
            if self.compressed:
                archive = stack.enter_context(open_archive(disk))
                file = io.BytesIO(archive.read(MEMBER))
            return {
                layer: {
                    param: read_chunked(file, span)
                    if isinstance(span, ChunkedSpan)
                    else read_span(file, span)
                    for param, span in params.items()
                }
                for layer, params in self.layers.items()
            }


def parse_keras(path: str | os.PathLike, kind: str) -> KerasFile:
    """Find the layers of a Keras file and check their arrays; read no number.

    Args:
        path: the file.
        kind: `h5` for HDF5 of any of Keras' layouts, `zip` for a `.keras` archive.

    Raises:
        WeightsError: damaged, unsafe, of an unknown layout, or holding what cannot be weights.
    """
    with _named(path), open_regular(path):
        return _checked(run_child(path, kind), path)


def _checked(answer: dict[str, Any], path: str | os.PathLike) -> KerasFile:
    """Return the file that an answer describes, after checking where its arrays lie."""
    if "error" in answer:
        raise WeightsError(answer["error"], code=answer["code"])
    if "bug" in answer:
        raise RuntimeError(answer["bug"])
    layers = {
        layer: {param: _span(fields) for param, fields in params.items()}
        for layer, params in answer["layers"].items()
    }
    spans = [span for params in layers.values() for span in params.values()]
    compressed_bytes = answer["contents_bytes"]
    size_bytes = os.stat(path).st_size if compressed_bytes is None else compressed_bytes
    check_spans(spans, size_bytes=size_bytes)
    check_pieces([s for s in spans if isinstance(s, ChunkedSpan)], size_bytes=size_bytes)
    return KerasFile(
        path,
        answer["layout"],
        answer["metadata"],
        layers,
        [*casts(spans), *answer["notes"]],
        compressed_bytes is not None,
    )


def run_child(
    path: str | os.PathLike, kind: str, *, timeout_s: float = TIMEOUT_S
) -> dict[str, Any]:
    """Parse a file in another process, and return its answer.

    Raises:
        WeightsError: it took too long, or the process crashed.
    """
    file_bytes = os.stat(path).st_size
    cpu_s = timeout_s + file_bytes / _BYTES_PER_S
    request = {"path": os.fspath(path), "kind": kind, "file_bytes": file_bytes}
    # An editable installation may find the package by other means than the path.
    folders = [*sys.path, os.path.dirname(os.path.dirname(vggjax.errors.__file__))]
    folders = [os.path.abspath(folder) for folder in folders if os.path.isdir(folder)]
    # No plugins of HDF5, and no threads of OpenBLAS, which would never be used.
    env = os.environ | {"HDF5_PLUGIN_PRELOAD": "::", "OPENBLAS_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-S", "-B", "-c", _CODE, json.dumps(folders)],
            input=json.dumps(request | {"cpu_s": int(cpu_s) + 1}).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=env,
            timeout=3 * cpu_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _too_slow(cpu_s) from None
    if done.returncode == -getattr(signal, "SIGXCPU", 0):
        raise _too_slow(cpu_s)
    if done.returncode == 1:  # Python's own, where all that goes wrong with a file is answered
        raise RuntimeError("the process that parses HDF5 files did not start")
    if done.returncode or not done.stdout:
        raise WeightsError(
            f"the HDF5 library crashed on it (exit status {done.returncode}). It is damaged; "
            f"download or write it again.",
            code="E_FORMAT",
        )
    return json.loads(done.stdout)


def _too_slow(seconds: float) -> WeightsError:
    return WeightsError(
        f"reading it took longer than {seconds:,.0f} s and was stopped. It is damaged or "
        f"malicious; download or write it again.",
        code="E_TIMEOUT",
    )


def _span(fields: dict[str, Any]) -> Span:
    kind = ChunkedSpan if "pieces" in fields else Span
    return kind(**{name: _tuples(value) for name, value in fields.items()})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


@contextlib.contextmanager
def _named(path: str | os.PathLike) -> Iterator[None]:
    """Put the file's path before every refusal that lacks it, and a way out behind it."""
    name = printable(path)
    try:
        yield
    except WeightsError as error:
        message = str(error)
        if name in message:
            raise
        way_out = "" if _HAS_WAY_OUT.search(message) else f" {_WAY_OUT}"
        raise WeightsError(f"{name}: {message}{way_out}", code=error.code) from None


def is_hdf5(path: str | os.PathLike) -> bool:
    """Return whether the file has HDF5's signature."""
    with open_regular(path) as file:
        return signature_start(file) is not None
