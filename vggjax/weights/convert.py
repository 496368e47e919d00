"""Converts any readable weight file to any writable kind, and shows what was converted.

`python weights/convert.py SRC DST` and `vggjax convert SRC DST` both end here. Values go over bit
for bit (float16 and float64 become float32). Where they came from is noted in the new file: the
first source's name, kind, checksums and the day, and the pixels that the weights expect.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vggjax.errors import WeightsError, printable
from vggjax.weights.compatibility import network_of
from vggjax.weights.digests import Digests, check_sha256
from vggjax.weights.weight_file import (
    FileInfo,
    WeightFile,
    check_destination,
    write_weights,
)


@dataclass(frozen=True)
class Row:
    """One converted layer: its arrays' names and shapes, and how many numbers they hold."""

    layer: str
    shapes: dict[str, tuple[int, ...]]
    dtype: str
    parameters: int


@dataclass(frozen=True)
class Conversion:
    """What was converted."""

    rows: list[Row]
    info: FileInfo
    """Of the source."""
    digests: Digests
    notes: list[str]
    """What was cast or left out, a line each."""


def convert_file(
    src: Path, dst: Path, *, layout: str | None = None, expect_sha256: str | None = None
) -> Conversion:
    """Converts `src`, whatever it is, to what the ending of `dst` says, or `layout` (see files.py).

    A run's folder stands for the model in it.

    Raises:
        WeightsError: unreadable, unwritable, one and the same file, or not the one expected.
    """
    src, dst = Path(src), Path(dst)
    if (src / "model.safetensors").is_file():
        src = src / "model.safetensors"  # of a run's folder
    check_destination(dst, layout)
    if src.exists() and dst.exists() and src.samefile(dst):
        raise WeightsError(
            f"{printable(src)} is both source and destination; name another file.", code="E_WRITE"
        )
    file, notes = WeightFile(src), []
    if expect_sha256 is not None:
        check_sha256(src, file.digests.sha256, expect_sha256)
    weights = file.read(notes=notes)
    metadata = _converted_metadata(file)
    shapes = file.shapes
    if "arch" not in metadata and (arch := network_of(shapes)):
        metadata["arch"] = arch
    write_weights(dst, weights, metadata=metadata, layout=layout)
    rows = [
        Row(
            layer,
            shapes[layer],
            ", ".join(sorted({str(array.dtype) for array in params.values()})),
            sum(array.size for array in params.values()),
        )
        for layer, params in weights.items()
    ]
    return Conversion(rows, file.info, file.digests, notes)


def _converted_metadata(file: WeightFile) -> dict[str, str]:
    """Return the metadata of a file converted from this one: its own, and where it came from.

    The `source_...` keys describe the first file of a chain of conversions.
    """
    metadata = file.info.metadata | {"preprocess": file.info.preprocess}
    if "source_md5" in metadata:
        return metadata
    return metadata | {
        "source": printable(file.path.name),
        "source_md5": file.digests.md5,
        "source_sha256": file.digests.sha256,
        "source_format": file.info.kind,
        "source_date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def print_table(rows: Sequence[Row]) -> None:
    """Prints one line a layer and the totals to stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table(show_footer=True)
    table.add_column("layer", "total", no_wrap=True)
    table.add_column("arrays", f"{len(rows)} layers", overflow="fold")
    table.add_column("dtype")
    total = sum(row.parameters for row in rows)
    table.add_column("parameters", f"{total:,}", justify="right", no_wrap=True)
    for row in rows:
        arrays = "  ".join(
            f"{name} {'x'.join(map(str, shape))}" for name, shape in row.shapes.items()
        )
        table.add_row(printable(row.layer), arrays, row.dtype, f"{row.parameters:,}")
    Console(highlight=False).print(table)


def convert(
    src: Path, dst: Path, *, layout: str | None = None, expect_sha256: str | None = None
) -> None:
    """Converts, and prints the source's checksum and the table.

    Raises:
        WeightsError: as `convert_file`.
    """
    done = convert_file(src, dst, layout=layout, expect_sha256=expect_sha256)
    print(f"{printable(src)}: {done.info.kind}")
    print(f"SHA-256  {done.digests.sha256}")
    print(f"Known    {done.digests.known_as or 'none of the published files'}")
    print(f"Pixels   {done.info.preprocess}")
    for note in done.notes:
        print(f"Note     {printable(note)}")
    print_table(done.rows)
    print(f"{printable(dst)}: {Path(dst).stat().st_size / 1e6:,.1f} MB")
