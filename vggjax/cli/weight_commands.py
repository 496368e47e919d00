"""The commands for weight files: `convert` and `verify` (see commands.py)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from vggjax.cli.parsing import parse


def convert(argv: Sequence[str]) -> int:
    """Converts a weight file between the layouts of Keras, torchvision, timm and vggjax."""

    def run(
        src: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")],
        dst: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DST")],
        /,
        *,
        format: Literal["vggjax", "torchvision", "timm"] | None = None,
        expect_sha256: str | None = None,
    ) -> int:
        """Converts a weight file between the layouts of Keras, torchvision, timm and vggjax.

        Args:
            src: The file to read, whose content says what it is; or a run's folder.
            dst: The file to write, by its ending: .safetensors, .weights.h5, .h5, .keras or .pth.
            format: Whose names; .safetensors is vggjax's and .pth torchvision's by itself.
            expect_sha256: Refuse a SRC with another checksum.
        """
        from vggjax.weights.convert import convert

        convert(src, dst, layout=format, expect_sha256=expect_sha256)
        return 0

    return parse(run, argv, "convert")


def verify(argv: Sequence[str]) -> int:
    """Says what a weight file is, whether it is whole, and which pixels it expects."""

    def run(
        file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")],
        /,
        *,
        model: str | None = None,
        expect_sha256: str | None = None,
    ) -> int:
        """Says what a weight file is, whether it is whole, and which pixels it expects.

        Exit code 0: a VGG's weights, complete and finite; 2: not, with the reason.

        Args:
            file: Any readable weight file.
            model: The network that it must hold, vgg16 say; without it, any of the table.
            expect_sha256: Refuse a file with another checksum.
        """
        from vggjax.weights.verify import print_verdict, verify_file

        print_verdict(verify_file(file, model=model, expect_sha256=expect_sha256))
        return 0

    return parse(run, argv, "verify")
