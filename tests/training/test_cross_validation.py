"""Cross-validation tests each image once, by a model that has not seen it or its duplicates."""

import csv
import shutil

import numpy as np
import pytest
from support.tiny_run import make_images
from support.training_runs import interrupt_at, make_config

from vggjax.api import cross_validate, fit
from vggjax.errors import DataError, WeightsError
from vggjax.training.config import Config
from vggjax.training.run_dir.checked_json import read_json
from vggjax.training.run_dir.run_result import load_model
from vggjax.training.signals import Interrupted

SETTINGS = {"head": "gap-classes", "split": Config.split, "epochs": 1}


def read_csv(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    images = make_images(tmp_path_factory.mktemp("data") / "images", ("a", "b"), each=9)
    shutil.copy(images / "a" / "00.png", images / "a" / "copy.png")
    return images


def test_folds_test_each_image_once_also_after_an_interruption(images, tmp_path, monkeypatch):
    run = tmp_path / "run"
    config = make_config(images, run, cross_validate=2, **SETTINGS)
    with monkeypatch.context() as patched:
        interrupt_at(patched, 2)
        with pytest.raises(Interrupted) as caught:
            fit(config)
    assert caught.value.workdir == run  # and not the fold's
    result = fit(config)

    tested = read_csv(run / "predictions.csv")
    ids = sorted(path.relative_to(images).as_posix() for path in images.rglob("*.png"))
    assert sorted(row["id"] for row in tested) == ids
    fold_of = {row["id"]: row["split"] for row in tested}
    assert fold_of["a/00.png"] == fold_of["a/copy.png"]
    assert fold_of == {row["path"]: row["split"] for row in read_csv(run / "splits.csv")}
    for fold in ("fold-1", "fold-2"):
        split_of = {row["path"]: row["split"] for row in read_csv(run / fold / "splits.csv")}
        assert sorted(split_of) == ids
        held_out = {id for id in ids if split_of[id] == "test"}
        assert held_out == {id for id in ids if fold_of[id] == fold}
    assert result.evaluation == read_json(run / "eval.json")
    assert result.evaluation["num_examples"] == len(ids) == 19
    assert result.evaluation["accuracy"] == np.mean([row["correct"] == "1" for row in tested])
    assert result.model is None
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "1 exact duplicate, kept in the same split" in page
    assert f"{result.evaluation['folds'][1]['accuracy']:.1%}" in page

    (images / "a" / "01.png").rename(images / "b" / "new.png")
    try:
        with pytest.raises(DataError, match="not the one that .* was trained on"):
            fit(config)
    finally:
        (images / "b" / "new.png").rename(images / "a" / "01.png")


def test_too_few_images_for_the_folds_are_refused_and_nothing_is_written(images, tmp_path):
    with pytest.raises(DataError, match="10 folds"):
        cross_validate(make_config(images, tmp_path / "ten", cross_validate=10, **SETTINGS))
    assert not (tmp_path / "ten").exists()


def test_loading_the_model_of_a_cross_validation_names_a_fold(tmp_path):
    (tmp_path / "run" / "fold-1").mkdir(parents=True)
    with pytest.raises(WeightsError, match=r"has one model per fold.*fold-1"):
        load_model(tmp_path / "run")
