"""Open a tfds dataset: prepared on first use, then read without TensorFlow.

The well-known ones (wellknown.py) are never prepared: they are read from their archives, unless
tfds prepared them before.

Any tfds dataset with one image and one class label per example. Images stay encoded as tfds stores
them and go through the same decoder as a folder's. Labels, needed for stratified splits, are read
once and cached next to the prepared data. An example's id is `train/17`: the split and the
position in it.

Preparing stores the dataset as array_record, which allows random access without TensorFlow; it is
the only place in the package that imports TensorFlow. A missing TensorFlow or network is reported
within seconds, while tfds would retry for minutes: the servers of the known archives are probed
first.
"""

import contextlib
import dataclasses
import importlib.util
import inspect
import os
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from vggjax.atomic import atomic_write
from vggjax.data.images.decode import DEFAULT_RENDERING, DecodedImage, Rendering, read_image
from vggjax.data.sources.source import Source, make_split_source
from vggjax.data.sources.wellknown import open_well_known, well_known
from vggjax.download import PROBE_S, ask_servers
from vggjax.errors import DataError, join_names, printable

SPLIT_NAMES = ("train", "validation", "test")
"""The splits of tfds that are used; others (`extra`, `unsupervised`) are ignored."""

FILE_FORMAT = "array_record"
"""tfds' default, tfrecord, cannot be read without TensorFlow."""


def tfds_names() -> list[str]:
    """Return the names of all datasets that tfds has a builder for, without network access."""
    import tensorflow_datasets as tfds

    return tfds.list_builders(with_community_datasets=False)


def is_tfds_name(dataset: str) -> bool:
    """Return whether tfds has a builder for `name`, `name/config` or `name:1.2.3`."""
    return dataset.split("/")[0].split(":")[0] in tfds_names()


def open_tfds(name: str, *, data_dir: str | os.PathLike[str] | None = None) -> Source:
    """Open a tfds dataset; the first time it is downloaded, and unpacked or prepared.

    Raises:
        DataError: it is not a dataset of labeled images, or it cannot be prepared now; the
            message says which files to download by hand.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except Exception as error:  # an unknown version or configuration, among others
        raise DataError(f"tfds cannot open {name!r}: {_reason(error)}") from None
    if well_known(builder) is not None and FILE_FORMAT not in _prepared_formats(builder):
        return open_well_known(name, builder)
    image_key, label_key = _find_keys(name, builder.info)
    prepare(builder)
    feature = builder.info.features[label_key]
    class_names = tuple(feature.names or map(str, range(feature.num_classes)))
    decoders = {image_key: tfds.decode.SkipDecoding()}
    records: list[Any] = []
    labels: dict[str, np.ndarray] = {}
    for split in SPLIT_NAMES:
        if split not in builder.info.splits:
            continue
        data = builder.as_data_source(split, decoders=decoders, file_format=FILE_FORMAT)
        split_labels = _read_labels(Path(builder.data_path), split, data, label_key)
        if len(split_labels) == 0 or split_labels.min() < 0:  # -1: a competition's hidden labels
            continue
        labels[split] = split_labels
        records.append(data)
    if "train" not in labels:
        raise DataError(
            f"The tfds dataset {name!r} has no labeled train split. Its splits: "
            f"{join_names(builder.info.splits) or 'none'}."
        )
    starts = np.cumsum([0, *map(len, labels.values())])

    def read(i: int, rendering: Rendering = DEFAULT_RENDERING) -> DecodedImage:
        part = int(np.searchsorted(starts, i, side="right")) - 1
        return read_image(bytes(records[part][int(i - starts[part])][image_key]), rendering)

    sizes = [builder.info.splits[s].num_bytes for s in SPLIT_NAMES if s in builder.info.splits]
    source = make_split_source(name, class_names, labels, read=read, sizes=sizes)
    return dataclasses.replace(source, read_as=read)


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
    received = ", ".join(f"{key} ({type(f).__name__})" for key, f in features.items())
    raise DataError(
        f"The tfds dataset {name!r} must have one image and one class label per example; it has "
        f"{received}."
    )


def _read_labels(folder: Path, split: str, data: Any, label_key: str) -> np.ndarray:
    """Return a split's labels, int32 (N,), from the cache if it is intact."""
    path = folder / f"vggjax-{label_key.replace('/', '-')}-{split}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):
        labels = np.load(path, allow_pickle=False)
        if labels.shape == (len(data),) and labels.dtype == np.int32:
            return labels
    labels = np.fromiter((data[i][label_key] for i in range(len(data))), np.int32, len(data))
    with contextlib.suppress(OSError):  # a read-only dataset: the labels are read every time
        with atomic_write(path) as partial, open(partial, "wb") as file:
            np.save(file, labels)
    return labels


def _prepared_formats(builder: Any) -> set[str]:
    """Return the file formats that tfds prepared the builder's dataset in; none if it did not."""
    if not (Path(builder.data_path) / "dataset_info.json").exists():
        return set()
    return {form.value for form in builder.info.available_file_formats()}


def prepare(builder: Any) -> None:
    """Download and prepare the builder's dataset, unless it is prepared already.

    Raises:
        DataError: TensorFlow, the network or a file is missing, or the preparation fails.
    """
    if formats := _prepared_formats(builder):
        if FILE_FORMAT not in formats:
            raise DataError(
                f"{printable(builder.data_path)} was prepared as {', '.join(sorted(formats))}, "
                f"which has no random access. Give another `data_dir`, or delete that folder."
            )
        return
    if importlib.util.find_spec("tensorflow") is None:
        raise DataError(
            f"Preparing {builder.name} for the first time needs TensorFlow (reading it later does "
            f'not): pip install "tensorflow-cpu>=2.21"'
        )
    if not builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        _check_reachable(builder)
    elif not (manual := _manual_folder(builder)).is_dir() or not any(manual.iterdir()):
        instructions = " ".join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
        raise DataError(
            f"{builder.name} must be downloaded by hand. Put its files into {printable(manual)} as "
            f"tfds describes: {instructions[:600]}"
        )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import tensorflow as tf
            import tensorflow_datasets as tfds

            for kind in ("GPU", "TPU"):  # accelerator memory is reserved for jax
                tf.config.set_visible_devices([], kind)
            # Google's bucket has prepared datasets too, but as tfrecord.
            config = tfds.download.DownloadConfig(try_download_gcs=False)
            builder.download_and_prepare(download_config=config, file_format=FILE_FORMAT)
        except Exception as error:  # the builder, the network or the disk may raise anything
            raise DataError(f"tfds cannot prepare {builder.name}: {_reason(error)}") from error


def _check_reachable(builder: Any) -> None:
    archives = builder.url_infos or {}
    if not archives:  # its source may also name the paper's server: one that answers is enough
        source = Path(inspect.getfile(type(builder))).read_text("utf-8")
        urls = re.findall(r"\b(?:https?|ftp)://[^\s\"'<>{}()]+", source)
        if urls and not _reachable_servers(urls):
            raise DataError(_describe_unreachable(builder, "none of its servers is", urls))
        return
    missing = [url for url, info in archives.items() if not _is_downloaded(builder, url, info)]
    # A builder lists the archives of all its configurations: those that are here may be enough.
    if builder.BUILDER_CONFIGS and len(missing) < len(archives):
        return
    reachable = _reachable_servers(missing)
    url = next((url for url in missing if _server(url) not in reachable), None)
    if url is not None:
        raise DataError(_describe_unreachable(builder, f"{url} is not", missing))


def _describe_unreachable(builder: Any, what: str, missing: list[str]) -> str:
    archives = builder.url_infos or {}
    names = [archives[url].filename if url in archives else None for url in missing]
    problem = f"{builder.name} is not prepared yet and {what} reachable."
    if None in names:  # tfds accepts a manual download only with a known name and checksum
        return (
            f"{problem} Prepare it on a machine with a network and give its folder as `data_dir`, "
            f"or give a folder of images as `dataset`."
        )
    files = join_names(dict.fromkeys(names))
    some = " (what its configuration needs)" if len(builder.BUILDER_CONFIGS) > 1 else ""
    return (
        f"{problem} Download {files}{some} elsewhere into {printable(_manual_folder(builder))}, "
        f"give a folder of images as `dataset`, or a `data_dir` where it is prepared."
    )


def _manual_folder(builder: Any) -> Path:
    return Path(builder.data_dir_root) / "downloads" / "manual"


def _is_downloaded(builder: Any, url: str, info: Any) -> bool:
    """Return whether tfds will find the archive, downloaded by tfds or by hand."""
    from tensorflow_datasets.core.download import resource

    if info.filename and (_manual_folder(builder) / info.filename).exists():
        return True
    downloads = Path(builder.data_dir_root) / "downloads"
    names = {resource.get_dl_fname(url, info.checksum), resource.get_dl_fname(url)}
    return any(
        (folder / f"{name}.INFO").exists() and (folder / name).exists()
        for folder in (downloads / builder.name, downloads)
        for name in names
    )


def _reachable_servers(urls: Iterable[str]) -> set[str]:
    """Return the servers of `urls` that answer within `PROBE_S`."""
    url_of = {_server(url): url for url in urls}
    answers = ask_servers([url for url in url_of.values() if url.startswith("http")], PROBE_S)
    # Only tfds can try what is no web address. 407 and the last three are answers of a proxy.
    statuses = {server: answers.get(url, 200) for server, url in url_of.items()}
    failures = (407, 502, 503, 504)
    return {server for server, s in statuses.items() if isinstance(s, int) and s not in failures}


def _server(url: str) -> str:
    """Return `https://host`; empty for a path."""
    return "/".join(url.split("/")[:3]) if "://" in url else ""


def _reason(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:500]
