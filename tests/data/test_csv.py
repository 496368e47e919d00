"""CSVs of images as people and spreadsheets write them, and those that cannot be used."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from support.scenes import put_flat

from vggjax.data.sources.csv import is_csv, scan_csv
from vggjax.data.sources.open import open_source, scan_source
from vggjax.data.splits.splits import make_splits
from vggjax.errors import DataError

NAMES = ("cats/1.jpg", "cats/2.JPG", "dogs/1.png", "dogs/2.webp")


def write(root: Path, text: str | bytes, name: str = "photos.csv") -> str:
    (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(root / name)


PLAIN = "path,label\ncats/1.jpg,cat\ncats/2.JPG,cat\ndogs/1.png,dog\ndogs/2.webp,dog\n"


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        "\ufeff" + PLAIN,
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace("\n", "\r"),
        PLAIN.replace(",", ";"),
        PLAIN.replace(",", "\t"),
        PLAIN.replace(",", "|"),
        "sep=;\r\n" + PLAIN.replace(",", ";"),
        PLAIN.encode("utf-16"),
        PLAIN.encode("utf-16-be").join([b"\xfe\xff", b""]),
        ",path,label\n" + "".join(f"{i},{row}\n" for i, row in enumerate(PLAIN.split("\n")[1:-1])),
        "path,label\n" + "".join(f"{i + 1},{r}\n" for i, r in enumerate(PLAIN.split("\n")[1:-1])),
        PLAIN.replace(",", ", "),
        "# made by me, in May\n#\n" + PLAIN,
        PLAIN.replace("path,label", ' "Path" , LABEL'),
        PLAIN.replace("\n", "\n\n").replace("cat\n", "cat,,,\n"),
        '"path","label"\n"cats/1.jpg","cat"\n./cats/2.JPG,"cat"\ndogs/1.png,dog\ndogs/2.webp,dog',
    ],
)
def test_a_csv_is_read_in_every_common_dialect(tmp_path, text):
    source = open_source(write(put_flat(tmp_path, *NAMES), text))
    assert source.class_names == ("cat", "dog") and source.splits is None
    assert source.labels.tolist() == [0, 0, 1, 1] and source.labels.dtype == np.int32
    assert [name.removeprefix("./") for name in source.ids] == list(NAMES)
    assert [source.read(i).pixels[0, 0, 0] for i in range(4)] == [0, 7, 14, 21]
    assert source.path(1).samefile(tmp_path / NAMES[1])
    assert source.name == "photos.csv" and source.root is None and source.notes == ()


def test_columns_may_be_in_any_order_and_unused_ones_are_noted(tmp_path):
    text = "label,width,path,Taken by\n" + "".join(f"{n[:4]},9,{n},me\n" for n in NAMES)
    source = open_source(write(put_flat(tmp_path, *NAMES), text))
    assert source.class_names == ("cats", "dogs") and list(source.ids) == list(NAMES)
    assert source.notes == ("Unused columns: 'width', 'Taken by'.",)


def test_paths_are_absolute_below_home_or_relative_to_the_csv(tmp_path, monkeypatch):
    put_flat(tmp_path, "lists/a.png", "home/b.png", "far/c.png")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    text = f"path,label\na.png,x\n~/b.png,y\n{tmp_path}/far/c.png,y\n../far/c.png,y\n"
    source = open_source(write(tmp_path / "lists", text))
    assert list(source.ids) == ["a.png", "~/b.png", f"{tmp_path}/far/c.png"]
    assert [source.read(i).pixels[0, 0, 0] for i in range(3)] == [0, 7, 14]
    assert [source.path(i).name for i in range(3)] == ["a.png", "b.png", "c.png"]
    assert source.notes == ("Ignored 1 row with an image of an earlier row (line 5).",)


def test_quoted_names_may_hold_commas_quotes_and_line_breaks(tmp_path):
    names = ["a, b.png", 'the "c".png', "d\ne.png", "ü猫.png"]
    put_flat(tmp_path, *names)
    with open(tmp_path / "photos.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *((n, f"{n}-class") for n in names)])
    source = open_source(str(tmp_path / "photos.csv"))
    assert list(source.ids) == names
    assert source.class_names == tuple(sorted(f"{n}-class" for n in names))


def test_splits_are_read_in_any_case_and_by_any_of_their_names(tmp_path):
    words = ["train", "TRAIN", "Val", "validation", "valid", "test"] * 2
    names = [f"{i}.png" for i in range(12)]
    put_flat(tmp_path, *names)
    lines = [f"{n},{'ab'[i // 6]}, {w} " for i, (n, w) in enumerate(zip(names, words, strict=True))]
    source = open_source(write(tmp_path, "path,label,split\n" + "\n".join(lines)))
    splits = {name: part.tolist() for name, part in source.splits.items()}
    assert splits == {"train": [0, 1, 6, 7], "val": [2, 3, 4, 8, 9, 10], "test": [5, 11]}
    np.testing.assert_array_equal(make_splits(source)["val"], splits["val"])


def test_an_empty_split_column_means_no_official_splits(tmp_path):
    put_flat(tmp_path, "a.png", "b.png")
    assert open_source(write(tmp_path, "path,label,split\na.png,x,\nb.png,y\n")).splits is None


def test_an_image_listed_under_two_spellings_counts_once(tmp_path):
    put_flat(tmp_path, "a.png", "b.png")
    text = "path,label,split\na.png,x,val\nb.png,y,train\n./a.png,x,validation\na.png,x,VAL\n"
    source = open_source(write(tmp_path, text))
    assert list(source.ids) == ["a.png", "b.png"]
    assert source.notes == ("Ignored 2 rows with an image of an earlier row (lines 4, 5).",)


def test_the_fingerprint_depends_on_rows_and_sizes_and_not_on_the_location(tmp_path):
    def fingerprint_of(folder, text, more=b""):
        put_flat(tmp_path / folder, "a.png", "b.png")
        with (tmp_path / folder / "b.png").open("ab") as file:
            file.write(more)
        return open_source(write(tmp_path / folder, text)).fingerprint

    text = "path,label\na.png,x\nb.png,y\n"
    first = fingerprint_of("one", text)
    assert fingerprint_of("two", text.replace(",", ";")) == first
    others = {fingerprint_of("three", text.replace("y", "z")), fingerprint_of("four", text, b"+")}
    assert len({first, *others}) == 3


HEAD = "path,label,split\n"
FAULTS = {
    "empty": ("", "is empty. Expected a first line path,label"),
    "blank": ("\n\n", "is empty"),
    "head": (HEAD, "has no rows after its first line"),
    "no_path": ("one,two\nx,y\nz,y\n", "none of 'one', 'two' names files below"),
    "two_paths": (
        "one,two,label\na.png,b.png,x\nc.png,a.png,y\n",
        "the columns 'one', 'two' all name images",
    ),
    "no_label": ("path\na.png\n", "no column that may be the labels. Name it"),
    "which_label": (
        "path,one,two\na.png,x,p\nb.png,x,q\nc.png,y,q\nsub/d.png,y,p\n",
        r"'one' \(2 values\), 'two' \(2 values\). Name it as `label_column`",
    ),
    "two_labels": ("path,label,Label\na.png,x,x\n", "has 2 columns 'label'. Keep one"),
    "one_class": ("path,label\na.png,x\nb.png,x\n", "has only one class, 'x'"),
    "null": (b"path,label\na.png,x\nb.png,\0y\n", "not text: line 3 contains a null byte"),
    "latin": (HEAD.encode() + b"a.png,x,\nb.png,gr\xfcn,\n", "not UTF-8: line 3. Save it as"),
    "utf16": (HEAD.encode("utf-16") + b"\0", "not UTF-16: line 2. Save it as UTF-8"),
    "long": ("path,label\na.png,x\nb.png," + "y" * 140_000, "line 2: field larger than"),
    "quote": ('path,label\na.png,x\nb.png,"y\nc.png,z\n', "line 2: unexpected end.*quote left"),
    "comma": ("path,label\na,b.png,x\n", "Line 2.*3 cells, the first line has 2. Quote .* a comma"),
    "no_name": ("path,label\na.png,x\n,y\n,y\n", "has no path in lines 3, 4. Fill"),
    "no_class": ("path,label\na.png,x\nb.png,  \nc.png,z\n", "has no label in line 3. Fill"),
    "some_split": (HEAD + "a.png,x,train\nb.png,y,\n", "no split in line 3. Give every image"),
    "wrong_split": (HEAD + "a.png,x,train\nb.png,y,tets\n", "line 3: .*Did you mean 'test'"),
    "no_train": (HEAD + "a.png,x,val\nb.png,y,val\n", "no image in the split train"),
    "two_classes": (
        "path,label\na.png,x\nb.png,y\na.png,y\nb.png,x\n./a.png,y\n",
        "'a.png' twice with different labels: 'x' in line 2, 'y' in line 4. 2 more such rows",
    ),
    "two_splits": (
        HEAD + "a.png,x,train\nb.png,y,train\na.png,x,test\n",
        "'a.png' twice with different splits: 'train' in line 2, 'test' in line 4. Keep one",
    ),
    "missing": (
        "path,label\na.png,x\n" + "".join(f"{i}.png,y\n" for i in range(5)),
        r"5 of 6 images.*not exist: '0.png' \(line 3\).*'2.png' \(line 5\) and 2 more. Paths are",
    ),
    "a_folder": ("path,label\na.png,x\nsub,y\n", r"1 of 2 images.*'sub' \(line 3\)"),
    "null_name": ("path,label\na.png,x\n" + "b" * 5000 + ",y\n", "1 of 2 images"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_an_unusable_csv_is_refused_with_the_reason_on_one_line(tmp_path, name):
    text, words = FAULTS[name]
    put_flat(tmp_path, "a.png", "b.png", "c.png", "sub/d.png")
    with pytest.raises(DataError, match=words) as error:
        open_source(write(tmp_path, text))
    assert "\n" not in str(error.value) and "photos.csv" in str(error.value)


def test_a_missing_csv_suggests_the_nearest_name(tmp_path):
    write(tmp_path, PLAIN)
    with pytest.raises(DataError, match=f"no file .*Did you mean '{tmp_path}/photos.csv'"):
        open_source(str(tmp_path / "photo.csv"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_named_like_a_csv_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(DataError, match="not a regular file"):
        open_source(str(tmp_path / "pipe.csv"))


def test_a_folder_named_like_a_csv_is_a_folder(tmp_path):
    (tmp_path / "x.csv").mkdir()
    assert not is_csv(str(tmp_path / "x.csv")) and is_csv("photos.TSV")
    with pytest.raises(DataError, match="x.csv has no class folders"):
        open_source(str(tmp_path / "x.csv"))
    put_flat(tmp_path / "x.csv", "a/1.png", "b/1.png")
    assert open_source(str(tmp_path / "x.csv")).class_names == ("a", "b")


def test_a_scan_collects_every_fault_and_keeps_the_usable_images(tmp_path):
    put_flat(tmp_path, "a.png", "b.png", "c.png")
    text = HEAD + "a.png,x,train\ngone.png,x,train\nb.png,y,\na.png,y,train\nc.png,z,tset\n,z,\n"
    scan = scan_source(write(tmp_path, text))
    kinds = ["no path", "no split", "Did you mean 'test'", "twice with", "1 of 4 images"]
    assert len(scan.faults) == len(kinds)
    assert all(kind in fault for kind, fault in zip(kinds, scan.faults, strict=True))
    assert scan_source(write(tmp_path, "path,label\ngone.png,x\n")).source is None
    assert scan.missing == ("gone.png",) and list(scan.source.ids) == ["a.png", "b.png", "c.png"]


def run_folder(tmp_path: Path, dataset: str, rows: list[tuple[str, str, str]]) -> str:
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"dataset": dataset}))
    path = folder / "splits.csv"
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("path", "label", "split"), *rows])
    return str(path)


def test_the_splits_file_of_a_run_opens_as_a_dataset(tmp_path):
    odd = [" a/ 1.png", "a b,\n/1.png", f"c/{os.fsdecode(bytes([255]))}.png"]
    put_flat(tmp_path / "data", *odd, *(f"{n[:-5]}{k}.png" for n in odd for k in (2, 3, 4, 5)))
    folder = open_source(str(tmp_path / "data"))
    splits = make_splits(folder, (0.6, 0.2, 0.2))
    of = {i: name for name, part in splits.items() for i in part}
    rows = [(folder.ids[i], folder.class_names[folder.labels[i]], of[i]) for i in range(15)]
    source = open_source(run_folder(tmp_path, str(tmp_path / "data"), rows))
    assert list(source.ids) == list(folder.ids) and source.class_names == folder.class_names
    for name, part in make_splits(source).items():
        np.testing.assert_array_equal(part, splits[name])
    np.testing.assert_array_equal(source.read(7).pixels, folder.read(7).pixels)


def test_the_splits_file_of_a_run_on_a_csv_is_relative_to_that_csv(tmp_path):
    put_flat(tmp_path / "lists", "a.png", "b.png", "c.png")
    rows = [("a.png", "x", "train"), ("b.png", "y", "train"), ("c.png", "y", "test")]
    dataset = write(tmp_path / "lists", "path,label\n" + "".join(f"{r[0]},{r[1]}\n" for r in rows))
    source = scan_csv(run_folder(tmp_path, dataset, rows)).source
    assert [source.read(i).pixels[0, 0, 0] for i in range(3)] == [0, 7, 14]


def test_the_splits_file_of_a_run_without_image_files_is_refused(tmp_path):
    path = run_folder(tmp_path, "tf_flowers", [("train/0", "rose", "train")])
    with pytest.raises(DataError, match="belongs to a run on 'tf_flowers'.*Give that dataset"):
        open_source(path)
