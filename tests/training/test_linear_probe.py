"""The linear head: the optimum of its loss, in any order, and the same folded as it was fitted."""

import dataclasses

import numpy as np
import pytest
from flax import nnx
from sklearn.linear_model import LogisticRegression
from support.networks import assert_same_weights
from support.training_runs import make_config, make_three_classes, pretend_pretrained
from threadpoolctl import threadpool_info, threadpool_limits

from vggjax.errors import ConfigError
from vggjax.models.arch import get_arch
from vggjax.models.head import Head
from vggjax.models.network import Network
from vggjax.models.params import extract
from vggjax.training.config import Config
from vggjax.training.linear_probe.fit import (
    fit_linear,
    limit_threads,
    minimize_penalized,
    penalized_loss,
)
from vggjax.training.linear_probe.solve import part_widths
from vggjax.training.run_dir.log import read_log
from vggjax.training.run_dir.run_result import load_model
from vggjax.training.trainer import train


def make_data(seed=0, images=90, width=12, classes=3):
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(1).normal(size=(classes, width))
    labels = np.arange(images) % classes
    rows = 5 + 3 * (centers[labels] + rng.normal(size=(images, width)))
    return rows.astype(np.float32), labels


def fit(order=slice(None), **options):
    (rows, labels), (val_rows, val_labels) = make_data(0), make_data(2)
    return fit_linear(rows[order], labels[order], val_rows, val_labels, **options)


def test_the_fit_ends_where_the_gradient_is_zero_and_sklearn_ends_there_too():
    rows, labels = make_data()
    rows -= rows.mean(0)
    targets, importance = np.eye(3, dtype=np.float32)[labels], np.full(90, 1 / 90, np.float32)
    params, _ = minimize_penalized(rows, targets, importance, 0.01, np.zeros((13, 3)))
    _, gradient = penalized_loss(params, rows, targets, importance, 0.01)
    assert np.abs(gradient).max() < 1e-4
    other = LogisticRegression(C=1 / (0.01 * 90), tol=1e-8, max_iter=1000).fit(rows, labels)
    np.testing.assert_allclose(params[:-1].T, other.coef_, atol=5e-3)


def test_the_order_of_the_images_changes_nothing():
    forward, backward = fit(), fit(slice(None, None, -1))
    assert forward.strength == backward.strength
    np.testing.assert_allclose(forward.weights, backward.weights, atol=1e-3)


def test_the_weights_are_for_the_features_as_given():
    found, (val_rows, val_labels) = fit(), make_data(2)
    logits = found.logits(val_rows).astype(np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert -log_probs[np.arange(90), val_labels].mean() == pytest.approx(found.val_loss, abs=1e-4)
    assert (logits.argmax(1) == val_labels).mean() == found.val_accuracy


def test_features_of_another_scale_and_origin_give_the_same_probabilities():
    (rows, labels), (val_rows, val_labels) = make_data(0), make_data(2)
    moved = fit_linear(100 * rows + 7, labels, 100 * val_rows + 7, val_labels)
    np.testing.assert_allclose(moved.logits(100 * val_rows + 7), fit().logits(val_rows), atol=2e-2)


def test_a_part_of_another_scale_gives_the_same_probabilities():
    (rows, labels), (val_rows, val_labels) = make_data(0), make_data(2)
    factors = np.repeat(np.float32([1, 30]), [5, 7])
    same, moved = (
        fit_linear(f * rows, labels, f * val_rows, val_labels, widths=(5, 7))
        for f in (np.float32(1), factors)
    )
    np.testing.assert_allclose(moved.logits(factors * val_rows), same.logits(val_rows), atol=2e-2)


def test_the_parts_of_a_pooled_head_are_its_vectors_of_unit_length():
    for head, parts in (("convs2-3", 8), ("convs3-3", 12), ("gap-3", 0)):
        model = Network("tiny_bn", head=Head.parse(head), image_size=32, rngs=nnx.Rngs(0))
        widths = part_widths(model)
        assert len(widths) == parts
        if parts:
            rows = model(np.ones((1, 32, 32, 3), np.float32), until=head[:6])
            for part in np.split(np.asarray(rows[0]), np.cumsum(widths)[:-1]):
                assert np.linalg.norm(part) == pytest.approx(1, abs=1e-4)


def test_the_strength_is_the_one_with_the_lowest_validation_loss():
    losses = {strength: fit(strengths=[strength]).val_loss for strength in (0.3, 0.03, 0.003)}
    assert fit(strengths=[0.3, 0.03, 0.003]).strength == min(losses, key=losses.__getitem__)


def test_a_class_of_no_weight_is_not_learned():
    assert not (
        fit(class_weights=np.array([1, 1, 0.0])).logits(make_data(2)[0]).argmax(1) == 2
    ).any()


@pytest.fixture(scope="module")
def solved(tmp_path_factory):
    """A tiny run whose head was solved, after which block5 trained."""
    folder = tmp_path_factory.mktemp("solved")
    config = make_config(
        make_three_classes(folder), folder / "run",
        weights=str(pretend_pretrained(folder, get_arch("tiny"))), head="convs2-classes",
        head_solver="lbfgs", unfreeze="block5", epochs=2,
    )  # fmt: skip
    return config, train(config)


def test_a_solved_head_is_saved_as_an_ordinary_one_and_block5_goes_on_from_it(solved):
    config, result = solved
    log = [line for line in read_log(result.workdir) if line["kind"] == "epoch"]
    assert [(line["stage"], line["epoch"]) for line in log] == [("head", 1), ("head+block5", 2)]
    assert log[0]["train/accuracy"] == 1  # the classes differ by color
    model, info = load_model(result.workdir)
    assert info.head == "convs2-3"
    images = np.zeros((1, 32, 32, 3), np.float32)
    np.testing.assert_array_equal(model(images), result.model(images))


def test_a_solved_run_is_the_same_again(solved, tmp_path):
    config, result = solved
    again = train(dataclasses.replace(config, workdir=str(tmp_path / "again")))
    assert_same_weights(extract(again.model), extract(result.model))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head": "gap-8-classes"}, "one dense layer"),
        ({"unfreeze": "none", "epochs": 3}, "one epoch of the head"),
        ({"stages": ("head:2", "block5:1")}, "one epoch of the head"),
        ({"rotation_range": 10.0}, "flip or none"),
    ],
)
def test_what_cannot_be_solved_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Config(**({"head": "convs3-classes", "head_solver": "lbfgs"} | settings))


def test_small_products_have_one_thread_and_large_ones_all():
    def threads() -> set[int]:
        return {each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"}

    with threadpool_limits(2, "blas"):
        before = threads()
        with limit_threads(1000):
            assert threads() == {1}
        with limit_threads(10**10):
            assert threads() == before
        assert threads() == before
