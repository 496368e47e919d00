"""The well-known tfds datasets, from their published archives, without TensorFlow.

Address and checksum of an archive, class names and splits are those of tfds' builder, and images
come in the order in which tfds stores them, so `train/17` and `train[:80%]` are the same images as
in tfds' own copy. The images of an archive are kept in one file, as they are (JPEG files, or the
pixels of cifar and mnist), and read by their position in it. (tfds compresses those of cats_vs_dogs
once more; here they are the originals.)
"""

import functools
import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vggjax.atomic import atomic_write
from vggjax.data.images.decode import GRAY, DecodedImage, read_image
from vggjax.data.sources.archives import (
    OWN_FOLDER,
    UNPACK_ERRORS,
    fetch_archives,
    gzip_content,
    remove_downloads,
    tar_members,
    zip_members,
)
from vggjax.data.sources.source import Source, make_split_source
from vggjax.download import MoveBar, RemoteFile, byte_bar, locked
from vggjax.errors import DataError, printable

FORMAT = 1
"""Version of the two files; raise it when their meaning changes."""

_IMAGES, _INDEX = "images.bin", "index.npz"
_SPLITS = ("train", "validation", "test")


class Example(NamedTuple):
    """One image of an archive."""

    split: str
    """tfds' name: train, validation or test."""
    key: str | int
    """What tfds' builder calls it, which decides its place in tfds' order."""
    label: str | int
    """The class name or its number."""
    data: bytes
    """An image file, or pixels of the dataset's shape."""


class Contents(NamedTuple):
    """The examples of a dataset, and its class names where they are in the archive alone."""

    examples: Iterator[Example]
    class_names: list[str] | None = None


Read = Callable[[Mapping[str, Path], MoveBar], Contents]
"""(archives by name, progress) -> contents."""


@dataclass(frozen=True)
class WellKnown:
    """How to read one dataset."""

    archives: tuple[str, ...]
    """Their names in tfds' table."""
    read: Read
    shape: tuple[int, ...] = ()
    """Of an image's pixels, (H, W, C), where they are stored; () for image files."""


def well_known(builder: Any) -> WellKnown | None:
    """Return how to read a tfds builder's dataset without TensorFlow; None for any other."""
    if builder.name == "imagenette":
        dirname = builder.builder_config.dirname  # imagenette2-320
        return WellKnown((f"{dirname}.tgz",), functools.partial(_read_imagenette, dirname))
    return _WELL_KNOWN.get(builder.name)


def archives_of(builder: Any) -> list[RemoteFile]:
    """Return the archives that a well-known dataset needs, from the builder's own table."""
    known = well_known(builder)
    assert known is not None
    return [
        RemoteFile(url, info.filename, int(info.size), info.checksum)
        for url, info in builder.url_infos.items()
        if info.filename in known.archives
    ]


def open_well_known(
    name: str, builder: Any, *, archives: Sequence[RemoteFile] | None = None
) -> Source:
    """Open a well-known dataset; the first time, its archives are downloaded and unpacked.

    Args:
        name: the name that the user gave.
        builder: tfds' builder of that name, with the folder of datasets.
        archives: None takes those of `archives_of`.

    Raises:
        DataError: an archive is missing and cannot be downloaded, or the disk cannot be written.
    """
    archives = archives_of(builder) if archives is None else archives
    known = well_known(builder)
    assert known is not None
    data_dir = Path(builder.data_dir_root)
    config = [builder.builder_config.name] if builder.builder_config else []
    folder = data_dir.joinpath(OWN_FOLDER, builder.name, *config, str(builder.version))
    index = _read_index(folder, archives)
    if index is None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with locked(folder / ".lock", f"prepares {builder.name}"):
                index = _read_index(folder, archives)  # another process may have been first
                if index is None:
                    paths = fetch_archives(builder.name, archives, data_dir)
                    index = _unpack(folder, builder, known, paths)
                    _write_index(folder, index, archives)
                    remove_downloads(paths, data_dir)
        except UNPACK_ERRORS as error:
            raise DataError(f"An archive of {builder.name} is damaged: {error}.") from error
        except OSError as error:
            raise DataError(
                f"{builder.name} cannot be written to {printable(folder)}: "
                f"{error.strerror or error}. Make room there, or give another `data_dir`."
            ) from error
    return _make_source(name, folder / _IMAGES, index, known.shape)


class _Index(NamedTuple):
    """What is in memory of an opened dataset: everything but the images."""

    class_names: tuple[str, ...]
    counts: dict[str, int]
    """tfds' split -> its number of images, which follow one another."""
    labels: np.ndarray
    """int32 (N,)."""
    spans: np.ndarray
    """int64 (N, 2): where each image starts and ends in the file of images."""


def _unpack(folder: Path, builder: Any, known: WellKnown, paths: dict[str, Path]) -> _Index:
    """Write the file of images and return its index, in tfds' order."""
    for leftover in folder.glob(f".{_IMAGES}.*"):  # of a killed process; this one has the lock
        leftover.unlink()
    rows: dict[str, list[tuple[bytes, str | int, int, int]]] = {split: [] for split in _SPLITS}
    with (
        byte_bar(f"unpacking {builder.name}") as progress,
        atomic_write(folder / _IMAGES, sync=True) as partial,
        open(partial, "wb") as file,
    ):
        contents = known.read(paths, progress)
        for split, key, label, data in contents.examples:
            start = file.tell()
            file.write(data)
            # tfds sorts examples by this hash, which spreads them evenly.
            place = hashlib.md5(f"{split}{key}".encode(), usedforsecurity=False).digest()
            rows[split].append((place, label, start, file.tell()))
    feature = builder.info.features["label"]
    class_names = tuple(contents.class_names or feature.names)
    ordered = [row for split in _SPLITS for row in sorted(rows[split])]
    number_of = {class_name: i for i, class_name in enumerate(class_names)}
    labels = [label if isinstance(label, int) else number_of[label] for _, label, *_ in ordered]
    return _Index(
        class_names,
        {split: len(rows[split]) for split in _SPLITS if rows[split]},
        np.asarray(labels, np.int32),
        np.asarray([row[2:] for row in ordered], np.int64),
    )


def _write_index(folder: Path, index: _Index, archives: Sequence[RemoteFile]) -> None:
    """Write the index, whose presence means that the images are complete."""
    facts = {
        "format": FORMAT,
        "checksums": [archive.checksum for archive in archives],
        "size_bytes": (folder / _IMAGES).stat().st_size,
        "class_names": index.class_names,
        "counts": index.counts,
    }
    with atomic_write(folder / _INDEX, sync=True) as partial, open(partial, "wb") as file:
        np.savez(file, facts=json.dumps(facts), labels=index.labels, spans=index.spans)


def _read_index(folder: Path, archives: Sequence[RemoteFile]) -> _Index | None:
    """Read the index; None if there is none, or it does not fit the images or the archives."""
    try:
        with open(folder / _INDEX, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            facts, labels, spans = (arrays[name] for name in ("facts", "labels", "spans"))
        facts = json.loads(str(facts))
        index = _Index(tuple(facts["class_names"]), facts["counts"], labels, spans)
        num_images = sum(index.counts.values())
        fits = (
            facts["format"] == FORMAT
            and facts["checksums"] == [archive.checksum for archive in archives]
            and facts["size_bytes"] == (folder / _IMAGES).stat().st_size
            and labels.shape == (num_images,)
            and spans.shape == (num_images, 2)
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
    return index if fits else None


def _make_source(name: str, path: Path, index: _Index, shape: tuple[int, ...]) -> Source:
    images = np.memmap(path, np.uint8, mode="r")

    def read(i: int) -> DecodedImage:
        start, end = index.spans[i]
        if not shape:
            return read_image(images[start:end].tobytes())
        pixels = np.array(images[start:end]).reshape(shape)
        if shape[-1] == 3:
            return DecodedImage(pixels)
        return DecodedImage(np.repeat(pixels, 3, axis=-1), (GRAY,))

    ends = np.cumsum(list(index.counts.values()))
    labels = dict(zip(index.counts, np.split(index.labels, ends[:-1]), strict=True))
    sizes = [path.stat().st_size]
    return make_split_source(name, index.class_names, labels, read=read, sizes=sizes)


def _read_flowers(paths: Mapping[str, Path], progress: MoveBar) -> Contents:
    (path,) = paths.values()
    files = tar_members(path, r"flower_photos/(\w+)/([^/]+\.jpg)", progress)
    return Contents(
        Example("train", f"{match[1]}/{match[2]}", match[1].lower(), data) for match, data in files
    )


def _read_cats_vs_dogs(paths: Mapping[str, Path], progress: MoveBar) -> Contents:
    (path,) = paths.values()
    files = zip_members(path, r"PetImages[\\/](Cat|Dog)[\\/](\d+\.jpg)", progress)
    return Contents(
        Example("train", f"PetImages/{match[1]}/{match[2]}", match[1].lower(), data)
        for match, data in files
        if b"JFIF" in data[:512]  # tfds' test for damage, which 1,738 of 25,000 fail
    )


def _read_cifar(
    names_file: str,
    splits: Mapping[str, Sequence[str]],
    num_labels: int,
    paths: Mapping[str, Path],
    progress: MoveBar,
) -> Contents:
    """Read rows of labels, of which the last counts, and the red, green and blue plane."""
    (path,) = paths.values()
    members = tar_members(path, r"cifar-[^/]+/([^/]+\.(?:bin|txt))", progress)
    files = {match[1]: data for match, data in members}

    def examples() -> Iterator[Example]:
        for split, names in splits.items():
            rows = np.frombuffer(b"".join(files[name] for name in names), np.uint8)
            rows = rows.reshape(-1, num_labels + 3072)
            labels = rows[:, num_labels - 1].tolist()
            for i, planes in enumerate(rows[:, num_labels:]):
                pixels = planes.reshape(3, 32, 32).transpose(1, 2, 0)  # (H, W, C)
                yield Example(split, i, labels[i], pixels.tobytes())

    return Contents(examples(), files[names_file].decode().split())


def _read_mnist(paths: Mapping[str, Path], progress: MoveBar) -> Contents:
    def examples() -> Iterator[Example]:
        for split, prefix in (("train", "train"), ("test", "t10k")):
            images = gzip_content(paths[f"{prefix}-images-idx3-ubyte.gz"])[16:]
            labels = gzip_content(paths[f"{prefix}-labels-idx1-ubyte.gz"])[8:]
            for i, label in enumerate(labels):
                yield Example(split, i, label, images[784 * i : 784 * (i + 1)])

    return Contents(examples())


def _read_oxford_flowers102(paths: Mapping[str, Path], progress: MoveBar) -> Contents:
    from scipy.io import loadmat

    labels = loadmat(paths["imagelabels.mat"])["labels"][0].tolist()  # from 1
    numbers = loadmat(paths["setid.mat"])
    splits = {"train": "trnid", "validation": "valid", "test": "tstid"}
    split_of = {k: split for split, key in splits.items() for k in numbers[key][0].tolist()}
    files = tar_members(paths["102flowers.tgz"], r"jpg/(image_(\d{5})\.jpg)", progress)
    return Contents(
        Example(split_of[int(match[2])], match[1], labels[int(match[2]) - 1] - 1, data)
        for match, data in files
        if int(match[2]) in split_of
    )


def _read_imagenette(dirname: str, paths: Mapping[str, Path], progress: MoveBar) -> Contents:
    (path,) = paths.values()
    files = tar_members(path, rf"{dirname}/(train|val)/([^/]+)/([^/]+\.JPEG)", progress)
    splits = {"train": "train", "val": "validation"}
    return Contents(Example(splits[match[1]], match[3], match[2], data) for match, data in files)


_IDX_FILES = tuple(
    f"{part}-{kind}-ubyte.gz"
    for part in ("train", "t10k")
    for kind in ("images-idx3", "labels-idx1")
)
_CIFAR10 = {
    "train": [f"data_batch_{i}.bin" for i in range(1, 6)],
    "test": ["test_batch.bin"],
}
_CIFAR100 = {"train": ["train.bin"], "test": ["test.bin"]}

_WELL_KNOWN = {
    "tf_flowers": WellKnown(("flower_photos.tgz",), _read_flowers),
    "cats_vs_dogs": WellKnown(("kagglecatsanddogs_5340.zip",), _read_cats_vs_dogs),
    "cifar10": WellKnown(
        ("cifar-10-binary.tar.gz",),
        functools.partial(_read_cifar, "batches.meta.txt", _CIFAR10, 1),
        shape=(32, 32, 3),
    ),
    "cifar100": WellKnown(
        ("cifar-100-binary.tar.gz",),
        functools.partial(_read_cifar, "fine_label_names.txt", _CIFAR100, 2),
        shape=(32, 32, 3),
    ),
    "mnist": WellKnown(_IDX_FILES, _read_mnist, shape=(28, 28, 1)),
    "fashion_mnist": WellKnown(_IDX_FILES, _read_mnist, shape=(28, 28, 1)),
    "oxford_flowers102": WellKnown(
        ("102flowers.tgz", "imagelabels.mat", "setid.mat"), _read_oxford_flowers102
    ),
}
