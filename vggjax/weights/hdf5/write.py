"""Write HDF5 files such that a full disk is an `OSError`; the HDF5 library alone would crash."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import h5py


class _Sink(io.FileIO):
    """A file that accepts whatever HDF5 writes, and keeps the first failure in `error`."""

    error: OSError | None = None

    def readinto(self, buffer: Any) -> int:
        """Fill the whole buffer, with zeros where a failure has left a hole."""
        count = super().readinto(buffer) or 0
        buffer[count:] = bytes(len(buffer) - count)
        return len(buffer)

    def write(self, buffer: Any) -> int:
        """Write the whole buffer, or nothing once something has failed."""
        rest = memoryview(buffer)
        try:
            while rest and self.error is None:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.error = error
        return len(buffer)

    def truncate(self, size: int | None = None) -> int:
        """Set the file's length, or do nothing once something has failed."""
        size = self.tell() if size is None else size
        try:
            if self.error is None:
                super().truncate(size)
        except OSError as error:
            self.error = error
        return size


@contextlib.contextmanager
def create_hdf5(path: Path) -> Iterator[h5py.File]:
    """Create an HDF5 file, or replace one.

    Raises:
        OSError: it cannot be written, as on a full disk; the file is then unusable.
    """
    import h5py

    with _Sink(path, "w+") as sink:
        try:
            with h5py.File(sink, "w") as root:
                yield root
        finally:
            if sink.error is not None:
                raise sink.error from None
