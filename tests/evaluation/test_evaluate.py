import csv
import json
import os
import shutil

import numpy as np
import pytest
from support.tiny_run import CLASSES, make_images, make_run

from vggjax.data.images.preprocess import preprocess, resize_image
from vggjax.data.sources.open import open_source
from vggjax.data.splits.splits import make_splits, parse_split
from vggjax.errors import ConfigError, DataError, VggjaxError, WeightsError
from vggjax.evaluation.evaluate import MAX_ROWS, evaluate, print_summary
from vggjax.evaluation.metrics import summarize
from vggjax.models.params import extract
from vggjax.training.config import read_config
from vggjax.training.run_dir.saved_model import load_model, save_model


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run", make_images(tmp_path / "flowers"))


def multi_step(run, split):
    """The test split's probabilities with nothing of evaluate's in between."""
    config, (model, info) = read_config(run), load_model(run)
    source = open_source(config.dataset)
    indices = make_splits(source, parse_split(config.split), config.seed)[split]
    probs = []
    for i in indices:
        image = resize_image(source.read(int(i)).pixels, info.preprocessing)
        logits = np.asarray(model(preprocess(image[None], info.preprocessing.mode)), np.float64)[0]
        if len(logits) == 1:
            share = 1 / (1 + np.exp(-logits[0]))
            probs.append([1 - share, share])
        else:
            probs.append(np.exp(logits) / np.exp(logits).sum())
    return [source.ids[i] for i in indices], np.array(probs, np.float32), source.labels[indices]


def _close(mine, theirs):
    assert mine["confusion"] == theirs["confusion"]
    for key in ("num_examples", "loss", "accuracy", "accuracy_interval"):
        assert mine[key] == pytest.approx(theirs[key], rel=1e-4)


def test_the_figures_are_those_of_the_images_one_by_one(run):
    _, probs, labels = multi_step(run, "test")
    _close(evaluate(run), summarize(probs, labels, CLASSES))


def test_one_sigmoid_unit_is_judged_as_two_classes(tmp_path):
    images = make_images(tmp_path / "pets", ("cat", "dog"))
    run = make_run(tmp_path / "run", images, head="gap-1")
    _, probs, labels = multi_step(run, "test")
    _close(evaluate(run), summarize(probs, labels, ("cat", "dog")))


def test_the_batch_size_changes_nothing(run):
    _close(evaluate(run, batch_size=5), evaluate(run, batch_size=64))


def test_the_written_figures_are_the_returned_ones(run):
    result = evaluate(run)
    assert json.loads((run / "eval.json").read_text()) == result
    assert result["split"] == "test"
    assert result["class_names"] == sorted(CLASSES)


def test_the_predictions_name_every_image_of_the_split_once_with_its_guess(run):
    result = evaluate(run)
    ids, probs, labels = multi_step(run, "test")
    with open(run / "predictions.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = result["class_names"]
    assert [row["id"] for row in rows] == ids
    assert [row["truth"] for row in rows] == [names[i] for i in labels]
    assert [row["guess"] for row in rows] == [names[i] for i in probs.argmax(1)]
    shares = [float(row["probability"]) for row in rows]
    np.testing.assert_allclose(shares, probs.max(1), atol=2e-6)
    shares = [float(row["truth_probability"]) for row in rows]
    np.testing.assert_allclose(shares, probs[np.arange(len(labels)), labels], atol=2e-6)
    assert sum(int(row["correct"]) for row in rows) / len(rows) == result["accuracy"]


def test_more_than_five_classes_have_their_five_best_in_the_predictions(tmp_path):
    names = [f"class{i}" for i in range(7)]
    run = make_run(tmp_path / "run", make_images(tmp_path / "seven", names, each=4))
    result = evaluate(run)
    with open(run / "predictions.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    hits = [row["truth"] in row["top5"].split("; ") for row in rows]
    assert np.mean(hits) == result["top5"]
    assert all(row["top5"].split("; ")[0] == row["guess"] for row in rows)


def test_another_split_leaves_the_test_figures_alone(run):
    evaluate(run)
    before = (run / "eval.json").read_bytes(), (run / "predictions.csv").read_bytes()
    result = evaluate(run, split="val")
    assert ((run / "eval.json").read_bytes(), (run / "predictions.csv").read_bytes()) == before
    assert json.loads((run / "eval-val.json").read_text()) == result
    assert (run / "predictions-val.csv").exists()
    _close(result, summarize(*multi_step(run, "val")[1:], CLASSES))


def test_an_unreadable_image_is_named_and_in_no_figure(run):
    before = evaluate(run)
    path = open_source(read_config(run).dataset).root / multi_step(run, "test")[0][0]
    path.write_bytes(b"x" * path.stat().st_size)  # the same size: still the same dataset
    result = evaluate(run)
    assert result["unreadable"] == {f"{path.parent.name}/{path.name}": "not an image"}
    assert result["num_examples"] == before["num_examples"] - 1
    assert path.name not in [
        line.split(",")[0].split("/")[-1]
        for line in (run / "predictions.csv").read_text().splitlines()
        if line.startswith(path.parent.name)
    ]


def test_a_data_set_that_changed_is_refused(run):
    root = open_source(read_config(run).dataset).root
    shutil.copy(root / "daisy" / "00.png", root / "daisy" / "new.png")
    with pytest.raises(DataError, match="not the one that"):
        evaluate(run)
    assert not (run / "eval.json").exists()


def test_a_data_set_that_is_gone_is_refused(run):
    shutil.rmtree(read_config(run).dataset)
    with pytest.raises(DataError):
        evaluate(run)


def test_a_run_folder_without_its_parts_is_refused(run, tmp_path):
    with pytest.raises(ConfigError, match="no run folder"):
        evaluate(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="split.*Did you mean 'test'"):
        evaluate(run, split="tets")
    data = (run / "data.json").read_text()
    (run / "data.json").write_text(data[:20])
    with pytest.raises(ConfigError, match=r"data\.json is missing or damaged"):
        evaluate(run)
    (run / "data.json").write_text(data)
    (run / "model.safetensors").unlink()
    with pytest.raises(VggjaxError, match="model.safetensors"):
        evaluate(run)
    (run / "model.json").unlink()
    with pytest.raises(WeightsError, match="no finished model"):
        evaluate(run)


def test_a_model_that_gives_no_numbers_is_refused(run):
    model, info = load_model(run)
    kernel = extract(model)["predictions"]["kernel"]
    model.predictions.kernel.set_value(np.full_like(kernel, 3e38))  # finite, its sums are not
    save_model(run, model, info)
    with pytest.raises(DataError, match="NaN"):
        evaluate(run)
    assert not (run / "eval.json").exists()


def test_nothing_half_written_stays_behind(run):
    before = set(os.listdir(run))
    evaluate(run)
    assert set(os.listdir(run)) - before == {"eval.json", "predictions.csv", "probabilities.npz"}


def test_the_printed_table_is_short_and_starts_with_the_worst(capsys):
    names = [f"[bold]{i}[/]" for i in range(50)]
    labels = np.repeat(np.arange(50), 2)
    probs = np.eye(50, dtype=np.float32)[labels]
    probs[[80, 81]] = probs[0]  # class 40 is never found
    print_summary({"split": "test", "unreadable": {}, **summarize(probs, labels, names)})
    lines = capsys.readouterr().out.splitlines()
    assert "98.0% of 100 test images" in lines[0]
    assert [line.split()[0] for line in lines if "[bold]" in line][:2] == [
        "[bold]40[/]",
        "[bold]0[/]",
    ]
    assert sum("[bold]" in line for line in lines) == MAX_ROWS
    assert lines[-1] == "... 30 more, all better"
