"""The CSV of a dataset is the same dataset."""

import os

import numpy as np
import pytest
from support.scenes import put_flat

from vggjax.cli.main import main
from vggjax.data.sources.csv_write import write_table
from vggjax.data.sources.open import open_digits, open_source
from vggjax.data.sources.options import DatasetOptions
from vggjax.data.splits.splits import make_splits
from vggjax.errors import ConfigError, DataError

ODD = ["a/=1+1.png", "a/ b, 'c'.png", "~/1.png", "-b/007.png", "-b/1.0.png", "NA/ü猫.png"]
FOLDERS = {
    "classes": (ODD, DatasetOptions()),
    "splits": (
        [f"{split}/{name}" for split in ("train", "test") for name in ODD],
        DatasetOptions(),
    ),
    "groups": (
        [f"{c}/p{i // 3}_{i}.png" for c in "ab" for i in range(9)],
        DatasetOptions(group_pattern="(p.)"),
    ),
    "names": (
        [f"{c}.{i}.png" for c in ("cat", "dog") for i in range(5)],
        DatasetOptions(label_from="name"),
    ),
}


def reopened(found, path):
    options = write_table(found, path)
    return open_source(str(path), options=DatasetOptions(**options))


@pytest.mark.parametrize("kind", FOLDERS)
@pytest.mark.parametrize("place", ["", "data", "lists"])
def test_a_folder_and_its_csv_are_the_same_dataset(tmp_path, kind, place):
    names, options = FOLDERS[kind]
    put_flat(tmp_path / "data", *names)
    (tmp_path / "lists").mkdir()
    found = open_source(str(tmp_path / "data"), options=options)
    again = reopened(found, tmp_path / place / "table.csv")
    assert again.class_names == found.class_names
    np.testing.assert_array_equal(again.labels, found.labels)
    np.testing.assert_array_equal(again.split_of, found.split_of)
    assert all(again.path(i).samefile(found.path(i)) for i in range(len(found)))
    assert not os.path.isabs(again.ids[0]) and again.possible_groups is None
    if kind == "groups":
        np.testing.assert_array_equal(again.groups, found.groups)
        for name, part in make_splits(again).items():
            np.testing.assert_array_equal(part, make_splits(found)[name])


def test_several_labels_per_image_are_written_and_read_again(tmp_path):
    put_flat(tmp_path, "a.png", "b.png", "c.png")
    (tmp_path / "m.csv").write_text("image,x y,z\na,1,1\nb,0,0\nc,0,1\n")
    found = open_source(str(tmp_path / "m.csv"), options=DatasetOptions(task="multilabel"))
    again = reopened(found, tmp_path / "table.csv")
    assert again.class_names == found.class_names == ("x y", "z")
    assert (
        again.targets.tolist()
        == found.targets.tolist()
        == [[True, True], [False, False], [False, True]]
    )


def test_doctor_writes_the_table_and_prints_the_command_that_trains_on_it(tmp_path, capsys):
    put_flat(tmp_path, *(f"train/{i}.png" for i in range(6)))
    rows = "".join(f"{i},{'ab'[i % 2]}\n" for i in range(9))
    (tmp_path / "labels.csv").write_text(f"id,kind\n{rows}")
    out = tmp_path / "out.csv"
    assert main(["doctor", str(tmp_path / "labels.csv"), "--write-csv", str(out)]) == 2
    printed = capsys.readouterr().out
    assert "3 of 9 images" in printed and "doctor's --write-csv" in printed
    assert f"Train    vggjax train --dataset {out}" in printed
    assert out.read_text() == "path,label\n" + "".join(
        f"train/{i}.png,{'ab'[i % 2]}\n" for i in range(6)
    )
    assert main(["doctor", str(tmp_path / "labels.csv"), "--write-csv", str(out)]) == 2
    assert "exists; give a new file as --write-csv" in capsys.readouterr().err


def test_what_cannot_be_written_is_refused(tmp_path):
    put_flat(tmp_path, "a/1.png", f"b/{os.fsdecode(bytes([255]))}.png")
    with pytest.raises(DataError, match="labeled image files"):
        write_table(open_digits(), tmp_path / "digits.csv")
    found = open_source(str(tmp_path))
    with pytest.raises(DataError, match="not valid text"):
        write_table(found, tmp_path / "out.csv")
    for name, words in (("out.txt", "must end in .csv"), ("gone/out.csv", "existing folder")):
        with pytest.raises(ConfigError, match=words):
            write_table(found, tmp_path / name)
    assert not (tmp_path / "out.csv").exists()
