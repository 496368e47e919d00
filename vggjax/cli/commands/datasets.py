"""Datasets before training: doctor, an estimate, and a preview of the augmentation."""

import dataclasses
import json as json_module
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from vggjax.data.augment.settings import Augmentation
from vggjax.data.sources.options import DEFAULT_OPTIONS, DatasetOptions
from vggjax.errors import printable, with_flags
from vggjax.training.config import Config


def doctor(
    data: Annotated[Positional[str], arg(metavar="DATA")],
    /,
    *,
    options: Annotated[DatasetOptions, arg(name="")] = DEFAULT_OPTIONS,
    data_dir: str | None = None,
    json: bool = False,
    html: Path | None = None,
    fix: Path | None = None,
    write_csv: Path | None = None,
) -> int:
    """Check a dataset; optionally write a cleaned copy, or a CSV of it.

    Exit code 0: clean, or remarks only; 2: problems.

    Args:
        data: A folder, a CSV, a tfds name or digits.
        options: How to read the dataset.
        data_dir: Where datasets of tfds are kept.
        json: Print the findings as JSON instead of a table.
        html: A page to write, with thumbnails.
        fix: A new folder for a cleaned copy; the original is never changed.
        write_csv: A new CSV for the table as it was understood: path,label[,split][,group].
    """
    from rich.console import Console

    from vggjax.data.quality.clean import check_output, write_clean_copy
    from vggjax.data.quality.doctor import examine
    from vggjax.data.sources.csv_write import check_table_output, write_table
    from vggjax.report.doctor_page import check_doctor_page, write_doctor_page
    from vggjax.report.doctor_screen import print_clean_copy, print_findings, print_table
    from vggjax.training.console import progress_bar

    if html is not None:  # before the images are read, which may take minutes
        check_doctor_page(html, dataset=data)
    if fix is not None:
        check_output(data, fix)
    if write_csv is not None:
        check_table_output(write_csv)
    console = Console(stderr=json)  # stdout holds the JSON alone
    with progress_bar(console, "reading images") as progress:
        findings = examine(data, data_dir=data_dir, options=options, progress=progress)
    if json:
        print(json_module.dumps(findings.to_json(), indent=2))
    else:
        print_findings(console, findings)
    if html is not None:
        console.print(f"Page     {printable(write_doctor_page(findings, html))}", markup=False)
    if fix is not None:
        with progress_bar(console, "copying") as progress:
            copy = write_clean_copy(findings, fix, progress=progress)
        print_clean_copy(console, copy, findings)
    if write_csv is not None:
        print_table(console, write_csv, write_table(findings.source, write_csv))
    return findings.exit_code


def estimate(
    data: Annotated[Positional[str], arg(metavar="DATA")],
    /,
    *,
    options: Annotated[DatasetOptions, arg(name="")] = DEFAULT_OPTIONS,
    model: str = "vgg16",
    weights: str = "imagenet",
    image_size: int = 224,
    preprocess: Literal["auto", "caffe", "torch", "unit"] = "auto",
    split: str = Config.split,
    images: int | None = None,
    seed: int = 0,
    data_dir: str | None = None,
    json: bool = False,
) -> int:
    """Estimate a dataset's accuracy before training, and what more images would give.

    A linear head learns from 10, 30 and 100 % of the images' features. The test split stays closed.

    Args:
        data: A folder, a CSV, a tfds name or digits.
        options: How to read the dataset.
        model: The network, as for train.
        weights: imagenet, or a weight file.
        image_size: Side in px of the images that the model would see.
        preprocess: The pixels that the weights expect; auto is what they were trained with.
        split: Shares of train,val,test, as for train.
        images: Pass no more images of train and val through the network. The default is 2000, or
            fewer where they would take minutes.
        seed: Of the splits and of the choice of images.
        data_dir: Where datasets of tfds are kept.
        json: Print the estimate as JSON.
    """
    from rich.console import Console

    from vggjax.evaluation.estimate import estimate
    from vggjax.training.console import progress_bar

    config = Config(
        dataset=data,
        **dataclasses.asdict(options),
        model=model,
        weights=weights,
        image_size=image_size,
        preprocess=preprocess,
        split=split,
        seed=seed,
        data_dir=data_dir,
    )
    with progress_bar(Console(stderr=True), "features") as progress:
        result = estimate(config, max_images=images, progress=progress)
    text = with_flags(str(result), {"images"})
    print(json_module.dumps(result.to_json(), indent=2) if json else text)
    return 0


def augment_preview(
    data: Annotated[Positional[str], arg(metavar="DATA")],
    out: Annotated[Positional[Path], arg(metavar="OUT")],
    /,
    *,
    settings: Annotated[Augmentation, arg(name="")] = Augmentation(),  # noqa: B008
    options: Annotated[DatasetOptions, arg(name="")] = DEFAULT_OPTIONS,
    augment: str | None = None,
    image_size: int = 224,
    rows: int = 6,
    seed: int = 0,
    data_dir: str | None = None,
) -> int:
    """Draw a grid of training images as augmentation would change them.

    Args:
        data: A folder, a CSV, a tfds name or digits.
        out: The file to write: .png, .jpg or .webp.
        settings: The augmentation.
        options: How to read the dataset.
        augment: A named augmentation: none, flip, crop-flip or randaugment.
        image_size: Side in px of the images that the model would see.
        rows: Number of images.
        seed: Of the choice of images and of the random draws.
        data_dir: Where datasets of tfds are kept.
    """
    from vggjax.data.augment.settings import resolve
    from vggjax.report.augment_preview import write_preview

    path = write_preview(
        data,
        out,
        augmentation=resolve(settings, augment),
        image_size=image_size,
        rows=rows,
        seed=seed,
        data_dir=data_dir,
        options=options,
    )
    print(f"Preview  {printable(path)}")
    return 0
