"""Files of embeddings: a vector for each image, with the model and preprocessing that made them.

`.npz` has the arrays `names` (N,), `vectors` float32 (N, D) and `metadata`, one JSON text;
`.parquet` has the columns `name` and `vector`, and the same text in its metadata.
"""

import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from vggjax.atomic import atomic_write
from vggjax.errors import ConfigError, DataError, printable

ENDINGS = (".npz", ".parquet")

Chunk: TypeAlias = tuple[Sequence[str], np.ndarray]
"""Names, and vectors float32 (n, D)."""


@dataclass(frozen=True)
class Embeddings:
    """Vectors of images, in one order."""

    names: tuple[str, ...]
    """(N,), printable paths."""
    vectors: np.ndarray
    """float32 (N, D)."""
    metadata: Mapping[str, Any]
    """`model`, `weights`, `layer`, `pool`, `preprocessing` ..., and the `folder` where it was
    made, relative to the file."""
    folder: Path = Path()
    """What relative names start from: where the file was made, or the current folder."""

    def name_of(self, path: Path) -> str | None:
        """Return an image's name here, or None, from whichever folder its path is given."""
        names = [relative_path(path, self.folder), os.path.abspath(path)]
        if not (self.folder / path).exists():  # the file has moved without the images
            names.append(str(path))
        return next((name for name in map(printable, names) if name in self._name_set), None)

    @cached_property
    def _name_set(self) -> frozenset[str]:
        return frozenset(self.names)

    def unit_vectors(self) -> np.ndarray:
        """Return the vectors divided by their norms; zeros stay zeros."""
        norms = np.linalg.norm(self.vectors, axis=1, keepdims=True)
        return self.vectors / np.where(norms > 0, norms, 1)

    def write(self, path: Path) -> None:
        """Write the file, by its ending, whole or not at all.

        Raises:
            ConfigError: it cannot be written, or `.parquet` lacks pyarrow.
        """
        write_embeddings(
            path,
            lambda: iter([(self.names, self.vectors)]),
            self.metadata,
            shape=self.vectors.shape,
            longest=max(map(len, self.names), default=1),
        )


def relative_path(path: Path, folder: Path) -> str:
    """Return a path as seen from a folder, whole where that is on another drive of Windows."""
    try:
        return os.path.relpath(path, folder)
    except ValueError:
        return os.path.abspath(path)


def write_embeddings(
    path: Path,
    chunks: Callable[[], Iterator[Chunk]],
    metadata: Mapping[str, Any],
    *,
    shape: tuple[int, ...],
    longest: int,
) -> None:
    """Write a file of embeddings by its ending, whole or not at all, a chunk at a time.

    Args:
        path: the file.
        chunks: returns the names and vectors float32 (n, D) of consecutive images; it is called
            twice.
        metadata: as of `Embeddings`.
        shape: (N, D).
        longest: characters of the longest name.

    Raises:
        ConfigError: it cannot be written, or `.parquet` lacks pyarrow.
    """
    text = json.dumps(dict(metadata))
    try:
        with atomic_write(path, sync=True) as temporary:
            if path.suffix.lower() == ".parquet":
                _write_parquet(temporary, chunks(), text, shape[1])
            else:
                _write_npz(temporary, chunks, text, shape, longest)
    except OSError as error:
        raise ConfigError(f"Cannot write {printable(path)}: {error.strerror or error}.") from None


def read_embeddings(path: str | os.PathLike[str]) -> Embeddings:
    """Read a file that `Embeddings.write` wrote.

    Raises:
        DataError: there is no such file, or it holds no embeddings.
        ConfigError: `.parquet` lacks pyarrow.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(
            f"There is no file {printable(path)}; `vggjax embed IMAGES` makes one (`out`)."
        )
    try:
        is_parquet = path.suffix.lower() == ".parquet"
        names, vectors, text = (_read_parquet if is_parquet else _read_npz)(path)
        metadata = json.loads(text)
        if vectors.ndim != 2 or len(vectors) != len(names) or not isinstance(metadata, dict):
            raise ValueError(f"{len(names)} names, vectors of shape {vectors.shape}")
        if not np.isfinite(vectors).all():
            raise ValueError("vectors that are not finite")
    except ConfigError:
        raise
    except Exception as error:  # of zip, numpy, JSON or pyarrow
        reason = " ".join(str(error).split()).rstrip(".")
        raise DataError(
            f"{printable(path)} is no file of embeddings, as `vggjax embed` writes: {reason}."
        ) from None
    made_in = metadata.get("folder")  # an older version's file has none
    folder = Path() if made_in is None else path.absolute().parent / str(made_in)
    return Embeddings(tuple(names), vectors.astype(np.float32), metadata, folder)


def _read_npz(path: Path) -> tuple[list[str], np.ndarray, str]:
    if not zipfile.is_zipfile(path):
        raise ValueError("not in NumPy's format .npz")
    with np.load(path, allow_pickle=False) as file:
        return file["names"].tolist(), file["vectors"], str(file["metadata"])


def _write_npz(
    path: Path,
    chunks: Callable[[], Iterator[Chunk]],
    text: str,
    shape: tuple[int, ...],
    longest: int,
) -> None:
    """Write what `np.savez` would, an array after the other and each in chunks."""
    names_dtype = np.dtype(f"<U{longest}")

    def write(name: str, dtype: np.dtype, size: tuple[int, ...], arrays: Iterator) -> None:
        header = {"descr": dtype.str, "fortran_order": False, "shape": size}
        with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, header)
            for array in arrays:
                member.write(np.ascontiguousarray(array, dtype).tobytes())

    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        names = (np.array(names, names_dtype) for names, _ in chunks())
        write("names", names_dtype, shape[:1], names)
        write("vectors", np.dtype("<f4"), shape, (vectors for _, vectors in chunks()))
        write("metadata", np.dtype(f"<U{len(text)}"), (), iter([np.array(text)]))


def _write_parquet(path: Path, chunks: Iterator[Chunk], text: str, width: int) -> None:
    pa, parquet = _import_pyarrow()
    kind = pa.list_(pa.float32(), width)
    schema = pa.schema({"name": pa.string(), "vector": kind}, metadata={"vggjax": text})
    with parquet.ParquetWriter(path, schema) as writer:
        for names, vectors in chunks:
            values = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
            column = pa.FixedSizeListArray.from_arrays(values, width)
            writer.write_table(pa.table([list(names), column], schema=schema))


def _read_parquet(path: Path) -> tuple[list[str], np.ndarray, str]:
    _, parquet = _import_pyarrow()
    table = parquet.read_table(path)
    vectors = table["vector"].combine_chunks()
    values = vectors.flatten().to_numpy().reshape(len(table), -1)
    return table["name"].to_pylist(), values, table.schema.metadata[b"vggjax"].decode()


def _import_pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ConfigError(
            "A .parquet file needs pyarrow: pip install 'vggjax[parquet]', or write .npz."
        ) from None
    return pyarrow, parquet
