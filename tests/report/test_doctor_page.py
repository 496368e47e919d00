"""What a person reads of a dataset's examination: the table, the page, the words."""

import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console
from support.scenes import fill, put, saved, scene

from vggjax.data.quality.clean import write_clean_copy
from vggjax.data.quality.doctor import examine
from vggjax.data.quality.findings import Findings
from vggjax.errors import ConfigError
from vggjax.report.doctor_page import write_doctor_page
from vggjax.report.doctor_screen import print_clean_copy, print_findings


@pytest.fixture
def messy(tmp_path) -> Findings:
    root = fill(tmp_path / "set", "a [red]b", "<b>&", count=30)
    put(root, f"a [red]b/{os.fsdecode(b'bad')}\x1b[31m\xff.jpg", b"")
    put(root, os.fsdecode(b"a [red]b/\xff.jpg"), b"text")
    put(root, "a [red]b/<img src=x>.png", scene(1, 40))
    put(root, "<b>&/conflict.png", scene(2, 40))
    put(root, "<b>&/again.png", saved(scene(1003, 40), 70))
    put(root, "<b>&/long.png", scene(90, 200)[:33])
    put(root, "<b>&/gray.png", scene(91, 40)[..., 0])
    return examine(str(root))


def printed(capsys, findings: Findings, width: int = 80) -> str:
    print_findings(Console(width=width), findings)
    return capsys.readouterr().out


def test_the_screen_names_each_case_and_never_sends_a_control_character(messy, capsys):
    text = printed(capsys, messy)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)
    text.encode("utf-8")  # no half of a surrogate pair
    assert "a [red]b  " in text and "<b>&" in text
    assert "a [red]b/bad\\x1b[31m" in text and "a [red]b/\\udcff.jpg: not an image" in text
    assert "a [red]b/1.png = a [red]b/<img src=x>.png" in text
    assert "kinds of problems found." in text


def test_the_table_fits_80_columns_and_a_long_name_is_never_broken(tmp_path, capsys):
    root = fill(tmp_path / "set", *(f"{split}/{'x' * 120}{i}" for split in ("train", "val", "test")
                                    for i in range(2)))  # fmt: skip
    put(root, f"train/{'x' * 120}0/{'y' * 200}.png", b"")
    text = printed(capsys, examine(str(root)))
    table = text.split("\n\n")[0].splitlines()[1:]
    assert all(len(line) <= 80 for line in table)
    assert f"{'y' * 200}.png: empty file" in text


def test_a_long_list_is_cut_and_its_rest_counted(tmp_path, capsys):
    root = fill(tmp_path / "set", "a", "b", count=12)
    for i in range(22):
        put(root, f"a/bad{i:02}.png", b"")
    text = printed(capsys, examine(str(root)))
    assert "Empty files: 22" in text and "bad09.png" in text and "bad10.png" not in text
    assert "and 12 more" in text


def test_a_thousand_classes_do_not_fill_the_screen(tmp_path, capsys):
    root = fill(tmp_path / "set", *(f"c{i:02}" for i in range(40)), count=3, side=32)
    text = printed(capsys, examine(str(root)))
    assert "the 30 smallest of 40 classes" in text and "c30" not in text


def test_a_clean_data_set_is_said_to_be_clean(tmp_path, capsys):
    assert "Clean: no problem was found." in printed(capsys, examine(str(fill(tmp_path, "a", "b"))))


def test_a_folder_of_nothing_has_a_screen_and_a_page(tmp_path, capsys):
    (tmp_path / "set").mkdir()
    findings = examine(str(tmp_path / "set"))
    assert "Training refuses it" in printed(capsys, findings)
    assert "no class folders" in write_doctor_page(findings, tmp_path / "sheet.html").read_text(
        "utf-8"
    )


def test_the_copy_is_told_with_what_was_left_out_and_renamed(messy, tmp_path, capsys):
    print_clean_copy(Console(width=80), write_clean_copy(messy, tmp_path / "out"), messy)
    text = capsys.readouterr().out
    assert "Left out: 5" in text and "<b>&/conflict.png: the same image under 2 labels" in text
    assert "Renamed: " in text and f"{tmp_path}/out: " in text and "out.doctor.csv" in text


class Page(HTMLParser):
    """Collects the tags of a page, and checks that they close in order."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.words, self.ids = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def page_of(findings: Findings, folder: Path) -> Page:
    return Page(write_doctor_page(findings, folder / "sheet.html").read_text("utf-8"))


def test_the_page_stands_alone_and_escapes_every_name(messy, tmp_path):
    page = page_of(messy, tmp_path)
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe")
        for name in ("src", "href", "srcset"):
            assert attributes.get(name, "#").startswith(("data:image/", "#")), (tag, attributes)
    assert not [1 for tag, attributes in page.tags if tag == "b" and attributes]
    words = "".join(page.words)
    assert "a [red]b/<img src=x>.png" in words and "<b>&" in words


def test_copies_are_side_by_side_and_a_conflict_shows_both_labels(messy, tmp_path):
    text = write_doctor_page(messy, tmp_path / "sheet.html").read_text("utf-8")
    (conflict,) = re.findall(r'<section id="label_conflict">.*?</section>', text, re.DOTALL)
    assert re.findall(r"<b>(.*?)</b>", conflict) == ["&lt;b&gt;&amp;", "a [red]b"]
    images = re.findall(r'src="(data:image/jpeg;base64,.*?)"', conflict)
    assert len(images) == 2 and images[0] == images[1]


def test_every_problem_has_its_place_on_the_page(messy, tmp_path):
    page = page_of(messy, tmp_path)
    places = [attributes.get("id") for tag, attributes in page.tags if tag == "section"]
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert {item.kind for item in messy.items} <= set(places)
    assert links == [f"#{item.kind}" for item in messy.problems]


def test_of_many_cases_the_page_shows_some_and_counts_the_others(tmp_path):
    root = fill(tmp_path / "set", "a", "b", count=60)
    for i in range(40):
        put(root, f"a/copy{i}.png", scene(i, 40))
    text = write_doctor_page(examine(str(root)), tmp_path / "sheet.html").read_text("utf-8")
    assert text.count('class="group"') == 24 and "And 16 more, which" in text


def test_a_place_where_no_page_can_lie_is_refused(messy, tmp_path):
    for place in (tmp_path, tmp_path / "missing" / "sheet.html"):
        with pytest.raises(ConfigError, match="--html takes a file to write"):
            write_doctor_page(messy, place)
