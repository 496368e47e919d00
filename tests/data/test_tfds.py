"""The real tfds builders, offline, on archives made by the tests; and every way to fail early."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import requests
from support import tfds_archives
from support.tfds_archives import (
    CIFAR,
    FLOWERS,
    HIDE_TENSORFLOW,
    WELL_KNOWN,
    jpeg,
    prepare_flowers,
)

from vggjax.data.images.decode import load_image
from vggjax.data.sources import tfds
from vggjax.data.sources.open import open_source
from vggjax.data.splits.slices import parse_slices, resolve_slices
from vggjax.data.splits.splits import make_splits
from vggjax.errors import DataError


def sizes(splits: dict[str, np.ndarray]) -> dict[str, int]:
    return {name: len(part) for name, part in splits.items()}


def run_python(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.run(command, capture_output=True, text=True, timeout=250, env=environment)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("tfds")


@pytest.fixture(scope="module")
def flowers(data_dir):
    """Prepare tf_flowers; return four JPEG files of each class."""
    return prepare_flowers(data_dir)


def test_tf_flowers_returns_its_images_with_their_labels(data_dir, flowers):
    source = open_source("tf_flowers", data_dir=str(data_dir))
    assert source.class_names == FLOWERS
    assert source.splits is None and len(source) == 20
    assert source.ids[17] == "train/17" and source.path(17) is None
    expected = {load_image(j).tobytes(): name for name, js in flowers.items() for j in js}
    for i, label in enumerate(source.labels):
        assert expected.pop(source.read(i).pixels.tobytes()) == source.class_names[label]
    assert not expected
    splits = make_splits(source, (0.5, 0.25, 0.25), seed=1)
    assert sizes(splits) == {"train": 10, "val": 5, "test": 5}


def test_reading_a_prepared_dataset_does_not_import_tensorflow(data_dir, flowers):
    printed = run_python(f"""
import sys
from vggjax.data.sources.open import open_source
source = open_source("tf_flowers", data_dir={str(data_dir)!r})
source.read(7)
print([name for name in sys.modules if name.split(".")[0] in ("tensorflow", "keras")])
""")
    assert printed.strip() == "[]"


def test_without_tensorflow_a_prepared_dataset_is_read_and_another_names_the_extra(
    data_dir, flowers, tmp_path
):
    code = f"""
from vggjax.data.sources.open import open_source
source = open_source("tf_flowers", data_dir={str(data_dir)!r})
print(len(source), all(source.read(i).pixels.shape == (20, 30, 3) for i in range(len(source))))
try:
    open_source("kmnist", data_dir={str(tmp_path)!r})
except ValueError as error:
    print(error)
"""
    first, message = run_python(HIDE_TENSORFLOW + code).splitlines()
    assert first == "20 True" and 'pip install "tensorflow-cpu>=2.21"' in message


def test_labels_are_cached_and_a_damaged_cache_is_replaced(data_dir, flowers):
    first = open_source("tf_flowers", data_dir=str(data_dir))
    (cache,) = data_dir.glob("tf_flowers/*/vggjax-label-train.npy")
    intact = cache.read_bytes()
    damage = {
        "truncated": lambda: cache.write_bytes(intact[:-3]),
        "of another dataset": lambda: np.save(cache, first.labels[:-1]),
    }
    for kind, write in damage.items():
        write()
        again = open_source("tf_flowers", data_dir=str(data_dir))
        np.testing.assert_array_equal(first.labels, again.labels, err_msg=kind)
        assert first.fingerprint == again.fingerprint
        assert cache.read_bytes() == intact, kind


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cifar10")
    archives, batches = tfds_archives.cifar10()
    tfds_archives.prepare("cifar10", folder, archives)
    return open_source("cifar10", data_dir=str(folder)), batches, folder


def test_cifar10_keeps_its_test_split(cifar10):
    source, *_ = cifar10
    assert source.class_names == tuple(CIFAR)
    assert sizes(source.splits) == {"train": 60, "test": 20}
    splits = make_splits(source)
    np.testing.assert_array_equal(splits["test"], np.arange(60, 80))
    assert set(splits["train"]) | set(splits["val"]) == set(range(60))


def test_cifar10_returns_the_pixels_of_the_archive(cifar10):
    source, batches, _ = cifar10
    expected = {
        row[1:].reshape(3, 32, 32).transpose(1, 2, 0).tobytes(): row[0]
        for row in batches["test_batch"]
    }
    for i in source.splits["test"]:
        assert expected.pop(source.read(i).pixels.tobytes()) == source.labels[i]
    assert not expected


@pytest.mark.parametrize(
    ("part", "rest"),
    [("train[:70%]", "test"), ("train[31%:77%]+test[5:9]", "test[:5]"), ("test[-7:]", "train")],
)
def test_a_slice_has_the_images_that_tfds_reads(cifar10, part, rest):
    import tensorflow_datasets as tfds

    source, _, folder = cifar10
    (info,) = folder.glob("cifar10/*/dataset_info.json")
    builder = tfds.builder_from_directory(info.parent)
    expected = [row["image"].tobytes() for row in builder.as_data_source(part)]
    # Not by make_splits: with so few images a slice lacks some classes.
    indices = resolve_slices(source, parse_slices(f"{part},{rest}"))["train"]
    assert [source.read(i).pixels.tobytes() for i in indices] == expected


def test_mnist_returns_gray_digits_as_rgb_with_a_note(tmp_path):
    images = tfds_archives.digits()
    with tfds_archives.fewer_digits(images):
        tfds_archives.prepare("mnist", tmp_path, tfds_archives.mnist(images))
    source = open_source("mnist", data_dir=str(tmp_path))
    assert source.class_names == tuple("0123456789")
    assert sizes(source.splits) == {"train": 40, "test": 20}
    for split, archive in (("train", "train"), ("test", "t10k")):
        expected = {image.tobytes(): i % 10 for i, image in enumerate(images[archive])}
        for i in source.splits[split]:
            image = source.read(i)
            assert image.pixels.shape == (28, 28, 3)
            assert (image.pixels == image.pixels[..., :1]).all()
            assert expected.pop(image.pixels[..., 0].tobytes()) == source.labels[i]
            assert image.notes == ("gray made RGB",)
        assert not expected
    assert sizes(make_splits(source)) == {"train": 30, "val": 10, "test": 20}


def test_cats_vs_dogs_skips_its_damaged_files_and_is_split(tmp_path):
    tfds_archives.prepare("cats_vs_dogs", tmp_path, tfds_archives.cats_vs_dogs())
    source = open_source("cats_vs_dogs", data_dir=str(tmp_path))
    assert source.class_names == ("cat", "dog") and source.splits is None
    assert np.bincount(source.labels).tolist() == [6, 6]
    assert sizes(make_splits(source)) == {"train": 8, "val": 2, "test": 2}
    # The builder re-encodes each image, so pixels are similar, not equal.
    originals = {k: load_image(jpeg(k)).astype(int) for k in (*range(6), *range(10, 16))}
    for i, label in enumerate(source.labels):
        pixels = source.read(i).pixels.astype(int)
        distance = {k: np.abs(pixels - image).mean() for k, image in originals.items()}
        nearest = min(distance, key=distance.get)
        assert distance[nearest] < 20 and nearest // 10 == label  # other images are 80 away
        originals.pop(nearest)


def test_oxford_flowers102_keeps_its_three_splits(tmp_path):
    archives, numbers = tfds_archives.oxford_flowers102()
    tfds_archives.prepare("oxford_flowers102", tmp_path, archives)
    source = open_source("oxford_flowers102", data_dir=str(tmp_path))
    assert len(source.class_names) == 102 and source.class_names[0] == "pink primrose"
    splits = make_splits(source)
    for archive_name, split in (("trnid", "train"), ("valid", "val"), ("tstid", "test")):
        np.testing.assert_array_equal(splits[split], source.splits[split])
        expected = {load_image(jpeg(k, size=(8, 8))).tobytes(): k for k in numbers[archive_name]}
        for i in splits[split]:
            number = expected.pop(source.read(i).pixels.tobytes())
            assert source.labels[i] == (number - 1) % 102
        assert not expected


@pytest.mark.parametrize("name", WELL_KNOWN)
def test_a_well_known_dataset_is_the_one_that_tfds_prepares(name, tmp_path):
    archives = WELL_KNOWN[name]()
    with tfds_archives.fewer_digits(tfds_archives.digits()):
        tfds_archives.prepare(name, tmp_path / "tfds", archives)
    expected = open_source(name, data_dir=str(tmp_path / "tfds"))
    (tmp_path / "own").mkdir()
    for file, data in archives.items():
        (tmp_path / "own" / file).write_bytes(data)
    source = tfds_archives.open_own(name, tmp_path / "own", archives)
    assert not (tmp_path / "tfds" / "vggjax").exists()  # what tfds prepared is used as it is
    assert source.class_names == expected.class_names and source.ids == expected.ids
    np.testing.assert_array_equal(source.labels, expected.labels)
    np.testing.assert_array_equal(source.split_of, expected.split_of)
    for i in range(len(source)):
        image, wanted = source.read(i), expected.read(i)
        assert image.notes == wanted.notes
        if name == "cats_vs_dogs":  # tfds compresses these once more; other images are 80 away
            assert np.abs(image.pixels.astype(int) - wanted.pixels).mean() < 20
        else:
            np.testing.assert_array_equal(image.pixels, wanted.pixels)


ARCHIVES = {
    "tf_flowers": "flower_photos.tgz",
    "cats_vs_dogs": "kagglecatsanddogs_5340.zip",
    "cifar10": "cifar-10-binary.tar.gz",
    "cifar100": "cifar-100-binary.tar.gz",
    "mnist": "train-labels-idx1-ubyte.gz",
    "fashion_mnist": "train-labels-idx1-ubyte.gz",
    "oxford_flowers102": "102flowers.tgz, imagelabels.mat, setid.mat",
    "imagenette": "imagenette2.tgz",
    "imagenette/160px": "imagenette-160.tgz",
    "kmnist": "train-labels-idx1-ubyte.gz",  # by tfds, as every other
}


@pytest.fixture
def no_network(monkeypatch):
    """Route every request to a proxy port that refuses at once."""
    with socket.socket() as closed:  # bound, not listening
        closed.bind(("127.0.0.1", 0))
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{closed.getsockname()[1]}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        yield


@pytest.mark.parametrize("name", ARCHIVES)
def test_without_a_network_the_error_names_the_archive_and_its_folder_within_seconds(
    name, tmp_path, no_network
):
    start = time.monotonic()
    with pytest.raises(DataError) as error:
        open_source(name, data_dir=str(tmp_path))
    assert time.monotonic() - start < 30  # tfds alone retries for minutes
    message = str(error.value)
    assert f"{ARCHIVES[name]} elsewhere into" in message and "\n" not in message
    assert f"into {tmp_path / 'downloads' / 'manual'}" in message


def test_a_silent_network_takes_no_longer_than_the_probe(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds, "PROBE_S", 1.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(50)
        for name in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        urls = [f"http://server{i}.example/x.tgz" for i in range(60)]
        start = time.monotonic()
        assert tfds._reachable_servers(urls) == set()
        assert time.monotonic() - start < 45  # one after another they take 60 s


def test_a_hanging_dns_lookup_takes_no_longer_than_the_probe(monkeypatch):
    end = threading.Event()

    def hang(url, **options):
        end.wait(60)
        raise requests.ConnectionError

    monkeypatch.setattr("requests.head", hang)
    monkeypatch.setattr(tfds, "PROBE_S", 0.2)
    start = time.monotonic()
    assert tfds._reachable_servers(["http://server.example/x.tgz"]) == set()
    end.set()
    assert time.monotonic() - start < 30  # tfds alone retries for minutes


@pytest.mark.parametrize("status", ["502 Bad Gateway", "404 Not Found"])
def test_an_error_of_the_proxy_is_unreachable_and_one_of_the_server_is_not(status, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as proxy:

        def answer():
            connection, _ = proxy.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())

        threading.Thread(target=answer, daemon=True).start()
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        reachable = tfds._reachable_servers(["http://server.example/x.tgz"])
        assert reachable == ({"http://server.example"} if status.startswith("404") else set())


def test_a_dataset_without_listed_archives_fails_as_quickly(tmp_path, no_network):
    with pytest.raises(DataError, match="none of its servers is reachable. Prepare it on"):
        open_source("domainnet", data_dir=str(tmp_path))


def test_every_missing_archive_is_named(tmp_path, monkeypatch):
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    (manual / "train-images-idx3-ubyte.gz").write_bytes(b"")
    monkeypatch.setattr(tfds, "_reachable_servers", lambda urls: set())
    with pytest.raises(DataError, match="Download t10k-images-idx3-ubyte.gz, t10k-labels") as error:
        open_source("kmnist", data_dir=str(tmp_path))
    assert "train-images" not in str(error.value)


def test_a_dataset_for_manual_download_shows_its_instructions(tmp_path):
    with pytest.raises(DataError, match="must be downloaded by hand.*manual.*ILSVRC2012") as e:
        open_source("imagenet2012", data_dir=str(tmp_path))
    assert "\n" not in str(e.value)


def test_a_manually_downloaded_archive_is_found_and_its_checksum_verified(tmp_path):
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    (manual / "Citrus.zip").write_bytes(b"not the archive")
    with pytest.raises(DataError, match="cannot prepare citrus_leaves.*checksum"):
        open_source("citrus_leaves", data_dir=str(tmp_path))


def test_a_dataset_prepared_as_tfrecord_is_refused_with_its_folder_or_fetched(
    data_dir, flowers, tmp_path, no_network, monkeypatch
):
    folder = tmp_path / "tf_flowers"
    shutil.copytree(data_dir / "tf_flowers", folder)
    (info,) = folder.glob("*/dataset_info.json")
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(DataError, match="flower_photos.tgz cannot be downloaded"):
        open_source("tf_flowers", data_dir=str(tmp_path))
    monkeypatch.setattr(tfds, "well_known", lambda builder: None)  # as of every other
    with pytest.raises(DataError, match=f"{info.parent} was prepared as tfrecord"):
        open_source("tf_flowers", data_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tf_flowerz", "Did you mean 'tf_flowers'"),
        ("tf_flowers:9.9.9", "3.0.1"),
        ("ag_news_subset", "must have one image and one class label"),
    ],
)
def test_a_name_that_cannot_be_opened_is_refused_with_the_reason_on_one_line(name, words, tmp_path):
    with pytest.raises(DataError) as error:
        open_source(name, data_dir=str(tmp_path))
    assert words in str(error.value) and "\n" not in str(error.value)
