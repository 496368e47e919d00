"""Archives of the well-known datasets in their real formats, with a few images each.

`prepare` lets the real builders prepare them without a network, `open_own` opens them without
TensorFlow. `python tests/support/tfds_archives.py DIR` prepares tf_flowers into DIR, to be read in
an environment without TensorFlow.
"""

import contextlib
import gzip
import hashlib
import io
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vggjax.data.sources.source import Source
from vggjax.download import RemoteFile

FLOWERS = ("dandelion", "daisy", "tulips", "sunflowers", "roses")  # in the builder's order
CIFAR = "airplane automobile bird cat deer dog frog horse ship truck".split()
CATS_VS_DOGS_CORRUPT = 1738  # files that the builder expects to skip

HIDE_TENSORFLOW = """
import importlib.machinery, sys

class Hide:
    find_distributions = importlib.machinery.PathFinder.find_distributions

    @staticmethod
    def find_spec(name, *args):
        find_spec = importlib.machinery.PathFinder.find_spec
        return None if name in ("tensorflow", "keras") else find_spec(name, *args)

sys.meta_path = [Hide if f is importlib.machinery.PathFinder else f for f in sys.meta_path]
"""
"""Code that hides TensorFlow and Keras from the process that runs it."""


def place(name: str, data_dir: Path, archives: dict[str, bytes]) -> None:
    """Write each archive, given by its name on the server, into tfds' download cache."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import resource

    builder = tfds.builder(name, data_dir=data_dir)
    folder = Path(data_dir) / "downloads" / builder.name
    folder.mkdir(parents=True, exist_ok=True)
    for url, info in builder.url_infos.items():
        if info.filename in archives:
            path = folder / resource.get_dl_fname(url, info.checksum)
            path.write_bytes(archives[info.filename])
            path_type = type(builder.data_path)
            resource.write_info_file(url, path_type(path), builder.name, info.filename, info)


def prepare(name: str, data_dir: Path, archives: dict[str, bytes]) -> None:
    """Prepare a dataset as tfds does, with TensorFlow."""
    import tensorflow_datasets as tfds

    from vggjax.data.sources.tfds import prepare

    place(name, data_dir, archives)
    prepare(tfds.builder(name, data_dir=data_dir))


NOWHERE = "http://127.0.0.1:9"
"""An address where nobody listens."""


def remote_files(archives: dict[str, bytes], address: str) -> list[RemoteFile]:
    """Return the table of archives on the server at `address`, as tfds' builder has one."""
    return [
        RemoteFile(f"{address}/{name}", name, len(data), hashlib.sha256(data).hexdigest())
        for name, data in archives.items()
    ]


def open_own(
    name: str, data_dir: Path, archives: dict[str, bytes], address: str = NOWHERE
) -> Source:
    """Open a well-known dataset whose archives are on the server at `address`."""
    import tensorflow_datasets as tfds

    from vggjax.data.sources.wellknown import open_well_known

    builder = tfds.builder(name, data_dir=data_dir)
    return open_well_known(name, builder, archives=remote_files(archives, address))


def jpeg(seed: int, *, size: tuple[int, int] = (20, 30)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def with_comment(jpeg: bytes, length: int) -> bytes:
    """Return a JPEG file with a comment of `length` bytes before its JFIF header."""
    comment = b"\xff\xfe" + (length + 2).to_bytes(2, "big") + b" " * length
    return jpeg[:2] + comment + jpeg[2:]


def tar_gz(files: dict[str, bytes]) -> bytes:
    """Return an archive; the same files make the same bytes at any time."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for path, data in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return gzip.compress(archive.getvalue(), mtime=0)


def flowers(*, each: int = 4) -> tuple[dict[str, bytes], dict[str, list[bytes]]]:
    """Make the archive of tf_flowers; return it and the JPEG files of each class."""
    images = {label: [jpeg(100 * k + i) for i in range(each)] for k, label in enumerate(FLOWERS)}
    files = {
        f"flower_photos/{label}/{i:04d}.jpg": data
        for label, jpegs in images.items()
        for i, data in enumerate(jpegs)
    }
    files["flower_photos/LICENSE.txt"] = b"CC-BY"
    return {"flower_photos.tgz": tar_gz(files)}, images


def cifar10(*, train: int = 12, test: int = 20) -> tuple[dict[str, bytes], dict[str, np.ndarray]]:
    """Make the binary batches of cifar10; return them and their rows: label, R, G and B."""
    files = {"cifar-10-batches-bin/batches.meta.txt": "\n".join(CIFAR).encode() + b"\n\n"}
    batches = {}
    for k, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        count = test if name == "test_batch" else train
        rows = np.random.default_rng(k).integers(0, 255, (count, 3073), np.uint8)
        rows[:, 0] = np.arange(count) % 10
        files[f"cifar-10-batches-bin/{name}.bin"] = rows.tobytes()
        batches[name] = rows
    return {"cifar-10-binary.tar.gz": tar_gz(files)}, batches


def cifar100() -> dict[str, bytes]:
    """Make the archive of cifar100, of which each row starts with the coarse label."""
    files = {}
    for k, (name, count) in enumerate((("train", 30), ("test", 20))):
        rows = np.random.default_rng(k).integers(0, 255, (count, 3074), np.uint8)
        rows[:, 0], rows[:, 1] = np.arange(count) % 20, np.arange(count) % 100
        files[f"cifar-100-binary/{name}.bin"] = rows.tobytes()
    for kind, count in (("coarse", 20), ("fine", 100)):
        names = [f"{kind}_{i}" for i in range(count)]
        files[f"cifar-100-binary/{kind}_label_names.txt"] = "\n".join(names).encode() + b"\n"
    return {"cifar-100-binary.tar.gz": tar_gz(files)}


def mnist(images: dict[str, np.ndarray]) -> dict[str, bytes]:
    """Make the four idx files of mnist; image i of (N, 28, 28) is labeled i % 10."""
    archives = {}
    for split, pixels in images.items():
        count = len(pixels)
        head = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (count, 28, 28))
        archives[f"{split}-images-idx3-ubyte.gz"] = gzip.compress(head + pixels.tobytes())
        labels = (np.arange(count) % 10).astype(np.uint8)
        head = b"\0\0\x08\x01" + count.to_bytes(4, "big")
        archives[f"{split}-labels-idx1-ubyte.gz"] = gzip.compress(head + labels.tobytes())
    return archives


def digits(*, train: int = 40, test: int = 20) -> dict[str, np.ndarray]:
    """Make the images of mnist's two splits, under their names there."""
    rng = np.random.default_rng(0)
    counts = {"train": train, "t10k": test}
    return {name: rng.integers(0, 255, (n, 28, 28), np.uint8) for name, n in counts.items()}


@contextlib.contextmanager
def fewer_digits(images: dict[str, np.ndarray]) -> Iterator[None]:
    """Let tfds' builders of mnist expect these images instead of 70,000."""
    from tensorflow_datasets.image_classification import mnist

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(mnist, "_TRAIN_EXAMPLES", len(images["train"]))
        patched.setattr(mnist, "_TEST_EXAMPLES", len(images["t10k"]))
        yield


def cats_vs_dogs(*, each: int = 6) -> dict[str, bytes]:
    """Make the archive of cats_vs_dogs, including its damaged and other files."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("readme[1].txt", "Cats and dogs.")
        file.writestr("PetImages/Cat/Thumbs.db", "no image")
        for k, name in enumerate(("Cat", "Dog")):
            for i in range(each):
                # tfds looks for JFIF in the first 512 bytes, where EXIF data may precede it.
                comment = 100 * i % 400
                file.writestr(f"PetImages/{name}/{i}.jpg", with_comment(jpeg(10 * k + i), comment))
        for i in range(CATS_VS_DOGS_CORRUPT - 1):
            file.writestr(f"PetImages/Dog/{each + i}.jpg", b"no image at all")
        file.writestr("PetImages/Cat/9999.jpg", with_comment(jpeg(99), 600))
    return {"kagglecatsanddogs_5340.zip": archive.getvalue()}


def oxford_flowers102() -> tuple[dict[str, bytes], dict[str, list[int]]]:
    """Make the images and lists of oxford_flowers102; return the image numbers of each split.

    Image k, from 1, is of class (k - 1) % 102. The archive is not compressed, whatever its name.
    """
    from scipy.io import savemat

    numbers = np.random.default_rng(0).permutation(np.arange(1, 3 * 102 + 1))
    of_class = [numbers[(numbers - 1) % 102 == label] for label in range(102)]
    splits = dict(zip(("trnid", "valid", "tstid"), np.sort(np.array(of_class).T), strict=True))
    labels, setid = io.BytesIO(), io.BytesIO()
    savemat(labels, {"labels": (np.arange(3 * 102) % 102 + 1)[None].astype(np.uint8)})
    savemat(setid, {name: part[None].astype(np.uint16) for name, part in splits.items()})
    files = {f"jpg/image_{k:05d}.jpg": jpeg(k, size=(8, 8)) for k in range(1, 3 * 102 + 1)}
    archives = {
        "102flowers.tgz": tar_gz(files),
        "imagelabels.mat": labels.getvalue(),
        "setid.mat": setid.getvalue(),
    }
    return archives, {name: part.tolist() for name, part in splits.items()}


def imagenette(dirname: str) -> dict[str, bytes]:
    """Make an archive of imagenette, with two images of each class in each split."""
    wnids = ("n01440764", "n02102040", "n02979186", "n03000684", "n03028079")
    wnids += ("n03394916", "n03417042", "n03425413", "n03445777", "n03888257")
    files = {
        f"{dirname}/{split}/{wnid}/{split}_{wnid}_{i}.JPEG": jpeg(4 * k + 2 * part + i)
        for k, wnid in enumerate(wnids)
        for part, split in enumerate(("train", "val"))
        for i in range(2)
    }
    files |= {f"{dirname}/.DS_Store": b"", f"{dirname}/noisy.csv": b""}
    return {f"{dirname}.tgz": tar_gz(files)}


WELL_KNOWN = {
    "tf_flowers": lambda: flowers()[0],
    "cats_vs_dogs": cats_vs_dogs,
    "cifar10": lambda: cifar10()[0],
    "cifar100": cifar100,
    "mnist": lambda: mnist(digits()),
    "fashion_mnist": lambda: mnist(digits()),
    "oxford_flowers102": lambda: oxford_flowers102()[0],
    "imagenette": lambda: imagenette("imagenette2"),
    "imagenette/160px": lambda: imagenette("imagenette-160"),
}
"""tfds name -> what makes its archives."""


def prepare_flowers(data_dir: Path, *, each: int = 4) -> dict[str, list[bytes]]:
    """Prepare tf_flowers with `each` images per class; return their JPEG files."""
    archives, images = flowers(each=each)
    prepare("tf_flowers", data_dir, archives)
    return images


if __name__ == "__main__":
    prepare_flowers(Path(sys.argv[1]), each=10)
