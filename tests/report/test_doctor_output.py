"""The findings of `vggjax doctor` on the terminal and on a page."""

import os
import re
from pathlib import Path

import pytest
from rich.console import Console
from support.page import Page
from support.scenes import fill, put, saved, scene

from vggjax.data.quality.clean import write_clean_copy
from vggjax.data.quality.doctor import examine
from vggjax.data.quality.findings import Findings
from vggjax.errors import ConfigError
from vggjax.report.doctor_page import MAX_CASES, write_doctor_page
from vggjax.report.doctor_screen import print_clean_copy, print_findings


@pytest.fixture(scope="module")
def messy(tmp_path_factory) -> Findings:
    """A dataset with many kinds of problems and hostile names."""
    root = fill(tmp_path_factory.mktemp("messy") / "set", "a [red]b", "<b>&", count=30)
    put(root, f"a [red]b/{os.fsdecode(b'bad')}\x1b[31m\xff.jpg", b"")
    put(root, os.fsdecode(b"a [red]b/\xff.jpg"), b"text")
    put(root, "a [red]b/<img src=x>.png", scene(1, 40))
    put(root, "<b>&/conflict.png", scene(2, 40))
    put(root, "<b>&/again.png", saved(scene(1003, 40), 70))
    put(root, "<b>&/long.png", scene(90, 200)[:33])
    put(root, "<b>&/gray.png", scene(91, 40)[..., 0])
    return examine(str(root))


@pytest.fixture(scope="module")
def messy_page(messy, tmp_path_factory) -> Page:
    return page_of(messy, tmp_path_factory.mktemp("page"))


def page_of(findings: Findings, folder: Path) -> Page:
    return Page(write_doctor_page(findings, folder / "doctor.html").read_text("utf-8"))


def printed(capsys, findings: Findings, width: int = 80) -> str:
    print_findings(Console(width=width), findings)
    return capsys.readouterr().out


def test_the_screen_lists_each_case_and_prints_no_control_characters(messy, capsys):
    text = printed(capsys, messy)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)
    text.encode("utf-8")  # no half of a surrogate pair
    assert "a [red]b  " in text and "<b>&" in text
    assert "a [red]b/bad\\x1b[31m" in text and "a [red]b/\\udcff.jpg: not an image" in text
    assert "a [red]b/1.png = a [red]b/<img src=x>.png" in text
    assert "kinds of problems found." in text
    assert text.count("<b>&/conflict.png") == 1 and "above, among the label conflicts" in text


def test_the_table_fits_80_columns_and_a_long_name_is_never_broken(tmp_path, capsys):
    root = fill(tmp_path / "set", *(f"{split}/{'x' * 120}{i}" for split in ("train", "val", "test")
                                    for i in range(2)))  # fmt: skip
    put(root, f"train/{'x' * 120}0/{'y' * 200}.png", b"")
    text = printed(capsys, examine(str(root)))
    table = text.split("\n\n")[0].splitlines()[1:]
    assert all(len(line) <= 80 for line in table)
    assert f"{'y' * 200}.png: empty file" in text


def test_a_long_list_is_cut_and_the_rest_is_counted(tmp_path, capsys):
    root = fill(tmp_path / "set", "a", "b", count=12)
    for i in range(22):
        put(root, f"a/bad{i:02}.png", b"")
    text = printed(capsys, examine(str(root)))
    assert "Empty files: 22" in text and "bad09.png" in text and "bad10.png" not in text
    assert "and 12 more" in text


def test_of_very_many_classes_the_smallest_are_printed(tmp_path, capsys):
    root = fill(tmp_path / "set", *(f"c{i:02}" for i in range(40)), count=3, side=32)
    text = printed(capsys, examine(str(root)))
    assert "the 30 smallest of 40 classes" in text and "c30" not in text


def test_clean_and_empty_datasets_have_a_screen_and_a_page(tmp_path, capsys):
    clean = examine(str(fill(tmp_path / "clean", "a", "b")))
    assert "Clean: no problems found." in printed(capsys, clean)
    assert "Clean: no problems found." in page_of(clean, tmp_path).words
    (tmp_path / "empty").mkdir()
    empty = examine(str(tmp_path / "empty"))
    assert "no class folders" in printed(capsys, empty)
    assert "no class folders" in page_of(empty, tmp_path).words


def test_a_clean_copy_is_printed_with_what_was_left_out_and_renamed(messy, tmp_path, capsys):
    print_clean_copy(Console(width=80), write_clean_copy(messy, tmp_path / "out"), messy)
    text = capsys.readouterr().out
    assert "Left out: 5" in text and "<b>&/conflict.png: the same image with 2 labels" in text
    assert "Renamed: " in text and f"{tmp_path}/out: " in text and "out.doctor.csv" in text


def test_the_page_is_self_contained_and_escapes_every_name(messy_page):
    for tag, attributes in messy_page.tags:
        assert tag not in ("script", "link", "iframe")
        for name in ("src", "href", "srcset"):
            assert attributes.get(name, "#").startswith(("data:image/", "#")), (tag, attributes)
    assert not [1 for tag, attributes in messy_page.tags if tag == "b" and attributes]
    assert "a [red]b/<img src=x>.png" in messy_page.text and "<b>&" in messy_page.text


def test_duplicates_are_side_by_side_and_a_conflict_shows_both_labels(messy_page):
    conflict = messy_page.section("label_conflict")
    assert re.findall(r"<b>(.*?)</b>", conflict) == ["&lt;b&gt;&amp;", "a [red]b"]
    images = re.findall(r'src="(data:image/jpeg;base64,.*?)"', conflict)
    assert len(images) == 2 and images[0] == images[1]


def test_a_conflict_is_shown_once_and_the_duplicates_say_so(messy_page):
    conflicts, exact = (messy_page.section(kind) for kind in ("label_conflict", "exact_duplicate"))
    shown = set(re.findall(r"<small>(.*?)</small>", conflicts))
    assert shown and not shown <= set(re.findall(r"<small>(.*?)</small>", exact))
    assert "more above, among the label conflicts" in exact


def test_every_problem_is_linked_to_its_section(messy, messy_page):
    ids = [attributes.get("id") for tag, attributes in messy_page.tags if tag == "section"]
    links = [attributes["href"] for tag, attributes in messy_page.tags if tag == "a"]
    assert {item.kind for item in messy.items} <= set(ids)
    assert links == [f"#{item.kind}" for item in messy.problems]


def test_of_many_cases_the_page_shows_some_and_counts_the_others(tmp_path):
    root = fill(tmp_path / "set", "a", "b", count=60)
    for i in range(40):
        put(root, f"a/copy{i}.png", scene(i, 40))
    page = page_of(examine(str(root)), tmp_path)
    assert page.html.count('class="group"') == MAX_CASES and "And 16 more, which" in page.words


def test_a_page_in_no_folder_or_inside_the_dataset_is_refused(messy, tmp_path):
    (tmp_path / "vgg.safetensors").write_bytes(b"precious")
    with pytest.raises(ConfigError, match="`html` must end in .html, .htm"):
        write_doctor_page(messy, tmp_path / "vgg.safetensors")
    for path in (tmp_path, tmp_path / "missing" / "doctor.html"):
        with pytest.raises(ConfigError, match="`html` must be a file in an existing folder"):
            write_doctor_page(messy, path)
    with pytest.raises(ConfigError, match="inside the dataset"):
        write_doctor_page(messy, Path(messy.dataset) / "doctor.html")
