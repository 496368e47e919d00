"""Many images: the CSV that is continued, JSON lines, sorted copies, and the Python interface."""

import csv
import json
import os
import shutil
import stat
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.tiny_run import PASS_RTOL, make_images, make_run

import vggjax
from vggjax.cli.main import main
from vggjax.data.stream.images import Part, StreamedImage
from vggjax.data.stream.options import StreamOptions
from vggjax.errors import ConfigError, DataError
from vggjax.evaluation.predict_files import MAX_ROWS, Summary, predict_command
from vggjax.evaluation.predict_options import PredictOptions
from vggjax.evaluation.result_table import Prediction, ResultTable

BAD = Path("flowers/bad.jpg")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return a folder with two runs, a/ and b/, and their 30 images in flowers/."""
    root = tmp_path_factory.mktemp("finished")
    images = make_images(root / "flowers")
    make_run(root / "a", images)
    make_run(root / "b", images, image_size=40)
    return root


@pytest.fixture
def folder(finished, tmp_path, monkeypatch):
    """Return a copy of that folder, which is the working directory."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read_csv(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_a_csv_is_continued_after_a_kill_and_no_row_is_written_twice(folder, capsys):
    def predict():
        return predict_command(["flowers"], PredictOptions(workdir="a", csv="out.csv"))

    BAD.write_text("text")
    assert predict() == 3
    whole, rows = Path("out.csv").read_bytes(), read_csv("out.csv")
    assert len(rows) == 32
    for share in (0, 0.01, 0.3, 0.7, 1):
        Path("out.csv").write_bytes(whole[: int(share * len(whole))])
        assert predict() == 3
        assert [row[:2] for row in read_csv("out.csv")] == [row[:2] for row in rows]
    assert Path("out.csv").read_bytes() == whole  # it was complete
    assert "out.csv: 31 rows, 31 of them from before" in capsys.readouterr().out


@pytest.mark.parametrize("probabilities", [False, True])
def test_parquet_has_the_rows_of_a_csv_after_a_kill_too(folder, probabilities, capsys):
    parquet = pytest.importorskip("pyarrow.parquet")
    BAD.write_text("text")
    for out in ("out.csv", "out.parquet"):
        options = PredictOptions(workdir="a", csv=out, probabilities=probabilities)
        assert predict_command(["flowers"], options) == 3
        assert not Path("out.parquet.csv").exists()
        if out == "out.csv":  # what a kill leaves
            whole = Path(out).read_bytes()
            Path("out.parquet.csv").write_bytes(whole[: len(whole) // 2])
    assert "out.parquet: 31 rows, 1" in capsys.readouterr().out
    columns, *rows = read_csv("out.csv")
    table = parquet.read_table("out.parquet")
    assert table.column_names == columns and table.num_rows == len(rows) == 31
    for row, expected in zip(table.to_pylist(), rows, strict=True):
        for name, text in zip(columns, expected, strict=True):
            value = row[name]
            if isinstance(value, float):
                assert value == pytest.approx(float(text), abs=1e-6)
            else:
                assert value == (text or None)


def test_an_empty_csv_keeps_its_mode(folder):
    path = Path("out.csv")
    path.touch()
    path.chmod(0o600)
    assert predict_command(["flowers"], PredictOptions(workdir="a", csv="out.csv")) == 0
    assert len(read_csv(path)) == 31 and stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no such device")
def test_a_csv_on_a_full_disk_is_named(folder, capsys):
    assert main(["predict", "flowers", "--workdir", "a", "--csv", "/dev/full"]) == 2
    assert capsys.readouterr().err == "vggjax: error: No space left on device: /dev/full\n"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes in files")
def test_a_pipe_gets_every_row_before_its_end(folder):
    os.mkfifo("pipe.csv")
    with ThreadPoolExecutor() as threads:
        rows = threads.submit(read_csv, "pipe.csv")
        table = ResultTable(Path("pipe.csv"), ["a", "b"], top=1, probabilities=False)
        for name in ("1.png", "2.png"):
            table.add(Prediction(Path(name), [("a", 1.0)], probs=np.ones(2, np.float32)))
        os.close(table._stream)
        assert [row[0] for row in rows.result()] == ["path", "1.png", "2.png"]


def test_the_rows_of_a_tar_are_those_of_its_files_and_are_continued(folder):
    def predict(*images):
        return predict_command(images, PredictOptions(workdir="a", csv="tar.csv"))

    with tarfile.open("flowers.tar", "w") as archive:
        archive.add("flowers")
    predict_command(["flowers"], PredictOptions(workdir="a", csv="out.csv"))
    assert predict("flowers.tar") == 0
    whole, rows = Path("tar.csv").read_bytes(), read_csv("out.csv")
    assert [row[0] for row in read_csv("tar.csv")[1:]] == [f"flowers.tar/{r[0]}" for r in rows[1:]]
    Path("tar.csv").write_bytes(whole[: len(whole) // 2])
    assert predict("flowers.tar") == 0
    for row, expected in zip(read_csv("tar.csv")[1:], rows[1:], strict=True):
        assert row[1] == expected[1] and float(row[2]) == pytest.approx(float(expected[2]), 1e-3)
    with pytest.raises(ConfigError, match="need a file for each image, and flowers.tar/flowers"):
        predict_command(["flowers.tar"], PredictOptions(workdir="a", sort_into="sorted"))


def test_jobs_of_one_part_each_have_every_image_once(folder, capsys):
    paths = []
    for part in (1, 2, 3):
        options = PredictOptions(workdir="a", csv=f"{part}.csv")
        assert predict_command(["flowers"], options, stream=StreamOptions(shard=f"{part}/3")) == 0
        paths += [row[0] for row in read_csv(f"{part}.csv")[1:]]
    assert sorted(paths) == sorted(map(str, Path("flowers").rglob("*.png")))
    image = StreamedImage(Path(paths[0]))
    (empty,) = {"1/2", "2/2"} - {f"{i}/2" for i in (1, 2) if Part(i, 2).has(image)}
    with pytest.raises(DataError, match="No image is in this `shard`"):
        predict_command(paths[:1], PredictOptions(workdir="a"), stream=StreamOptions(shard=empty))


def test_rows_are_written_as_they_come(folder, monkeypatch):
    lengths = []
    add = Summary.add

    def counted(self, prediction):
        lengths.append(len(read_csv("out.csv")))
        add(self, prediction)

    monkeypatch.setattr(Summary, "add", counted)
    predict_command(["flowers/daisy"], PredictOptions(workdir="a", csv="out.csv"))
    assert lengths == list(range(2, 12))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(workdir="b"), "another model wrote it.*00.png has .* there and .* now"),
        (dict(workdir="a", top=2), "columns are not path, class1, probability1, class2"),
        (dict(workdir="a", probabilities=True), "columns are not path, .*daisy"),
    ],
)
def test_a_csv_of_another_model_or_other_columns_is_not_appended_to(folder, settings, message):
    predict_command(["flowers/daisy"], PredictOptions(workdir="a", csv="out.csv"))
    before = Path("out.csv").read_bytes()
    with pytest.raises(ConfigError, match=f"No rows can be added.*{message}.*`csv`, or delete"):
        predict_command(["flowers"], PredictOptions(csv="out.csv", **settings))
    assert Path("out.csv").read_bytes() == before


def test_a_csv_whose_images_are_gone_or_that_holds_other_things_is_left_alone(folder):
    Path("notes.csv").write_text("my,notes\n")
    with pytest.raises(ConfigError, match="columns are not path"):
        predict_command(["flowers"], PredictOptions(workdir="a", csv="notes.csv"))
    assert Path("notes.csv").read_text() == "my,notes\n"
    shutil.copytree("flowers/daisy", "old")
    predict_command(["old"], PredictOptions(workdir="a", csv="out.csv"))
    shutil.rmtree("old")
    with pytest.raises(ConfigError, match="none of its images is"):
        predict_command(["flowers"], PredictOptions(workdir="a", csv="out.csv"))


def test_probabilities_are_a_column_per_class_in_the_model_s_order(folder):
    BAD.write_text("text")
    assert (
        predict_command(["flowers"], PredictOptions(workdir="a", csv="out.csv", probabilities=True))
        == 3
    )
    header, *rows = read_csv("out.csv")
    assert header == ["path", *json.loads(Path("a/model.json").read_text())["class_names"]]
    shares = {row[0]: row[1:] for row in rows}
    assert shares.pop(str(BAD)) == [""] * 3
    sums = np.asarray(list(shares.values()), float).sum(1)
    np.testing.assert_allclose(sums, 1, atol=3 * 0.5e-6)  # six digits are written
    Path("out.csv").write_text("".join(Path("out.csv").read_text().splitlines(True)[:5]))
    assert (
        predict_command(["flowers"], PredictOptions(workdir="a", csv="out.csv", probabilities=True))
        == 3
    )
    assert [row[0] for row in read_csv("out.csv")[1:]] == [row[0] for row in rows]
    with pytest.raises(ConfigError, match="`probabilities` needs `csv` or `json`"):
        predict_command(["flowers"], PredictOptions(workdir="a", probabilities=True))


def test_json_is_one_object_a_line_and_nothing_else(folder, capsys):
    BAD.write_text("text")
    names = [str(BAD), "flowers/daisy"]
    assert (
        predict_command(names, PredictOptions(workdir="a", json=True, top=2, probabilities=True))
        == 3
    )
    bad, *records = map(json.loads, capsys.readouterr().out.splitlines())
    assert bad == {"path": str(BAD), "error": "not an image"}
    assert [record["path"] for record in records] == [
        f"flowers/daisy/{i:02}.png" for i in range(10)
    ]
    for record in records:
        first = {"class": record["class"], "probability": record["probability"]}
        assert record["top"][0] == first and len(record["top"]) == 2
        shares = record["probabilities"]
        assert max(shares, key=shares.get) == record["class"] and len(shares) == 3


def test_the_screen_has_twenty_images_and_the_count_of_each_class(folder, capsys):
    assert predict_command(["flowers"], PredictOptions(workdir="a")) == 0
    out = capsys.readouterr().out
    assert out.count(".png") == MAX_ROWS and "... 10 more; --csv FILE" in out
    counts = out.rpartition("images\n")[2].splitlines()
    assert sum(int(line.split()[-1]) for line in counts) == 30


def test_images_are_sorted_into_a_folder_per_class_and_never_overwritten(folder, capsys):
    shutil.copytree("flowers", "more")  # the same names with other contents
    for path in Path("more").rglob("*.png"):
        Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    own = Path("sorted/daisy/00.png")
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    for _ in range(2):  # the second call finds its copies
        code = predict_command(
            ["flowers", "more", "sorted"], PredictOptions(workdir="a", sort_into="sorted")
        )
        assert code == 0
    copies = [path for path in Path("sorted").rglob("*.png") if path != own]
    assert own.read_text() == "mine" and len(copies) == 60
    assert {path.parent.name for path in copies} <= {"daisy", "_i_rose & co", "薔薇"}
    originals = [*Path("flowers").rglob("*.png"), *Path("more").rglob("*.png")]
    assert sorted(p.read_bytes() for p in copies) == sorted(p.read_bytes() for p in originals)


def test_images_that_are_sorted_already_are_no_input(folder):
    with pytest.raises(DataError, match="All images are in `sort_into` flowers"):
        predict_command(["flowers"], PredictOptions(workdir="a", sort_into="flowers"))


def test_a_continued_call_sorts_the_images_of_earlier_rows_too(folder):
    predict_command(["flowers"], PredictOptions(workdir="a", csv="out.csv"))
    predict_command(["flowers"], PredictOptions(workdir="a", csv="out.csv", sort_into="sorted"))
    assert len(list(Path("sorted").rglob("*.png"))) == 30


def test_python_takes_paths_arrays_and_pillow_images_and_agrees_with_the_command(folder):
    predict_command(["flowers"], PredictOptions(workdir="a", csv="out.csv", probabilities=True))
    rows = read_csv("out.csv")[1:]
    expected = np.asarray([row[1:] for row in rows], float)
    paths = [row[0] for row in rows]
    arrays = np.stack([np.asarray(Image.open(path)) for path in paths])  # (N, H, W, 3)
    classifier = vggjax.load_run("a")
    with ThreadPoolExecutor(4) as threads:  # not the thread that loaded the model
        kinds = [paths, map(Path, paths), arrays, list(arrays), map(Image.open, paths)]
        results = [*threads.map(classifier.predict, kinds), vggjax.predict("a", paths)]
    for result in results:
        np.testing.assert_allclose(result.probs, expected, atol=1e-6, rtol=PASS_RTOL)
        assert result.labels.tolist() == expected.argmax(1).tolist()
        assert result.names == [classifier.class_names[label] for label in result.labels]
    single = [classifier.predict(image) for image in (paths[3], arrays[3], Image.open(paths[3]))]
    for result in single:
        np.testing.assert_allclose(result.probs, expected[3:4], atol=1e-6, rtol=PASS_RTOL)
    assert classifier.predict([]).probs.shape == (0, 3)


def test_the_range_of_float_arrays_is_said_or_they_are_refused(folder):
    classifier = vggjax.load_run("a")
    pixels = np.asarray(Image.open("flowers/daisy/00.png"))
    expected = classifier.predict(pixels).probs
    for scaled, value_range in (
        (pixels / 255, (0, 1)),
        (pixels.astype(np.float32), (0, 255)),
        (pixels / 127.5 - 1, (-1, 1)),
        (pixels.astype(np.uint16) * 257, (0, 65535)),
    ):
        probs = classifier.predict(scaled, value_range=value_range).probs
        np.testing.assert_array_equal(probs, expected)
        with pytest.raises(DataError, match=rf"{scaled.dtype} arrays need `value_range`"):
            classifier.predict(scaled)
    for array, message in (
        (pixels.astype(float), "0 to 239, exceed the `value_range` 0 to 1"),
        (np.full((4, 4, 3), np.nan), "nan to nan, exceed"),
        (pixels[..., :1] / 255, r"must be RGB.*got \(40, 48, 1\)"),
    ):
        with pytest.raises(DataError, match=message):
            classifier.predict(array, value_range=(0, 1))
    with pytest.raises(ConfigError, match="lowest, highest"):
        classifier.predict(pixels, value_range=(1, 0))


@pytest.mark.parametrize("image", [b"\xff\xd8\xff", None, {"path": "a.jpg"}])
def test_what_is_no_image_is_refused_by_its_type(folder, image):
    with pytest.raises(DataError, match=f"it is {type(image).__name__}; give a path, an RGB"):
        vggjax.predict("a", [image])
    with pytest.raises(DataError, match="it is bytes"):
        vggjax.predict("a", b"\xff\xd8\xff")


def test_an_image_that_cannot_be_read_is_named(folder):
    BAD.write_text("text")
    with pytest.raises(DataError, match=r"Image 1, flowers/bad.jpg, cannot be used: not an image"):
        vggjax.predict("a", ["flowers/daisy/00.png", BAD])
