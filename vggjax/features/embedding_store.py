"""Collect vectors as they come, in parts on the disk that outlast a kill, and join them at the end.

`photos.npz` is collected in the folder `photos.npz.parts`: a file for every 16 MB of vectors, or
every minute, each whole or not there, with the names of the images and those that were left out. A
later call with the same model goes on after them. The final file is written from the parts one
after the other, so that memory does not grow with their number; then the folder is deleted.
"""

import itertools
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vggjax.atomic import atomic_write, write_text
from vggjax.data.stream.known import NameIndex
from vggjax.errors import ConfigError, printable
from vggjax.features.embeddings import Chunk, write_embeddings

PART_BYTES = 16 * 2**20
"""Of a part's vectors."""

PART_S = 60.0
"""What is not in a part yet is at most this old, or a batch."""

_METADATA = "metadata.json"


class EmbeddingStore:
    """The vectors of one file of embeddings while it is made.

    Args:
        path: the file.
        metadata: what it says of the model; an earlier call must have had the same.
        width: D of the vectors.

    Raises:
        ConfigError: the parts are of another model.
    """

    def __init__(self, path: Path, metadata: Mapping[str, Any], width: int):
        self.path, self.count, self.num_left_out = path, 0, 0
        self.first_left_out = Path(), ""
        """With its reason."""
        self._folder = path.with_name(f"{path.name}.parts")
        self._metadata, self._width = dict(metadata), width
        self._longest = 1
        """Characters of the longest name."""
        self._begin_part()
        self._check_metadata()
        self.known = NameIndex((name, 0) for name in self._known_names())
        """Printable paths of what earlier calls embedded or left out."""
        self._num_parts = len(self._parts())

    def add(self, path: Path, vector: np.ndarray) -> None:
        """Add an image's vector, float32 (D,)."""
        self._names.append(printable(path))
        self._rows.append(vector)
        self._count(self._names[-1])
        is_full = len(self._rows) * self._width * 4 >= PART_BYTES
        if is_full or time.monotonic() - self._begun_s >= PART_S:
            self._write_part()

    def leave_out(self, path: Path, reason: str) -> None:
        """Add an image that has no vector, with its reason."""
        self._left_out.append((printable(path), reason))
        self._count_left_out(path, reason)

    def finish(self) -> None:
        """Write the file from all parts, whole or not at all, and delete the parts.

        Raises:
            ConfigError: it cannot be written, or `.parquet` lacks pyarrow.
        """

        def chunks() -> Iterator[Chunk]:
            for part in self._parts():
                with np.load(part, allow_pickle=False) as arrays:
                    yield arrays["names"].tolist(), arrays["vectors"]
            if self._rows:
                yield self._names, np.array(self._rows, np.float32)

        shape = self.count, self._width
        write_embeddings(self.path, chunks, self._metadata, shape=shape, longest=self._longest)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _write_part(self) -> None:
        try:
            if not self._num_parts:
                self._folder.mkdir(exist_ok=True)
                write_text(self._folder / _METADATA, json.dumps(self._metadata) + "\n")
            path = self._folder / f"{self._num_parts:06}.npz"
            with atomic_write(path) as temporary, open(temporary, "wb") as file:
                left_out = np.array(self._left_out, np.str_).reshape(-1, 2)
                vectors = np.array(self._rows, np.float32)
                np.savez(file, names=np.array(self._names), vectors=vectors, left_out=left_out)
        except OSError as error:
            raise ConfigError(
                f"Cannot write {printable(self._folder)}: {error.strerror or error}."
            ) from None
        self._num_parts += 1
        self._begin_part()

    def _begin_part(self) -> None:
        self._names: list[str] = []
        self._rows: list[np.ndarray] = []
        self._left_out: list[tuple[str, str]] = []
        self._begun_s = time.monotonic()

    def _parts(self) -> list[Path]:
        return sorted(self._folder.glob("[0-9]*.npz"))

    def _known_names(self) -> Iterator[str]:
        for part in self._parts():
            with np.load(part, allow_pickle=False) as arrays:
                names, left_out = arrays["names"].tolist(), arrays["left_out"].tolist()
            for name, reason in left_out:
                self._count_left_out(Path(name), reason)
            for name in names:
                self._count(name)
            yield from itertools.chain(names, (name for name, _ in left_out))

    def _count(self, name: str) -> None:
        self.count += 1
        self._longest = max(self._longest, len(name))

    def _count_left_out(self, path: Path, reason: str) -> None:
        if not self.num_left_out:
            self.first_left_out = path, reason
        self.num_left_out += 1

    def _check_metadata(self) -> None:
        path = self._folder / _METADATA
        if not (path.exists() or self._parts()):
            return
        try:
            known = json.loads(path.read_text())
        except (OSError, ValueError):
            known = None
        if known != json.loads(json.dumps(self._metadata)):
            raise ConfigError(
                f"{printable(self._folder)} has vectors of another model or layer, by a call that "
                "was ended. Give the settings of that call, or another `out`, or delete it."
            )
