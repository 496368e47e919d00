import csv
import hashlib
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.pixels import jit_quickly
from support.tiny_run import PASS_RTOL, make_images, make_run, random_model, spread

from vggjax.data.images.decode import load_image
from vggjax.data.images.formats import ENDINGS
from vggjax.data.images.preprocess import Preprocessing, preprocess, resize_image
from vggjax.data.stream.images import StreamedImage, open_images
from vggjax.errors import ConfigError, DataError, WeightsError
from vggjax.evaluation import imagenet
from vggjax.evaluation.evaluate import evaluate
from vggjax.evaluation.predict import load_run
from vggjax.evaluation.predict_files import (
    predict_command,
    predict_files,
    print_table,
)
from vggjax.evaluation.predict_options import PredictOptions
from vggjax.evaluation.result_table import Prediction
from vggjax.models.arch import Arch
from vggjax.models.head import Head
from vggjax.models.params import extract
from vggjax.training.run_dir.run_result import load_model
from vggjax.weights.weight_file import write_weights


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return a folder with a run in runs/first and its images in flowers/."""
    root = tmp_path_factory.mktemp("finished")
    make_run(root / "runs" / "first", make_images(root / "flowers"))
    return root


@pytest.fixture
def run(finished, tmp_path, monkeypatch):
    """Return runs/first in a copy of that folder, which is the working directory."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs" / "first"


def read_csv(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def find_images(patterns):
    return {image.path: image.reason for image in open_images(patterns)}


def touch(*names):
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"x")


def test_the_class_names_are_keras_file():
    path = Path(imagenet.__file__).with_name("imagenet_class_index.json")
    assert hashlib.md5(path.read_bytes()).hexdigest() == "c2c37ea517e94d9795004a39431a14cb"


def test_predictions_are_decoded_best_first():
    probs = np.random.default_rng(0).dirichlet(np.full(1000, 0.01), 8).astype(np.float32)
    for row, decoded in zip(probs, imagenet.decode_predictions(probs, 5), strict=True):
        best = np.argsort(-row)[:5]
        expected = [(*imagenet.imagenet_classes()[i], row[i]) for i in best]
        assert decoded == expected
    assert imagenet.decode_predictions(np.eye(1000)[[1]])[0][0] == ("n01443537", "goldfish", 1.0)


@pytest.mark.slow
def test_predictions_are_decoded_as_keras_decodes_them_ties_included(monkeypatch):
    keras = pytest.importorskip("keras.src.applications.imagenet_utils")
    path = Path(imagenet.__file__).with_name("imagenet_class_index.json")
    monkeypatch.setattr(keras, "CLASS_INDEX", json.loads(path.read_text()))  # no download
    probs = np.random.default_rng(0).dirichlet(np.full(1000, 0.01), 8).astype(np.float32)
    probs = np.concatenate([probs, np.full((1, 1000), 0.001, np.float32)])  # all equal
    for top in (1, 5, 1000):
        assert imagenet.decode_predictions(probs, top) == keras.decode_predictions(probs, top)


@pytest.mark.parametrize("shape", [(1000,), (2, 999), (1, 1, 1000)])
def test_only_a_thousand_probabilities_per_image_are_decoded(shape):
    with pytest.raises(ValueError, match=r"\(N, 1000\)"):
        imagenet.decode_predictions(np.zeros(shape))


def test_files_folders_and_globs_resolve_to_each_image_once_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch("b.jpg", "named.text", "d/2.PNG", "d/1.jpeg", "d/deep/3.webp", "d/notes.txt")
    touch("d/.hidden.jpg", "d/.cache/4.jpg", "photo[1].jpg", "photo1.jpg")
    found = {
        ("b.jpg", "b.jpg", "./b.jpg"): ["b.jpg"],
        ("named.text",): ["named.text"],
        ("d",): ["d/1.jpeg", "d/2.PNG", "d/deep/3.webp"],
        ("d/*",): ["d/1.jpeg", "d/2.PNG", "d/deep/3.webp", "d/notes.txt"],
        ("**/*.webp", "b.jpg"): ["d/deep/3.webp", "b.jpg"],
        ("photo[1].jpg",): ["photo[1].jpg"],
        ("photo[12].jpg",): ["photo1.jpg"],
        (str(tmp_path / "b.jpg"),): [str(tmp_path / "b.jpg")],
    }
    assert {given: [str(p) for p in find_images(given)] for given in found} == found


def test_names_without_images_have_a_reason_and_the_nearest_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch("photo.jpg", "texts/a.txt")
    os.mkdir("empty")
    os.symlink("gone", "texts/dangling.jpg")
    (reason,) = find_images(["https://example.com/cat.jpg"]).values()
    assert reason == "an address: download the image and give the file"
    assert find_images(["texts/a.txt"]) == {Path("texts/x"): "no such file"}
    reasons = find_images(["phto.jpg", "photo.jpg", "gone/x.jpg", "*.png", "empty", "emp*"])
    assert reasons == {
        Path("phto.jpg"): "no such file or folder; did you mean 'photo.jpg'?",
        Path("photo.jpg"): "",
        Path("gone/x.jpg"): "no such file or folder",
        Path("*.png"): "no file matches",
        Path("empty"): f"the folder has no images; their names end in {', '.join(ENDINGS)}",
        Path("emp*"): "has no images",
    }
    assert find_images(["texts"]) == {Path("texts/dangling.jpg"): ""}  # the decoder has the reason
    with pytest.raises(DataError, match="No images were named"):
        find_images([])


@pytest.mark.parametrize("separator", [b"\n", b"\r\n", b"\0"])
def test_a_dash_reads_names_from_the_standard_input(tmp_path, monkeypatch, separator):
    monkeypatch.chdir(tmp_path)
    touch("a b.jpg", "d/1.jpg", "last.jpg")
    names = io.TextIOWrapper(io.BytesIO(separator.join([b"a b.jpg", b"d", b"gone.jpg", b""])))
    monkeypatch.setattr("sys.stdin", names)
    assert list(map(str, find_images(["-", "last.jpg"]))) == [
        "a b.jpg", "d/1.jpg", "gone.jpg", "last.jpg",
    ]  # fmt: skip


def test_a_prediction_is_the_model_s_output_for_that_image(run):
    classifier = load_run(run)
    model, preprocessing = load_model(run)[0], classifier.info.preprocessing
    paths = list(find_images(["flowers"]))[::4]
    rows = list(predict_files(classifier, map(StreamedImage, paths), top=2))
    assert [row.path for row in rows] == paths
    forward = jit_quickly(lambda images: model(preprocess(images, preprocessing.mode)))
    for row in rows:
        image = resize_image(load_image(row.path), preprocessing)
        logits = np.asarray(forward(image[None]), np.float64)[0]
        probs = np.exp(logits) / np.exp(logits).sum()
        best = np.argsort(-probs)[:2]
        assert [name for name, _ in row.top] == [classifier.class_names[i] for i in best]
        np.testing.assert_allclose([share for _, share in row.top], probs[best], rtol=PASS_RTOL)


def test_predict_and_evaluate_agree_on_every_test_image(run, capsys):
    evaluate(run)
    with open(run / "predictions.csv", encoding="utf-8", newline="") as file:
        evaluated = {f"flowers/{row['id']}": row for row in csv.DictReader(file)}
    assert predict_command(list(evaluated), PredictOptions(workdir=str(run), csv="out.csv")) == 0
    with open("out.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == list(evaluated)
    for row in rows:
        assert row["class1"] == evaluated[row["path"]]["guess"]
        expected = float(evaluated[row["path"]]["probability"])
        two_roundings = 2 * 0.5e-6  # both are written with six digits
        tolerance = two_roundings + PASS_RTOL * expected
        assert float(row["probability1"]) == pytest.approx(expected, abs=tolerance)


def test_neither_the_batch_size_nor_bad_images_change_a_prediction(run, monkeypatch):
    classifier, paths = load_run(run), list(find_images(["flowers"]))[:7]
    whole = list(predict_files(classifier, map(StreamedImage, paths)))
    Path("bad.jpg").write_text("text")
    Path("none.png").touch()
    mixed = [paths[0], Path("bad.jpg"), *paths[1:6], Path("none.png"), paths[6]]
    for batch_size in (2, 64):
        monkeypatch.setattr("vggjax.evaluation.predict.MAX_BATCH", batch_size)
        rows = list(predict_files(classifier, map(StreamedImage, mixed)))
        assert [row.path for row in rows] == mixed
        reasons = {str(row.path): row.reason for row in rows if row.reason}
        assert reasons == {"bad.jpg": "not an image", "none.png": "empty file"}
        read = [row for row in rows if not row.reason]
        for row, expected in zip(read, whole, strict=True):
            assert [n for n, _ in row.top] == [n for n, _ in expected.top]
            np.testing.assert_allclose(row.probs, expected.probs, rtol=PASS_RTOL)


def test_an_image_left_out_is_named_and_changes_the_exit_code(run, capsys):
    Path("b\x1b[31mad.jpg").write_text("text")
    code = predict_command(
        ["flowers/daisy", "b*.jpg"], PredictOptions(workdir=str(run), csv="out.csv")
    )
    output = capsys.readouterr()
    assert code == 3
    assert output.err == "vggjax: left out: b\\x1b[31mad.jpg: not an image\n"
    assert "flowers/daisy/00.png" in output.out and "<i>rose & co" in output.out
    assert read_csv("out.csv")[-1] == ["b\\x1b[31mad.jpg", *[""] * 6, "not an image"]


def test_one_bad_name_is_a_row_and_does_not_end_the_batch(run, capsys):
    os.mkdir("empty")
    os.symlink("gone", "dangling.jpg")
    names = ["gone.jpg", "flowers/daisy/00.png", "empty", "dangling.jpg", "*.webp"]
    assert predict_command(names, PredictOptions(workdir=str(run), csv="out.csv")) == 3
    rows = read_csv("out.csv")[1:]
    assert [row[0] for row in rows] == names
    assert [bool(row[-1]) for row in rows] == [True, False, True, True, True]
    assert capsys.readouterr().err.count("left out") == 4


def test_nothing_left_to_predict_is_an_error(run, capsys):
    Path("bad.jpg").write_text("text")
    with pytest.raises(DataError, match="The image cannot be used; bad.jpg: not an image"):
        predict_command(["bad.jpg"], PredictOptions(workdir=str(run), csv="out.csv"))
    with pytest.raises(DataError, match="None of the 2 images can be used; bad.jpg: not an image"):
        predict_command(["bad.jpg", "gone.jpg"], PredictOptions(workdir=str(run), csv="out.csv"))
    with pytest.raises(DataError, match="gone.jpg: no such file"):
        predict_command(["gone.jpg"], PredictOptions(workdir="never opened"))
    assert not Path("out.csv").exists()


def test_without_a_model_the_newest_finished_run_is_used(run, capsys, monkeypatch):
    second = make_run(Path("runs/second"), "flowers")
    make_run(Path("runs/unfinished"), "flowers")
    os.remove("runs/unfinished/model.safetensors")
    os.utime(second / "model.json", (2e9, 2e9))
    assert predict_command(["flowers/daisy/00.png"]) == 0
    assert capsys.readouterr().err == "vggjax: using the newest run, runs/second\n"
    monkeypatch.chdir("flowers")
    with pytest.raises(ConfigError, match="There is no finished run in runs/.*`workdir`"):
        predict_command(["daisy/00.png"])


def test_settings_that_contradict_each_other_are_refused(run):
    images = ["flowers/daisy/00.png"]
    for settings, message in [
        (dict(top=0), "`top` must be above 0; got 0"),
        (dict(csv="gone/out.csv"), "`csv` must be a file in an existing folder"),
        (dict(csv="flowers"), "`csv` must be a file"),
        (dict(csv="out.XLSX"), "`csv` writes text, which 'out.XLSX' is not; give out.csv"),
        (dict(model="vgg16"), "`model` needs `weights`"),
        (dict(weights="x.h5"), "`weights` needs `model`"),
        (dict(weights="x.h5", model="vgg16", workdir=str(run)), "both name a model"),
        (dict(weights="none", model="vgg16"), "untrained"),
        (dict(weights="x.h5", model="vgg-16"), "Did you mean 'vgg16'"),
    ]:
        with pytest.raises((ConfigError, WeightsError), match=message):
            predict_command(images, PredictOptions(**settings))
    assert not Path("out.XLSX").exists()


def test_published_weights_predict_imagenet_classes_with_keras_preprocessing(
    run, monkeypatch, capsys
):
    monkeypatch.setattr(Arch, "top", Head("gap", outputs=1000))  # a top of a few kB
    model = random_model("tiny", include_top=True)
    path = "flowers/daisy/00.png"
    image = resize_image(load_image(path), Preprocessing("caffe", 224, "crop", "bicubic"))
    batch = preprocess(np.stack([image, image[::-1], image[:, ::-1]]), "caffe")
    spread(model, batch)
    write_weights("top.safetensors", extract(model))
    command = dict(weights="top.safetensors", model="tiny", csv="out.csv")
    assert predict_command([path], PredictOptions(**command, top=3)) == 0
    with open("out.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    logits = np.asarray(jit_quickly(lambda images: model(images))(batch[:1]), np.float64)
    (best,) = imagenet.decode_predictions(np.exp(logits) / np.exp(logits).sum(), top=10)
    share_of = {name: share for _, name, share in best}
    shares = [float(row[f"probability{i}"]) for i in (1, 2, 3)]
    # By name and by rank: two classes may be as likely as each other up to rounding.
    expected = [share_of[row[f"class{i}"]] for i in (1, 2, 3)]
    np.testing.assert_allclose(shares, sorted(expected)[::-1], rtol=7 * PASS_RTOL, atol=0.5e-6)
    # Logits reach 7 (a share of 0.9 among 1000 classes), and six digits are written.
    np.testing.assert_allclose(shares, expected, rtol=7 * PASS_RTOL, atol=0.5e-6)
    assert 0.002 < shares[0] < 0.9  # otherwise another preprocessing might pass, too


def test_weights_with_another_head_than_imagenets_are_refused(run, monkeypatch):
    monkeypatch.setattr(Arch, "top", Head("gap", outputs=1000))
    images = ["flowers/daisy/00.png"]
    with pytest.raises(WeightsError, match="3 outputs, not ImageNet's 1000.*`workdir`"):
        predict_command(
            images, PredictOptions(weights=str(run / "model.safetensors"), model="tiny")
        )
    write_weights("base.safetensors", extract(random_model("tiny")))
    with pytest.raises(WeightsError, match="no classifier"):
        predict_command(images, PredictOptions(weights="base.safetensors", model="tiny"))
    with pytest.raises(WeightsError, match="gone.h5"):
        predict_command(images, PredictOptions(weights="gone.h5", model="tiny"))


def test_the_table_prints_names_as_they_are(capsys):
    print_table([Prediction(Path("[bold]a.jpg"), [("[red]x[/]", 0.75), ("薔薇", 0.25)])])
    line = capsys.readouterr().out.splitlines()[1]
    assert line.split() == ["[bold]a.jpg", "[red]x[/]", "75.0%", "薔薇", "25.0%"]


def test_images_that_show_nothing_are_predicted_with_a_warning(run, tmp_path, capsys):
    icon = Image.new("LA", (40, 40), (255, 0))
    icon.save(tmp_path / "icon.png")
    for name, most in (("dark", 900), ("deep", 60_000)):
        numbers = np.linspace(0, most, 1600).astype(np.uint16).reshape(40, 40)
        Image.fromarray(numbers).save(tmp_path / f"{name}.png")
    names = [str(tmp_path / f"{name}.png") for name in ("icon", "dark", "deep")]
    assert predict_command([*names, str(next(Path("flowers").rglob("*.png")))]) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(warnings) == 2
    assert any("1 of 4 images are one color once" in w and "icon.png" in w for w in warnings)
    assert any("within 10% of the pixel range, 0 to 65535" in w for w in warnings)
