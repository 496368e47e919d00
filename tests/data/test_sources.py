"""Folders as users have them, the embedded digits, and wrong names."""

import os

import numpy as np
import pytest
from support.scenes import put_flat

from vggjax.data.sources import source as source_module
from vggjax.data.sources.open import open_source
from vggjax.data.sources.source import fingerprint
from vggjax.errors import DataError


def test_digits_are_those_of_scikit_learn_in_rgb():
    from sklearn.datasets import load_digits

    source = open_source("digits")
    assert len(source) == 1797 and source.class_names == tuple("0123456789")
    assert source.splits is None and source.ids[5] == "digits/5" and source.path(5) is None
    assert source.fingerprint.startswith("1d7facea26ee47be"), "runs on the digits find them again"
    np.testing.assert_array_equal(source.labels, load_digits().target)
    image = source.read(5).pixels
    assert image.dtype == np.uint8 and image.shape == (8, 8, 3)
    images = np.stack([source.read(i).pixels[..., 2] for i in range(len(source))])
    np.testing.assert_array_equal(images, np.round(load_digits().images * 255 / 16))


def test_classes_are_numbered_by_their_sorted_names(tmp_path):
    put_flat(tmp_path, "2/a.png", "10/a.png", "1/a.png", "10/b.png")
    source = open_source(str(tmp_path))
    assert source.class_names == ("1", "10", "2")
    assert list(source.ids) == ["1/a.png", "10/a.png", "10/b.png", "2/a.png"]
    assert source.labels.tolist() == [0, 1, 1, 2] and source.labels.dtype == np.int32


def test_an_example_is_read_from_its_path(tmp_path):
    put_flat(tmp_path, "a/x.png", "b/y.png", "b/z.png")
    source = open_source(str(tmp_path))
    assert source.path(1) == tmp_path / "b" / "y.png"
    assert [source.read(i).pixels[0, 0, 0] for i in range(3)] == [0, 7, 14]


def test_images_are_files_with_an_image_s_extension_in_any_case(tmp_path):
    names = ["a.jpg", "b.JPEG", "c.Jpe", "d.PNG", "e.webp", "f.gif", "g.BMP", "h.tif", "i.TIFF"]
    put_flat(tmp_path, *(f"x/{name}" for name in names), "y/a.png")
    junk = ["Thumbs.db", ".DS_Store", "._a.jpg", ".hidden.png", "notes.txt", "jpg", "a.jpg.part"]
    for name in junk:
        (tmp_path / "x" / name).write_bytes(b"junk")
    assert [i for i in open_source(str(tmp_path)).ids if i[0] == "x"] == [f"x/{n}" for n in names]


def test_images_in_subfolders_belong_to_the_class(tmp_path):
    put_flat(tmp_path, "a/2020/x.png", "a/2021/may/x.png", "a/y.png", "b/2020/x.png")
    source = open_source(str(tmp_path))
    assert list(source.ids) == ["a/2020/x.png", "a/2021/may/x.png", "a/y.png", "b/2020/x.png"]


def test_a_linked_folder_is_entered_once(tmp_path):
    put_flat(tmp_path, "root/a/x.png", "root/b/x.png", "elsewhere/y.png")
    for name in ("one", "two"):
        (tmp_path / "root" / "a" / name).symlink_to(tmp_path / "elsewhere")
    source = open_source(str(tmp_path / "root"))
    assert list(source.ids) == ["a/one/y.png", "a/x.png", "b/x.png"]


def test_unusual_names_are_classes_and_files_like_any_other(tmp_path):
    put_flat(tmp_path, "-r/--help.png", "a b/\x1b[31m.png", "x\ny/\u732b.png")
    raw = os.fsdecode(b"\xff.png")
    put_flat(tmp_path, f"-r/{raw}")
    source = open_source(str(tmp_path))
    assert source.class_names == ("-r", "a b", "x\ny") and f"-r/{raw}" in source.ids
    assert all(source.read(i).pixels.shape == (4, 6, 3) for i in range(len(source)))


@pytest.mark.parametrize("val", ["validation", "val", "valid", "Val"])
def test_split_folders_are_the_official_splits(tmp_path, val):
    put_flat(tmp_path, "train/a/1.png", "train/a/2.png", "train/b/1.png")
    put_flat(tmp_path, f"{val}/a/1.png", f"{val}/b/1.png", "test/b/1.png")
    source = open_source(str(tmp_path))
    assert source.class_names == ("a", "b")
    ids_of = {split: {source.ids[i] for i in part} for split, part in source.splits.items()}
    assert ids_of == {
        "train": {"train/a/1.png", "train/a/2.png", "train/b/1.png"},
        "val": {f"{val}/a/1.png", f"{val}/b/1.png"},
        "test": {"test/b/1.png"},
    }
    for i, name in enumerate(source.ids):
        assert source.class_names[source.labels[i]] == name.split("/")[1]


def test_a_folder_named_train_next_to_classes_is_a_class(tmp_path):
    put_flat(tmp_path, "car/1.png", "train/1.png", "ship/1.png")
    source = open_source(str(tmp_path))
    assert source.class_names == ("car", "ship", "train") and source.splits is None


def test_the_scan_opens_no_image(tmp_path, monkeypatch):
    put_flat(tmp_path, "a/1.png", "b/1.png")
    monkeypatch.setattr(source_module, "read_image", lambda path: pytest.fail(f"opened {path}"))
    monkeypatch.setattr("builtins.open", lambda *a, **k: pytest.fail(f"opened {a}"))
    assert len(open_source(str(tmp_path))) == 2


def test_the_fingerprint_depends_on_the_content_and_not_on_the_location(tmp_path):
    names = ("a/1.png", "a/2.png", "b/1.png")
    first = open_source(str(put_flat(tmp_path / "one", *names))).fingerprint
    assert open_source(str(put_flat(tmp_path / "two", *names))).fingerprint == first
    others = [
        put_flat(tmp_path / "renamed", "a/1.png", "a/2.png", "c/1.png"),
        put_flat(tmp_path / "moved", "a/1.png", "b/2.png", "b/1.png"),
        put_flat(tmp_path / "added", *names, "b/2.png"),
        put_flat(tmp_path / "resized", *names),
        put_flat(tmp_path / "split", *(f"train/{n}" for n in names), "test/a/1.png"),
    ]
    (tmp_path / "resized" / "a" / "1.png").write_bytes(b"other")
    digests = {open_source(str(other)).fingerprint for other in others}
    assert len(digests | {first}) == len(others) + 1


def test_the_fingerprint_depends_on_labels_and_splits():
    names, ids, halves = ("a", "b"), ("1", "2"), {"train": np.array([0]), "test": np.array([1])}
    swapped = {"train": halves["test"], "test": halves["train"]}
    digests = [
        fingerprint(names, ids, np.array([0, 1]), None, ()),
        fingerprint(names, ids, np.array([1, 0]), None, ()),
        fingerprint(names, ids, np.array([0, 1]), halves, ()),
        fingerprint(names, ids, np.array([0, 1]), swapped, ()),
        fingerprint(("a",), ("b", *ids), np.array([0, 1]), None, ()),
    ]
    assert len(set(digests)) == len(digests)


def test_a_missing_folder_suggests_the_nearest_name(tmp_path):
    put_flat(tmp_path, "flowers/a/1.png")
    with pytest.raises(DataError, match=f"Did you mean '{tmp_path}/flowers'"):
        open_source(str(tmp_path / "flower"))


def test_a_missing_relative_folder_suggests_the_nearest_name(tmp_path, monkeypatch):
    put_flat(tmp_path, "images/flowers/a/1.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="Did you mean 'images/flowers'"):
        open_source("images/flower")


def test_an_unknown_name_suggests_the_nearest_dataset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, nearest in (
        ("tf_flower", "tf_flowers"),
        ("digit", "digits"),
        ("cifar-10", "cifar10"),
    ):
        with pytest.raises(DataError, match=f"Did you mean '{nearest}'.*folder"):
            open_source(name)


def test_a_folder_takes_precedence_over_a_tfds_name_but_not_over_digits(tmp_path, monkeypatch):
    put_flat(tmp_path, "mnist/a/1.png", "mnist/b/1.png", "digits/a/1.png", "digits/b/1.png")
    monkeypatch.chdir(tmp_path)
    assert open_source("mnist").class_names == ("a", "b")
    assert len(open_source("digits")) == 1797
    assert open_source("./digits").class_names == ("a", "b")


FAULTS = {
    "empty": ([], "no class folders"),
    "images_alone": (["1.PNG", "notes.txt"], "images but no class folders"),
    "one_class": (["a/1.png"], "only one class, 'a'"),
    "test_alone": (["test/a/1.png", "test/b/1.png"], "test but no train folder"),
    "val_alone": (["val/a/1.png", "val/b/1.png"], "val but no train folder"),
    "more_in_val": (["train/a/1.png", "train/b/1.png", "val/z/1.png"], "train lacks: 'z'"),
    "two_vals": (["train/a/1.png", "val/a/1.png", "validation/a/1.png"], "two folders for one"),
    "flat_train": (["train/1.png", "test/1.png"], "train has images but no class folders"),
    "more_beside": (["train/a/1.png", "test/a/1.png", "extra/1.png"], "split folders: 'extra'"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_an_unusable_folder_is_refused_with_the_reason_on_one_line(name, tmp_path):
    files, words = FAULTS[name]
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match=words) as error:
        open_source(str(put_flat(tmp_path / "data", *files)))
    assert "\n" not in str(error.value)


def test_empty_classes_are_listed(tmp_path):
    put_flat(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "c").mkdir()
    (tmp_path / "d\n").mkdir()
    (tmp_path / "d\n" / "Thumbs.db").write_bytes(b"x")
    with pytest.raises(DataError, match=r"without images: 'c', 'd\\n'\."):
        open_source(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        ("flowers.zip", "Unpack the archive"),
        ("labels.XLSX", "Save the spreadsheet as a CSV"),
        ("data.yaml", "Give the folder with the images"),
        ("annotations.json", "Write the labels as a CSV"),
        ("pneumonia.npz", "Arrays are not read: save each image as a file"),
        ("train.tfrecord-00000-of-00002", "Records are not read"),
        ("train-images-idx3-ubyte.gz", "Give a well-known dataset by its name: mnist"),
        ("flowers", "If it is an archive, unpack it"),
    ],
)
def test_a_file_that_is_no_dataset_is_refused_with_the_way_out(tmp_path, name, way_out):
    file = tmp_path / name
    file.write_bytes(b"x")
    with pytest.raises(DataError, match=f"is a file, not a folder. {way_out}"):
        open_source(str(file))
    if name != "flowers":  # neither is a folder of such files
        with pytest.raises(DataError, match=rf"no class folders. It has 1 \..*. {way_out}"):
            open_source(str(tmp_path))


def test_the_files_of_tfds_are_named(tmp_path):
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / "x-train.tfrecord-00000-of-00001").write_bytes(b"x")
    with pytest.raises(DataError, match="that tfds prepared: give its tfds name"):
        open_source(str(tmp_path))


def test_a_damaged_image_raises_its_reason_when_read_and_not_before(tmp_path):
    put_flat(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "b" / "1.png").write_bytes(b"nope")
    source = open_source(str(tmp_path))
    with pytest.raises(DataError, match="^not an image$"):
        source.read(1)


@pytest.mark.parametrize("name", ["-1", "NaN", "unlabeled", "?"])
def test_a_class_that_may_stand_for_no_label_is_noted(tmp_path, name):
    put_flat(tmp_path, f"{name}/1.png", "b/1.png", "none/1.png")
    notes = open_source(str(tmp_path)).notes
    assert any(f"Class {name!r} may stand for no label" in note for note in notes)


def test_minus_one_is_a_class_where_the_other_is_one(tmp_path):
    put_flat(tmp_path, "-1/1.png", "1/1.png")
    assert not any("no label" in note for note in open_source(str(tmp_path)).notes)
