"""Class weights make each class count alike, and an example as often as its weight says."""

import jax
import numpy as np
import pytest
from flax import nnx
from sklearn.utils.class_weight import compute_class_weight

from vggjax.data.splits.splits import balanced_weights
from vggjax.models.arch import Arch
from vggjax.models.head import Head
from vggjax.models.network import VGG
from vggjax.training.config import Config
from vggjax.training.freezing import label_layers, make_optimizer, make_schedules, plan_stages
from vggjax.training.parallel import Placement
from vggjax.training.step import make_state, make_train_step

TINY = Arch("tiny", (1, 1, 1, 1, 1), (4, 4, 8, 8, 8))


def test_balanced_weights_are_scikit_learns():
    labels = np.random.default_rng(0).choice(4, 200, p=[0.7, 0.2, 0.06, 0.04])
    theirs = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    np.testing.assert_allclose(balanced_weights(labels, 4), theirs, rtol=1e-6)
    assert balanced_weights(labels, 4)[labels].mean() == pytest.approx(1)


def test_a_class_without_an_example_weighs_nothing_and_spoils_nothing():
    found = balanced_weights(np.array([0, 0, 2, 2]), 3)
    np.testing.assert_allclose(found, [2 / 3, 0, 2 / 3], rtol=1e-6)


@pytest.mark.parametrize("head", ["gap-3", "gap-1"], ids=["softmax", "sigmoid"])
def test_an_example_of_weight_three_teaches_what_three_of_weight_one_teach(head):
    images = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    weights = np.array([3, 1, 1], np.float32)[: max(2, int(head[-1]))]
    one = _learn(head, images, [0, 1], weights)
    # The sums are the same, and are divided by 4 rows in place of 2.
    three = _learn(head, images[[0, 0, 0, 1]], [0, 0, 0, 1], None, learning_rate=0.2)
    assert one[0] == pytest.approx(three[0], rel=1e-5)
    for a, b in zip(one[1], three[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def _learn(head, images, labels, class_weights, learning_rate=0.1):
    """Gives the summed loss, and the parameters after one step of plain descent."""
    model = VGG(TINY, head=Head.parse(head), image_size=32, rngs=nnx.Rngs(0))
    config = Config(
        weights="none", unfreeze="all", optimizer="sgd", learning_rate=learning_rate,
        schedule="constant", warmup_epochs=0,
    )  # fmt: skip
    layers = label_layers(model, config.unfreeze)
    tx = make_optimizer(config, layers, make_schedules(config, plan_stages(config)[-1], 10))
    placement = Placement(num_devices=1)
    step = make_train_step(
        model, tx, layers, placement=placement, mode="torch", class_weights=class_weights
    )
    batch = {"images": images, "label": np.array(labels, np.int32)}
    batch["mask"] = np.ones(len(labels), np.float32)
    state, metrics = step(placement.put_state(make_state(model, tx, layers)), batch)
    return float(metrics["loss"]), jax.tree.leaves(placement.fetch(state).params)
