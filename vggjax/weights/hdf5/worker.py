"""The process that parses HDF5 files and can be stopped, seen from outside.

Some damaged files hang or crash the HDF5 library, and no signal gets through to it. So another
process parses (reader_child.py, with numpy and h5py alone: 0.3 s), and is killed when it takes too
long. No file is written: what it finds comes through a pipe.
"""

import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

import vggjax.errors
from vggjax.errors import WeightsError
from vggjax.weights.tensor_spans import Span, to_float32

TIMEOUT_S = 10.0
"""So long a file may take, and a second more for each 20 MB."""

_START_S = 60.0
_BYTES_PER_S = 20e6
_MAX_ANSWER_BYTES = 2**24
_CODE = """
import json, sys, types
sys.path[:] = json.loads(sys.argv[1])
package = types.ModuleType("vggjax")
package.__path__ = [sys.argv[2]]
sys.modules["vggjax"] = package
from vggjax.weights.hdf5.worker_child import serve
serve(sys.stdin.buffer, sys.stdout.buffer)
"""  # the package without its __init__, which would bring jax


class Reader:
    """The other process. Starts when it is asked for the first time, and anew when it has ended."""

    def __init__(self, *, timeout_s: float = TIMEOUT_S):
        """Takes the time that a small file may take."""
        self._timeout_s = timeout_s
        self._process: subprocess.Popen | None = None
        self._late = False
        self._seconds = timeout_s
        self._waits = False  # the process has parsed a file, and waits for what to unpack

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def find(self, path: str | os.PathLike, kind: str) -> dict[str, Any]:
        """Parses a file: its `layers` as spans' fields, its `facts` and `remarks`.

        Raises:
            WeightsError: refused, too slow, or the process crashed on it.
        """
        size_bytes = os.stat(path).st_size
        self._seconds = self._timeout_s + size_bytes / _BYTES_PER_S
        if self._waits:
            self.unpack([])
        if self._process is None:
            self._start()
        request = {"path": os.fspath(path), "kind": kind, "bytes": size_bytes}
        request["seconds"] = int(self._seconds) + 2
        with self._within(self._seconds):
            self._ask(request)
            answer = self._answer()
        self._waits = True
        return answer

    def unpack(self, spans: list[Span]) -> dict[str, np.ndarray]:
        """Gives the numbers of packed arrays of the file that was parsed last, as float32.

        Raises:
            WeightsError: as `find`; or the numbers are not finite.
        """
        arrays, self._waits = {}, False
        try:
            with self._within(self._seconds):
                self._ask([span.where for span in spans])
                for span in spans:
                    array = np.empty(span.shape, span.dtype)
                    self._fill(array)
                    arrays[span.where] = to_float32(array, span.where)
                self._answer()
        except WeightsError:
            self._end()  # the rest of the numbers is still in the pipe
            raise
        return arrays

    def _start(self) -> None:
        folders = [os.path.abspath(folder) for folder in sys.path if os.path.isdir(folder)]
        package = os.path.dirname(vggjax.errors.__file__)
        # No plugins of HDF5, no threads that nobody needs.
        env = os.environ | {"HDF5_PLUGIN_PRELOAD": "::", "OPENBLAS_NUM_THREADS": "1"}
        self._late = False
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-B", "-c", _CODE, json.dumps(folders), package],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=env,
        )
        with self._within(_START_S):
            try:
                self._answer()
            except WeightsError:
                raise RuntimeError("the process that reads HDF5 files did not start") from None

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process, self._waits = None, False

    @contextlib.contextmanager
    def _within(self, seconds: float) -> Iterator[None]:
        """Kills the process when the time is up; whoever waits for its answer then sees its end."""

        def stop() -> None:
            self._late = True
            process.kill()

        process = self._process
        timer = threading.Timer(seconds, stop)
        timer.daemon = True
        timer.start()
        try:
            yield
        except WeightsError:
            raise
        except BaseException:
            self._end()  # perhaps in the midst of an answer
            raise
        finally:
            timer.cancel()

    def _ask(self, message: object) -> None:
        with contextlib.suppress(BrokenPipeError):  # its end is seen when the answer is read
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        kind, length = self._frame()
        if kind != b"J" or length > _MAX_ANSWER_BYTES:
            raise self._ended()
        answer = json.loads(self._bytes(length))
        if "error" in answer:
            raise WeightsError(answer["error"], code=answer["code"])
        if "bug" in answer:
            raise RuntimeError(answer["bug"])
        return answer

    def _fill(self, array: np.ndarray) -> None:
        rest = memoryview(array.reshape(-1).view(np.uint8))
        while rest:
            kind, length = self._frame()
            if kind == b"J":
                answer = json.loads(self._bytes(min(length, _MAX_ANSWER_BYTES)))
                raise WeightsError(answer["error"], code=answer["code"])
            if length > len(rest) or self._process.stdout.readinto(rest[:length]) != length:
                raise self._ended()
            rest = rest[length:]

    def _frame(self) -> tuple[bytes, int]:
        head = self._bytes(9)
        return head[:1], struct.unpack(">Q", head[1:])[0]

    def _bytes(self, length: int) -> bytes:
        got = self._process.stdout.read(length)
        if len(got) != length:
            raise self._ended()
        return got

    def _ended(self) -> WeightsError:
        """Says why there is no answer: stopped, or crashed."""
        process, late = self._process, self._late
        self._end()
        if late or process.returncode == -getattr(signal, "SIGXCPU", 0):
            return WeightsError(
                f"reading it took longer than {self._seconds:,.0f} s and was stopped. It is "
                f"damaged or made to hang; fetch or write it again.",
                code="E_TIMEOUT",
            )
        return WeightsError(
            f"the HDF5 library crashed on it (exit status {process.returncode}). It is damaged; "
            f"fetch or write it again.",
            code="E_FORMAT",
        )
