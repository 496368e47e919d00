"""What a scan of a folder says beside its images: remarks, faults, and what was passed over.

What becomes of the images is in test_sources.py.
"""

import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from vggjax.data.sources.folder import open_folder, scan_folder
from vggjax.data.sources.open import open_source, scan_source
from vggjax.data.splits.splits import make_splits, remarks_on_splits
from vggjax.errors import DataError


def put(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in (".png", ".jpg"):
            Image.new("RGB", (3, 2)).save(path, "PNG")
        else:
            path.write_bytes(b"junk")
    return root


PLAIN = ("a/1.png", "b/1.png")
REMARKS = {
    "nothing": ([], None),
    "clutter": (
        ["Thumbs.db", ".DS_Store", "a/.DS_Store", "a/desktop.ini", "__MACOSX/a/1.png", "b/._1.png"],
        None,
    ),
    "hidden": ([".git/1.png"], r"^Hidden folder '.git' is passed over\.$"),
    "hiddens": ([".git/1.png", ".cache/x"], r"^Hidden folders '.cache', '.git' are passed over\.$"),
    "loose": (["z.PNG"], "^1 image lies beside the class folders, has no label.*'z.PNG'"),
    "looses": ([f"{i}.png" for i in range(5)], "^5 images lie .*'2.png' and 2 more"),
    "archive": (["photos.zip"], "^1 archive is passed over, not unpacked: 'photos.zip'"),
    "archives": (["a/x.tar.gz", "y.7z"], "^2 archives are passed over, .*'a/x.tar.gz', 'y.7z'"),
    "others": (
        ["a/1.HEIC", "a/deep/2.heic", "b/notes.txt", "b/photo"],
        r"^Files whose ending is no image's are passed over: 2 .heic, 1 .txt, 1 with",
    ),
    "case": (
        ["A/1.png"],
        "^Classes 'A', 'a' differ only in upper and lower case.*one class or two",
    ),
    "spaces": (["a /1.png"], "^Classes 'a', 'a ' differ only"),
}


@pytest.mark.parametrize("name", REMARKS)
def test_what_a_person_should_know_is_remarked_in_one_sentence(tmp_path, name):
    files, words = REMARKS[name]
    source = open_folder(put(tmp_path, *PLAIN, *files))
    if words is None:
        assert source.notes == ()
        return
    (note,) = source.notes
    assert re.search(words, note), note
    assert "\n" not in note and note.endswith((".", "?"))


@pytest.mark.skipif(sys.platform == "darwin", reason="its file system has one name for both")
def test_names_that_differ_only_in_how_letters_are_coded_are_remarked_on(tmp_path):
    names = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    (note,) = open_folder(put(tmp_path, *(f"{name}/1.png" for name in names))).notes
    assert note.startswith("Classes") and "the way that letters are coded" in note


def test_numbers_that_are_sorted_as_words_are_remarked_on(tmp_path):
    source = open_folder(put(tmp_path, "1/1.png", "2/1.png", "10/1.png"))
    assert source.notes == ("Class names are sorted as words, not as numbers: 1, 10, 2.",)
    put(tmp_path / "in_order", "1/1.png", "2/1.png", "3/1.png")
    assert open_folder(tmp_path / "in_order").notes == ()


def test_below_split_folders_the_same_is_remarked_on(tmp_path):
    put(tmp_path, *(f"{split}/{name}" for split in ("train", "test") for name in PLAIN))
    put(tmp_path, ".git/x", "train/.old/1.png", "test/loose.png", "train/a/x.heic", "all.zip")
    scan = scan_folder(tmp_path)
    assert scan.loose == ("test/loose.png",) and scan.others == ("all.zip", "train/a/x.heic")
    text = " ".join(scan.source.notes)
    assert all(word in text for word in ("'.git', 'train/.old'", "'test/loose.png'", ".heic"))


def test_a_scan_tells_all_faults_and_keeps_what_can_be_used(tmp_path):
    put(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/1.png", "val/z/1.png", "more/a/1.png")
    (tmp_path / "val" / "b").mkdir()
    scan = scan_source(str(tmp_path))
    kinds = ["others beside them: 'more'", "without images: 'b'", "train lacks: 'z'"]
    assert len(scan.faults) == 3
    assert all(kind in fault for kind, fault in zip(kinds, scan.faults, strict=True))
    assert scan.empty == ("val/b",) and scan.source.class_names == ("a", "b", "z")
    assert list(scan.source.ids) == [
        "train/a/1.png",
        "train/b/1.png",
        "val/a/1.png",
        "val/z/1.png",
    ]
    with pytest.raises(DataError, match="others beside them"):
        open_source(str(tmp_path))


def test_a_scan_without_a_image_has_no_source(tmp_path):
    (tmp_path / "a").mkdir()
    scan = scan_folder(tmp_path)
    assert scan.source is None and scan.empty == ("a",) and len(scan.faults) == 1


def test_a_folder_with_one_class_that_has_images_is_told_by_both_faults(tmp_path):
    put(tmp_path, "a/1.png")
    (tmp_path / "b").mkdir()
    scan = scan_folder(tmp_path)
    assert "without images: 'b'" in scan.faults[0] and len(scan.source) == 1


def test_a_link_out_of_the_set_and_back_into_it_is_a_loop(tmp_path):
    root = put(tmp_path / "data", *(f"{s}/{n}" for s in ("train", "val") for n in PLAIN))
    (root / "train" / "a" / "up").symlink_to("../..")
    (root / "train" / "b" / "far_up").symlink_to(tmp_path)
    ids = list(open_folder(root).ids)
    assert ids == ["train/a/1.png", "train/b/1.png", "val/a/1.png", "val/b/1.png"]


def test_a_link_to_itself_or_to_nothing_is_a_image_that_cannot_be_read(tmp_path):
    put(tmp_path, *PLAIN)
    (tmp_path / "a" / "loop.png").symlink_to("loop.png")
    (tmp_path / "a" / "nowhere.png").symlink_to("gone.png")
    (tmp_path / "c").symlink_to("c")
    source = open_folder(tmp_path)
    assert list(source.ids) == ["a/1.png", "a/loop.png", "a/nowhere.png", "b/1.png"]
    for i in (1, 2):
        with pytest.raises(DataError):
            source.read(i)


def test_a_class_that_is_a_link_to_a_folder_elsewhere_is_a_class(tmp_path):
    put(tmp_path, "root/a/1.png", "elsewhere/x.png")
    (tmp_path / "root" / "b").symlink_to(tmp_path / "elsewhere")
    assert open_folder(tmp_path / "root").class_names == ("a", "b")


def test_many_folders_inside_a_class_keep_one_order(tmp_path):
    names = [f"a/{i % 7}/{i % 3}/{i:03}.png" for i in range(60)]
    put(tmp_path, *names, "b/1.png")
    assert list(open_folder(tmp_path).ids) == sorted(names) + ["b/1.png"]


HOSTILE = Path(__file__).parents[3] / "shared" / "hostile"
WANTED = {
    "empty_root": "no class folders in it",
    "files_at_root": "images but no class folders",
    "empty_class": "without images: 'c'",
    "junk_class": "without images: 'c'",
    "one_class": "only one class, 'a'",
    "one_per_class": "too few images for val and test",
    "test_only": "test but no train folder",
    "val_extra_class": "train lacks: 'z'",
    "imbalance": ["Class 'b' has too few different images"],
    "numeric_names": ["Class names are sorted as words, not as numbers: 1, 10, 2."],
    "hidden_class": ["Hidden folder '.git' is passed over."],
    "case_twins": ["Classes 'Cat', 'cat' differ only"],
    "splits": [],
    "odd_names": [],
    "nested": [],
    "symlink_cycle": [],
}
"""Data folder -> the error's words, or the remarks' beginnings."""


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    if not HOSTILE.is_dir():
        pytest.skip("../shared/hostile, which makes these folders, is not here")
    folder = tmp_path_factory.mktemp("hostile")
    program = [sys.executable, "-B", str(HOSTILE / "make_bad_images.py"), "--out", str(folder)]
    subprocess.run([*program, "--only", *WANTED], check=True, capture_output=True)
    return folder / "data"


@pytest.mark.parametrize("name", WANTED)
def test_a_hostile_folder_gets_what_it_should(hostile, name):
    wanted = WANTED[name]
    if isinstance(wanted, str):
        with pytest.raises(DataError, match=wanted) as error:
            make_splits(open_source(str(hostile / name)))
        assert "\n" not in str(error.value)
        return
    source = open_source(str(hostile / name))
    remarks = [*source.notes, *remarks_on_splits(source, make_splits(source))]
    assert len(remarks) == len(wanted)
    assert all(found.startswith(words) for found, words in zip(remarks, wanted, strict=True))


def test_the_folder_that_an_archive_was_packed_in_is_seen_through(tmp_path):
    for name in ("cat", "dog"):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(folder / "a.png")
    with pytest.raises(DataError, match=r"only one class, 'photos'.*Did you mean '.*photos'\?"):
        open_folder(tmp_path)
