"""The commands that look at a dataset before any training: doctor and augment-preview.

As in commands.py, what a command needs is imported inside it.
"""

from collections.abc import Sequence
from json import dumps
from pathlib import Path
from typing import Annotated

import tyro

from vggjax.cli.parsing import parse
from vggjax.data.augment.settings import Augmentation, resolve
from vggjax.errors import printable


def doctor(argv: Sequence[str]) -> int:
    """Says what is wrong with a dataset, and mends a copy of it."""

    def run(
        data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")],
        /,
        *,
        data_dir: str | None = None,
        json: bool = False,
        html: Path | None = None,
        fix: Path | None = None,
    ) -> int:
        """Says what is wrong with a dataset, and mends a copy of it.

        Exit code 0: clean, or only remarks; 2: problems.

        Args:
            data: A folder, a CSV, a tfds name or digits.
            data_dir: Where tfds keeps prepared datasets.
            json: Print everything as JSON instead of a table.
            html: A page to write, with thumbnails.
            fix: A new folder for a cleaned copy; the original is never touched.
        """
        from rich.console import Console

        from vggjax.data.quality.clean import check_out, write_clean_copy
        from vggjax.data.quality.doctor import examine
        from vggjax.report.doctor_page import check_doctor_page, write_doctor_page
        from vggjax.report.doctor_screen import print_clean_copy, print_findings
        from vggjax.training.console import progress_bar

        if html is not None:  # before a long look, which would be for nothing
            check_doctor_page(html, dataset=data)
        if fix is not None:
            check_out(data, fix)
        console = Console(stderr=json)  # what is piped on is the JSON alone
        with progress_bar(console, "reading images") as progress:
            findings = examine(data, data_dir=data_dir, progress=progress)
        if json:
            print(dumps(findings.to_json(), indent=2))
        else:
            print_findings(console, findings)
        if html is not None:
            console.print(f"Sheet    {printable(write_doctor_page(findings, html))}", markup=False)
        if fix is not None:
            with progress_bar(console, "copying") as progress:
                copy = write_clean_copy(findings, fix, progress=progress)
            print_clean_copy(console, copy, findings)
        return findings.exit_code

    return parse(run, argv, "doctor")


def augment_preview(argv: Sequence[str]) -> int:
    """Draws a sheet of photographs as the training would see them."""

    def run(
        data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")],
        out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
        /,
        *,
        settings: Annotated[Augmentation, tyro.conf.arg(name="")] = Augmentation(),  # noqa: B008
        augment: str | None = None,
        image_size: int = 224,
        rows: int = 6,
        seed: int = 0,
        data_dir: str | None = None,
    ) -> int:
        """Draws a sheet of photographs as the training would see them.

        Args:
            data: A folder, a CSV, a tfds name or digits.
            out: The file to write: .png, .jpg or .webp.
            settings: What is drawn.
            augment: The same by name: none, flip, crop-flip or randaugment.
            image_size: Side in px of the images that the model would see.
            rows: Photographs on the sheet.
            seed: Of the choice of photographs and of the draws.
            data_dir: Where tfds keeps prepared datasets.
        """
        from vggjax.report.augment_preview import write_preview

        path = write_preview(
            data,
            out,
            augmentation=resolve(settings, augment),
            image_size=image_size,
            rows=rows,
            seed=seed,
            data_dir=data_dir,
        )
        print(f"Sheet    {path}")
        return 0

    return parse(run, argv, "augment-preview")
