"""Baselines on the frozen features: as scikit-learn's neighbors, and beside the model's figures."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier
from support.training_runs import make_config, make_three_classes, pretend_pretrained

from vggjax.errors import ConfigError
from vggjax.evaluation.evaluate import evaluate
from vggjax.models.arch import get_arch
from vggjax.report.report import write_report
from vggjax.training.config import Config
from vggjax.training.linear_probe.baselines import FILE, TEMPERATURE, neighbor_votes
from vggjax.training.trainer import train


def test_neighbors_vote_as_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 4
    rows = (rng.normal(size=(4, 6))[labels] + rng.normal(size=(60, 6))).astype(np.float32)
    queries = rng.normal(size=(40, 6)).astype(np.float32)
    votes = neighbor_votes(5 * rows, labels, 7 * queries, num_classes=4)
    assert sorted(votes) == [1, 3, 5, 10, 20, 50]
    for count, votes_of_classes in votes.items():
        peer = KNeighborsClassifier(
            count, metric="cosine", weights=lambda distance: np.exp(-distance / TEMPERATURE)
        ).fit(rows, labels)
        shares = votes_of_classes / votes_of_classes.sum(1, keepdims=True)
        np.testing.assert_allclose(shares, peer.predict_proba(queries), atol=1e-4)


def test_fewer_rows_than_neighbors_all_vote():
    rows = np.eye(3, dtype=np.float32)
    votes = neighbor_votes(rows, np.array([2, 0, 1]), rows, num_classes=3)
    assert sorted(votes) == [1, 3]
    assert votes[3].argmax(1).tolist() == [2, 0, 1]


def tiny_config(folder, **settings):
    weights = str(pretend_pretrained(folder, get_arch("tiny")))
    data = make_three_classes(folder)
    return make_config(data, folder / "run", weights=weights, baselines=True, **settings)


def test_baselines_of_the_head_s_stage_stand_beside_the_fine_tuned_model(tmp_path, capsys):
    result = train(tiny_config(tmp_path, unfreeze="block2", epochs=2, augment="flip"))
    evaluation = evaluate(result)
    knn, linear = evaluation["baselines"]
    assert (knn["name"], linear["name"]) == ("k-NN", "linear")
    assert linear["accuracy"] == 1 > 1 / 3 < knn["accuracy"]  # the classes differ by color
    assert "100.0% by linear (penalty" in capsys.readouterr().out
    page = write_report(result, evaluation=evaluation).read_text()
    assert "k-NN (" in page and "<dt>Baselines</dt><dd>k-NN, k = " in page
    (result.workdir / FILE).write_text("damaged")
    assert "baselines" not in evaluate(result)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unfreeze": "none", "augment": "randaugment"}, "`augment` flip or none"),
        ({"unfreeze": "none", "cache_features": "off"}, "`cache_features` auto"),
        ({"unfreeze": "block2", "head_epochs": 0}, "`head_epochs` above 0"),
    ],
)
def test_baselines_without_kept_features_are_refused(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        train(tiny_config(tmp_path, **settings))


def test_several_labels_per_image_have_no_baselines():
    with pytest.raises(ConfigError, match="left out with several labels"):
        Config(baselines=True, task="multilabel")
