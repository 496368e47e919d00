"""splits.csv keeps the splits of a run, whatever the names of its images."""

import os

import numpy as np
import pytest
from support.tiny_run import make_images

from vggjax.atomic import write_text
from vggjax.data.sources.open import open_source
from vggjax.data.splits.splits import SPLITS_FILE, make_splits, read_splits, splits_text
from vggjax.errors import DataError


@pytest.fixture
def images(tmp_path):
    root = make_images(tmp_path / "set", ("a", "b, c", "薔薇"), each=6)
    (root / "a" / "00.png").rename(root / "a" / 'two\nlines, "quoted".png')
    try:
        os.rename(root / "a" / "01.png", os.fsencode(root / "a") + b"/\xff.png")
    except OSError:  # a file system that takes UTF-8 names only
        pass
    return root


def test_splits_come_back_as_they_were_written(images, tmp_path):
    source = open_source(str(images))
    splits = make_splits(source, (0.5, 0.2, 0.3), seed=3)
    write_text(tmp_path / SPLITS_FILE, splits_text(source, splits))
    found = read_splits(tmp_path, open_source(str(images)))
    assert found.keys() == splits.keys()
    for name, indices in splits.items():
        np.testing.assert_array_equal(found[name], indices)
        assert found[name].dtype == np.int64


def test_a_folder_without_the_file_has_no_splits_yet(images, tmp_path):
    assert read_splits(tmp_path, open_source(str(images))) is None


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text.replace("path,label", "file,label"),
        lambda text: text.replace("02.png", "gone.png", 1),
        lambda text: text.replace(",train", ",trian", 1),
        lambda text: text.replace("a/02.png,a", "a/02.png,薔薇"),
        lambda text: text.rsplit(",", 1)[0],
        lambda text: "",
    ],
    ids=["header", "path", "split", "label", "cut", "empty"],
)
def test_a_file_that_does_not_fit_is_refused_by_name(images, tmp_path, spoil):
    source = open_source(str(images))
    text = splits_text(source, make_splits(source))
    (tmp_path / SPLITS_FILE).write_text(spoil(text), encoding="utf-8", errors="surrogateescape")
    with pytest.raises(DataError, match="splits.csv does not fit the dataset set"):
        read_splits(tmp_path, source)
