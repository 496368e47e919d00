"""Each kind of problem in a dataset is found, counted and classified."""

import json
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from support.scenes import fill, put, saved, scene

from vggjax.data.quality import doctor
from vggjax.data.quality.doctor import examine
from vggjax.data.quality.duplicates import find_duplicates
from vggjax.data.quality.findings import KINDS, Findings
from vggjax.data.sources.open import open_source


def counts_of(root: Path | str, **options) -> dict[str, int]:
    return {item.kind: item.count for item in examine(str(root), **options).items}


def names_of(findings: Findings, kind: str) -> list[list[str]]:
    return [[findings.source.ids[i] for i in entry.images] for entry in findings.of(kind)]


def test_a_clean_folder_has_no_findings(tmp_path):
    findings = examine(str(fill(tmp_path, "a", "b")))
    assert findings.items == () and findings.exit_code == 0
    np.testing.assert_allclose(findings.weights, [1, 1])


BROKEN = {
    "empty_file": b"",
    "not_an_image": b"hello, I am text",
    "unsupported": b"%PDF-1.4 and more",
    "corrupt": b"\x89PNG\r\n\x1a\n" + bytes(40),
    "too_large": b"BM" + struct.pack("<3I3i2H6I", 54, 0, 54, 40, 90_000, 90_000, 1, 24, *[0] * 6),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_an_unreadable_file_is_a_problem_of_its_kind(tmp_path, kind):
    put(fill(tmp_path, "a", "b", count=30), "a/bad.jpg", BROKEN[kind])
    findings = examine(str(tmp_path))
    assert names_of(findings, kind) == [["a/bad.jpg"]]
    assert findings.exit_code == 2 and [item.kind for item in findings.items] == [kind]


def test_half_a_jpeg_is_truncated(tmp_path):
    path = put(fill(tmp_path, "a", "b", count=30), "b/cut.jpg", scene(7), "JPEG")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert counts_of(tmp_path) == {"truncated": 1}


def test_pipes_devices_and_dangling_links_neither_hang_nor_crash(tmp_path):
    fill(tmp_path, "a", "b", count=60)
    os.mkfifo(tmp_path / "a" / "pipe.jpg")
    (tmp_path / "a" / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "a" / "gone.jpg").symlink_to("nothing.jpg")
    (tmp_path / "a" / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "b" / "up").symlink_to("..")
    assert counts_of(tmp_path) == {"not_a_file": 2, "missing": 1, "unreadable": 1}


def test_more_than_5_percent_unreadable_images_would_be_refused_by_training(tmp_path):
    fill(tmp_path, "a", "b", count=10)
    for i in range(2):
        put(tmp_path, f"a/bad{i}.jpg", b"")
    assert counts_of(tmp_path) == {"refused": 1, "empty_file": 2}


def test_a_class_without_readable_images_is_refused_by_name(tmp_path):
    fill(tmp_path, "a", count=60)
    for i in range(3):
        put(tmp_path, f"b/{i}.jpg", b"")
    (entry,) = examine(str(tmp_path)).of("refused")
    assert entry.text == "No image of class 'b' is readable: 0 of 3."


@pytest.mark.parametrize(
    "make",
    [
        lambda root: fill(root, "a"),
        lambda root: put(root, "x.png", scene(0)),
        lambda root: None,
        lambda root: (fill(root, "train/a", "train/b", "val/a", "val/b"), fill(root, "val/c")),
        lambda root: fill(root, "test/a", "test/b"),
        lambda root: fill(root, "a", "b", count=1),
    ],
    ids=["one class", "no folders", "nothing", "extra class in val", "no train", "too few"],
)
def test_what_training_refuses_is_a_finding_and_not_an_error(tmp_path, make):
    make(tmp_path)
    findings = examine(str(tmp_path))
    assert findings.of("refused") and findings.exit_code == 2


def test_exact_and_near_duplicates_are_counted_beyond_the_first(tmp_path):
    fill(tmp_path, "a", "b")
    for i in range(3):
        put(tmp_path, f"a/copy{i}.bmp", scene(1, 40), "BMP")
    put(tmp_path, "a/again.png", saved(scene(2, 40), 70))
    put(tmp_path, "b/again.png", saved(scene(1001, 40), 70))
    put(tmp_path, "b/copy.png", scene(1001, 40))
    findings = examine(str(tmp_path))
    counts = {item.kind: item.count for item in findings.items}
    assert counts == {"exact_duplicate": 4, "near_duplicate": 2}
    assert names_of(findings, "exact_duplicate") == [
        ["a/1.png", "a/copy0.bmp", "a/copy1.bmp", "a/copy2.bmp"],
        ["b/1.png", "b/copy.png"],
    ]
    assert names_of(findings, "near_duplicate") == [
        ["a/2.png", "a/again.png"],
        ["b/1.png", "b/again.png", "b/copy.png"],
    ]


def test_one_image_with_two_labels_is_a_conflict(tmp_path):
    fill(tmp_path, "a", "b")
    put(tmp_path, "b/same.png", scene(1, 40))
    put(tmp_path, "b/like.png", saved(scene(2, 40), 70))
    findings = examine(str(tmp_path))
    assert [(entry.text, len(entry.images)) for entry in findings.of("label_conflict")] == [
        ("equal pixels", 2),
        ("near-duplicates", 2),
    ]


def test_one_image_in_two_splits_leaks_and_twice_in_one_split_does_not(tmp_path):
    fill(tmp_path, "train/a", "train/b", "test/a", "test/b")
    put(tmp_path, "test/a/same.png", scene(1, 40))
    put(tmp_path, "test/a/like.png", saved(scene(2, 40), 70))
    put(tmp_path, "train/a/twice.png", scene(3, 40))
    findings = examine(str(tmp_path))
    assert {frozenset(names) for names in names_of(findings, "leaked")} == {
        frozenset({"test/a/like.png", "train/a/2.png"}),
        frozenset({"test/a/same.png", "train/a/1.png"}),
    }
    assert not findings.of("label_conflict")


def test_small_images_are_a_problem_only_among_large_ones(tmp_path):
    mixed = put(fill(tmp_path / "mixed", "a", "b"), "a/small.png", scene(99, 31)).parents[1]
    assert counts_of(mixed) == {"tiny": 1}
    assert counts_of(fill(tmp_path / "all", "a", "b", side=31)) == {"small_pictures": 8}
    assert examine("digits").exit_code == 0


def test_an_aspect_ratio_above_four_is_extreme(tmp_path):
    fill(tmp_path, "a", "b")
    put(tmp_path, "a/long.png", scene(50, 160)[:40])
    put(tmp_path, "a/longer.png", scene(51, 164)[:40])
    put(tmp_path, "b/tall.png", scene(52, 164)[:, :40])
    findings = examine(str(tmp_path))
    assert names_of(findings, "extreme_aspect") == [["a/longer.png"], ["b/tall.png"]]


@pytest.mark.parametrize("count, kind", [(11, None), (12, "uneven"), (40, "imbalance")])
def test_imbalance_is_a_remark_from_three_and_a_problem_from_ten_to_one(tmp_path, count, kind):
    fill(fill(tmp_path, "a", count=4), "b", count=count, seed=5000)
    findings = examine(str(tmp_path))
    assert [item.kind for item in findings.items] == ([kind] if kind else [])


def test_the_class_weights_are_those_of_training(tmp_path):
    for split in ("train", "val", "test"):  # of 5, 3 and 4 letters
        fill(tmp_path, f"{split}/a", count=2, seed=100 * len(split))
        fill(tmp_path, f"{split}/b", count=4, seed=100 * len(split) + 50)
    findings = examine(str(tmp_path))
    np.testing.assert_allclose(findings.weights, [6 / (2 * 2), 6 / (2 * 4)])
    row = findings.to_json()["classes"][0]
    splits = {"train": 2, "val": 2, "test": 2}
    assert row == {"name": "a", "images": 6, "splits": splits, "weight": 1.5}


def test_remarks_leave_the_exit_code_at_0(tmp_path):
    fill(tmp_path, "a", "b")
    put(tmp_path, "a/other.jpg", scene(60, 40))
    put(tmp_path, "b/gray.png", scene(61, 40)[..., 0])
    put(tmp_path, "loose.png", scene(62, 40))
    put(tmp_path, "b/read.txt", b"text")
    fill(tmp_path, ".git", count=1)
    findings = examine(str(tmp_path))
    assert findings.exit_code == 0
    counts = {item.kind: item.count for item in findings.items}
    assert counts == {"misnamed": 1, "loose": 1, "adapted": 1, "note": 2}
    assert names_of(findings, "misnamed") == [["a/other.jpg"]]
    assert findings.of("adapted")[0].text == "gray made RGB"


def test_missing_files_of_a_csv_are_listed(tmp_path):
    fill(tmp_path, "a", "b")
    lines = [f"{c}/{i}.png,{c}" for c in "ab" for i in range(4)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *lines, "gone.png,a"]))
    findings = examine(str(tmp_path / "list.csv"))
    assert [entry.text for entry in findings.of("missing")] == ["gone.png"]
    assert len(findings.source) == 8


def test_an_image_without_a_split_does_not_leak(tmp_path):
    fill(tmp_path, "a", "b")
    put(tmp_path, "a/same.png", scene(1, 40))
    lines = [f"{c}/{i}.png,{c},train" for c in "ab" for i in range(4)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *lines, "a/same.png,a,"]))
    kinds = counts_of(tmp_path / "list.csv")
    assert kinds["exact_duplicate"] == 1 and "leaked" not in kinds


def test_the_json_is_complete_with_names_that_are_not_printable(tmp_path):
    fill(tmp_path, "a b", "x\ny", "猫")
    for name in (b"\xff\xfe.jpg", b"a\x1b[31m.jpg", b"--help.jpg"):
        put(tmp_path, f"a b/{os.fsdecode(name)}", b"")
    document = json.loads(json.dumps(examine(str(tmp_path)).to_json()))
    assert list(document) == [
        "dataset", "exit_code", "images", "readable", "exact_duplicates", "near_duplicates",
        "turned_copies", "classes", "problems", "remarks",
    ]  # fmt: skip
    (empty,) = [item for item in document["problems"] if item["kind"] == "empty_file"]
    (image,) = empty["entries"][-1]["images"]
    assert os.fsencode(image["path"]) == os.fsencode(tmp_path) + b"/a b/\xff\xfe.jpg"
    assert image["label"] == "a b" and image["split"] is None


def test_a_known_source_and_its_duplicates_are_not_read_again(tmp_path):
    fill(tmp_path, "a", "b")
    put(tmp_path, "b/same.png", scene(1, 40))
    put(tmp_path, "loose.png", scene(2, 40))
    source = open_source(str(tmp_path))
    duplicates = find_duplicates(source)
    expected = examine(str(tmp_path)).to_json()
    shutil.rmtree(tmp_path)
    findings = examine(str(tmp_path), source=source, duplicates=duplicates)
    assert findings.source is source and findings.duplicates is duplicates
    assert findings.to_json()["problems"] == expected["problems"]
    assert findings.of("note")[0].text.startswith("Skipped 1 image next to")


def test_examining_does_not_change_the_folder(tmp_path):
    put(fill(tmp_path, "a", "b"), "a/bad.jpg", b"")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    examine(str(tmp_path))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_every_reason_of_the_decoder_has_a_kind():
    assert set(doctor._KIND_OF_REASON.values()) <= set(KINDS)
    assert {kind.level for kind in KINDS.values()} == {"problem", "remark"}


def test_mirrored_and_rotated_copies_are_a_problem_and_leak_between_splits(tmp_path):
    for split, seeds in (("train", range(6)), ("test", range(6, 9))):
        for label, name in enumerate("ab"):
            for seed in seeds:
                put(tmp_path, f"{split}/{name}/{seed}.png", scene(20 * label + seed, 64))
    put(tmp_path, "train/a/mirrored.png", np.ascontiguousarray(scene(0, 64)[:, ::-1]))
    put(tmp_path, "test/a/turned.png", np.ascontiguousarray(np.rot90(scene(1, 64))))
    findings = examine(str(tmp_path))
    assert findings.exit_code == 2 and findings.duplicates.turned == 2
    pairs = [{"train/a/0.png", "train/a/mirrored.png"}, {"train/a/1.png", "test/a/turned.png"}]
    assert sorted(map(sorted, names_of(findings, "turned_copy"))) == sorted(map(sorted, pairs))
    (leak,) = findings.of("leaked")
    assert leak.text == "mirrored or rotated"
    assert {findings.source.ids[i] for i in leak.images} == pairs[1]
    assert not findings.of("label_conflict")


@pytest.mark.parametrize(("most", "is_dark"), [(1, True), (9, True), (200, False)])
def test_images_saved_in_another_range_are_nearly_black(tmp_path, most, is_dark):
    rng = np.random.default_rng(0)
    for i in range(8):
        pixels = rng.integers(0, most + 1, (40, 40, 3), np.uint8)
        put(tmp_path, f"{'ab'[i % 2]}/{i}.png", pixels)
    findings = examine(str(tmp_path))
    texts = [entry.text for entry in findings.of("dark")]
    assert [f"No pixel of any image is above {most} of 255" in text for text in texts] == (
        [True] if is_dark else []
    )
    assert findings.exit_code == (2 if is_dark else 0)


def test_what_tells_a_class_apart_without_its_content_is_a_remark(tmp_path):
    for i in range(10):
        put(tmp_path, f"covid/{i}.png", scene(i, 64)[..., 0])
        put(tmp_path, f"normal/{i}.png", scene(20 + i, 64))
        put(tmp_path, f"other/{i}.png", scene(40 + i, 64 + i))
    findings = examine(str(tmp_path))
    (entry,) = findings.of("shortcut")
    assert entry.text.startswith("All images of class 'covid' are gray, and no others are")
    assert findings.exit_code == 0
