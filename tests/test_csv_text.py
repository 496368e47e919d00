"""Cells that a spreadsheet would run are written as text, and come back as they were."""

import csv
import dataclasses
import io
import os

import numpy as np
import pytest
from support.made_source import source

from vggjax.atomic import write_text
from vggjax.csv_text import csv_line, csv_rows
from vggjax.data.splits.splits import read_splits, splits_text
from vggjax.errors import printable
from vggjax.evaluation.evaluate import SplitPredictions, predictions_csv
from vggjax.training.run_dir.contents import read_contents, write_contents
from vggjax.training.run_dir.folder import read_image_splits

NAMES = ["=1+1", "+1", "-1", "@a", "\tb", "\rc", "\x1b[31m", "＝2", "'=3", "''-4", "'d", "a\rb",
         'e"f', "g,h", " i", "j\nk", "", "0", "l'm", "n=o", "o\x1b]0;p\x07", "\x9bq\\x1b", "'\\r",
         r"'\\s\x1b", r"'\t\x1b", "u\\x1b", r"C:\x00\v.png", "'\\\x00\\"]  # fmt: skip


def test_any_name_is_read_back_as_it_was():
    assert list(csv_rows(io.StringIO(csv_line(NAMES), newline=""))) == [NAMES]


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@a", "\tb", "\rc", "＝2"])
def test_a_formula_is_shown_as_text_by_a_spreadsheet(name):
    ((shown,),) = csv.reader(io.StringIO(csv_line([name]), newline=""))
    assert shown == f"'{name}"


def test_a_control_character_is_shown_as_text_by_a_terminal_and_older_files_are_read():
    assert csv_line(["a\x1b[2J\\b.png", "\x1b[31m"]) == "'\\a\\x1b[2J\\\\b.png,'\\\\x1b[31m\n"
    older = ["a\x1b[2J.png", r"\\server\x1b", r"'\\server\a.png'"]
    assert list(csv_rows([",".join(older)])) == [older]
    assert list(csv_rows(["'\x1b[31m"])) == [["\x1b[31m"]]


def test_numbers_and_other_names_stay_and_a_lone_carriage_return_is_quoted():
    assert csv_line([-1, "a\rb", "rose", "d'or"]) == '-1,"a\rb",rose,d\'or\n'


def random_names(count):
    """Return names of any bytes that a file system allows."""
    rng = np.random.default_rng(7)
    lengths = rng.integers(1, 40, count)
    allowed = np.array([byte for byte in range(1, 256) if byte != ord("/")], np.uint8)
    special = np.frombuffer(b"\r\n\t\",;'=+-@ \x1b\xff", np.uint8)
    names = {
        os.fsdecode(rng.choice(special if rng.random() < 0.5 else allowed, size).tobytes())
        for size in lengths
    }
    return sorted(names)


def test_each_csv_of_a_run_survives_every_name_that_a_file_system_allows(tmp_path):
    ids = random_names(2200)
    assert len(ids) >= 2000
    data = dataclasses.replace(source([len(ids) // 2, len(ids) - len(ids) // 2]), ids=ids)
    splits = {"train": np.arange(len(ids)), "val": np.arange(0), "test": np.arange(0)}
    write_text(tmp_path / "splits.csv", splits_text(data, splits))
    found = read_splits(tmp_path, data)
    assert {name: part.tolist() for name, part in found.items()} == {
        name: part.tolist() for name, part in splits.items()
    }
    assert set(read_image_splits(tmp_path)) == set(ids)
    write_contents(tmp_path, dict.fromkeys(ids))
    assert list(read_contents(tmp_path)) == ids
    probs = np.full((len(ids), 2), 0.5, np.float32)
    predictions = SplitPredictions(np.arange(len(ids)), data.labels, probs)
    text = predictions_csv(predictions, "test", ids=ids, class_names=data.class_names)
    write_text(tmp_path / "predictions.csv", text)
    with open(tmp_path / "predictions.csv", encoding="utf-8", newline="") as file:
        rows = list(csv_rows(file))[1:]
    assert [row[0] for row in rows] == [printable(id) for id in ids]
    assert not any(0x1B in line for line in text.encode().splitlines())
