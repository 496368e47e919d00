"""Names a dataset and opens it: `digits`, a folder of images, a CSV, or any tfds name.

Out: a `Source` (source.py). Folders are scanned in folder.py, lists are read in csv_source.py, tfds
is in tfds_source.py. Splitting (splits.py), resizing and batching (pipeline.py) are not here.
"""

import difflib
import os

import numpy as np

from vggjax.data.images.decode import DecodedImage
from vggjax.data.sources.csv_table import is_list, scan_csv
from vggjax.data.sources.folder import looks_like_path, nearest_folder, scan_folder
from vggjax.data.sources.source import Scan, fingerprint
from vggjax.data.sources.source import Source as Source
from vggjax.data.sources.tfds import is_tfds_name, open_tfds, tfds_names
from vggjax.errors import DataError


def open_source(dataset: str, *, data_dir: str | None = None) -> Source:
    """Opens a dataset by what the user calls it.

    `digits` is always scikit-learn's; then come a list (`photos.csv`) and a folder that exists
    (`./digits` is one), then a tfds name (`tf_flowers`, `cifar10`, `name/config`, `name:1.2.3`).
    `data_dir` is where tfds keeps its datasets, None for its own choice.

    Raises:
        DataError: no such dataset, with the nearest name, or one that cannot be used.
    """
    return scan_source(dataset, data_dir=data_dir).checked()


def scan_source(dataset: str, *, data_dir: str | None = None) -> Scan:
    """Opens a dataset as `open_source` does, whatever is wrong with its folders or its list.

    Raises:
        DataError: nothing is there that could be looked at.
    """
    if dataset == "digits":
        return Scan(open_digits())
    if is_list(dataset):
        return scan_csv(dataset)
    if os.path.exists(dataset) or looks_like_path(dataset):
        return scan_folder(dataset)
    if is_tfds_name(dataset):
        return Scan(open_tfds(dataset, data_dir=data_dir))
    known = [*nearest_folder(dataset), "digits", *tfds_names()]
    near = difflib.get_close_matches(dataset, known, n=1, cutoff=0.6)
    meant = f" Did you mean {near[0]!r}?" if near else ""
    raise DataError(
        f"There is no folder {dataset!r}, and no tfds dataset of that name.{meant} --dataset "
        f"takes digits, a folder (FOLDER/<class>/*.jpg), a list (photos.csv) or a tfds name "
        f"(tf_flowers)."
    )


def open_digits() -> Source:
    """Opens scikit-learn's 1,797 handwritten digits, 8x8 px, ten classes; no network."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    gray = np.round(digits.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8), from 0..16
    images = np.repeat(gray[..., None], 3, axis=-1)
    labels = digits.target.astype(np.int32)
    ids = [f"digits/{i}" for i in range(len(labels))]
    class_names = tuple(str(name) for name in digits.target_names)
    return Source(
        name="digits",
        class_names=class_names,
        labels=labels,
        ids=ids,
        splits=None,
        read=lambda i: DecodedImage(images[i]),
        fingerprint=fingerprint(class_names, ids, labels, None, ()),
    )
