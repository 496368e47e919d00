"""A finished run for others: exported, described, published, served."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


def export(
    run: Annotated[Positional[Path], arg(metavar="RUN")],
    out: Annotated[Positional[Path], arg(metavar="OUT")],
    /,
    *,
    license: str | None = None,
) -> int:
    """Export a run's classifier for another runtime: ONNX, StableHLO, Keras, LiteRT, torch.

    Args:
        run: The finished run's folder.
        out: The file to write, by its ending: .onnx (takes images of any size), .stablehlo, .keras,
            .tflite or .pt2 (take resized images); a new name without an ending is a SavedModel.
        license: The license of the weights, for the metadata; by default what the run records.
    """
    from vggjax.export.export import export_run, print_export

    print_export(export_run(run, out, license=license))
    return 0


def card(
    run: Annotated[Positional[Path], arg(metavar="RUN")],
    /,
    *,
    out: Path | None = None,
    license: str | None = None,
) -> int:
    """Write a run's model card: data, splits, figures with intervals, preprocessing, license.

    Args:
        run: The finished run's folder.
        out: The file, .md; by default README.md in the run's folder.
        license: The license of the weights; by default what the run records.
    """
    from vggjax.errors import printable
    from vggjax.export.card import write_card

    print(f"Card     {printable(write_card(run, out=out, license=license))}")
    return 0
