"""Convert a weight file of any readable format to any writable one, and print what was converted.

`python weights/convert.py SRC DST` and `vggjax convert SRC DST` both call `convert`. The values are
kept bit for bit (float16 and float64 become float32). The new file's metadata says where they came
from: the first source's name, format, checksums and date, and the preprocessing they expect.
"""

import contextlib
import math
import time
from pathlib import Path

from vggjax.atomic import check_output_file
from vggjax.errors import ConfigError, WeightsError, printable
from vggjax.models.arch import ARCHS, Shapes
from vggjax.models.convnets import find_arch
from vggjax.weights.compatibility import network_of
from vggjax.weights.verify import check_network
from vggjax.weights.weight_file import WeightFile, check_destination, write_weights


def convert_file(
    src: Path,
    dst: Path,
    *,
    layout: str | None = None,
    model: str | None = None,
    expect_sha256: str | None = None,
) -> WeightFile:
    """Convert `src` to the format of the ending of `dst`, or to `layout` (see weight_file.py).

    A run folder stands for the model in it. `model` is the network that the file must hold; None
    accepts any of the table. Return the source.

    Raises:
        WeightsError: `src` cannot be read, is incomplete or not the expected file, `dst` cannot be
            written, or both are the same file.
        ConfigError: `model` is not in the table, or `dst` is a link or a file of a run.
    """
    if model is not None:
        find_arch(model)
    src, dst = Path(src), Path(dst)
    if (src / "model.safetensors").is_file():
        src = src / "model.safetensors"
    check_destination(dst, layout)
    if src.exists() and dst.exists() and src.samefile(dst):
        raise WeightsError(
            f"{printable(src)} is both source and destination; name another file.", code="E_WRITE"
        )
    check_output_file(dst, field="DST")
    source = WeightFile(src)
    source.check_sha256(expect_sha256)
    weights = source.read()
    _check_complete(source, model)
    write_weights(dst, weights, metadata=_converted_metadata(source), layout=layout)
    return source


def _check_complete(source: WeightFile, model: str | None) -> None:
    """Refuse an incomplete network, as `verify` does, but of any widths unless `model` is given.

    A convnet's file says which it holds.
    """
    if model is None:
        stated = source.info.metadata.get("arch", "")
        with contextlib.suppress(ConfigError):
            model = None if stated in ARCHS else find_arch(stated).name
    check_network(source.shapes, model, name=printable(source.path), any_widths=model is None)


def _converted_metadata(source: WeightFile) -> dict[str, str]:
    """Return the metadata of the converted file: the source's own, and where it came from.

    The `source_...` keys describe the first file in a chain of conversions.
    """
    doubt = source.info.preprocess_doubt
    stated = {"preprocess_doubt": doubt} if doubt else {"preprocess": source.info.preprocess}
    metadata = source.info.metadata | stated
    if "source_md5" not in metadata:
        metadata |= {
            "source": printable(source.path.name),
            "source_md5": source.digests.md5,
            "source_sha256": source.digests.sha256,
            "source_format": source.info.kind,
            "source_date": time.strftime("%Y-%m-%d", time.gmtime()),
        }
    if "arch" not in metadata and (arch := network_of(source.shapes)):
        metadata["arch"] = arch
    return metadata


def print_table(shapes: Shapes) -> None:
    """Print a line for each layer, and the totals, to stdout."""
    from rich.console import Console
    from rich.table import Table

    parameters = {k: sum(map(math.prod, params.values())) for k, params in shapes.items()}
    table = Table(show_footer=True)
    table.add_column("layer", "total", no_wrap=True)
    table.add_column("arrays (float32)", f"{len(shapes)} layers", overflow="fold")
    total = f"{sum(parameters.values()):,}"
    table.add_column("parameters", total, justify="right", no_wrap=True)
    for layer, params in shapes.items():
        arrays = (f"{name} {'x'.join(map(str, shape))}" for name, shape in params.items())
        table.add_row(printable(layer), "  ".join(arrays), f"{parameters[layer]:,}")
    Console(highlight=False).print(table)


def convert(
    src: Path,
    dst: Path,
    *,
    layout: str | None = None,
    model: str | None = None,
    expect_sha256: str | None = None,
) -> None:
    """Convert a file as `convert_file` does, and print its checksum and a table of its layers."""
    source = convert_file(src, dst, layout=layout, model=model, expect_sha256=expect_sha256)
    print(f"{printable(source.path)}: {source.info.kind}")
    print(f"SHA-256     {source.digests.sha256}")
    print(f"Known as    {source.known_as or 'none of the published files'}")
    print(f"Preprocess  {source.info.preprocess}")
    for note in source.notes:
        print(f"Note        {printable(note)}")
    print_table(source.shapes)
    print(f"{printable(dst)}: {Path(dst).stat().st_size / 1e6:,.1f} MB")
