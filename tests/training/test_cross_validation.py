"""Cross-validation judges each image once, by a model that has not seen it or its like."""

import csv
import json
import shutil
import signal

import numpy as np
import pytest
from support.tiny_run import make_images

from vggjax.api import fit
from vggjax.errors import ConfigError, DataError, WeightsError
from vggjax.training import trainer
from vggjax.training.config import Config
from vggjax.training.run_dir.saved_model import load_model
from vggjax.training.signals import Interrupted


@pytest.fixture
def images(tmp_path, monkeypatch):
    return make_images(tmp_path / "images", ("a", "b"), each=9)


def make_config(dataset, workdir, **settings):
    defaults = dict(
        model="tiny", weights="none", head="gap-classes", image_size=32, unfreeze="all",
        batch_size=4, epochs=1, cross_validate=3, devices=1,
    )  # fmt: skip
    return Config(dataset=str(dataset), workdir=str(workdir), **defaults | settings)


def read_csv(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_each_image_is_judged_once_and_all_of_them_make_one_result(images, tmp_path):
    shutil.copy(images / "a" / "00.png", images / "a" / "copy.png")
    run = tmp_path / "run"
    result = fit(make_config(images, run))
    judged = read_csv(run / "predictions.csv")
    ids = sorted(path.relative_to(images).as_posix() for path in images.rglob("*.png"))
    assert sorted(row["id"] for row in judged) == ids
    fold_of = {row["id"]: row["split"] for row in judged}
    assert fold_of["a/00.png"] == fold_of["a/copy.png"]
    assert fold_of == {row["path"]: row["split"] for row in read_csv(run / "splits.csv")}

    for fold in ("fold-1", "fold-2", "fold-3"):
        own = {row["path"]: row["split"] for row in read_csv(run / fold / "splits.csv")}
        assert sorted(own) == ids
        assert {id for id in ids if own[id] == "test"} == {id for id in ids if fold_of[id] == fold}

    evaluation = json.loads((run / "eval.json").read_text())
    assert evaluation == result.evaluation
    assert evaluation["num_examples"] == 19
    assert evaluation["accuracy"] == np.mean([row["correct"] == "1" for row in judged])
    assert result.model is None
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Each of 19 images was evaluated once" in page and "<h2>Folds</h2>" in page
    assert f"{evaluation['folds'][1]['accuracy']:.1%}" in page
    assert "1 exact, each kept in one split with its original" in page


def test_a_cross_validation_that_was_stopped_goes_on_with_the_folds_that_lack(
    images, tmp_path, monkeypatch
):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    expected = fit(make_config(images, whole)).evaluation
    trained, save = [], trainer.save_model

    def save_model(workdir, *args):
        trained.append(workdir.name)
        save(workdir, *args)
        if len(trained) == 2:
            raise Interrupted(signal.SIGTERM, workdir)

    monkeypatch.setattr(trainer, "save_model", save_model)
    with pytest.raises(Interrupted, match="`workdir` .*stopped resumes it"):
        fit(make_config(images, stopped))
    again = fit(make_config(images, stopped)).evaluation
    assert trained == ["fold-1", "fold-2", "fold-3"]
    when = ("evaluated_at", "seconds")
    assert {k: v for k, v in again.items() if k not in when} == {
        k: v for k, v in expected.items() if k not in when
    }


def test_other_images_or_too_few_for_the_folds_are_refused(images, tmp_path):
    with pytest.raises(DataError, match="10 folds"):
        fit(make_config(images, tmp_path / "ten", cross_validate=10))
    assert not (tmp_path / "ten").exists()
    fit(make_config(images, tmp_path / "run"))
    (images / "a" / "00.png").rename(images / "b" / "new.png")
    with pytest.raises(DataError, match="not the one that .* was trained on"):
        fit(make_config(images, tmp_path / "run"))


@pytest.mark.parametrize("folds", [1, -2])
def test_one_fold_is_no_cross_validation(folds):
    with pytest.raises(ConfigError, match="`cross_validate` must be"):
        Config(cross_validate=folds)


def test_whoever_asks_for_the_model_is_sent_to_a_fold(tmp_path):
    (tmp_path / "run" / "fold-1").mkdir(parents=True)
    with pytest.raises(WeightsError, match=r"has one model per fold.*fold-1"):
        load_model(tmp_path / "run")
