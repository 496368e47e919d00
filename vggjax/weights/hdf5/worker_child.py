"""What runs in the process of reader.py: finds the layers of Keras' files, and unpacks arrays.

Says how it gives its answers, too. A frame is its kind (`J` JSON, `D` data), 8 bytes of length and
the contents. It starts without the package's `__init__`, and with it jax: numpy and h5py are all
that it needs.
"""

import contextlib
import io
import json
import traceback
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO

from vggjax.errors import WeightsError, printable
from vggjax.weights.archive import member_start, open_archive
from vggjax.weights.hdf5.read import Hdf5, open_hdf5
from vggjax.weights.keras.layers import facts, find_layers, refuse_code

MEMBER = "model.weights.h5"
MEMORY_BYTES = 2**29
"""What reading may take beyond what the process has when it starts, and the file's own size."""

_MAX_MEMORY_MEMBER_BYTES = 2**30
_PIECE_BYTES = 2**20
_MAX_CONFIGURATION_BYTES = 2**24


class Window(io.RawIOBase):
    """Some bytes in the midst of a file, or of memory, as a file that h5py reads."""

    def __init__(self, source: IO[bytes] | memoryview, *, start: int, size: int):
        """Shows `size` bytes from `start`."""
        super().__init__()
        self._source, self._start, self._size, self._at = source, start, size, 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves, and gives the new place."""
        self._at = offset + {io.SEEK_CUR: self._at, io.SEEK_END: self._size}.get(whence, 0)
        return self._at

    def tell(self) -> int:
        """The place."""
        return self._at

    def readinto(self, buffer: memoryview) -> int:
        """Fills the buffer whole, as HDF5 takes for granted.

        Raises:
            OSError: the window ends before.
        """
        if self._at < 0 or self._at + len(buffer) > self._size:
            raise OSError("truncated")
        start = self._start + self._at
        if isinstance(self._source, memoryview):
            buffer[:] = self._source[start : start + len(buffer)]
        else:
            self._source.seek(start)
            if self._source.readinto(buffer) != len(buffer):
                raise OSError("truncated")
        self._at += len(buffer)
        return len(buffer)


@contextlib.contextmanager
def open_keras(path: str, kind: str) -> Iterator[tuple[Hdf5, dict[str, str]]]:
    """Opens an `h5` or an archive's weights; gives what else the archive says of itself, too."""
    if kind == "h5":
        with open_hdf5(path) as file:
            yield file, facts(file.root)
        return
    with open(path, "rb") as disk, open_archive(disk) as archive:
        found = {member.filename: member for member in archive.infolist()}
        if MEMBER not in found:
            raise WeightsError(
                f"it is a zip archive without {MEMBER}; a .keras file has one.", code="E_ZIP"
            )
        if "config.json" in found:
            refuse_code(_small(archive, found["config.json"]))
        own = _own_facts(archive, found.get("vggjax.json"))
        member = found[MEMBER]
        window, shift = _contents(disk, archive, member)
        try:
            with open_hdf5(window, shift=shift) as file:
                yield file, own | facts(file.root)
        except WeightsError as error:
            raise WeightsError(f"{MEMBER}: {error}", code=error.code) from None


def _contents(
    disk: IO[bytes], archive: zipfile.ZipFile, member: zipfile.ZipInfo
) -> tuple[Window, int | None]:
    """Reads the member to its end, and so its checksum; keeps it only where it was compressed."""
    stored = member.compress_type == zipfile.ZIP_STORED
    if not stored and member.file_size > _MAX_MEMORY_MEMBER_BYTES:
        raise WeightsError(
            f"its {MEMBER} unpacks to {member.file_size:,} bytes, more than "
            f"{_MAX_MEMORY_MEMBER_BYTES:,}. Pack it without compression.",
            code="E_BOMB",
        )
    memory = memoryview(bytearray(0 if stored else member.file_size))
    length = 0
    with archive.open(member) as source:
        while piece := source.read(_PIECE_BYTES):
            if not stored:
                memory[length : length + len(piece)] = piece
            length += len(piece)
    if length != member.file_size:
        raise zipfile.BadZipFile(f"{MEMBER} is {length:,} bytes instead of {member.file_size:,}")
    if stored:
        start = member_start(disk, member)
        return Window(disk, start=start, size=length), start
    return Window(memory, start=0, size=length), None


def _own_facts(archive: zipfile.ZipFile, member: zipfile.ZipInfo | None) -> dict[str, str]:
    try:
        found = json.loads(_small(archive, member)) if member else {}
    except (ValueError, RecursionError):
        return {}
    items = found.items() if isinstance(found, dict) else ()
    return {key: value for key, value in items if isinstance(value, str)}


def _small(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    if member.file_size > _MAX_CONFIGURATION_BYTES:
        raise WeightsError(
            f"its {printable(member.filename)} is {member.file_size:,} bytes long.", code="E_BOMB"
        )
    return archive.read(member)


def limit(cpu_s: int, file_bytes: int) -> None:
    """Bounds what this process may take: memory, time on the processor, and no file to write."""
    try:
        import resource
    except ImportError:  # Windows has none; there the time alone is bounded, by the parent
        return
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        used = resource.getrusage(resource.RUSAGE_SELF)
        seconds = int(used.ru_utime + used.ru_stime) + cpu_s
        # A parent that was killed stops nobody: the system does.
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
    with contextlib.suppress(OSError, ValueError), open("/proc/self/statm") as sizes:
        now = int(sizes.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(
            resource.RLIMIT_AS, (now + MEMORY_BYTES + file_bytes, resource.RLIM_INFINITY)
        )


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answers one request after another until there are no more."""

    def send(kind: bytes, contents: bytes | memoryview) -> None:
        answers.write(kind + len(contents).to_bytes(8, "big"))
        answers.write(contents)
        answers.flush()

    def tell(**message: object) -> None:
        send(b"J", json.dumps(message).encode())

    tell(ready=True)
    for line in requests:
        request = json.loads(line)
        limit(request["seconds"], request["bytes"])
        try:
            with open_keras(request["path"], request["kind"]) as (file, own):
                layout, layers, remarks = find_layers(file)
                tell(
                    facts=own | {"layout": "archive" if request["kind"] == "zip" else layout},
                    remarks=remarks,
                    layers={
                        layer: {
                            param: [span.where, span.shape, span.dtype, span.start]
                            for param, span in params.items()
                        }
                        for layer, params in layers.items()
                    },
                )
                for where in json.loads(requests.readline()):
                    for piece in file.unpack(where):
                        send(b"D", memoryview(piece.reshape(-1).view("u1")))
                tell(done=True)
        except WeightsError as error:
            tell(error=str(error), code=error.code)
        except (OSError, MemoryError, zlib.error) as error:
            code = "E_BOMB" if isinstance(error, MemoryError) else "E_FORMAT"
            tell(error=f"it cannot be read: {printable(error) or 'too large'}.", code=code)
        except Exception:  # a bug, which the parent reports as one
            tell(bug=traceback.format_exc())
