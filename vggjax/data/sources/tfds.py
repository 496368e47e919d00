"""Opens a tfds dataset: prepared on first use (tfds_prepare.py), read without TensorFlow.

Any dataset of tfds with one image and one class label to an example. The images stay encoded
as tfds keeps them and go through the same decoder as a folder's. The labels, which stratifying
needs, are read once and kept beside the prepared data. An example's id is `train/17`: the split
and the place in it.
"""

import contextlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from vggjax.atomic import atomic_write
from vggjax.data.images.decode import DecodedImage, read_image
from vggjax.data.sources.source import Source, fingerprint
from vggjax.data.sources.tfds_prepare import FILE_FORMAT, prepare
from vggjax.errors import DataError, unknown_name

SPLIT_NAMES = {"train": "train", "validation": "val", "test": "test"}
"""tfds' split -> ours; others (`extra`, `unsupervised`) are left alone."""


def tfds_names() -> list[str]:
    """Lists every dataset that tfds has a builder for; does not ask the network."""
    import tensorflow_datasets as tfds

    return tfds.list_builders(with_community_datasets=False)


def is_tfds_name(dataset: str) -> bool:
    """Tells whether tfds has a builder for `name`, `name/config` or `name:1.2.3`."""
    return dataset.split("/")[0].split(":")[0] in tfds_names()


def open_tfds(name: str, *, data_dir: str | os.PathLike[str] | None = None) -> Source:
    """Opens a tfds dataset; the first time this downloads and prepares it, which takes minutes.

    Raises:
        DataError: it is no set of labeled images, or it cannot be prepared here and now; the
            message says what to do by hand.
    """
    import tensorflow_datasets as tfds

    builder = _find_builder(name, data_dir)
    image_key, label_key = _find_keys(name, builder.info)
    prepare(builder)
    class_names = _class_names(builder.info.features[label_key])
    decoders = {image_key: tfds.decode.SkipDecoding()}
    records, labels, ids, splits = [], [], [], {}
    for tfds_split, split in SPLIT_NAMES.items():
        if tfds_split not in builder.info.splits:
            continue
        data = builder.as_data_source(tfds_split, decoders=decoders, file_format=FILE_FORMAT)
        part = _read_labels(Path(builder.data_path), tfds_split, data, label_key)
        if len(part) == 0 or part.min() < 0:  # -1: a competition that keeps the answers
            continue
        splits[split] = np.arange(len(ids), len(ids) + len(part))
        ids += [f"{tfds_split}/{i}" for i in range(len(part))]
        labels.append(part)
        records.append((data, len(part)))
    if "train" not in splits:
        raise DataError(
            f"The tfds dataset {name!r} has no labeled train split; it has "
            f"{', '.join(builder.info.splits) or 'none'}."
        )
    starts = np.cumsum([0] + [count for _, count in records])

    def read(i: int) -> DecodedImage:
        part = int(np.searchsorted(starts, i, side="right")) - 1
        return read_image(bytes(records[part][0][int(i - starts[part])][image_key]))

    all_labels = np.concatenate(labels)
    own = splits if len(splits) > 1 else None
    sizes = [builder.info.splits[s].num_bytes for s in SPLIT_NAMES if s in builder.info.splits]
    return Source(
        name=name,
        class_names=class_names,
        labels=all_labels,
        ids=ids,
        splits=own,
        read=read,
        fingerprint=fingerprint(class_names, ids, all_labels, own, sizes),
    )


def _find_builder(name: str, data_dir: str | os.PathLike[str] | None) -> Any:
    import tensorflow_datasets as tfds

    if not is_tfds_name(name):
        raise DataError(unknown_name("tfds dataset", name, tfds_names()))
    try:
        return tfds.builder(name, data_dir=data_dir)
    except Exception as error:  # a version or a configuration that is not there, among others
        reason = " ".join(str(error).split())
        raise DataError(f"tfds cannot open {name!r}: {reason[:500]}") from None


def _find_keys(name: str, info: Any) -> tuple[str, str]:
    import tensorflow_datasets as tfds

    features = dict(info.features) if isinstance(info.features, tfds.features.FeaturesDict) else {}
    images = [k for k, f in features.items() if isinstance(f, tfds.features.Image)]
    labels = [k for k, f in features.items() if isinstance(f, tfds.features.ClassLabel)]
    pair = info.supervised_keys
    if pair and len(pair) == 2 and pair[0] in images and pair[1] in labels:
        return pair[0], pair[1]
    if len(images) == 1 and len(labels) == 1:
        return images[0], labels[0]
    found = ", ".join(f"{key} ({type(f).__name__})" for key, f in features.items())
    raise DataError(
        f"The tfds dataset {name!r} is not one image and one class label to an example; "
        f"it has {found}."
    )


def _class_names(feature: Any) -> tuple[str, ...]:
    return tuple(feature.names or map(str, range(feature.num_classes)))


def _read_labels(folder: Path, split: str, data: Any, label_key: str) -> np.ndarray:
    """Reads a split's labels; from the file that an earlier start left there, if there is one."""
    kept = folder / f"vggjax-{label_key.replace('/', '-')}-{split}.npy"
    try:
        labels = np.load(kept, allow_pickle=False)
        if labels.shape == (len(data),) and labels.dtype == np.int32:
            return labels
    except (OSError, ValueError, EOFError):
        pass
    labels = np.fromiter((data[i][label_key] for i in range(len(data))), np.int32, len(data))
    # Where the dataset is read-only, the next start reads the labels again.
    with contextlib.suppress(OSError), atomic_write(kept) as temporary:
        with open(temporary, "wb") as file:
            np.save(file, labels)
    return labels
