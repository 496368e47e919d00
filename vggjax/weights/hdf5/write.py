"""Opens HDF5 files for writing so that a full disk is an error: alone, HDF5 crashes on one."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import h5py


class Sink(io.RawIOBase):
    """A file that takes whatever HDF5 writes, and keeps the first failure for later."""

    def __init__(self, file: IO[bytes]):
        """Writes to `file`, which is open for reading, too."""
        super().__init__()
        self._file = file
        self.error: OSError | None = None

    def readable(self) -> bool:
        """Always: HDF5 reads what it wrote."""
        return True

    def writable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves, and gives the new place."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """The place."""
        return self._file.tell()

    def readinto(self, buffer: memoryview) -> int:
        """Fills the buffer, with zeros where a failure has left a hole."""
        count = self._file.readinto(buffer) or 0
        buffer[count:] = bytes(len(buffer) - count)
        return len(buffer)

    def write(self, buffer: memoryview) -> int:
        """Writes all of it, or keeps the failure; nothing more is written then."""
        rest = memoryview(buffer)
        try:
            while rest and self.error is None:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self.error = error
        return len(buffer)

    def truncate(self, size: int | None = None) -> int:
        """Sets the file's length, or keeps the failure."""
        size = self.tell() if size is None else size
        try:
            if self.error is None:
                self._file.truncate(size)
        except OSError as error:
            self.error = error
        return size


@contextlib.contextmanager
def create_hdf5(path: Path) -> Iterator[h5py.File]:
    """Makes a new HDF5 file, in place of one that was there.

    Raises:
        OSError: it cannot be written, as on a full disk; what is there of it is then worthless.
    """
    with open(path, "w+b", buffering=0) as file:
        sink = Sink(file)
        try:
            with h5py.File(sink, "w") as root:
                yield root
        finally:
            if sink.error is not None:
                raise sink.error from None
