"""The real tf_flowers builder, offline, on an archive made here, and all that goes wrong first.

The other builders, and the lack of a network, are in test_tfds_builders.py.
"""

import shutil
import subprocess
import sys

import numpy as np
import pytest
from support.tfds_archives import FLOWERS, HIDE_TENSORFLOW, prepare_flowers

from vggjax.data.images.decode import load_image
from vggjax.data.sources import tfds
from vggjax.data.sources.open import open_source
from vggjax.data.splits.splits import make_splits
from vggjax.errors import DataError


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("tfds")


@pytest.fixture(scope="module", autouse=True)
def flowers(data_dir):
    """JPEG files of five classes, four each; the colors of no two are the same."""
    return prepare_flowers(data_dir)


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


def run_without_tensorflow(code: str) -> str:
    command = [sys.executable, "-c", HIDE_TENSORFLOW + code]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_a_prepared_set_is_read_where_tensorflow_is_not_installed(data_dir):
    printed = run_without_tensorflow(f"""
from vggjax.data.sources.open import open_source
source = open_source("tf_flowers", data_dir={str(data_dir)!r})
print(len(source), all(source.read(i).pixels.shape == (20, 30, 3) for i in range(len(source))))
""")
    assert printed.split() == ["20", "True"]


def test_a_prepared_set_is_read_without_importing_tensorflow(data_dir):
    code = f"""
import sys
from vggjax.data.sources.open import open_source
source = open_source("tf_flowers", data_dir={str(data_dir)!r})
source.read(7)
print([name for name in sys.modules if name.split(".")[0] in ("tensorflow", "keras")])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.stdout.strip() == "[]", run.stderr


def test_without_tensorflow_an_unprepared_set_names_the_extra(tmp_path):
    printed = run_without_tensorflow(f"""
from vggjax.data.sources.open import open_source
try:
    open_source("tf_flowers", data_dir={str(tmp_path)!r})
except ValueError as error:
    print(error)
""")
    assert 'pip install "tensorflow-cpu>=2.21"' in printed and printed.count("\n") == 1


def test_the_labels_are_read_once_and_a_damaged_copy_is_mended(data_dir):
    first = open_source("tf_flowers", data_dir=str(data_dir))
    (kept,) = data_dir.glob("tf_flowers/*/vggjax-label-train.npy")
    kept.write_bytes(kept.read_bytes()[:-3])
    again = open_source("tf_flowers", data_dir=str(data_dir))
    np.testing.assert_array_equal(first.labels, again.labels)
    assert first.fingerprint == again.fingerprint
    np.testing.assert_array_equal(np.load(kept), first.labels)


def test_of_several_archives_that_are_needed_one_is_not_enough(tmp_path, monkeypatch):
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    (manual / "train-images-idx3-ubyte.gz").write_bytes(b"")
    monkeypatch.setattr(tfds, "_reachable_servers", lambda urls: set())
    with pytest.raises(DataError, match="Download t10k-images-idx3-ubyte.gz, t10k-labels") as error:
        open_source("mnist", data_dir=str(tmp_path))
    assert "train-images" not in str(error.value)


def test_a_set_that_must_be_fetched_by_hand_gives_its_instructions(tmp_path):
    with pytest.raises(DataError, match="must be downloaded by hand.*manual.*ILSVRC2012") as e:
        open_source("imagenet2012", data_dir=str(tmp_path))
    assert "\n" not in str(e.value)


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
        ("ag_news_subset", "must have one image and one class label"),
    ],
)
def test_a_name_that_cannot_be_opened_says_why_on_one_line(name, words, tmp_path):
    with pytest.raises(DataError) as error:
        open_source(name, data_dir=str(tmp_path))
    assert words in str(error.value) and "\n" not in str(error.value)
