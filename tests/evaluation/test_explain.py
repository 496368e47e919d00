"""predict with a threshold, with mirror images, and with Grad-CAM maps beside the images."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.multilabel import make_squares
from support.tiny_run import CLASSES, make_images, make_run

import vggjax
from vggjax.errors import ConfigError
from vggjax.evaluation.evaluate import evaluate
from vggjax.evaluation.explain import Explainer
from vggjax.evaluation.predict_files import predict_command
from vggjax.evaluation.predict_options import UNKNOWN, PredictOptions


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("threshold")
    return make_run(root / "run", make_images(root / "flowers", each=4), split="0.5,0.25,0.25")


@pytest.fixture
def files(run):
    return [str(path) for path in sorted((run.parent / "flowers").rglob("*.png"))]


def rows_of(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_below_the_threshold_an_image_is_unknown_and_its_classes_stay(run, files, tmp_path, capsys):
    shares = np.sort(vggjax.predict(run, files).probs.max(1))
    threshold = float(shares[5] + shares[6]) / 2
    classifier = vggjax.load_run(run, threshold=threshold)
    predictions = classifier.predict(files)
    assert predictions.names.count(UNKNOWN) == 6
    assert (predictions.labels == predictions.probs.argmax(1)).all()
    options = dict(workdir=str(run), threshold=threshold)
    table = tmp_path / "out.csv"
    predict_command(files[:7], PredictOptions(csv=str(table), **options))
    predict_command(files, PredictOptions(csv=str(table), sort_into=str(tmp_path / "s"), **options))
    rows = rows_of(table)
    assert [row["prediction"] for row in rows] == [
        name if name == UNKNOWN else row["class1"]
        for name, row in zip(predictions.names, rows, strict=True)
    ]
    assert len(list((tmp_path / "s" / UNKNOWN).iterdir())) == 6
    assert UNKNOWN in capsys.readouterr().out
    predict_command(files, PredictOptions(json=True, **options))
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["class"] for record in records] == predictions.names
    assert all(record["top"][0]["class"] in CLASSES for record in records)
    for other in (0.999, None):  # rows of another threshold are not continued
        with pytest.raises(ConfigError, match="threshold|columns"):
            again = options | {"threshold": other}
            predict_command(files, PredictOptions(csv=str(table), **again))


@pytest.mark.parametrize("threshold", [0, 1, -0.5, float("nan"), "high"])
def test_a_threshold_is_a_probability(run, threshold):
    with pytest.raises(ConfigError, match="`threshold`"):
        vggjax.load_run(run, threshold=threshold)


def test_several_labels_per_image_refuse_a_threshold(tmp_path):
    dataset = make_squares(tmp_path / "squares", 40)
    run = make_run(tmp_path / "run", dataset, task="multilabel", label_separator="|")
    with pytest.raises(ConfigError, match="`threshold` 0.5 is for one label per image"):
        vggjax.load_run(run, threshold=0.5)


def test_flip_is_the_mean_over_an_image_and_its_mirror(run, files):
    pixels = [np.asarray(Image.open(path).convert("RGB")) for path in files]
    plain = vggjax.predict(run, pixels).probs
    mirrored = vggjax.predict(run, [np.ascontiguousarray(p[:, ::-1]) for p in pixels]).probs
    both = vggjax.load_run(run, tta="flip").predict(pixels).probs
    assert np.abs(plain - mirrored).max() > 1e-3
    np.testing.assert_allclose(both, (plain + mirrored) / 2, atol=2e-3)  # resized, then mirrored
    with pytest.raises(ConfigError, match="`tta`"):
        vggjax.load_run(run, tta="rotate")


def test_evaluating_with_mirror_images_leaves_the_runs_own_results(run):
    own = evaluate(run)
    before = (run / "eval.json").read_bytes(), (run / "probabilities.npz").read_bytes()
    flipped = evaluate(run, tta="flip")
    assert before == ((run / "eval.json").read_bytes(), (run / "probabilities.npz").read_bytes())
    assert (own["tta"], flipped["tta"]) == ("none", "flip") and own["loss"] != flipped["loss"]
    assert {"eval-flip.json", "predictions-flip.csv"} <= {path.name for path in run.iterdir()}


def test_each_image_lies_beside_its_map_and_no_name_collides(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for folder in ("a", "b"):
        make_images(Path(folder), ("x",), each=2)
    (tmp_path / "a/bad.png").write_text("no image")
    options = PredictOptions(workdir=str(run), explain="maps")
    assert predict_command(["a", "b"], options) == 3
    names = sorted(path.name for path in Path("maps").iterdir())
    assert len(names) == 4 and "4 new images" in capsys.readouterr().out
    image = Image.open(Path("maps", names[0]))
    assert image.size == (2 * 224 + 4, 224)
    left, right = np.asarray(image)[:, :224], np.asarray(image)[:, 228:]
    assert (left != right).any() and "Grad-CAM" in image.text["Title"]
    assert predict_command(["."], options) == 3  # the maps are no images to classify
    assert sorted(path.name for path in Path("maps").iterdir()) == names


def test_maps_go_into_no_run_and_no_file(run, files, tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (run, tmp_path / "file"):
        with pytest.raises(ConfigError, match="`explain`"):
            predict_command(files, PredictOptions(workdir=str(run), explain=str(folder)))


def test_a_map_is_of_the_predicted_class(run, files, tmp_path, monkeypatch):
    classifier, asked = vggjax.load_run(run), []

    def watch(model, inputs, classes, *, layer):
        asked.extend(classes.tolist())
        return np.ones((1, 4, 4), np.float32)

    monkeypatch.setattr("vggjax.evaluation.explain.grad_cam", watch)
    explainer = Explainer(tmp_path / "maps", classifier)
    predictions = classifier.predict(files[:3])
    from vggjax.evaluation.predict_files import to_prediction

    for path, probs in zip(files[:3], predictions.probs, strict=True):
        explainer.add(to_prediction(Path(path), probs, classifier.info, top=1))
    assert asked == predictions.labels.tolist() and explainer.count == 3
