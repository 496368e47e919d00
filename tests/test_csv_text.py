"""Cells that a spreadsheet would run are written as text, and come back as they were."""

import csv
import io

import pytest

from vggjax.csv_text import csv_line, csv_rows

NAMES = ["=1+1", "+1", "-1", "@a", "\tb", "\rc", "\x1b[31m", "＝2", "'=3", "''-4", "'d", "a\rb",
         'e"f', "g,h", " i", "j\nk", "", "0", "l'm", "n=o"]  # fmt: skip


def test_any_name_is_read_back_as_it_was():
    assert list(csv_rows(io.StringIO(csv_line(NAMES), newline=""))) == [NAMES]


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@a", "\tb", "\rc", "\x1b[31m", "＝2"])
def test_a_formula_is_shown_as_text_by_a_spreadsheet(name):
    ((shown,),) = csv.reader(io.StringIO(csv_line([name]), newline=""))
    assert shown == f"'{name}"


def test_numbers_and_other_names_stay_and_a_lone_carriage_return_is_quoted():
    assert csv_line([-1, "a\rb", "rose", "d'or"]) == '-1,"a\rb",rose,d\'or\n'
