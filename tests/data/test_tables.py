"""Tables as competitions, hospitals and other machines write them."""

import csv
import itertools
import json

import numpy as np
import pytest
from support.made_source import source
from support.scenes import put_flat

from vggjax.data.quality.doctor import examine
from vggjax.data.sources.csv_labels import describe_measurements, find_combinations, is_group_name
from vggjax.data.sources.open import open_source, scan_source
from vggjax.data.sources.options import DatasetOptions
from vggjax.data.splits.splits import group_notes, make_folds, make_splits
from vggjax.errors import ConfigError, DataError

BREEDS = ("boston_bull", "dingo", "pekinese")
IDS = [f"{i}{breed}" for breed in BREEDS for i in range(10, 20)]
ANIMALS = ("bird", "cat", "cow", "dog", "fish", "pig")
JOINT = [c for n in (2, 3) for c in itertools.combinations(ANIMALS, n)][:29]


def write(path, *rows, delimiter=","):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return str(path)


def breed_of(name: str) -> str:
    return name[2:]


@pytest.mark.parametrize(
    ("header", "row"),
    [
        (("id", "breed"), lambda n, i: (n, breed_of(n))),
        (("path", "label"), lambda n, i: (n, breed_of(n))),
        (("", "filename", "class"), lambda n, i: (i, f"train/{n}.jpg", breed_of(n))),
        (("Unnamed: 0", "x", "z"), lambda n, i: (i, f"{n}.JPG", breed_of(n))),
        (("path", "label"), lambda n, i: (f"C:\\data\\train\\{n}.jpg", breed_of(n))),
        (("path", "label"), lambda n, i: (f"/kaggle/input/dogs/train/{n}.jpg", breed_of(n))),
        (("path", "label"), lambda n, i: (f"train\\{n}.jpg", breed_of(n))),
        (("path", "label"), lambda n, i: (f"TRAIN/{n}.JPG", breed_of(n))),
        (("Image", "ClassId", "Name"), lambda n, i: (n, BREEDS.index(breed_of(n)), breed_of(n))),
        (None, lambda n, i: (f"train/{n}.jpg", breed_of(n))),
        (None, lambda n, i: (n, breed_of(n))),
        (None, lambda n, i: (["TRAIN", "TEST"][i % 2], f"gs://b/train/{n}.jpg", breed_of(n))),
        (("path", "label"), lambda n, i: (f"train/{n}.jpg ", breed_of(n))),
    ],
)
@pytest.mark.parametrize("delimiter", [",", ";", "\t", " "])
def test_the_images_and_labels_of_a_competition_are_found_and_said(
    tmp_path, header, row, delimiter
):
    put_flat(tmp_path, *(f"train/{name}.jpg" for name in IDS), "test/other.jpg")
    rows = [row(name, i) for i, name in enumerate(IDS)]
    name = "labels.txt" if delimiter == " " else "labels.csv"
    path = write(tmp_path / name, *[header] * bool(header), *rows, delimiter=delimiter)
    found = open_source(path)
    assert found.class_names == BREEDS and np.bincount(found.labels).tolist() == [10, 10, 10]
    assert list(found.ids) == [f"train/{name}.jpg" for name in IDS]
    assert [found.read(i).pixels[0, 0, 0] for i in (0, 29)] == [0, 29 * 7]
    as_written = header == ("path", "label") and rows[0][0] == found.ids[0]
    assert as_written or any("`path_column`" in note or "columns:" in note for note in found.notes)
    assert not any("''" in note or "Unnamed" in note for note in found.notes)


def test_the_note_shows_where_the_images_of_ids_are(tmp_path):
    put_flat(tmp_path, *(f"train/{name}.jpg" for name in IDS))
    path = write(tmp_path / "labels.csv", ("id", "breed"), *((n, breed_of(n)) for n in IDS))
    assert open_source(path).notes == (
        "The column 'id' names the images train/<id>.jpg, relative to the CSV; `path_column` names "
        "another column.",
        "The labels are in the column 'breed'; `label_column` names another.",
    )
    path = write(
        tmp_path / "plain.csv", ("path", "label"), *((f"train/{n}.jpg", n[2:]) for n in IDS)
    )
    assert open_source(path).notes == ()


def test_ids_in_two_folders_and_of_several_endings_are_found(tmp_path):
    names = [f"part_{i % 2 + 1}/id{i}{('.jpg', '.jpeg', '.png')[i % 3]}" for i in range(12)]
    put_flat(tmp_path, *names)
    path = write(
        tmp_path / "m.csv", ("image_id", "dx"), *((f"id{i}", "ab"[i % 2]) for i in range(12))
    )
    found = open_source(path)
    assert list(found.ids) == names and "'id0' is part_1/id0.jpg" in found.notes[0]


def test_a_table_may_be_in_a_folder_beside_the_images(tmp_path):
    put_flat(tmp_path, *(f"images/{i}.png" for i in range(6)))
    rows = [(i, 5 - i) for i in range(6)]  # labels that are names of images, too
    found = open_source(write(tmp_path / "labels" / "all.csv", ("id", "label"), *rows))
    assert list(found.ids) == [f"../images/{i}.png" for i in range(6)]
    assert "names the images ../images/<id>.png" in found.notes[0]
    assert found.read(3).pixels[0, 0, 0] == 21


@pytest.mark.parametrize(("table", "folder"), [("trainLabels", "train"), ("test_truth", "test")])
def test_the_folder_of_the_tables_split_decides_between_equal_names(tmp_path, table, folder):
    put_flat(tmp_path, *(f"{top}/{i}.png" for top in ("train", "test") for i in range(6)))
    rows = [(i, "ab"[i % 2]) for i in range(6)]
    found = open_source(write(tmp_path / f"{table}.csv", ("id", "label"), *rows))
    assert list(found.ids) == [f"{folder}/{i}.png" for i in range(6)]


def test_a_name_of_several_images_is_refused_with_all_of_them(tmp_path):
    put_flat(tmp_path, *(f"{top}/{i}.png" for top in ("left", "right") for i in range(6)))
    path = write(tmp_path / "m.csv", ("id", "label"), *((i, "ab"[i % 2]) for i in range(6)))
    with pytest.raises(DataError, match=r"6 of 6 .* '0' \(line 2\) is left/0.png, right/0.png"):
        open_source(path)


def test_columns_can_be_named_in_any_case_and_a_wrong_one_gets_the_nearest(tmp_path):
    put_flat(tmp_path, *(f"{i}.png" for i in range(8)))
    rows = [(f"{i}.png", f"{7 - i}.png", "ab"[i % 2], "xy"[i // 4]) for i in range(8)]
    path = write(tmp_path / "m.csv", ("left", "right", "sex", "finding"), *rows)
    options = DatasetOptions(path_column="RIGHT", label_column=("finding",))
    found = open_source(path, options=options)
    assert found.ids[0] == "7.png" and found.class_names == ("x", "y")
    for name, near in (("rigth", "right"), ("findings", "finding")):
        for field in ("path_column", "label_column", "group_column"):
            with pytest.raises(ConfigError, match=f"`{field}`: .*Did you mean '{near}'"):
                given = {"path_column": "left", "label_column": "sex"} | {field: name}
                open_source(path, options=DatasetOptions(**given))


def test_labels_stay_the_text_that_they_are(tmp_path):
    labels = ["007", "7", "NA", "None", "nan", "1.0", "1", "TRUE", "=1+1", "a, b", 'say "c"']
    put_flat(tmp_path, *(f"{i}.png" for i in range(22)))
    rows = [(f"{i}.png", labels[i % 11]) for i in range(22)]
    found = open_source(write(tmp_path / "m.csv", ("path", "label"), *rows))
    assert [found.label_text(i) for i in range(11)] == labels


# One column per class


def flags(on) -> list[str]:
    return [str(int(name in on)) for name in ANIMALS]


@pytest.mark.parametrize("values", [("0", "1"), ("0.0", "1.0"), ("False", "True")])
def test_columns_of_0_and_1_are_the_classes(tmp_path, values):
    put_flat(tmp_path, *(f"img/{i}.png" for i in range(42)))
    names = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
    rows = [(i, *(values[k == i % 7] for k in range(7)), values[0]) for i in range(42)]
    path = write(tmp_path / "truth.csv", ("image", *names, "UNK"), *rows)
    found = open_source(path)
    assert found.class_names == tuple(sorted(names)) and found.targets is None
    assert np.bincount(found.labels).tolist() == [6] * 7
    assert any("8 columns of 0 and 1" in n and "`label_column`" in n for n in found.notes)
    assert any("no classes: UNK" in n for n in found.notes)
    picked = open_source(path, options=DatasetOptions(label_column=(*names,)))
    np.testing.assert_array_equal(picked.labels, found.labels)


def several(tmp_path, sep: str | None):
    """Write a table of 6 labels alone, four times each, and 29 combinations, three times each."""
    labels = [*((name,) for name in ANIMALS), *JOINT]
    labels = [label for label in labels for _ in range(4 if len(label) == 1 else 3)]
    put_flat(tmp_path, *(f"img/{i}.png" for i in range(len(labels))))
    cells = [flags(label) if sep is None else [sep.join(label)] for label in labels]
    header = ("image", *(ANIMALS if sep is None else ["findings"]))
    rows = [(f"{i}.png", *cell) for i, cell in enumerate(cells)]
    return write(tmp_path / "m.csv", header, *rows), labels


@pytest.mark.parametrize("sep", ["|", ";", ",", " "])
def test_combinations_of_labels_are_a_problem_with_the_way_out(tmp_path, sep):
    path, _ = several(tmp_path, sep)
    findings = examine(path)
    (entry,) = findings.of("combined_labels")
    assert entry.text.startswith("29 of 35 classes are combinations of the other 6, such as 'bird'")
    assert f"`task` multilabel and `label_separator` {sep!r}" in entry.text
    assert findings.exit_code == 2 and entry.text in open_source(path).notes


@pytest.mark.parametrize("sep", ["|", ";", ",", " ", None])
def test_several_labels_per_image_become_targets(tmp_path, sep):
    path, labels = several(tmp_path, sep)
    found = open_source(path, options=DatasetOptions(task="multilabel"))
    assert found.class_names == ANIMALS
    assert found.targets.tolist() == [[name in label for name in ANIMALS] for label in labels]
    assert found.label_text(60) == "|".join(labels[60])
    note = "columns of 0 and 1" if sep is None else f"separated by {sep!r}; `label_separator`"
    assert any(note in n for n in found.notes)
    assert "kin" not in {item.kind for item in examine(path).items} if sep else True


def test_flags_of_several_labels_are_refused_as_classes(tmp_path):
    path, _ = several(tmp_path, None)
    with pytest.raises(
        DataError, match="6 columns of 0 and 1.* lines 26, 27, 28 and 84 more.*`task`"
    ):
        open_source(path)
    with pytest.raises(DataError, match="no label or several in lines 26"):
        open_source(path, options=DatasetOptions(label_column=ANIMALS))


def test_minus_one_and_empty_cells_count_as_0_and_other_cells_are_refused(tmp_path):
    put_flat(tmp_path, *(f"{i}.jpg" for i in range(4)))
    rows = [("0", 1, 1, 1), ("1", -1, "", -1), ("2", 1, 1, 0), ("3", -1, "", 1)]
    path = write(tmp_path / "m.csv", ("image_id", "Bald", "Smiling", "Edema"), *rows)
    options = DatasetOptions(task="multilabel", label_column=("Bald", "Smiling"))
    found = open_source(path, options=options)
    assert found.targets.astype(int).tolist() == [[1, 1], [0, 0], [1, 1], [0, 0]]
    assert "As a label, '', '-1' counts as 0." in found.notes
    options = DatasetOptions(task="multilabel", label_column=("Bald", "Edema"))
    with pytest.raises(DataError, match="'Edema' of .* has '-1' in line 3. Replace it by 0 or 1"):
        open_source(path, options=options)


def test_a_hospitals_table_is_read_by_the_words_of_its_columns(tmp_path):
    names = [f"images_00{i % 3}/images/{i:08}_000.png" for i in range(90)]
    put_flat(tmp_path, *names)
    header = ("Image Index", "Finding Labels", "Patient ID", "View", "Spacing[x", "y]")
    labels = ("No Finding", "Mass", "Edema", "Mass|Edema", "Edema|Hernia", "Hernia|Mass", "Hernia")
    rows = [(n[-16:], labels[i % 7], i // 3, "PA", 0.1, 0.1) for i, n in enumerate(names)]
    path = write(tmp_path / "Data_Entry.csv", header, *rows)
    options = DatasetOptions(task="multilabel")
    found = open_source(path, options=options)
    assert list(found.ids) == names and found.possible_groups.value == "Patient ID"
    assert found.class_names == ("Edema", "Hernia", "Mass", "No Finding")


def test_images_without_a_label_and_images_of_several_rows_are_multilabel(tmp_path):
    put_flat(tmp_path, "a.png", "b.png", "c.png")
    rows = [("a.png", "x|y"), ("b.png", ""), ("c.png", "x"), ("c.png", "z")]
    path = write(tmp_path / "m.csv", ("path", "label"), *rows)
    options = DatasetOptions(task="multilabel", label_separator="|")
    found = open_source(path, options=options)
    assert found.class_names == ("x", "y", "z")
    assert found.targets.astype(int).tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 1]]
    assert any("Joined the labels of 1 row with" in note for note in found.notes)
    assert any(
        "different labels" in fault and "`task`" in fault for fault in scan_source(path).faults
    )


def test_a_cell_that_python_wrote_as_a_list_is_its_labels(tmp_path):
    put_flat(tmp_path, "a.png", "b.png", "c.png")
    rows = [("a.png", "['x', 'y']"), ("b.png", "['y']"), ("c.png", "[]")]
    path = write(tmp_path / "m.csv", ("path", "label"), *rows)
    found = open_source(path, options=DatasetOptions(task="multilabel"))
    assert found.class_names == ("x", "y") and found.targets.sum(1).tolist() == [2, 1, 0]


@pytest.mark.parametrize("form", ["{},{},{}", "[{} {} {}]"])
def test_lists_of_0_and_1_are_numbered_labels(tmp_path, form):
    put_flat(tmp_path, *(f"{i}.png" for i in range(24)))
    bits = [(i % 2, i // 2 % 2, i // 4 % 2) for i in range(24)]
    rows = [(f"{i}.png", form.format(*bits[i])) for i in range(24)]
    path = write(tmp_path / "m.csv", ("path", "label"), *rows)
    (seen,) = scan_source(path).observations
    assert seen.kind == "combined_labels" and "8 classes are lists of 3 numbers" in seen.note
    found = open_source(path, options=DatasetOptions(task="multilabel"))
    assert found.class_names == ("0", "1", "2")
    assert found.targets.astype(int).tolist() == [list(row) for row in bits]


def test_a_list_with_tabs_may_hold_commas(tmp_path):
    put_flat(tmp_path, *(f"images/{i}.jpg" for i in range(24)))
    lines = [f"{i}.jpg\t{i % 2},{i // 2 % 2},{i // 4 % 2}" for i in range(24)]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    options = DatasetOptions(task="multilabel")
    found = open_source(str(tmp_path / "list.txt"), options=options)
    assert len(found) == 24 and found.targets[6].tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("first", "second", "third"),
    [
        ("/m/cat", "/m/dog", "/m/cow"),
        ("sun & sea", "beach", "мост"),
        ("Tomato, late blight", "wet", "R&B"),
    ],
)
def test_labels_in_several_rows_of_an_image_are_whole_cells(tmp_path, first, second, third):
    put_flat(tmp_path, "0.png", "1.png")
    rows = [("0.png", first), ("0.png", second), ("1.png", third)]
    path = write(tmp_path / "m.csv", ("path", "label"), *rows)
    source = open_source(path, options=DatasetOptions(task="multilabel"))
    assert {*source.class_names} == {first, second, third}
    assert source.targets.sum(1).tolist() == [2, 1]
    assert "Each row has one of its image's labels" in " ".join(source.notes)


def test_rows_of_several_labels_are_split_where_most_are_combinations(tmp_path):
    put_flat(tmp_path, "0.png", "1.png")
    rows = [("0.png", "a|b"), ("0.png", "c"), ("1.png", "a|c"), ("1.png", "a"), ("1.png", "b")]
    path = write(tmp_path / "m.csv", ("path", "label"), *rows)
    source = open_source(path, options=DatasetOptions(task="multilabel"))
    assert source.class_names == ("a", "b", "c")


def test_cells_without_a_known_separator_ask_for_one(tmp_path):
    put_flat(tmp_path, "a.png", "b.png")
    path = write(tmp_path / "m.csv", ("path", "label"), ("a.png", "x"), ("b.png", "y"))
    with pytest.raises(DataError, match="no separator. Give `label_separator`, which may be '.'"):
        open_source(path, options=DatasetOptions(task="multilabel"))
    options = DatasetOptions(task="multilabel", label_separator="|")
    assert open_source(path, options=options).class_names == ("x", "y")


@pytest.mark.parametrize(
    "names",
    [
        ("hot dog", "ice cream", "dog", "cat"),
        [f"plant {plant}, state {state}" for plant in range(10) for state in range(5)],
        ("golden retriever", "labrador retriever", "poodle", "toy poodle"),
        ("black and white", "black", "red/green"),
        ("AC/DC", "R&B", "rock", "C++"),
        ("n01440764", "n01443537"),
    ],
)
def test_ordinary_class_names_are_no_combinations(names):
    assert find_combinations(names) is None
    assert find_combinations([f"['{name}']" for name in names]) is None


def test_tags_that_are_never_alone_are_combinations():
    tags = ("clear", "haze", "primary", "water", "road")
    names = [" ".join(c) for n in (2, 3, 4) for c in itertools.combinations(tags, n)]
    found = find_combinations(names)
    assert found is not None and found.separator == " " and found.labels == tuple(sorted(tags))


# Measurements and pixels


def test_measurements_are_told_from_classes():
    rng = np.random.default_rng(3)
    scores = [f"{value:.3f}" for value in rng.normal(3.2, 0.8, 180)]
    fault, _ = describe_measurements(scores)
    assert f"{len({*scores})} different numbers for 180 images look like measurements" in fault
    fault, question = describe_measurements([str(1 + i // 3) for i in range(180)])
    assert fault is None and question.startswith("60 whole numbers in a row, 1 to 60,")
    for names in (range(10), [f"{i:02}" for i in range(1, 44)], range(100), ["1.5", "2.5"]):
        assert describe_measurements([str(name) for name in names for _ in range(3)]) == (
            None,
            None,
        )


def test_measurements_are_refused_and_ages_are_a_remark(tmp_path):
    put_flat(tmp_path, *(f"{i}.png" for i in range(60)))
    rows = [(f"{i}.png", f"{i / 7:.3f}") for i in range(60)]
    with pytest.raises(DataError, match="60 different numbers for 60 images"):
        open_source(write(tmp_path / "score.csv", ("path", "label"), *rows))
    rows = [(f"{i}.png", 1 + i // 3) for i in range(60)]
    scan = scan_source(write(tmp_path / "age.csv", ("path", "label"), *rows))
    assert [seen.kind for seen in scan.observations] == ["measurements"] and not scan.faults


@pytest.mark.parametrize(
    ("header", "row", "size"),
    [
        (("emotion", "pixels", "Usage"), (3, " ".join(["70"] * 2304), "Training"), "48x48"),
        (("label", *(f"pixel{i}" for i in range(784))), (3, *[0] * 784), "28x28"),
        ((7, *range(784)), (3, *[0, 9] * 392), "28x28"),
    ],
)
def test_pixels_in_the_csv_are_named_in_one_line_without_the_columns(tmp_path, header, row, size):
    path = write(tmp_path / "m.csv", header, *[row] * 3)
    with pytest.raises(DataError, match=f"pixels in the CSV, {size}") as error:
        open_source(path)
    assert len(str(error.value)) < 300 + len(path)


# Groups


def patients(tmp_path, *, split: bool = False):
    """Write 20 patients of 6 images."""
    put_flat(tmp_path, *(f"{i}.png" for i in range(120)))
    header = ("path", "label", "patient_id", *["split"] * split)
    rows = [
        (f"{i}.png", "ab"[i // 6 % 2], f"P{i // 6:03}", *[("train", "test")[i % 6 == 5]] * split)
        for i in range(120)
    ]
    return write(tmp_path / "m.csv", header, *rows)


def test_a_column_of_patients_is_offered_with_the_count_and_keeps_them_in_one_split(tmp_path):
    path = patients(tmp_path)
    found = open_source(path)
    assert found.groups is None
    (note,) = group_notes(found, make_splits(found))
    assert (
        " of 20 values of the column 'patient_id'" in note and "`group_column` patient_id" in note
    )
    findings = examine(path)
    assert [entry.text for entry in findings.of("kin")] == [note] and findings.exit_code == 2
    grouped = open_source(path, options=DatasetOptions(group_column="Patient_ID"))
    assert any(note.startswith("20 groups of images") for note in grouped.notes)
    for splits in (make_splits(grouped), *make_folds(grouped, 5, seed=0)):
        assert group_notes(grouped, splits) == []
        assert all(len(np.unique(part // 6)) * 6 == len(part) for part in splits.values())


def test_official_splits_that_divide_patients_are_a_problem(tmp_path):
    path = patients(tmp_path, split=True)
    for options in (DatasetOptions(), DatasetOptions(group_column="patient_id")):
        (entry,) = examine(path, options=options).of("kin")
        assert entry.text.startswith("20 of 20") and "several splits of the dataset" in entry.text


def test_a_folders_own_splits_may_divide_the_groups_of_a_pattern(tmp_path):
    names = [f"{s}/{c}/p{p}_{s}.png" for s in ("train", "test") for c in "ab" for p in range(4)]
    put_flat(tmp_path, *names)
    found = open_source(str(tmp_path), options=DatasetOptions(group_pattern="^(p.)_"))
    (note,) = group_notes(found, make_splits(found, seed=1))
    assert note.startswith("4 of 4 groups have images in several splits of the dataset")


def test_columns_that_hold_no_groups_are_not_offered(tmp_path):
    put_flat(tmp_path, *(f"{i}.png" for i in range(30)))
    header = ("path", "label", "group", "site", "case", "video", "study")
    rows = [(f"{i}.png", "ab"[i % 2], "xy"[i % 2], i % 5, i, "", "xxyz"[i % 4]) for i in range(30)]
    found = open_source(write(tmp_path / "m.csv", header, *rows))
    assert found.possible_groups is None and group_notes(found, make_splits(found)) == []
    assert group_notes(source([6, 6]), make_splits(source([6, 6]))) == []


def test_a_column_of_split_words_is_pointed_out_and_not_used(tmp_path):
    put_flat(tmp_path, *(f"{i}.png" for i in range(12)))
    rows = [(f"{i}.png", "ab"[i % 2], ("train", "Valid", "test")[i % 3]) for i in range(12)]
    found = open_source(write(tmp_path / "m.csv", ("path", "label", "data set"), *rows))
    assert found.splits is None
    assert any("'data set' holds Valid, test, train: name it 'split'" in n for n in found.notes)


@pytest.mark.parametrize(
    ("column", "cell"),
    [
        ("is_valid", lambda i: i % 4 == 0),
        ("is_train", lambda i: int(i % 4 > 0)),
        ("kfold", lambda i: i % 5),
        ("partition", lambda i: i % 3),
    ],
)
def test_flags_and_numbers_of_splits_are_pointed_out_and_no_labels(tmp_path, column, cell):
    put_flat(tmp_path, *(f"{i}.png" for i in range(12)))
    rows = [(f"{i}.png", "ab"[i % 2], cell(i)) for i in range(12)]
    found = open_source(write(tmp_path / "m.csv", ("fname", "state", column), *rows))
    assert found.class_names == ("a", "b") and found.splits is None
    assert any(f"'{column}' looks like splits or folds" in note for note in found.notes)
    flags = [(f"{i}.png", i % 2, int(i % 3 == 0), cell(i)) for i in range(12)]
    path = write(tmp_path / "n.csv", ("fname", "cat", "dog", column), *flags)
    assert open_source(path, options=DatasetOptions(task="multilabel")).class_names == (
        "cat",
        "dog",
    )


@pytest.mark.parametrize("column", ["valid", "fold change", "testing site", "training"])
def test_other_columns_are_no_splits(tmp_path, column):
    put_flat(tmp_path, *(f"{i}.png" for i in range(12)))
    rows = [(f"{i}.png", i % 2) for i in range(12)]
    assert open_source(write(tmp_path / "m.csv", ("fname", column), *rows)).class_names == (
        "0",
        "1",
    )


@pytest.mark.parametrize("ending", [".jpg", ""])
def test_a_list_of_files_is_labeled_by_their_folders(tmp_path, ending):
    names = [f"{name}/{i}" for name in ("apple_pie", "baklava") for i in range(4)]
    put_flat(tmp_path, *(f"images/{name}.jpg" for name in names))
    rows = [(name + ending,) for name in names[1:]]
    found = open_source(write(tmp_path / "meta" / "train.txt", *rows))
    assert found.class_names == ("apple_pie", "baklava") and len(found) == 7
    assert any("labels: they are the folders of the images" in note for note in found.notes)


def test_a_label_in_a_list_may_hold_blanks(tmp_path):
    put_flat(tmp_path, *(f"images/{i}.jpg" for i in range(6)))
    labels = ["707-320", "Boeing 717", "A 380 max"] * 2
    lines = [f"{i} {label}" for i, label in enumerate(labels)]
    (tmp_path / "train.txt").write_text("\n".join(lines))
    found = open_source(str(tmp_path / "train.txt"))
    assert found.class_names == ("707-320", "A 380 max", "Boeing 717")
    assert [found.label_text(i) for i in range(6)] == labels


def test_rows_without_a_label_can_be_left_out(tmp_path):
    put_flat(tmp_path, *(f"{i}.png" for i in range(12)))
    rows = [(f"{i}.png", "ab"[i % 2] if i < 8 else "") for i in range(12)]
    scan = scan_source(write(tmp_path / "m.csv", ("path", "label"), *rows))
    assert "no label in lines 10, 11, 12 and 1 more. Fill it in, or write the" in scan.faults[0]
    assert len(scan.source) == 8


def test_a_first_line_that_could_be_a_file_stays_the_names(tmp_path):
    put_flat(tmp_path, "leaf.png", *(f"{i}.png" for i in range(6)))
    rows = [(f"{i}.png", "ab"[i % 2]) for i in range(6)]
    found = open_source(write(tmp_path / "m.csv", ("leaf", "state"), *rows))
    assert len(found) == 6 and any("'leaf'" in note for note in found.notes)


@pytest.mark.parametrize(
    "column", ["PatientID", "patientid", "caseNo", "Lesion", "video_name", "id of subject"]
)
def test_names_of_columns_that_are_groups(column):
    assert is_group_name(column)


@pytest.mark.parametrize(
    "column", ["breed", "id", "name", "impatient", "age", "casein", "grouping"]
)
def test_names_of_columns_that_are_no_groups(column):
    assert not is_group_name(column)


def test_file_names_of_patients_are_remarked_with_the_pattern(tmp_path):
    put_flat(
        tmp_path, *(f"{'ab'[p % 2]}/Patient_{p:02}-{i}.png" for p in range(20) for i in range(3))
    )
    found = open_source(str(tmp_path))
    (note,) = group_notes(found, make_splits(found))
    assert " of 20 groups of file names" in note and r"`group_pattern` '(Patient_\d+)'" in note
    findings = examine(str(tmp_path))
    assert note in [entry.text for entry in findings.of("note")] and not findings.of("kin")
    grouped = open_source(
        str(tmp_path), options=DatasetOptions(group_pattern=found.possible_groups.value)
    )
    assert group_notes(grouped, make_splits(grouped)) == []


@pytest.mark.parametrize(
    "names",
    [
        [f"case_{i:03}.png" for i in range(24)],  # one image each
        [f"showcase{i // 4}_{i}.png" for i in range(24)],
        [f"case{i // 4}_{i}.png" if i % 2 else f"{i}.png" for i in range(24)],
        [f"video1_{i}.png" for i in range(24)],
        [f"frame{i:03}.png" for i in range(24)],
    ],
)
def test_other_file_names_are_no_groups(tmp_path, names):
    put_flat(tmp_path, *(f"{'ab'[i % 2]}/{name}" for i, name in enumerate(names)))
    assert open_source(str(tmp_path)).possible_groups is None


def test_frames_of_videos_are_remarked_with_the_pattern(tmp_path):
    names = [
        f"{kind}/{kind}_{v}_frame{i:02}"
        for kind in ("run", "walk")
        for v in "abc"
        for i in range(6)
    ]
    put_flat(tmp_path, *(f"{name}.png" for name in names))
    found = open_source(str(tmp_path))
    assert found.possible_groups is not None and len({*found.possible_groups.groups.tolist()}) == 6
    options = DatasetOptions(group_pattern=found.possible_groups.value)
    grouped = open_source(str(tmp_path), options=options)
    assert group_notes(grouped, make_splits(grouped)) == []


def test_json_lines_are_a_table(tmp_path):
    put_flat(tmp_path, *(f"train/{i}.png" for i in range(8)))
    records = [{"file_name": f"{i}.png", "label": "ab"[i % 2], "n": 1.0} for i in range(8)]
    path = tmp_path / "train" / "metadata.jsonl"
    path.write_text("\n\n".join(map(json.dumps, records)))
    found = open_source(str(path))
    assert found.class_names == ("a", "b") and found.ids[3] == "3.png"
    tags = [{"file_name": f"{i}.png", "tags": ["x", "y"][: i % 3]} for i in range(8)]
    path.write_text("\n".join(map(json.dumps, tags)))
    found = open_source(str(path), options=DatasetOptions(task="multilabel"))
    assert found.targets.astype(int).tolist() == [[i % 3 > 0, i % 3 > 1] for i in range(8)]
    for text in ("[1]", "{", '"x"', '{"file_name": "0.png"}\n5'):
        path.write_text(text)
        with pytest.raises(DataError, match=r"Line [12] of .* is no JSON object such as"):
            open_source(str(path))


def test_a_list_of_mxnet_names_its_paths_in_full(tmp_path):
    put_flat(tmp_path, *(f"{'ab'[i % 2]}/{i}.png" for i in range(8)))
    rows = [(i, f"{i % 2}.000000", f"{'ab'[i % 2]}/{i}.png") for i in range(8)]
    found = open_source(write(tmp_path / "train.lst", *rows, delimiter="\t"))
    assert len(found) == 8 and found.class_names == ("0.000000", "1.000000")
