"""Parse one Keras file in a process of its own: read a request from stdin, write a JSON answer.

keras/read.py starts the process. It imports only numpy and h5py beside the standard library, has
little memory and time, and cannot write to any file.
"""

import contextlib
import dataclasses
import io
import json
import sys
import traceback
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

from vggjax.errors import WeightsError, join_names, printable
from vggjax.weights.archive import member_start, open_archive
from vggjax.weights.hdf5.read import CheckedFile, open_hdf5
from vggjax.weights.hdf5.unpack import signature_start
from vggjax.weights.keras.layers import find_layers, read_metadata, refuse_code
from vggjax.weights.keras.pixels import find_preprocessing
from vggjax.weights.keras.write import MEMBER
from vggjax.weights.tensor_spans import Readable

MEMORY_BYTES = 2**29
"""What parsing may allocate beyond what the process has at its start."""

_MAX_COMPRESSED_MEMBER_BYTES = 2**30
_MAX_CONFIGURATION_BYTES = 2**24
_MAX_ANSWER_BYTES = 2**24
_BLOCK_BYTES = 2**20


class _Window(io.RawIOBase):
    """A range of bytes of a file, as a file of its own that h5py can read."""

    def __init__(self, file: Readable, *, start: int, size: int):
        super().__init__()
        self._file, self._start, self._size, self._position = file, start, size, 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origins = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}
        self._position = origins[whence] + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        # HDF5 expects the whole buffer.
        if self._position < 0 or self._position + len(buffer) > self._size:
            raise OSError("truncated")
        self._file.seek(self._start + self._position)
        if self._file.readinto(buffer) != len(buffer):
            raise OSError("truncated")
        self._position += len(buffer)
        return len(buffer)


@contextlib.contextmanager
def open_keras(path: str, kind: str) -> Iterator[tuple[CheckedFile, bool, bytes]]:
    """Yield a file of `kind` (see read.py), and whether its weights are compressed in an archive.

    The third value is the configuration in an archive, empty for other files.

    The arrays' positions then count from the first byte of the weights.
    """
    if kind == "h5":
        with open(path, "rb", buffering=0) as disk:
            start, size_bytes = signature_start(disk) or 0, disk.seek(0, io.SEEK_END)
            # HDF5 opens a path itself, which respects the locks of other programs. A user block is
            # hidden: versions of HDF5 differ in whether the address of a chunk counts it.
            source = _Window(disk, start=start, size=size_bytes - start) if start else path
            with open_hdf5(source, offset=start) as file:
                yield file, False, b""
        return
    with open(path, "rb", buffering=0) as disk, open_archive(disk) as archive:
        members = {member.filename: member for member in archive.infolist()}
        if MEMBER not in members:
            raise WeightsError(f"it is an archive without {MEMBER}.", code="E_ZIP")
        configuration = b""
        if "config.json" in members:
            if (size := members["config.json"].file_size) > _MAX_CONFIGURATION_BYTES:
                raise WeightsError(f"its config.json has {size:,} bytes.", code="E_BOMB")
            refuse_code(configuration := archive.read("config.json"))
        contents, offset = _weights_member(disk, archive, members[MEMBER])
        try:
            if signature_start(contents) != 0:
                raise WeightsError("it is not an HDF5 file.", code="E_FORMAT")
            with open_hdf5(contents, offset=offset or 0) as file:
                yield file, offset is None, configuration
        except WeightsError as error:
            raise WeightsError(f"{MEMBER}: {error}", code=error.code) from None


def _weights_member(
    disk: io.FileIO, archive: zipfile.ZipFile, member: zipfile.ZipInfo
) -> tuple[_Window, int | None]:
    """Return the member's contents, and their position in the archive, None if compressed."""
    compressed = member.compress_type != zipfile.ZIP_STORED
    if compressed and member.file_size > _MAX_COMPRESSED_MEMBER_BYTES:
        raise WeightsError(
            f"its {MEMBER} unpacks to {member.file_size:,} bytes; only up to "
            f"{_MAX_COMPRESSED_MEMBER_BYTES:,} may be compressed.",
            code="E_BOMB",
        )
    memory, length = io.BytesIO(), 0
    with archive.open(member) as source:  # reading to the end verifies the checksum
        while block := source.read(_BLOCK_BYTES):
            length += len(block)
            if compressed:
                memory.write(block)
    if length != member.file_size:
        raise zipfile.BadZipFile(f"{MEMBER} is {length:,} bytes instead of {member.file_size:,}")
    if compressed:
        return _Window(memory, start=0, size=length), None
    start = member_start(disk, member)
    return _Window(disk, start=start, size=length), start


def limit(cpu_s: int, file_bytes: int) -> None:
    """Limit this process's memory and its CPU time from now on, and forbid it to write files."""
    try:
        import resource
    except ImportError:  # on Windows the parent's timeout is the only limit
        return
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        used = resource.getrusage(resource.RUSAGE_SELF)
        seconds = int(used.ru_utime + used.ru_stime) + cpu_s
        # The system stops this process even if the parent was killed.
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
    with contextlib.suppress(OSError, ValueError), open("/proc/self/statm") as sizes:
        pages = int(sizes.read().split()[0])
        max_bytes = pages * resource.getpagesize() + MEMORY_BYTES + file_bytes
        resource.setrlimit(resource.RLIMIT_AS, (max_bytes, resource.RLIM_INFINITY))


def parse(path: str, kind: str) -> dict[str, Any]:
    """Return what a file holds, without its numbers, ready for JSON.

    `layers` maps layer -> parameter -> the fields of a `Span` or a `ChunkedSpan`.
    """
    try:
        with open_keras(path, kind) as (file, compressed, configuration):
            found = find_layers(file)
            configuration = configuration or found.configuration
            mode, doubt = find_preprocessing(configuration)
            if found.scaling and not configuration:
                names = printable(join_names(found.scaling))
                doubt = f"the model had {names}, which may have scaled its own pixels"
            for layer, numbers in found.scaling.items():
                if doubt and numbers:
                    doubt += f" ({numbers})"
                if numbers or not configuration:
                    found.left_out.append(
                        f"left out {printable(layer)}, which may have scaled the model's own "
                        f"pixels ({numbers or 'how is not in this file'}): set `preprocess`"
                    )
            return {
                "layout": "archive" if kind == "keras" else found.layout,
                "preprocess": (mode, doubt),
                "metadata": read_metadata(file.root),
                "packed_bytes": file.root.id.get_filesize() if compressed else None,
                "left_out": found.left_out,
                "layers": {
                    layer: {param: dataclasses.asdict(span) for param, span in params.items()}
                    for layer, params in found.layers.items()
                },
            }
    except (OSError, MemoryError, zlib.error) as error:
        code = "E_BOMB" if isinstance(error, MemoryError) else "E_FORMAT"
        message = f"it cannot be read: {printable(error) or 'it is too large'}."
        raise WeightsError(message, code=code) from None


def answer(path: str, kind: str) -> str:
    """Return the JSON of what `parse` returns, or of the error that it raises."""
    try:
        message = json.dumps(parse(path, kind))
        if len(message) > _MAX_ANSWER_BYTES:
            raise WeightsError("it has far more layers and chunks than a VGG.", code="E_BOMB")
        return message
    except WeightsError as error:
        return json.dumps({"error": str(error), "code": error.code})
    except Exception:  # the parent raises it
        return json.dumps({"bug": traceback.format_exc()})


def main() -> None:
    """Answer the one request on stdin."""
    request = json.load(sys.stdin)
    limit(request["cpu_s"], request["file_bytes"])
    sys.stdout.write(answer(request["path"], request["kind"]))
