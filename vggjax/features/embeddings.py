"""Files of embeddings: a vector for each image, with the model and preprocessing that made them.

`.npz` has the arrays `names` (N,), `vectors` float32 (N, D) and `metadata`, one JSON text;
`.parquet` has the columns `name` and `vector`, and the same text in its metadata.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vggjax.atomic import atomic_write
from vggjax.errors import ConfigError, DataError, printable

ENDINGS = (".npz", ".parquet")


@dataclass(frozen=True)
class Embeddings:
    """Vectors of images, in one order."""

    names: tuple[str, ...]
    """(N,), printable paths."""
    vectors: np.ndarray
    """float32 (N, D)."""
    metadata: Mapping[str, Any]
    """`model`, `weights`, `layer`, `pool`, `preprocessing` ..."""

    def unit_vectors(self) -> np.ndarray:
        """Return the vectors divided by their norms; zeros stay zeros."""
        norms = np.linalg.norm(self.vectors, axis=1, keepdims=True)
        return self.vectors / np.where(norms > 0, norms, 1)

    def write(self, path: Path) -> None:
        """Write the file, by its ending, whole or not at all.

        Raises:
            ConfigError: it cannot be written, or `.parquet` lacks pyarrow.
        """
        text = json.dumps(dict(self.metadata))
        try:
            with atomic_write(path, sync=True) as temporary:
                if path.suffix.lower() == ".parquet":
                    _write_parquet(temporary, self, text)
                else:
                    names = np.array(self.names, dtype=np.str_)
                    with open(temporary, "wb") as file:
                        np.savez(file, names=names, vectors=self.vectors, metadata=np.array(text))
        except OSError as error:
            raise ConfigError(
                f"Cannot write {printable(path)}: {error.strerror or error}."
            ) from None


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
        reason = " ".join(str(error).split())
        raise DataError(
            f"{printable(path)} is no file of embeddings, as `vggjax embed` writes: {reason}."
        ) from None
    return Embeddings(tuple(names), vectors.astype(np.float32), metadata)


def _read_npz(path: Path) -> tuple[list[str], np.ndarray, str]:
    with np.load(path, allow_pickle=False) as file:
        return file["names"].tolist(), file["vectors"], str(file["metadata"])


def _write_parquet(path: Path, embeddings: Embeddings, text: str) -> None:
    pa, parquet = _import_pyarrow()
    vectors = np.ascontiguousarray(embeddings.vectors, np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    table = pa.table({"name": list(embeddings.names), "vector": column})
    parquet.write_table(table.replace_schema_metadata({"vggjax": text}), path)


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
