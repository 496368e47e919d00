"""Parse Keras' files, `.h5`, `.weights.h5` and `.keras`, in another process.

Some damaged files hang or crash the HDF5 library, and no signal can interrupt it. So one process a
file (child.py; numpy and h5py alone, 0.2 s) parses, and is killed when it takes too long. It
answers with the layers and where their arrays lie. This process checks that, lets the caller check
the shapes, and reads the numbers from the file itself. No file is written, no code in the file is
run, and no Keras model is rebuilt.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any, Literal

import vggjax.errors
from vggjax.errors import WeightsError
from vggjax.weights.hdf5.unpack import ChunkedSpan
from vggjax.weights.keras.write import MEMBER
from vggjax.weights.layout import AS_IS
from vggjax.weights.parsed_file import FileInfo, ParsedFile
from vggjax.weights.tensor_spans import Span, check_spans

Kind = Literal["h5", "keras"]
"""HDF5 in any of Keras' layouts, or a `.keras` archive."""

TIMEOUT_S = 10.0
"""CPU time for parsing a file, with a second more for each 20 MB; three times that in all."""

_BYTES_PER_S = 20e6
_CODE = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from vggjax.weights.keras.child import main
main()
"""


def parse_keras(path: str | os.PathLike, kind: Kind) -> ParsedFile:
    """Find the layers of a Keras file and check where their arrays lie; read no number."""
    answer = run_child(path, kind)
    if "error" in answer:
        raise WeightsError(answer["error"], code=answer["code"])
    if "bug" in answer:
        raise RuntimeError(answer["bug"])
    layers = {
        layer: {param: (_span(fields), AS_IS) for param, fields in params.items()}
        for layer, params in answer["layers"].items()
    }
    packed_bytes = answer["packed_bytes"]
    size_bytes = os.stat(path).st_size if packed_bytes is None else packed_bytes
    spans = (span for params in layers.values() for span, _ in params.values())
    check_spans(spans, size_bytes=size_bytes)
    info = FileInfo(f"Keras, {answer['layout']}", answer["metadata"], *answer["preprocess"])
    member = None if packed_bytes is None else MEMBER
    return ParsedFile(info, layers, answer["left_out"], member)


def run_child(path: str | os.PathLike, kind: Kind, *, timeout_s: float = TIMEOUT_S) -> Any:
    """Parse a file in another process, and return its answer (see child.py)."""
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
    if done.returncode == 1:  # an error of Python itself; errors about the file are in the answer
        raise RuntimeError("the process that parses HDF5 files did not start")
    if done.returncode or not done.stdout:
        raise WeightsError(
            f"it is damaged: the HDF5 library crashed on it (exit status {done.returncode}).",
            code="E_FORMAT",
        )
    return json.loads(done.stdout)


def _too_slow(seconds: float) -> WeightsError:
    return WeightsError(
        f"reading it took longer than {seconds:,.0f} s and was stopped.", code="E_TIMEOUT"
    )


def _span(fields: dict[str, Any]) -> Span:
    kind = ChunkedSpan if "pieces" in fields else Span
    return kind(**{name: _tuples(value) for name, value in fields.items()})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
