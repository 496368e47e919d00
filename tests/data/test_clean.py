"""Cleaned copies: their contents, what is left out, and that the original never changes."""

import csv
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image
from support.scenes import fill, put, saved, scene

from vggjax.data.quality import clean
from vggjax.data.quality.clean import SafeNames, safe_name, write_clean_copy
from vggjax.data.quality.doctor import examine
from vggjax.errors import DataError


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def state(folder: Path) -> dict[str, tuple]:
    """Return everything about a tree that could change, except access times."""
    entries = {}
    for path in [folder, *folder.rglob("*")]:
        status = path.lstat()
        data = path.read_bytes() if path.is_file() else None
        entries[str(path)] = (status.st_mtime_ns, status.st_mode, status.st_size, data)
    return entries


def clean_copy(root: Path, out: Path):
    return write_clean_copy(examine(str(root)), out)


def test_a_clean_dataset_is_copied_byte_for_byte_with_its_times(tmp_path):
    root = fill(tmp_path / "set", "train/a", "train/b/deep", "val/a", "val/b")
    os.utime(root / "train" / "a" / "0.png", (1e9, 1e9))
    (tmp_path / "out").mkdir()  # an empty folder is accepted
    copy = clean_copy(root, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(root)
    assert (tmp_path / "out" / "train" / "a" / "0.png").stat().st_mtime == 1e9
    assert copy.images == 16 and copy.changes == ()


def make_messy(root: Path) -> Path:
    fill(root, "train/a", "train/b", "test/a", "test/b", count=12)
    put(root, "train/a/cut.png", (root / "train/a/0.png").read_bytes()[:200])
    put(root, "train/a/empty.jpg", b"")
    put(root, "train/a/twice.png", scene(1, 40))
    put(root, "test/b/leaked.png", scene(1002, 40))
    put(root, "train/a/conflict.png", scene(1003, 40))
    put(root, "train/a/png.jpg", scene(50, 40))
    put(root, "train/a/notes.txt", b"text")
    (root / "test" / "b" / "link.png").symlink_to(put(root.parent, "far/real.png", scene(51, 40)))
    return root


def test_unusable_images_are_left_out_and_listed_in_a_table_next_to_the_clean_copy(tmp_path):
    root = make_messy(tmp_path / "set")
    before = state(root)
    copy = clean_copy(root, tmp_path / "out")
    after = contents(tmp_path / "out")
    left_out = {"train/a/cut.png", "train/a/empty.jpg", "train/a/twice.png", "train/a/notes.txt"}
    left_out |= {"train/b/2.png"}  # its copy in test stays
    left_out |= {"train/a/conflict.png", "train/b/3.png"}  # one image with two labels
    kept = {name: data for name, data in contents(root).items() if name not in left_out}
    kept["train/a/png.png"] = kept.pop("train/a/png.jpg")
    assert after == kept
    assert not (tmp_path / "out" / "test" / "b" / "link.png").is_symlink()
    assert examine(str(tmp_path / "out")).exit_code == 0
    assert state(root) == before
    assert copy.table == tmp_path / "out.doctor.csv"
    with open(copy.table, encoding="utf-8", newline="") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    refused = {name for name, row in rows.items() if row["action"] == "left out"}
    assert refused == left_out - {"train/a/notes.txt"}
    assert rows["train/a/empty.jpg"]["reason"] == "empty file"
    assert rows["train/a/twice.png"]["reason"] == "the same pixels as train/a/1.png"
    assert rows["train/b/2.png"]["reason"] == "the same pixels as test/b/leaked.png"
    assert rows["train/a/png.jpg"]["target"] == "train/a/png.png"
    assert len(rows) == 7


def test_near_duplicates_are_copied(tmp_path):
    root = fill(tmp_path / "set", "a", "b")
    put(root, "a/again.png", saved(scene(1, 40), 70))
    clean_copy(root, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(root)
    assert [item.kind for item in examine(str(tmp_path / "out")).items] == ["near_duplicate"]


def test_names_that_differ_only_in_case_stay_distinct_on_every_file_system(tmp_path):
    root = fill(tmp_path / "set", "Cat", "cat", "dog")
    for i, name in enumerate(("A.PNG", "a.png", "con.png", "what?.png", "dot..png", "e\u0301.png")):
        put(root, f"dog/{name}", scene(90 + i, 40))
    put(root, "dog/\u00e9.png", scene(99, 40))
    clean_copy(root, tmp_path / "out")
    assert set(os.listdir(tmp_path / "out")) == {"Cat", "cat_2", "dog"}
    names = set(os.listdir(tmp_path / "out" / "dog"))
    assert {"A.PNG", "a_2.png", "_con.png", "what_.png"} <= names
    assert len({name.casefold() for name in names}) == 11
    assert sum("\u0301" in name for name in names) + sum("\u00e9" in name for name in names) == 2


@pytest.mark.parametrize(
    "name, safe",
    [
        ("a b.jpg", "a b.jpg"),
        ("Grüße 猫 😀.jpg", "Grüße 猫 😀.jpg"),
        ("x\ny", "x_y"),
        ("\udcff\udcfe.jpg", "__.jpg"),
        ("nul", "_nul"),
        ("COM1.jpg", "_COM1.jpg"),
        ("console.jpg", "console.jpg"),
        ("end. ", "end_"),
        (".hidden", "_hidden"),
        ("a/b\\c", "a_b_c"),
        ("..", "__"),
        ("", "_"),
    ],
)
def test_a_safe_name_is_accepted_by_every_system_and_stays(name, safe):
    assert safe_name(name) == safe
    assert safe_name(safe) == safe


def test_a_name_is_truncated_to_what_a_folder_entry_holds():
    names = SafeNames()
    assigned = [names.file(("a",), "é" * 200, ".jpeg")[-1] for _ in range(3)]
    assert len(set(assigned)) == 3 and all(len(name.encode()) <= 255 for name in assigned)
    assert all(name.endswith(".jpeg") for name in assigned)


def test_a_csv_becomes_a_tree_of_classes(tmp_path):
    for i, folder in enumerate(("x", "y", "z", "x2", "y2", "z2")):
        put(tmp_path, f"{folder}/photo.png", scene(i, 40))
    lines = ["path,label", "x/photo.png,a", "y/photo.png,a", "z/photo.png,a"]
    lines += [f"{name}/photo.png,train" for name in ("x2", "y2", "z2")]
    (tmp_path / "set.csv").write_text("\n".join(lines))
    clean_copy(tmp_path / "set.csv", tmp_path / "out")
    assert set(contents(tmp_path / "out")) == {
        f"{label}/photo{number}.png" for label in ("a", "train_") for number in ("", "_2", "_3")
    }
    assert examine(str(tmp_path / "out")).exit_code == 0


def test_a_csv_keeps_its_splits(tmp_path):
    root = fill(tmp_path / "set", "a", "b")
    splits = ("train", "train", "val", "test")
    lines = [f"set/{c}/{i}.png,{c},{splits[i]}" for c in "ab" for i in range(4)]
    (tmp_path / "set.csv").write_text("\n".join(["path,label,split", *lines]))
    clean_copy(tmp_path / "set.csv", tmp_path / "out")
    wanted = {f"{splits[i]}/{c}/{i}.png" for c in "ab" for i in range(4)}
    assert set(contents(tmp_path / "out")) == wanted and root.exists()


@pytest.mark.parametrize(
    "where, message",
    [
        ("set", "is inside the dataset"),
        ("set/new", "is inside the dataset"),
        ("set/a/new", "is inside the dataset"),
        ("real/new", "is inside the dataset"),
        (".", "contains the dataset"),
        ("full", "not an empty folder"),
        ("full/file", "not an empty folder"),
        ("taken", "is in the way"),
    ],
)
def test_an_unsuitable_output_is_refused_and_nothing_written(tmp_path, where, message):
    root = fill(tmp_path / "set", "a", "b")
    shutil.move(root / "b", tmp_path / "real")
    (root / "b").symlink_to(tmp_path / "real")
    put(tmp_path, "full/file", b"data")
    put(tmp_path, "taken.partial/file", b"data")
    before = state(tmp_path)
    with pytest.raises(DataError, match=message):
        clean_copy(root, tmp_path / where)
    assert state(tmp_path) == before


def test_a_dataset_without_files_is_refused(tmp_path):
    with pytest.raises(DataError, match="`fix` copies files, and digits has none of its own"):
        write_clean_copy(examine("digits"), tmp_path / "never")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_copy_leaves_nothing(tmp_path, monkeypatch, error):
    root = fill(tmp_path / "set", "a", "b")
    copy2, calls = shutil.copy2, []

    def copied(*args):
        calls.append(args)
        if len(calls) == 5:
            raise error
        return copy2(*args)

    monkeypatch.setattr(clean.shutil, "copy2", copied)
    wanted = DataError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(wanted, match="No space left" if wanted is DataError else None):
        clean_copy(root, tmp_path / "out")
    assert os.listdir(tmp_path) == ["set"]


def test_the_remains_of_a_killed_call_are_replaced(tmp_path):
    root = fill(tmp_path / "set", "a", "b")
    put(tmp_path, "out.partial/.vggjax-doctor", b"")
    put(tmp_path, "out.partial/a/half.png", b"half")
    clean_copy(root, tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["out", "out.doctor.csv", "set"]
    assert contents(tmp_path / "out") == contents(root)


def test_images_of_a_csv_get_the_extension_of_their_content(tmp_path):
    fill(tmp_path / "set", "a", "b")
    with Image.open(tmp_path / "set" / "a" / "0.png") as image:
        image.save(tmp_path / "set" / "photo.2020", "WEBP", lossless=True)
    lines = [f"set/{c}/{i}.png,{c}" for c in "ab" for i in range(1, 4)]
    (tmp_path / "set.csv").write_text("\n".join(["path,label", *lines, "set/photo.2020,a"]))
    clean_copy(tmp_path / "set.csv", tmp_path / "out")
    assert (tmp_path / "out" / "a" / "photo.2020.webp").exists()
