"""Open a dataset by its name: `digits`, a folder of images, a CSV, or a tfds name."""

import dataclasses
import os
from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np

from vggjax.data.images.decode import DecodedImage
from vggjax.data.sources.csv import is_csv, scan_csv
from vggjax.data.sources.folder import scan_folder
from vggjax.data.sources.layout import first_groups
from vggjax.data.sources.options import (
    CSV_OPTIONS,
    DEFAULT_OPTIONS,
    FOLDER_OPTIONS,
    DatasetOptions,
)
from vggjax.data.sources.source import (
    PossibleGroups,
    Scan,
    Source,
    describe_groups,
    fingerprint,
    nearest_path,
    number_groups,
)
from vggjax.data.sources.tfds import is_tfds_name, open_tfds, tfds_names
from vggjax.errors import ConfigError, DataError, nearest_name

_GROUP_WORDS = ("patient", "subject", "case", "lesion", "video", "participant", "clip", "donor")


def open_source(
    dataset: str, *, data_dir: str | None = None, options: DatasetOptions = DEFAULT_OPTIONS
) -> Source:
    """Open a dataset by its name.

    The name is tried, in this order, as `digits`, a CSV (`photos.csv`), an
    existing folder (`./digits` is one), and a tfds name (`tf_flowers`, `name/config`,
    `name:1.2.3`). `data_dir` is where tfds stores datasets; None is tfds' default.

    Raises:
        DataError: there is no such dataset (the nearest name is given), or it is unusable.
        ConfigError: an option that does not apply to the dataset, or names what it lacks.
    """
    scan = scan_source(dataset, data_dir=data_dir, options=options)
    if scan.faults:
        raise DataError(scan.faults[0])
    assert scan.source is not None
    return scan.source


def scan_source(
    dataset: str, *, data_dir: str | None = None, options: DatasetOptions = DEFAULT_OPTIONS
) -> Scan:
    """Open a dataset as `open_source` does, collecting its errors instead of raising them.

    Raises:
        DataError: there is nothing to scan.
        ConfigError: an option that does not apply to the dataset, or names what it lacks.
    """
    if dataset == "digits":
        options.check_only((), "digits")
        return Scan(open_digits())
    if is_csv(dataset):
        options.check_only(CSV_OPTIONS, "a CSV")
        return _group_by_name(scan_csv(dataset, options), options)
    is_path = dataset.startswith((".", "~", "/", os.sep)) or "\\" in dataset
    if is_path or os.path.exists(dataset):
        options.check_only(FOLDER_OPTIONS, "a folder")
        return _group_by_name(scan_folder(dataset, options), options)
    if is_tfds_name(dataset):
        options.check_only((), "a tfds dataset")
        return Scan(open_tfds(dataset, data_dir=data_dir))
    folder = nearest_path(Path(dataset), Path.is_dir)
    known = [*([folder] if folder else []), "digits", *tfds_names()]
    near = nearest_name(dataset, known, cutoff=0.6)
    suggestion = f" Did you mean {near!r}?" if near else ""
    raise DataError(
        f"Unknown dataset {dataset!r}: no such folder and no tfds dataset of that name."
        f"{suggestion} `dataset` takes digits, a folder (FOLDER/<class>/*.jpg), a CSV (photos.csv) "
        f"or a tfds name (tf_flowers)."
    )


def _group_by_name(scan: Scan, options: DatasetOptions) -> Scan:
    """Group the images by `group_pattern`; without it, find out whether the names hold groups."""
    source, pattern = scan.source, options.group_pattern
    if source is None:
        return scan
    paths = [image_id.replace("\\", "/") for image_id in source.ids]
    if pattern is None:
        if source.groups is None and source.possible_groups is None:
            source = dataclasses.replace(source, possible_groups=_possible_groups(paths))
        return dataclasses.replace(scan, source=source)
    names = first_groups(pattern, paths)
    if not any(names):
        raise ConfigError(
            f"`group_pattern` '{pattern}' finds no group in the file names; the first one is "
            f"{PurePosixPath(paths[0]).stem!r}."
        )
    note = f"{describe_groups(names)} by `group_pattern` '{pattern}'."
    notes = (*source.notes, note)
    source = dataclasses.replace(
        source, groups=number_groups(names), possible_groups=None, notes=notes
    )
    return dataclasses.replace(scan, source=source)


def _possible_groups(paths: list[str]) -> PossibleGroups | None:
    """Return the groups of `patient_07-2` or `run_frame012`, if nearly all names are like that."""
    words = "|".join(_GROUP_WORDS)
    found = first_groups(rf"(?i)(?<![a-z])((?:{words})s?[ _-]?)\d", paths)
    patterns = [r"(?i)^(.+?)[ _-]*frame[ _-]*\d+"]
    if any(found):
        word, _ = Counter(filter(None, found)).most_common(1)[0]
        patterns = [rf"({word}\d+)", *patterns]
    for pattern in patterns:
        names = first_groups(pattern, paths)
        sizes = Counter(filter(None, names))
        if sizes.total() < 0.9 * len(paths):
            continue
        if 2 < len(sizes) < len(paths) and 3 * max(sizes.values()) <= len(paths):
            groups = number_groups(names)
            return None if groups is None else PossibleGroups("group_pattern", pattern, groups)
    return None


def open_digits() -> Source:
    """Open 1,797 handwritten digits, 8x8 px, ten classes; digits.txt names their source."""
    with np.load(Path(__file__).with_name("digits.npz")) as digits:
        gray = np.round(digits["images"] * (255 / 16)).astype(np.uint8)  # (1797, 8, 8), from 0..16
        labels = digits["labels"].astype(np.int32)
    images = np.repeat(gray[..., None], 3, axis=-1)
    ids = [f"digits/{i}" for i in range(len(labels))]
    class_names = tuple("0123456789")
    return Source(
        name="digits",
        class_names=class_names,
        labels=labels,
        ids=ids,
        splits=None,
        read=lambda i: DecodedImage(images[i]),
        fingerprint=fingerprint(class_names, ids, labels, None, ()),
    )
