"""Converts any readable weight file to any writable kind, and shows what was converted.

`python weights/convert.py SRC DST` and `vggjax convert SRC DST` both end here. Values go over bit
for bit (float16 and float64 become float32). What the source was is noted in safetensors' metadata.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vggjax.errors import WeightsError, shown
from vggjax.weights.files import check_destination, read_weights, write_weights
from vggjax.weights.native import read_metadata
from vggjax.weights.published import file_md5


@dataclass(frozen=True)
class Row:
    """One converted layer: its arrays' names and shapes, and how many numbers they hold."""

    layer: str
    shapes: dict[str, tuple[int, ...]]
    dtype: str
    parameters: int


def convert_file(src: Path, dst: Path) -> list[Row]:
    """Converts `src`, whatever it is, to what the ending of `dst` says.

    Raises:
        WeightsError: unreadable, unwritable, or one and the same file.
    """
    src, dst = Path(src), Path(dst)
    check_destination(dst)
    if src.exists() and dst.exists() and src.samefile(dst):
        raise WeightsError(f"{shown(src)} is both source and destination; name another file.")
    weights = read_weights(src)
    metadata = read_metadata(src)
    if "source_md5" not in metadata:
        metadata |= {"source": shown(src.name), "source_md5": file_md5(src)}
    write_weights(dst, weights, metadata=metadata)
    return [
        Row(
            layer,
            {name: array.shape for name, array in params.items()},
            ", ".join(sorted({str(array.dtype) for array in params.values()})),
            sum(array.size for array in params.values()),
        )
        for layer, params in weights.items()
    ]


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
        table.add_row(shown(row.layer), arrays, row.dtype, f"{row.parameters:,}")
    Console(highlight=False).print(table)


def convert(src: Path, dst: Path) -> None:
    """Converts and prints the table.

    Raises:
        WeightsError: as `convert_file`.
    """
    rows = convert_file(src, dst)
    print_table(rows)
    print(f"{shown(dst)}: {Path(dst).stat().st_size / 1e6:,.1f} MB")
