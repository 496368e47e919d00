"""What a scan of a folder reports besides its images: notes, faults and skipped files.

The images are tested in test_sources.py.
"""

import re
import sys
import unicodedata
from pathlib import Path

import pytest
from support.scenes import put, put_flat

from vggjax.data.sources.folder import scan_folder
from vggjax.data.sources.open import open_source, scan_source
from vggjax.errors import DataError


def put_all(root: Path, *names: str) -> Path:
    """Write an image for each name ending in .png, other bytes for the rest; return the root."""
    for name in names:
        put_flat(root, name) if name.lower().endswith(".png") else put(root, name, b"other")
    return root


PLAIN = ("a/1.png", "b/1.png")
NOTES = {
    "clutter": (
        ["Thumbs.db", ".DS_Store", "a/.DS_Store", "a/desktop.ini", "__MACOSX/a/1.png", "b/._1.png"]
        + ["a/@eaDir/1.png/THUMB.png", "$RECYCLE.BIN/1.png", "a/.ipynb_checkpoints/1.png"],
        None,
    ),
    "hidden": ([".git/1.png"], r"^Skipped 1 hidden folder: '.git'\.$"),
    "hiddens": ([".git/1.png", ".cache/x"], r"^Skipped 2 hidden folders: '.cache', '.git'\.$"),
    "loose": (["z.PNG"], "^Skipped 1 image next to the class folders, without a label: 'z.PNG'"),
    "looses": ([f"{i}.png" for i in range(5)], "^Skipped 5 images .*'2.png' and 2 more"),
    "archive": (["photos.zip"], "^Skipped 1 archive, unpack first: 'photos.zip'"),
    "archives": (["a/x.tar.gz", "y.7z"], "^Skipped 2 archives, .*'a/x.tar.gz', 'y.7z'"),
    "others": (
        ["a/1.PSD", "a/deep/2.psd", "b/notes.txt", "b/photo"],
        r"^Skipped files without an image's extension: 2 .psd, 1 .txt, 1 without",
    ),
    "case": (["A/1.png"], "^Classes 'A', 'a' differ only in case.*each is a class"),
    "spaces": (["a /1.png"], "^Classes 'a', 'a ' differ only"),
}


@pytest.mark.parametrize("name", NOTES)
def test_skipped_files_and_confusable_classes_are_noted_on_one_line(tmp_path, name):
    files, words = NOTES[name]
    source = open_source(str(put_all(tmp_path, *PLAIN, *files)))
    if words is None:
        assert source.notes == ()
        return
    (note,) = source.notes
    assert re.search(words, note), note
    assert "\n" not in note and note.endswith(".")


@pytest.mark.skipif(sys.platform == "darwin", reason="its file system has one name for both")
def test_classes_that_differ_only_in_unicode_normalization_are_noted(tmp_path):
    names = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    (note,) = open_source(str(put_all(tmp_path, *(f"{name}/1.png" for name in names)))).notes
    assert note.startswith("Classes") and "Unicode normalization" in note


def test_numbers_sorted_as_text_are_noted(tmp_path):
    source = open_source(str(put_all(tmp_path, "1/1.png", "2/1.png", "10/1.png")))
    assert source.notes == ("Class names are sorted as text, not as numbers: 1, 10, 2.",)
    put_all(tmp_path / "in_order", "1/1.png", "2/1.png", "3/1.png")
    assert open_source(str(tmp_path / "in_order")).notes == ()


def test_skipped_files_below_split_folders_are_noted(tmp_path):
    put_all(tmp_path, *(f"{split}/{name}" for split in ("train", "test") for name in PLAIN))
    put_all(tmp_path, ".git/x", "train/.old/1.png", "test/loose.png", "train/a/x.psd", "all.zip")
    scan = scan_folder(tmp_path)
    assert [(seen.kind, seen.cases) for seen in scan.observations] == [
        ("loose", ("test/loose.png",))
    ]
    text = " ".join(scan.source.notes)
    for word in ("'.git', 'train/.old'", "'test/loose.png'", "'all.zip'", "1 .psd"):
        assert word in text


def test_a_scan_collects_every_fault_and_keeps_the_usable_images(tmp_path):
    names = ["train/a/1.png", "train/b/1.png", "val/a/1.png", "val/z/1.png"]
    put_all(tmp_path, *names, "more/a/1.png")
    (tmp_path / "val" / "b").mkdir()
    (tmp_path / "train" / "c").mkdir()
    scan = scan_source(str(tmp_path))
    kinds = ("next to its split folders: 'more'", "without images: 'c'", "train lacks: 'z'")
    assert all(kind in fault for kind, fault in zip(kinds, scan.faults, strict=True))
    assert scan.empty == ("train/c", "val/b") and scan.source.class_names == ("a", "b", "c", "z")
    assert list(scan.source.ids) == names
    with pytest.raises(DataError, match="other folders next to"):
        open_source(str(tmp_path))


def test_a_scan_without_images_has_no_source(tmp_path):
    (tmp_path / "a").mkdir()
    scan = scan_folder(tmp_path)
    assert scan.source is None and scan.empty == ("a",) and len(scan.faults) == 1


def test_an_empty_class_is_a_fault_before_the_single_class(tmp_path):
    put_all(tmp_path, "a/1.png")
    (tmp_path / "b").mkdir()
    scan = scan_folder(tmp_path)
    assert "without images: 'b'" in scan.faults[0] and len(scan.source) == 1


def test_a_link_to_an_ancestor_is_not_followed(tmp_path):
    root = put_all(tmp_path / "data", *(f"{s}/{n}" for s in ("train", "val") for n in PLAIN))
    (root / "train" / "a" / "up").symlink_to("../..")
    (root / "train" / "b" / "far_up").symlink_to(tmp_path)
    ids = list(open_source(str(root)).ids)
    assert ids == ["train/a/1.png", "train/b/1.png", "val/a/1.png", "val/b/1.png"]


def test_a_dangling_or_circular_link_is_an_unreadable_image(tmp_path):
    put_all(tmp_path, *PLAIN)
    (tmp_path / "a" / "loop.png").symlink_to("loop.png")
    (tmp_path / "a" / "nowhere.png").symlink_to("gone.png")
    (tmp_path / "c").symlink_to("c")
    source = open_source(str(tmp_path))
    assert list(source.ids) == ["a/1.png", "a/loop.png", "a/nowhere.png", "b/1.png"]
    for i in (1, 2):
        with pytest.raises(DataError):
            source.read(i)


def test_a_class_that_is_a_link_to_a_folder_elsewhere_is_a_class(tmp_path):
    put_all(tmp_path, "root/a/1.png", "elsewhere/x.png")
    (tmp_path / "root" / "b").symlink_to(tmp_path / "elsewhere")
    assert open_source(str(tmp_path / "root")).class_names == ("a", "b")


def test_images_in_nested_folders_are_sorted_by_path(tmp_path):
    names = [f"a/{i % 7}/{i % 3}/{i:03}.png" for i in range(60)]
    put_all(tmp_path, *names, "b/1.png")
    assert list(open_source(str(tmp_path)).ids) == sorted(names) + ["b/1.png"]


def test_an_archive_s_top_folder_is_suggested(tmp_path):
    put_flat(tmp_path, "photos/cat/a.png", "photos/dog/a.png")
    with pytest.raises(DataError, match=r"only one class, 'photos'.*Did you mean '.*photos'\?"):
        open_source(str(tmp_path))
