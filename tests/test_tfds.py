"""The real tf_flowers and cifar10 builders, offline, on archives that the tests make."""

import io
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vggjax.data import tfds_prepare
from vggjax.data.pictures import load_image
from vggjax.data.sources import open_source
from vggjax.data.splits import make_splits
from vggjax.errors import DataError

FLOWERS = ("dandelion", "daisy", "tulips", "sunflowers", "roses")  # in the order of the builder
CIFAR = "airplane automobile bird cat deer dog frog horse ship truck".split()


def place_archive(name: str, data_dir: Path, files: dict[str, bytes]) -> None:
    """Puts an archive of these files where tfds looks for one that it has fetched before."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import resource

    builder = tfds.builder(name, data_dir=data_dir)
    ((url, info),) = builder.url_infos.items()
    archive = data_dir / "downloads" / name / resource.get_dl_fname(url, info.checksum)
    archive.parent.mkdir(parents=True)
    with tarfile.open(archive, "w:gz") as tar:
        for path, data in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    resource.write_info_file(url, type(builder.data_path)(archive), name, info.filename, info)


def place_flowers(data_dir: Path, pictures: dict[str, list[bytes]]) -> None:
    """Makes the archive of tf_flowers from the JPEG files of each class."""
    files = {
        f"flower_photos/{label}/{i:04d}.jpg": data
        for label, jpegs in pictures.items()
        for i, data in enumerate(jpegs)
    }
    place_archive("tf_flowers", data_dir, files)


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (20, 30, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture(scope="module")
def flowers():
    """JPEG files of five classes, four each; the colours of no two are the same."""
    return {label: [jpeg(10 * k + i) for i in range(4)] for k, label in enumerate(FLOWERS)}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory, flowers):
    """A tfds folder with tf_flowers and cifar10 prepared, of 20 and 60 + 20 pictures."""
    folder = tmp_path_factory.mktemp("tfds")
    place_flowers(folder, flowers)
    open_source("tf_flowers", data_dir=str(folder))
    files = {"cifar-10-batches-bin/batches.meta.txt": "\n".join(CIFAR).encode() + b"\n"}
    for k, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        count = 20 if name == "test_batch" else 12
        rows = np.random.default_rng(k).integers(0, 255, (count, 3073), np.uint8)
        rows[:, 0] = np.arange(count) % 10  # the label; then 1,024 values of R, of G and of B
        files[f"cifar-10-batches-bin/{name}.bin"] = rows.tobytes()
    place_archive("cifar10", folder, files)
    open_source("cifar10", data_dir=str(folder))
    return folder


def test_tf_flowers_gives_its_photographs_with_their_labels(data_dir, flowers):
    source = open_source("tf_flowers", data_dir=str(data_dir))
    assert source.class_names == FLOWERS
    assert source.splits is None and len(source) == 20
    assert source.ids[17] == "train/17" and source.path(17) is None
    expected = {load_image(j).tobytes(): name for name, js in flowers.items() for j in js}
    for i, label in enumerate(source.labels):
        assert expected.pop(source.read(i).pixels.tobytes()) == source.class_names[label]
    assert not expected


def test_tf_flowers_is_cut_into_three_splits(data_dir):
    source = open_source("tf_flowers", data_dir=str(data_dir))
    splits = make_splits(source, (0.5, 0.25, 0.25), seed=1)
    assert {name: len(part) for name, part in splits.items()} == {"train": 10, "val": 5, "test": 5}


def test_cifar10_keeps_its_test_split(data_dir):
    source = open_source("cifar10", data_dir=str(data_dir))
    assert source.class_names == tuple(CIFAR)
    assert {name: len(part) for name, part in source.splits.items()} == {"train": 60, "test": 20}
    splits = make_splits(source)
    np.testing.assert_array_equal(splits["test"], np.arange(60, 80))
    assert set(splits["train"]) | set(splits["val"]) == set(range(60))


def test_cifar10_gives_the_pixels_of_the_archive(data_dir):
    source = open_source("cifar10", data_dir=str(data_dir))
    rows = np.random.default_rng(5).integers(0, 255, (20, 3073), np.uint8)
    expected = {
        row[1:].reshape(3, 32, 32).transpose(1, 2, 0).tobytes(): k for k, row in enumerate(rows)
    }
    for i in source.splits["test"]:
        assert expected.pop(source.read(i).pixels.tobytes()) % 10 == source.labels[i]
    assert not expected


HIDE_TENSORFLOW = """
import importlib.machinery, sys

class Hide:
    @staticmethod
    def find_spec(name, *args):
        found = importlib.machinery.PathFinder.find_spec
        return None if name in ("tensorflow", "keras") else found(name, *args)

sys.meta_path = [Hide if f is importlib.machinery.PathFinder else f for f in sys.meta_path]
"""


def run_without_tensorflow(code: str) -> str:
    command = [sys.executable, "-c", HIDE_TENSORFLOW + code]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_a_prepared_set_is_read_where_tensorflow_is_not_installed(data_dir):
    printed = run_without_tensorflow(f"""
from vggjax.data.sources import open_source
source = open_source("tf_flowers", data_dir={str(data_dir)!r})
print(len(source), all(source.read(i).pixels.shape == (20, 30, 3) for i in range(len(source))))
""")
    assert printed.split() == ["20", "True"]


def test_a_prepared_set_is_read_without_importing_tensorflow(data_dir):
    code = f"""
import sys
from vggjax.data.sources import open_source
source = open_source("tf_flowers", data_dir={str(data_dir)!r})
source.read(7)
print([name for name in sys.modules if name.split(".")[0] in ("tensorflow", "keras")])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.stdout.strip() == "[]", run.stderr


def test_without_tensorflow_an_unprepared_set_names_the_extra(tmp_path):
    printed = run_without_tensorflow(f"""
from vggjax.data.sources import open_source
try:
    open_source("tf_flowers", data_dir={str(tmp_path)!r})
except ValueError as error:
    print(error)
""")
    assert 'pip install "vggjax[tfds]"' in printed and printed.count("\n") == 1


def test_the_labels_are_read_once_and_a_damaged_copy_is_mended(data_dir):
    first = open_source("tf_flowers", data_dir=str(data_dir))
    (kept,) = data_dir.glob("tf_flowers/*/vggjax-label-train.npy")
    kept.write_bytes(kept.read_bytes()[:-3])
    again = open_source("tf_flowers", data_dir=str(data_dir))
    np.testing.assert_array_equal(first.labels, again.labels)
    assert first.fingerprint == again.fingerprint
    np.testing.assert_array_equal(np.load(kept), first.labels)


def test_without_a_network_an_unprepared_set_says_where_the_archive_goes(tmp_path, monkeypatch):
    with socket.socket() as closed:  # bound and not listening: refuses at once
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        monkeypatch.delenv("no_proxy", raising=False)
        start = time.monotonic()
        with pytest.raises(DataError) as error:
            open_source("tf_flowers", data_dir=str(tmp_path))
    assert time.monotonic() - start < 10
    message = str(error.value)
    assert (
        f"flower_photos.tgz elsewhere and put what you fetched into {tmp_path / 'downloads'}"
        in message
    )
    assert "\n" not in message


def test_of_several_archives_that_are_needed_one_is_not_enough(tmp_path, monkeypatch):
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    (manual / "train-images-idx3-ubyte.gz").write_bytes(b"")
    monkeypatch.setattr(tfds_prepare, "_answers", lambda url: False)
    with pytest.raises(DataError, match="Fetch t10k-images-idx3-ubyte.gz, t10k-labels") as error:
        open_source("mnist", data_dir=str(tmp_path))
    assert "train-images" not in str(error.value)


def test_a_set_that_must_be_fetched_by_hand_gives_its_instructions(tmp_path):
    with pytest.raises(DataError, match="imagenet2012 cannot be fetched.*manual.*ILSVRC2012") as e:
        open_source("imagenet2012", data_dir=str(tmp_path))
    assert "\n" not in str(e.value)


def test_a_server_that_never_answers_counts_as_out_of_reach(monkeypatch):
    monkeypatch.setattr(tfds_prepare, "PROBE_S", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(1)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert not tfds_prepare._answers(f"http://127.0.0.1:{silent.getsockname()[1]}/x.tgz")


def test_an_archive_put_there_by_hand_is_found_and_its_checksum_checked(tmp_path):
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    (manual / "flower_photos.tgz").write_bytes(b"not the archive")
    with pytest.raises(DataError, match="cannot prepare tf_flowers.*checksum"):
        open_source("tf_flowers", data_dir=str(tmp_path))


def test_a_set_prepared_as_tfrecord_is_refused_with_its_folder(data_dir, tmp_path):
    folder = tmp_path / "tf_flowers"
    shutil.copytree(data_dir / "tf_flowers", folder)
    (info,) = folder.glob("*/dataset_info.json")
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(DataError, match=f"{info.parent} was prepared as tfrecord"):
        open_source("tf_flowers", data_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tf_flowerz", "Did you mean 'tf_flowers'"),
        ("tf_flowers:9.9.9", "3.0.1"),
        ("ag_news_subset", "not one picture and one class label"),
    ],
)
def test_a_name_that_cannot_be_opened_says_why_on_one_line(name, words, tmp_path):
    with pytest.raises(DataError) as error:
        open_source(name, data_dir=str(tmp_path))
    assert words in str(error.value) and "\n" not in str(error.value)
