"""The storage of one split's features: in memory, or in a .npy file that is mapped when complete.

Rows are appended in order. A file has a record beside it, written after the data has reached the
disk: a killed run continues from it, an incomplete file is never used as a complete one, and the
record's checksum reveals later damage. Files are named by `feature_key`,
a hash of everything that their values depend on.
"""

import io
import math
import os
import time
import zlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from vggjax.errors import VggjaxError, printable
from vggjax.training.run_dir.checked_json import read_json, write_json

RECORD_EVERY_S = 10.0


class Store:
    """Rows of features in memory; `done` counts those that were appended."""

    def __init__(self, shape: tuple[int, ...], dtype: str):
        self._shape, self._dtype = shape, jnp.dtype(dtype)
        self._array: np.ndarray | None = None
        self.done = 0
        self.masked: set[int] = set()
        """Positions of rows without a readable image."""
        self.unreadable: dict[int, str] = {}

    @property
    def is_complete(self) -> bool:
        """Whether all rows were appended."""
        return self.done == self._shape[0]

    def append(self, rows: np.ndarray, masked: Iterable[int], unreadable: dict[int, str]) -> None:
        """Append rows, and record the masked positions and unreadable images among them.

        Raises:
            VggjaxError: the file cannot be written, as on a full disk.
        """
        self._write(rows)
        self.done += len(rows)
        self.masked.update(masked)
        self.unreadable.update(unreadable)

    def rows(self) -> np.ndarray:
        """Return all rows of a complete store."""
        assert self.is_complete and self._array is not None
        return self._array

    def save(self) -> None:
        """Make the rows outlive the process, if the store can."""

    def close(self) -> None:
        """Close the store and keep what was saved."""

    def discard(self) -> None:
        """Delete what was saved."""

    def _write(self, rows: np.ndarray) -> None:
        if self._array is None:
            self._array = np.empty(self._shape, self._dtype)
        self._array[self.done : self.done + len(rows)] = rows


class FileStore(Store):
    """Rows in the .npy file `path`, with a record of their number and checksum in `path`.json.

    bfloat16, which .npy does not have, is stored as uint16.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: str):
        super().__init__(shape, dtype)
        self._path = path
        self._stored = np.dtype(np.uint16) if self._dtype == jnp.bfloat16 else self._dtype
        self._row_bytes = math.prod(shape[1:]) * self._stored.itemsize
        header, descr = io.BytesIO(), np.lib.format.dtype_to_descr(self._stored)
        fields = {"descr": descr, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_2_0(header, fields)
        self._header = header.getvalue()
        self._record = path.with_name(f"{path.name}.json")
        self.done, self.masked, self.unreadable, self._crc = self._read_record()
        self._file: Any = None
        self._saved_s = time.monotonic()

    def append(self, rows: np.ndarray, masked: Iterable[int], unreadable: dict[int, str]) -> None:
        """Append rows, and save them from time to time."""
        super().append(rows, masked, unreadable)
        if self.is_complete or time.monotonic() - self._saved_s > RECORD_EVERY_S:
            self.save()

    def save(self) -> None:
        """Write the rows and their record to the disk, to survive the end of the process."""
        if self._file is None:
            return
        record = {
            "rows": self.done,
            "crc32": self._crc,
            "masked": sorted(self.masked),
            "unreadable": {str(i): reason for i, reason in self.unreadable.items()},
        }
        try:
            self._file.flush()
            os.fsync(self._file.fileno())  # before the record, which must never be ahead
            write_json(self._record, record)
        except OSError as error:
            raise self._write_error(error) from error
        self._saved_s = time.monotonic()
        if self.is_complete:
            self.close()

    def rows(self) -> np.ndarray:
        """Map all rows of a complete store."""
        assert self.is_complete
        return np.load(self._path, mmap_mode="r").view(self._dtype)

    def close(self) -> None:
        """Close the file and keep it."""
        if self._file is None:
            return
        file, self._file = self._file, None
        try:
            file.close()
        except OSError as error:  # it writes what is buffered
            raise self._write_error(error) from error

    def discard(self) -> None:
        """Delete the file, its record, and the folder if it is empty."""
        self.close()
        self._record.unlink(missing_ok=True)
        self._path.unlink(missing_ok=True)
        with suppress(OSError):  # it holds another stage's files, or is gone already
            self._path.parent.rmdir()

    def _write(self, rows: np.ndarray) -> None:
        data = np.ascontiguousarray(rows).view(np.uint8).data
        try:
            if self._file is None:
                self._open()
            self._file.write(data)
        except OSError as error:
            raise self._write_error(error) from error
        self._crc = zlib.crc32(data, self._crc)

    def _open(self) -> None:
        if self.done == 0:
            self._file = self._create()
            self._file.write(self._header)
            return
        self._file = self._path.open("r+b")
        # Beyond the record's rows there may be part of a row.
        self._file.truncate(len(self._header) + self.done * self._row_bytes)
        self._file.seek(0, os.SEEK_END)

    def _create(self) -> Any:
        while True:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                return self._path.open("wb")
            except FileNotFoundError:
                if self._path.parent.is_dir():
                    raise
                # Another process of this run has deleted the empty folder in between.

    def _read_record(self) -> tuple[int, set[int], dict[int, str], int]:
        """Return what an earlier process saved; nothing if it is damaged."""
        try:
            record = read_json(self._record)
            done, masked = int(record["rows"]), set(record["masked"])
            unreadable = {int(i): reason for i, reason in record["unreadable"].items()}
            if 0 <= done <= self._shape[0] and self._checksum(done) == record["crc32"]:
                return done, masked, unreadable, record["crc32"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        return 0, set(), {}, 0

    def _checksum(self, done: int) -> int | None:
        """Return the checksum of the first rows; None if the header differs or rows are missing."""
        crc, left = 0, done * self._row_bytes
        with self._path.open("rb") as file:
            if file.read(len(self._header)) != self._header:
                return None
            while left:
                data = file.read(min(left, 2**24))
                if not data:
                    return None
                crc, left = zlib.crc32(data, crc), left - len(data)
        return crc

    def _write_error(self, error: OSError) -> VggjaxError:
        return VggjaxError(
            f"The features cannot be written to {printable(self._path.parent)}: "
            f"{error.strerror or error}. Make room on the disk, or set `cache_features` to off; "
            "the same command continues from here."
        )


def is_bfloat16(path: Path) -> bool:
    """Return whether a file of features holds bfloat16; a damaged one is taken to hold none."""
    try:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            return np.lib.format.read_array_header_2_0(file)[2] == np.uint16
    except (OSError, ValueError):
        return False
