"""Folders arranged as people have them: splits, labels in names, a level too high, masks."""

import re
from pathlib import Path

import numpy as np
import pytest
from support.scenes import put, put_flat, scene

from vggjax.data.quality.doctor import examine
from vggjax.data.sources.layout import find_label_pattern, find_split_folders
from vggjax.data.sources.open import open_source, scan_source
from vggjax.data.sources.options import DEFAULT_OPTIONS, DatasetOptions
from vggjax.errors import DataError

BY_NAME = DatasetOptions(label_from="name")


def tree(root: Path, counts: dict[str, int], ending: str = ".png") -> str:
    """Write `count` images into each folder, 000.png and so on; return the root."""
    put_flat(root, *(f"{name}/{i:03}{ending}" for name in counts for i in range(counts[name])))
    return str(root)


def sizes(dataset: str, options: DatasetOptions = DEFAULT_OPTIONS) -> dict[str, int]:
    splits = open_source(dataset, options=options).splits or {}
    return {split: len(part) for split, part in splits.items()}


def observed(dataset: Path) -> list[tuple[str, str]]:
    return [(seen.kind, seen.note) for seen in scan_source(str(dataset)).observations]


SPLIT_FOLDERS = {
    ("Training", "Testing"): ["train", "test"],
    ("training", "validation", "evaluation"): ["train", "val", "test"],
    ("training_set", "test_set", "single_prediction"): ["train", "test", "unlabeled"],
    ("Final_Training", "Final_Test"): ["train", "test"],
    ("seg_train", "seg_test", "seg_pred"): ["train", "test", "unlabeled"],
    ("train", "test1"): ["train", "test"],
    ("asl_alphabet_train", "asl_alphabet_test"): ["train", "test"],
    ("TrainSet", "testimages", "Dev"): ["train", "test", "val"],
    ("train2017", "val2017"): ["train", "val"],
    ("trainval", "test"): ["train", "test"],
    ("train", "car", "bus"): ["train"],
    ("toy_train", "toy_car"): [],
    ("test_tube", "train_station", "tested"): [],
    ("valid", "invalid"): ["val"],
    ("00000", "images", "train_test_split"): [],
}


@pytest.mark.parametrize("names", SPLIT_FOLDERS)
def test_a_split_folder_is_named_by_one_word_beside_fillers(names):
    assert list(find_split_folders(names).values()) == SPLIT_FOLDERS[names]


def test_split_folders_under_other_names_are_the_splits_and_are_noted(tmp_path):
    counts = {f"Training/{name}": 6 for name in "abcd"} | {f"Testing/{name}": 2 for name in "abcd"}
    source = open_source(tree(tmp_path, counts))
    assert source.class_names == tuple("abcd")
    assert {split: len(part) for split, part in source.splits.items()} == {"train": 24, "test": 8}
    note = "Split folders: train is 'Training', test is 'Testing'."
    assert source.notes == (f"{note} Give one alone to split it by `split`.",)


def test_the_only_folder_in_a_split_folder_is_entered(tmp_path):
    nested = {f"seg_train/seg_train/{name}": 5 for name in "ab"}
    nested |= {f"seg_test/seg_test/{name}": 3 for name in "ab"}
    source = open_source(tree(tmp_path, nested | {"seg_pred/seg_pred": 4}))
    assert source.class_names == ("a", "b")
    assert {split: len(part) for split, part in source.splits.items()} == {"train": 10, "test": 6}
    path = re.escape(str(tmp_path / "seg_pred"))
    put_flat(tmp_path, "asl/asl_train/asl_train/a/1.png", "asl/asl_train/asl_train/b/1.png")
    asl = scan_source(tree(tmp_path / "asl", {"asl_test/asl_test": 2}))
    assert asl.source.class_names == ("a", "b") and "'asl_test' has 2" in asl.observations[0].note
    assert any(
        re.search(rf"'seg_pred' has 4 images without .* vggjax predict {path}\.$", note)
        for note in source.notes
    )


def test_split_folders_with_other_words_are_known_by_their_classes(tmp_path):
    tree(tmp_path / "big", {f"{s}/{n}": 3 for s in ("train_augmented", "val") for n in "ab"})
    assert sizes(str(tmp_path / "big")) == {"train": 6, "val": 6}
    tree(tmp_path / "fer", {f"{s}/{n}": 3 for s in ("Training", "PublicTest") for n in "ab"})
    assert sizes(str(tmp_path / "fer")) == {"train": 6, "test": 6}
    tree(tmp_path / "fer", {f"PrivateTest/{n}": 3 for n in "ab"})
    with pytest.raises(DataError, match="one split, test: 'PrivateTest', 'PublicTest'. Rename"):
        open_source(str(tmp_path / "fer"))
    tree(tmp_path / "stl", {"labeled/a": 3, "labeled/b": 3, "unlabeled": 2})
    assert sizes(str(tmp_path / "stl")) == {"train": 6}
    tree(tmp_path / "rps", {f"{s}/{n}": 3 for s in ("rps", "validation-rps") for n in "ab"})
    assert sizes(str(tmp_path / "rps")) == {"train": 6, "val": 6}
    tree(tmp_path / "cats", {"cats": 3, "cats-test": 3})
    assert open_source(str(tmp_path / "cats")).class_names == ("cats", "cats-test")


def test_links_in_a_circle_end(tmp_path):
    tree(tmp_path, {"train/a": 2, "train/b": 2})
    for name in ("test", "docs", "wrapped/one"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "again").symlink_to(tmp_path / name)
    (tmp_path / "test" / "test").symlink_to(tmp_path / "test")
    (tmp_path / "test" / "again").unlink()
    with pytest.raises(DataError, match="test has"):
        open_source(str(tmp_path))
    put_flat(tmp_path, "wrapped/one/1.png")
    with pytest.raises(DataError, match="only one class, 'one'"):
        open_source(str(tmp_path / "wrapped"))


def test_a_single_class_in_a_split_folder_is_not_entered(tmp_path):
    tree(tmp_path, {"train/a/x": 2, "train/b/y": 2, "val/a/x": 1, "test/b/y": 1})
    assert open_source(str(tmp_path)).class_names == ("a", "b")


def test_a_test_folder_without_class_folders_is_not_used(tmp_path):
    root = tree(tmp_path, {"train/a": 5, "train/b": 5, "test": 3})
    put(tmp_path, "test/answers.csv", b"id,label\n")
    scan = scan_source(root)
    assert scan.source.class_names == ("a", "b") and sizes(root) == {"train": 10}
    (seen,) = scan.observations
    assert seen.kind == "unlabeled" and seen.note in scan.source.notes
    assert "3 images without class folders" in seen.note and "'test/answers.csv'" in seen.note


def test_classes_called_train_car_and_bus_stay_classes(tmp_path):
    names = ("bus", "car", "train")
    assert open_source(tree(tmp_path, dict.fromkeys(names, 2))).class_names == names


@pytest.mark.parametrize("name", ["test", "validation", "unlabeled"])
def test_a_class_named_like_a_split_is_asked_about(tmp_path, name):
    scan = scan_source(tree(tmp_path, {"cat": 2, "dog": 2, name: 2}))
    assert scan.source.class_names == tuple(sorted(("cat", "dog", name)))
    (seen,) = scan.observations
    assert seen.kind == "layout" and f"Class {name!r} is named like a split" in seen.note


@pytest.mark.parametrize(
    "names", [("train", "train_station"), ("valid", "invalid"), ("dev", "test1a")]
)
def test_classes_that_may_be_split_words_are_not_asked_about(tmp_path, names):
    scan = scan_source(tree(tmp_path, dict.fromkeys((*names, "bus"), 2)))
    assert {*names, "bus"} == {*scan.source.class_names} and scan.observations == ()


def test_folders_without_images_beside_the_splits_are_skipped_and_copies_are_named(tmp_path):
    tree(tmp_path, {f"{split}/{name}": 2 for split in ("train", "test") for name in "ab"})
    put(tmp_path, "devkit/readme.md", b"text")
    tree(tmp_path, {"test-multiple_fruits": 3})
    source = open_source(str(tmp_path))
    assert "Skipped folders without images: 'devkit'." in source.notes
    assert any("'test-multiple_fruits' has 3 images without" in note for note in source.notes)
    tree(tmp_path, {f"sets/{split}/{name}": 2 for split in ("train", "test") for name in "ab"})
    source = open_source(str(tmp_path))
    assert len(source) == 8
    assert "Skipped 'sets', with the same split folders: a copy?" in source.notes


def test_a_class_spelled_in_two_ways_is_named(tmp_path):
    tree(tmp_path, {"train/notumor": 2, "train/glioma": 2, "test/no_tumor": 2, "test/Glioma": 2})
    with pytest.raises(DataError, match="'Glioma' may be 'glioma', 'no_tumor' may be 'notumor'"):
        open_source(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "near"),
    [("01 Cat", "'01 Cat' may be '1_cat'"), ("dogs", "'dogs' may be 'dog'"), ("n01440", None)],
)
def test_the_nearest_class_is_by_its_letters(tmp_path, name, near):
    tree(tmp_path, {f"train/{known}": 1 for known in ("1_cat", "dog", "n01441")})
    with pytest.raises(DataError) as error:
        open_source(tree(tmp_path, {f"test/{name}": 1}))
    assert near in str(error.value) if near else "may be" not in str(error.value)


def test_an_empty_class_folder_of_a_test_split_is_a_class_that_it_lacks(tmp_path):
    root = tree(tmp_path, {"train/a": 4, "train/b": 4, "test/a": 2})
    (tmp_path / "test" / "b").mkdir()
    assert sizes(root) == {"train": 8, "test": 2}
    assert scan_source(root).empty == ("test/b",)
    put_flat(tmp_path, "lost/train/a/1.png", "lost/train/b/1.png")
    for name in "ab":
        (tmp_path / "lost" / "test" / name).mkdir(parents=True)
    with pytest.raises(DataError, match="test has class folders without images: 'a', 'b'"):
        open_source(str(tmp_path / "lost"))


# Labels in the file names


def names_of(*labels: str, count: int = 10) -> list[str]:
    return [f"{label.format(i)}.png" for label in labels for i in range(count)]


def test_labels_in_file_names_are_offered_and_used(tmp_path):
    put_flat(tmp_path, *(f"train/{name}" for name in names_of("cat.{}", "dog.{}")))
    put_flat(tmp_path, *(f"test1/{i}.png" for i in range(5)))
    with pytest.raises(DataError, match=r"2 classes \(cat 10, dog 10\): set `label_from` to name"):
        open_source(str(tmp_path))
    for dataset, expected in ((tmp_path, {"train": 20}), (tmp_path / "train", {})):
        source = open_source(str(dataset), options=BY_NAME)
        assert source.class_names == ("cat", "dog") and sizes(str(dataset), BY_NAME) == expected
        assert "`label_pattern`" in source.notes[0] and "cat 10, dog 10" in source.notes[0]
    with pytest.raises(DataError, match="test1 have no labels; the first is '0.png'.*pattern"):
        open_source(str(tmp_path / "test1"), options=BY_NAME)


NAMES = {
    ("Abyssinian_{}", "basset_hound_{}"): {"Abyssinian": 10, "basset_hound": 10},
    ("dog ({})", "cat ({})"): {"cat": 10, "dog": 10},
    ("00{}_cat", "10{}_dog"): {"cat": 10, "dog": 10},
    ("0_{}", "10_{}"): {"0": 10, "10": 10},
    ("{}", "0{}"): None,
    ("img_{}",): None,
    ("train_{}", "val_{}"): None,
    ("x{}a", "x{}b"): None,
    ("cat_{}", "dog_{}", "x{}a", "x{}b"): None,
}


@pytest.mark.parametrize("names", NAMES)
def test_labels_are_found_before_or_after_the_digits(names):
    found = find_label_pattern(names_of(*names))
    assert (found and found[1]) == NAMES[names]


def test_a_pattern_of_ones_own_takes_the_labels_and_skips_the_rest(tmp_path):
    put_flat(tmp_path, *names_of("p{}-ill-left", "p{}-well-left", count=3), "cover.png")
    options = DatasetOptions(label_from="name", label_pattern=r"-(\w+)-")
    scan = scan_source(str(tmp_path), options=options)
    assert scan.source.class_names == ("ill", "well") and len(scan.source) == 6
    (seen,) = scan.observations
    assert seen.cases == ("cover.png",) and "whose name has no label" in seen.note


def test_where_the_only_folder_is_full_of_named_images_the_way_out_is_said(tmp_path):
    put_flat(tmp_path, *(f"images/{name}" for name in names_of("cat_{}", "dog_{}")))
    put(tmp_path, "lists/all.txt", b"cat_1 1")
    for name in ("labels", "sample_submission"):
        put(tmp_path, f"{name}.csv", b"id,breed\n")
    with pytest.raises(DataError, match="one class, 'images'.*`label_from`.*labels.csv") as error:
        open_source(str(tmp_path))
    assert "submission" not in str(error.value)


def test_an_image_of_another_name_is_no_class_of_its_own(tmp_path):
    put_flat(tmp_path, *names_of("cat_{}", "dog_{}"), "cover.png")
    scan = scan_source(str(tmp_path), options=BY_NAME)
    assert scan.source.class_names == ("cat", "dog")
    assert scan.observations[0].cases == ("cover.png",)


# One level too high, and masks


def test_domains_of_a_dataset_are_a_problem_and_the_right_folder_is_named(tmp_path):
    counts = {
        f"{domain}/images/{name}": 2
        for domain in ("amazon", "dslr", "webcam")
        for name in ("back_pack", "bike", "mug")
    }
    source = open_source(tree(tmp_path, counts))
    assert source.class_names == ("amazon", "dslr", "webcam"), "it is a guess, not a refusal"
    findings = examine(str(tmp_path))
    assert findings.exit_code == 2
    (entry,) = findings.of("layout")
    for text in ("'back_pack', 'bike', 'mug'", str(tmp_path / "dslr" / "images")):
        assert text in entry.text
    assert entry.text in source.notes
    assert entry.text not in [note.text for note in findings.of("note")]


@pytest.mark.parametrize("names", [("cam1", "cam2"), ("2019", "2020", "2021"), ("left", "right")])
def test_views_that_all_classes_have_are_only_noted(tmp_path, names):
    tree(tmp_path, {f"{label}/{name}": 2 for label in ("healthy", "sick") for name in names})
    scan = scan_source(str(tmp_path))
    assert scan.source.class_names == ("healthy", "sick")
    assert [seen.kind for seen in scan.observations] == ["note"]


def test_folders_that_only_some_classes_have_are_not_classes(tmp_path):
    tree(tmp_path / "two", {"a/x": 2, "a/y": 2, "b/x": 2, "b/y": 2, "c": 2})
    tree(tmp_path / "half", {f"{name}/{x}": 2 for name in "ab" for x in ("u", "v", f"of_{name}")})
    for name in ("two", "half"):
        ((kind, note),) = observed(tmp_path / name)
        assert kind == "note" and re.search(
            r"^Images of [46] folders below .*'a/.* or a scene", note
        )
    assert observed(Path(tree(tmp_path / "one", {"a/u": 2, "b": 2}))) == []


@pytest.mark.parametrize("name", ["HAM_images_part_{}", "images_00{}/images", "batch{}"])
def test_numbered_parts_of_an_archive_are_no_classes(tmp_path, name):
    ((kind, note),) = observed(Path(tree(tmp_path, {name.format(i): 3 for i in (1, 2, 3)})))
    assert kind == "layout" and "numbered like parts of one" in note


@pytest.mark.parametrize("name", ["class_{}", "grade {}", "00{}"])
def test_numbered_classes_are_classes(tmp_path, name):
    assert observed(Path(tree(tmp_path, {name.format(i): 3 for i in (1, 2, 3)}))) == []


def test_folds_given_as_classes_are_a_problem(tmp_path):
    tree(tmp_path, {f"fold_{i}/{name}": 2 for i in (1, 2, 3) for name in "ab"})
    ((kind, note),) = observed(tmp_path)
    assert kind == "layout" and str(tmp_path / "fold_2") in note


def test_a_dataset_or_a_copy_among_the_classes_is_a_problem(tmp_path):
    tree(tmp_path / "parts", {f"data/data/{s}/{n}": 2 for s in ("train", "test") for n in "ab"})
    tree(tmp_path / "parts", {"crops/a": 2, "crops/b": 2})
    ((kind, note),) = observed(tmp_path / "parts")
    assert kind == "layout"
    assert f"'test', 'train': give '{tmp_path / 'parts' / 'data' / 'data'}'" in note
    tree(tmp_path / "cells", {"ill": 2, "well": 2, "cells/ill": 2, "cells/well": 2})
    ((kind, note),) = observed(tmp_path / "cells")
    assert kind == "layout" and f"Move '{tmp_path / 'cells' / 'cells'}' away" in note


@pytest.mark.parametrize("names", [("Entraînement", "Essai", "Validation"), ("学習", "テスト")])
def test_splits_in_another_language_are_to_be_renamed(tmp_path, names):
    tree(tmp_path, {f"{name}/{label}": 2 for name in names for label in ("猫", "犬")})
    ((kind, note),) = observed(tmp_path)
    assert kind == ("layout" if "Validation" in names else "note")
    assert note.endswith(f"{sorted(names)[-1]!r} are splits, call them train, val, test.")
    assert "move the other class folders" not in note


def test_a_held_out_folder_is_not_taken_for_train(tmp_path):
    tree(tmp_path, {"train/a": 3, "train/b": 3, "holdout/a": 2, "holdout/b": 2})
    (fault,) = scan_source(str(tmp_path)).faults
    assert fault.startswith("'holdout' has the class folders of the train folder: call it val")


def test_folders_that_name_no_class_are_doubted_as_classes(tmp_path):
    tree(tmp_path / "signs", {"Dataset/0": 2, "Dataset/1": 2, "Examples": 2})
    ((kind, note),) = observed(tmp_path / "signs")
    assert kind == "layout" and "Are '0', '1' the classes" in note
    assert f"give '{tmp_path / 'signs' / 'Dataset'}'" in note
    tree(tmp_path / "homer", {"tv/homer": 2, "tv/bart": 2, "tv_testset": 2})
    ((kind, note),) = observed(tmp_path / "homer")
    assert kind == "layout" and "'tv_testset' is named like a split" in note
    tree(tmp_path / "letters", {"X/ann": 2, "X/bob": 2, "X/kim": 2, "test_tube": 2})
    assert [kind for kind, _ in observed(tmp_path / "letters")] == ["note"]


def test_a_csv_beside_the_class_folders_is_pointed_out(tmp_path):
    root = tree(tmp_path, {"raw_1": 2, "cropped": 2})
    for name in ("labels.csv", "sample_submission.csv", "raw_1/boxes.csv"):
        put(tmp_path, name, b"id,label\n")
    (note, _) = open_source(root).notes
    assert note == f"If a CSV has the labels, give it as `dataset`: '{tmp_path / 'labels.csv'}'."


def test_one_folder_of_images_beside_folders_of_lists_is_named_alone(tmp_path):
    tree(
        tmp_path, {f"set/images/{split}/{name}": 2 for split in ("train", "test") for name in "ab"}
    )
    put(tmp_path, "set/meta/train.txt", b"a/1")
    for dataset in (tmp_path / "set", tmp_path):
        with pytest.raises(DataError, match="only one class.*Did you mean '.*images'") as error:
            open_source(str(dataset))
        assert scan_source(str(dataset)).observations == ()
    assert "meta" not in str(error.value)
    tree(tmp_path, {"isic/Task3_Input": 3})
    put(tmp_path, "isic/Task3_Labels/Task3.csv", b"image,MEL\n")
    with pytest.raises(DataError, match=r"'Task3_Labels' \(1 .csv\).*CSV has.*Task3.csv'"):
        open_source(str(tmp_path / "isic"))
    tree(tmp_path, {"voc/JPEGImages": 3})
    put(tmp_path, "voc/Annotations/1.xml", b"<annotation></annotation>")
    with pytest.raises(DataError, match="Pascal VOC has them, are not read.*CSV with the columns"):
        open_source(str(tmp_path / "voc"))


def test_images_without_any_label_are_refused_with_both_ways_out(tmp_path):
    with pytest.raises(DataError, match="CSV with the columns path,label, or set `label_from`"):
        open_source(tree(tmp_path, {"jpg": 5}))


def test_splits_inside_the_class_folders_are_a_problem(tmp_path):
    tree(tmp_path, {f"{name}/{split}": 2 for name in "ab" for split in ("train", "test")})
    (seen,) = scan_source(str(tmp_path)).observations
    assert seen.kind == "layout" and "'train/a'" in seen.note


def test_masks_beside_images_are_a_problem(tmp_path):
    names = [f"{label}_{i}" for label in ("Abyssinian", "beagle") for i in range(10)]
    put_flat(tmp_path, *(f"images/{name}.jpg" for name in names))
    put_flat(tmp_path, *(f"annotations/trimaps/{name}.png" for name in names))
    (seen,) = scan_source(str(tmp_path)).observations
    assert seen.kind == "masks" and "20 of 20 in 'annotations'" in seen.note
    assert "Abyssinian 10, beagle 10" in seen.note, "and what the images alone would be"


def test_masks_among_the_images_are_a_problem(tmp_path):
    for label in ("benign", "normal"):
        names = [f"{label} ({i})" for i in range(4)]
        put_flat(tmp_path, *(f"{label}/{name}{end}.png" for name in names for end in ("", "_mask")))
    (seen,) = scan_source(str(tmp_path)).observations
    assert seen.kind == "masks" and "4 of 8 in 'benign', 4 of 8 in 'normal'" in seen.note
    for label in ("covid", "normal"):
        names = [f"xray/{label}/{folder}/{label}-1.png" for folder in ("images", "masks")]
        put_flat(tmp_path, *names)
    (seen,) = scan_source(str(tmp_path / "xray")).observations
    assert seen.kind == "masks", "and not a level too high"


def test_a_class_of_few_colors_with_the_names_of_another_may_be_its_masks(tmp_path):
    for i in range(3):
        put(tmp_path, f"photos/{i}.png", scene(i, 40))
        put(tmp_path, f"regions/{i}.png", (scene(i, 40)[..., 0] > 128).astype(np.uint8))
        put(tmp_path, f"drawings/{i}x.png", (scene(i + 9, 40)[..., 0] > 128).astype(np.uint8))
    (entry,) = examine(str(tmp_path)).of("masks")
    assert "3 of 3 images of class 'regions' are named like one of class 'photos'" in entry.text


@pytest.mark.parametrize("names", [("cat", "dog"), ("mask", "no_mask"), ("with_mask", "face")])
def test_classes_with_equal_file_names_are_not_masks(tmp_path, names):
    assert scan_source(tree(tmp_path, dict.fromkeys(names, 4), ".jpg")).observations == ()


# Formats


def test_image_formats_that_are_not_read_are_named_by_their_content(tmp_path):
    put_flat(tmp_path, *(f"{name}/{i}.png" for name in "ab" for i in range(4)))
    heic = b"\0\0\0\x18ftypheic" + bytes(40)
    put(tmp_path, "b/1.xyz", heic)
    put(tmp_path, "c/1.xyz", heic)
    put(tmp_path, "d/1.txt", b"text")
    findings = examine(str(tmp_path))
    (fault,) = (entry.text for entry in findings.of("refused"))
    assert "'c' (1 .xyz (HEIF)), 'd' (1 .txt)" in fault and "Fill" not in fault
    (entry,) = findings.of("passed_over")
    assert "2 .xyz (HEIF)" in entry.text and findings.exit_code == 2
    assert "Rename those that can be read to end in .heic." in fault


@pytest.mark.parametrize(
    ("files", "way_out"),
    [
        ({"IM1": bytes(128) + b"DICM"}, "Rename those that can be read to end in .dcm."),
        ({"1.ico": b"\0\0\1\0"}, "Save them as .jpg or .png."),
        (
            {"IM1": bytes(128) + b"DICM", "b": b"", "1.xyz": b"\xff\xd8\xff", "1.psd": b"8BPS"},
            "Rename those that can be read to end in .jpg, .dcm; save the others as .jpg or .png.",
        ),
    ],
)
def test_images_are_renamed_where_that_suffices_to_read_them(tmp_path, files, way_out):
    for folder in "ab":
        for name, content in files.items():
            put(tmp_path, f"{folder}/{name}", content)
    findings = examine(str(tmp_path))
    (entry,) = findings.of("passed_over")
    assert entry.text.endswith(f" {way_out}")
    assert way_out in findings.of("refused")[0].text


def test_jfif_and_netpbm_files_are_images(tmp_path):
    for i, (name, kind) in enumerate({"a.jfif": "JPEG", "b.pjpeg": "JPEG", "c.pnm": "PPM"}.items()):
        put(tmp_path, f"x/{name}", scene(i, 16), kind)
    put(tmp_path, "y/d.pgm", scene(3, 16)[..., 0], "PPM")
    source = open_source(str(tmp_path))
    assert len(source) == 4 and source.notes == ()
    assert all(source.read(i).pixels.shape == (16, 16, 3) for i in range(4))


BY_FOLDER = "([^/]+)/[^/]*$"


@pytest.mark.parametrize(
    ("folders", "kind"),
    [
        (("a/airfield", "a/aisle/shop", "b/barn", "b/bakery"), "layout"),
        (("Aves/Pica pica", "Aves/Parus major", "Plantae/Urtica", "Plantae/Bellis"), "note"),
        (("benign/SOB/x", "benign/SOB/y", "malignant/SOB/z"), "note"),
    ],
)
def test_folders_below_the_classes_come_with_the_pattern_that_uses_them(tmp_path, folders, kind):
    ((found, note),) = observed(Path(tree(tmp_path, dict.fromkeys(folders, 3))))
    assert found == kind and note.startswith(f"Images of {len(folders)} folders below")
    assert f"`label_pattern` to '{BY_FOLDER}'" in note and "`group_pattern` to '^(.*)/'" in note
    options = DatasetOptions(label_from="name", label_pattern=BY_FOLDER)
    expected = sorted(folder.split("/")[-1] for folder in folders)
    assert list(open_source(str(tmp_path), options=options).class_names) == sorted({*expected})


def test_folders_of_patients_hold_the_classes(tmp_path):
    tree(tmp_path, {f"{patient}/{label}": 3 for patient in (8863, 9036, 10253) for label in (0, 1)})
    assert [seen.kind for seen in scan_source(str(tmp_path)).observations] == ["layout"]
    options = DatasetOptions(label_from="name", label_pattern=BY_FOLDER, group_pattern=r"^(\d+)/")
    source = open_source(str(tmp_path), options=options)
    assert source.class_names == ("0", "1") and np.bincount(source.labels).tolist() == [9, 9]
    assert len({*source.groups.tolist()}) == 3
    assert "3 groups of images, each in one split, by `group_pattern` '^(\\d+)/'." in source.notes
