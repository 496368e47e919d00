"""The real tfds builders, offline, on archives that the tests make: what they give is what is read.

tf_flowers is in test_tfds.py, with all that is no matter of a single builder.
"""

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from support import tfds_archives
from support.tfds_archives import CIFAR, HIDE_TENSORFLOW, jpeg

from vggjax.data.images.decode import load_image
from vggjax.data.sources import tfds
from vggjax.data.sources.open import open_source
from vggjax.data.splits.slices import Slices, resolve_slices
from vggjax.data.splits.splits import make_splits
from vggjax.errors import DataError


def sizes(splits: dict[str, np.ndarray]) -> dict[str, int]:
    return {name: len(part) for name, part in splits.items()}


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cifar10")
    batches = tfds_archives.place_cifar10(folder)
    return open_source("cifar10", data_dir=str(folder)), batches, folder


def test_cifar10_keeps_its_test_split(cifar10):
    source, *_ = cifar10
    assert source.class_names == tuple(CIFAR)
    assert sizes(source.splits) == {"train": 60, "test": 20}
    splits = make_splits(source)
    np.testing.assert_array_equal(splits["test"], np.arange(60, 80))
    assert set(splits["train"]) | set(splits["val"]) == set(range(60))


def test_cifar10_gives_the_pixels_of_the_archive(cifar10):
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
def test_a_slice_is_what_tfds_itself_reads_by_it(cifar10, part, rest):
    import tensorflow_datasets as tfds

    source, _, folder = cifar10
    (info,) = folder.glob("cifar10/*/dataset_info.json")
    builder = tfds.builder_from_directory(info.parent)
    theirs = [row["image"].tobytes() for row in builder.as_data_source(part)]
    # Of so few images a slice does not have all classes; its images are those all the same.
    ours = resolve_slices(source, Slices.parse(f"{part},{rest}"))["train"]
    assert [source.read(i).pixels.tobytes() for i in ours] == theirs


def test_mnist_gives_gray_digits_as_rgb_and_says_so(tmp_path, monkeypatch):
    from tensorflow_datasets.image_classification import mnist

    rng = np.random.default_rng(0)
    images = {"train": rng.integers(0, 255, (40, 28, 28), np.uint8), "t10k": None}
    images["t10k"] = rng.integers(0, 255, (20, 28, 28), np.uint8)
    monkeypatch.setattr(mnist, "_TRAIN_EXAMPLES", 40)  # 60,000 would be of the same format
    monkeypatch.setattr(mnist, "_TEST_EXAMPLES", 20)
    tfds_archives.place_mnist(tmp_path, images)
    source = open_source("mnist", data_dir=str(tmp_path))
    assert source.class_names == tuple("0123456789")
    assert sizes(source.splits) == {"train": 40, "test": 20}
    for split, kept in (("train", "train"), ("test", "t10k")):
        expected = {image.tobytes(): i % 10 for i, image in enumerate(images[kept])}
        for i in source.splits[split]:
            image = source.read(i)
            assert image.pixels.shape == (28, 28, 3)
            assert (image.pixels == image.pixels[..., :1]).all()
            assert expected.pop(image.pixels[..., 0].tobytes()) == source.labels[i]
            assert image.notes == ("gray made RGB",)
        assert not expected
    assert sizes(make_splits(source)) == {"train": 30, "val": 10, "test": 20}


def test_cats_vs_dogs_leaves_its_damaged_files_out_and_is_cut(tmp_path):
    tfds_archives.place_cats_vs_dogs(tmp_path)
    source = open_source("cats_vs_dogs", data_dir=str(tmp_path))
    assert source.class_names == ("cat", "dog") and source.splits is None
    assert np.bincount(source.labels).tolist() == [6, 6]
    assert sizes(make_splits(source)) == {"train": 8, "val": 2, "test": 2}
    # The builder encodes each image anew: alike, not equal.
    originals = {k: load_image(jpeg(k)).astype(int) for k in (*range(6), *range(10, 16))}
    for i, label in enumerate(source.labels):
        pixels = source.read(i).pixels.astype(int)
        apart = {k: np.abs(pixels - image).mean() for k, image in originals.items()}
        nearest = min(apart, key=apart.get)
        assert apart[nearest] < 20 and nearest // 10 == label  # noise, others are 80 apart
        originals.pop(nearest)


def test_oxford_flowers102_keeps_its_three_splits(tmp_path):
    numbers = tfds_archives.place_oxford_flowers102(tmp_path)
    source = open_source("oxford_flowers102", data_dir=str(tmp_path))
    assert len(source.class_names) == 102 and source.class_names[0] == "pink primrose"
    splits = make_splits(source)
    for theirs, ours in (("trnid", "train"), ("valid", "val"), ("tstid", "test")):
        np.testing.assert_array_equal(splits[ours], source.splits[ours])
        expected = {load_image(jpeg(k, size=(8, 8))).tobytes(): k for k in numbers[theirs]}
        for i in splits[ours]:
            number = expected.pop(source.read(i).pixels.tobytes())
            assert source.labels[i] == (number - 1) % 102
        assert not expected


NAMES = ("tf_flowers", "cats_vs_dogs", "cifar10", "mnist", "oxford_flowers102")
ARCHIVES = {
    "tf_flowers": "flower_photos.tgz",
    "cats_vs_dogs": "kagglecatsanddogs_5340.zip",
    "cifar10": "cifar-10-binary.tar.gz",
    "mnist": "train-labels-idx1-ubyte.gz",
    "oxford_flowers102": "102flowers.tgz, imagelabels.mat, setid.mat",
}


@pytest.fixture
def no_network(monkeypatch):
    """Every server is a proxy that refuses at once."""
    with socket.socket() as closed:  # bound and not listening
        closed.bind(("127.0.0.1", 0))
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{closed.getsockname()[1]}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        yield


@pytest.mark.parametrize("name", NAMES)
def test_without_a_network_the_error_says_within_seconds_where_the_archive_goes(
    name, tmp_path, no_network
):
    start = time.monotonic()
    with pytest.raises(DataError) as error:
        open_source(name, data_dir=str(tmp_path))
    assert time.monotonic() - start < 10
    message = str(error.value)
    assert f"{ARCHIVES[name]} elsewhere into" in message and "\n" not in message
    assert f"into {tmp_path / 'downloads' / 'manual'}" in message


def test_a_silent_network_costs_no_more_than_the_probe(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds, "PROBE_S", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(50)
        for name in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        urls = [f"http://server{i}.example/x.tgz" for i in range(20)]
        start = time.monotonic()
        assert tfds._reachable_servers(urls) == set()
        assert time.monotonic() - start < 5


def test_a_look_up_that_hangs_costs_no_more_than_the_probe(monkeypatch):
    end = threading.Event()  # no timeout of a request ends the look-up of a name
    monkeypatch.setattr(tfds, "_probe", lambda url, answering: end.wait(60))
    monkeypatch.setattr(tfds, "PROBE_S", 0.2)
    start = time.monotonic()
    assert tfds._reachable_servers(["http://server.example/x.tgz"]) == set()
    end.set()
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("status", ["502 Bad Gateway", "404 Not Found"])
def test_a_proxy_s_own_refusal_is_no_answer_but_a_server_s_is(status, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as proxy:

        def answer():
            connection, _ = proxy.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())

        threading.Thread(target=answer, daemon=True).start()
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        found = tfds._reachable_servers(["http://server.example/x.tgz"])
        assert found == ({"http://server.example"} if status.startswith("404") else set())


def test_a_set_that_names_no_archive_fails_as_quickly(tmp_path, no_network):
    with pytest.raises(DataError, match="none of its servers is reachable. Prepare it on"):
        open_source("domainnet", data_dir=str(tmp_path))


TRAIN = """
from vggjax.cli.main import main
from vggjax.models import arch
arch.register_arch(arch.Arch("tiny", (1, 1, 2, 2, 2), (4, 4, 8, 8, 8)))
code = main(sys.argv[1:])
assert not [name for name in sys.modules if name.split(".")[0] in ("tensorflow", "keras")]
sys.exit(code)
"""


@pytest.mark.slow
def test_where_tensorflow_is_not_installed_a_prepared_set_is_trained_on(tmp_path):
    tfds_archives.prepare_flowers(tmp_path / "tfds", each=10)
    arguments = "--dataset tf_flowers --model tiny --weights none --unfreeze all --image-size 32"
    command = ["train", *arguments.split(), "--epochs", "1", "--workdir", str(tmp_path / "run")]
    command += ["--data-dir", str(tmp_path / "tfds")]
    run = subprocess.run(
        [sys.executable, "-c", HIDE_TENSORFLOW + TRAIN, *command],
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert run.returncode == 0, run.stderr
    assert "epoch 1/1" in run.stdout and (tmp_path / "run" / "eval.json").exists()
