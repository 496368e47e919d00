"""Archives in the real formats, with a few images each, placed where tfds caches its downloads.

The real builders prepare them without a network. `python tests/support/tfds_archives.py DIR`
prepares tf_flowers into DIR, to be read in an environment without TensorFlow.
"""

import gzip
import io
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

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
    folder = Path(data_dir) / "downloads" / name
    folder.mkdir(parents=True, exist_ok=True)
    assert {info.filename for info in builder.url_infos.values()} == set(archives)
    for url, info in builder.url_infos.items():
        path = folder / resource.get_dl_fname(url, info.checksum)
        path.write_bytes(archives[info.filename])
        resource.write_info_file(url, type(builder.data_path)(path), name, info.filename, info)


def jpeg(seed: int, *, size: tuple[int, int] = (20, 30)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def tar_gz(files: dict[str, bytes]) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for path, data in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return archive.getvalue()


def place_flowers(data_dir: Path, images: dict[str, list[bytes]]) -> None:
    """Make the archive of tf_flowers from the JPEG files of each class."""
    files = {
        f"flower_photos/{label}/{i:04d}.jpg": data
        for label, jpegs in images.items()
        for i, data in enumerate(jpegs)
    }
    files["flower_photos/LICENSE.txt"] = b"CC-BY"
    place("tf_flowers", data_dir, {"flower_photos.tgz": tar_gz(files)})


def place_cifar10(data_dir: Path, *, train: int = 12, test: int = 20) -> dict[str, np.ndarray]:
    """Make the binary batches of cifar10; return their rows: the label, then R, G and B."""
    files = {"cifar-10-batches-bin/batches.meta.txt": "\n".join(CIFAR).encode() + b"\n"}
    batches = {}
    for k, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        count = test if name == "test_batch" else train
        rows = np.random.default_rng(k).integers(0, 255, (count, 3073), np.uint8)
        rows[:, 0] = np.arange(count) % 10
        files[f"cifar-10-batches-bin/{name}.bin"] = rows.tobytes()
        batches[name] = rows
    place("cifar10", data_dir, {"cifar-10-binary.tar.gz": tar_gz(files)})
    return batches


def place_mnist(data_dir: Path, images: dict[str, np.ndarray]) -> None:
    """Make the four idx files of mnist; image i of (N, 28, 28) is labeled i % 10."""
    archives = {}
    for split, pixels in images.items():
        count = len(pixels)
        head = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (count, 28, 28))
        archives[f"{split}-images-idx3-ubyte.gz"] = gzip.compress(head + pixels.tobytes())
        labels = (np.arange(count) % 10).astype(np.uint8)
        head = b"\0\0\x08\x01" + count.to_bytes(4, "big")
        archives[f"{split}-labels-idx1-ubyte.gz"] = gzip.compress(head + labels.tobytes())
    place("mnist", data_dir, archives)


def place_cats_vs_dogs(data_dir: Path, *, each: int = 6) -> None:
    """Make the archive of cats_vs_dogs, including its damaged and other files."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("readme[1].txt", "Cats and dogs.")
        file.writestr("PetImages/Cat/Thumbs.db", "no image")
        for k, name in enumerate(("Cat", "Dog")):
            for i in range(each):
                file.writestr(f"PetImages/{name}/{i}.jpg", jpeg(10 * k + i))
        for i in range(CATS_VS_DOGS_CORRUPT):
            file.writestr(f"PetImages/Dog/{each + i}.jpg", b"no image at all")
    place("cats_vs_dogs", data_dir, {"kagglecatsanddogs_5340.zip": archive.getvalue()})


def place_oxford_flowers102(data_dir: Path) -> dict[str, list[int]]:
    """Make the images and lists of oxford_flowers102; return the image numbers of each split.

    Image k, from 1, is of class (k - 1) % 102.
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
    place("oxford_flowers102", data_dir, archives)
    return {name: part.tolist() for name, part in splits.items()}


def prepare_flowers(data_dir: Path, *, each: int = 4) -> dict[str, list[bytes]]:
    """Prepare tf_flowers with `each` images per class; return their JPEG files."""
    from vggjax.data.sources.open import open_source

    images = {label: [jpeg(100 * k + i) for i in range(each)] for k, label in enumerate(FLOWERS)}
    place_flowers(data_dir, images)
    open_source("tf_flowers", data_dir=str(data_dir))
    return images


if __name__ == "__main__":
    prepare_flowers(Path(sys.argv[1]), each=10)
