"""Read the images of a tar shard (WebDataset) or a Parquet file one at a time.

A tar's images are the members whose names end as images do; labels and texts beside them are
passed over. A Parquet file has a column of bytes, or as in Hugging Face's datasets of structures
with `bytes` and `path`. No name in an archive becomes a path on the disk.
"""

import contextlib
import itertools
import os
import tarfile
import zlib
from collections.abc import Iterator
from lzma import LZMAError
from pathlib import Path
from typing import Any

from vggjax.data.images.decode import MAX_FILE_BYTES
from vggjax.data.images.formats import ENDINGS
from vggjax.errors import DataError

TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
SHARD_ENDINGS = (*TAR_ENDINGS, ".parquet")

IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes", "content", "data")
"""Names of the column that holds the images, the preferred first."""

NAME_COLUMNS = ("path", "file_name", "filename", "name", "id", "key", "__key__")
"""Names of the column that names them."""

_BATCH_ROWS = 16
"""Of a Parquet file in memory at a time."""

_TAR_ERRORS = (tarfile.TarError, EOFError, zlib.error, LZMAError, OSError, ValueError)


def is_shard(name: str | os.PathLike[str]) -> bool:
    """Return whether a name has the ending of a file of many images."""
    return os.fspath(name).lower().endswith(SHARD_ENDINGS)


def shard_images(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the bytes of each image in a shard, in order.

    Raises:
        DataError: the shard, or the rest of it, cannot be read; the message is the reason alone.
    """
    return _parquet_images(path) if path.suffix.lower() == ".parquet" else _tar_images(path)


def _tar_images(path: Path) -> Iterator[tuple[str, bytes]]:
    count = 0
    try:
        is_plain = path.suffix.lower() == ".tar"
        # A plain tar is read in place, so that what is passed over is never read.
        with tarfile.open(path, "r:" if is_plain else "r|*") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # kept for every file otherwise
                name = member.name.removeprefix("./")
                is_hidden = any(part.startswith(".") for part in name.split("/"))
                if is_hidden or not (member.isreg() and name.lower().endswith(ENDINGS)):
                    continue
                content = archive.extractfile(member)
                if content is None or member.size > MAX_FILE_BYTES:
                    continue
                yield name, content.read()
                count += 1
            if is_plain and path.stat().st_size < archive.offset + tarfile.BLOCKSIZE:
                raise tarfile.ReadError("it has no end marker: cut short")
    except _TAR_ERRORS as error:
        raise DataError(_damaged("tar file", count, error)) from None


def _parquet_images(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise DataError("a Parquet file needs pyarrow: pip install 'vggjax[parquet]'") from None
    count = 0
    try:
        with contextlib.closing(parquet.ParquetFile(path)) as file:
            image, name = _columns(file.schema_arrow)
            batches = file.iter_batches(_BATCH_ROWS, columns=[c for c in (image, name) if c])
            rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
            for row in rows:
                value, label = row[image], row.get(name or "")
                if isinstance(value, dict):
                    label = value.get("path") if label is None else label
                    value = value["bytes"]
                # The number alone tells rows apart: paths in such files may all be the same.
                label = "" if label is None else f"/{os.path.basename(str(label))}"
                yield f"{count}{label}", value or b""
                count += 1
    except DataError:
        raise
    except Exception as error:  # of pyarrow
        raise DataError(_damaged("Parquet file", count, error)) from None


def _columns(schema: Any) -> tuple[str, str | None]:
    """Return the column of the images, and that of their names."""
    import pyarrow as pa

    def holds_bytes(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            names = [kind.field(i).name for i in range(kind.num_fields)]
            return "bytes" in names
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    binary = [name for name in schema.names if holds_bytes(schema.field(name).type)]
    preferred = [name for name in IMAGE_COLUMNS if name in binary]
    if not binary or (not preferred and len(binary) > 1):
        listed = ", ".join(schema.names[:10])
        raise DataError(f"it has no column of images, such as `image`; its columns: {listed}")
    names = (name for name in NAME_COLUMNS if name in schema.names and name not in binary)
    return (preferred or binary)[0], next(names, None)


def _damaged(kind: str, count: int, error: Exception) -> str:
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    after = f" after {count:,} images" if count else ""
    return f"a {kind} that cannot be read{after}: {reason}"
