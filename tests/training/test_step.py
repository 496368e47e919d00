"""The train step: masks, devices, randomness, class weights, and the forward passes beside it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sklearn.utils.class_weight import compute_class_weight
from support.steps import BN, PLAIN, make_batch, make_feature_batch, make_step

from vggjax.data.augment.augment import mix
from vggjax.data.augment.settings import PRESETS, Augmentation
from vggjax.data.images.preprocess import preprocess
from vggjax.data.splits.splits import balanced_weights
from vggjax.errors import ConfigError
from vggjax.models.head import Head
from vggjax.models.network import VGG
from vggjax.training.parallel import Placement
from vggjax.training.step import (
    make_eval_step,
    make_predict_step,
    map_microbatches,
    metric_sums,
)

# Augmentation whose draws depend on the row, and whose partners are on other devices.
MIXED = Augmentation(rotation_range=30, horizontal_flip=True, mixup=0.4, cutmix=1.0)


def learn(kind, devices, masked, augmentation, *, unfreeze, steps=2):
    step = make_step(
        BN,
        placement=Placement(kind, num_devices=devices),
        augmentation=augmentation,
        unfreeze=unfreeze,
        optimizer="sgd",
        learning_rate=0.05,
        backbone_learning_rate=0.05,
    )
    state, losses = step.state, []
    for seed in range(steps):
        state, metrics = step(state, make_batch(masked=masked, seed=seed))
        losses.append(float(step.placement.fetch(metrics)["loss"]))
    return losses, step.placement.fetch(state)


def padded(batch, rows):
    """Return the batch with rows of padding at its end."""
    missing = rows - len(batch["index"])
    blank = {name: np.zeros((missing, *x.shape[1:]), x.dtype) for name, x in batch.items()}
    blank["index"] -= 1
    return {name: np.concatenate([x, blank[name]]) for name, x in batch.items()}


@pytest.mark.parametrize("kind", ["jit", pytest.param("pmap", marks=pytest.mark.slow)])
@pytest.mark.parametrize("rows", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_rows_that_do_not_divide_over_the_devices_learn_the_same(kind, rows):
    # A batch of one image has statistics, too: its pixels'. Three of four devices have none.
    losses, states = [], []
    for devices in (1, 4):
        step = make_step(
            BN,
            placement=Placement(kind if devices > 1 else "jit", num_devices=devices),
            optimizer="sgd",
            learning_rate=0.05,
            backbone_learning_rate=0.05,
        )
        state, metrics = step(step.state, padded(make_batch(rows), -(-rows // devices) * devices))
        losses.append(float(step.placement.fetch(metrics)["loss"]))
        states.append(step.placement.fetch(state))
    assert np.isfinite(losses[0]) and losses[1] == pytest.approx(losses[0], rel=1e-5)
    for one, four in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(four, one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "devices", "options"),
    [
        pytest.param("jit", 1, {"parts": 4}, id="parts"),
        pytest.param("jit", 2, {"parts": 2}, id="parts_of_devices", marks=pytest.mark.slow),
        pytest.param("pmap", 2, {"parts": 4}, id="parts_pmap", marks=pytest.mark.slow),
        pytest.param("jit", 1, {"remat": True}, id="remat"),
        pytest.param(
            "jit", 1, {"remat": True, "head": "convs2-3"}, id="convs2", marks=pytest.mark.slow
        ),
    ],
)
def test_a_step_in_parts_or_with_less_memory_learns_the_same(kind, devices, options):
    # With dropout, whose draws go by the row, and rows of padding, all of one part among them.
    parts, remat = options.get("parts", 1), options.get("remat", False)
    arch = BN if remat else PLAIN  # batch normalization sees each part by itself
    settings = dict(optimizer="sgd", learning_rate=0.1, backbone_learning_rate=0.1)
    states = []
    for placement, again in (
        (Placement(num_devices=1), False),
        (Placement(kind, num_devices=devices, parts=parts), remat),
    ):
        head = options.get("head", "gap-16-0.5-3")
        step = make_step(arch, head, placement=placement, remat=again, **settings)
        state, metrics = step(step.state, make_batch(8, masked=3))
        states.append(placement.fetch((state, metrics)))
    for one, other in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-6, atol=1e-6)


def test_a_part_of_padding_leaves_the_running_statistics():
    step = make_step(BN, placement=Placement(num_devices=1, parts=4), optimizer="sgd")
    whole = make_step(BN, placement=Placement(num_devices=1), optimizer="sgd")
    batch = make_batch(4, masked=3)  # three of the four parts have no example
    states = [one(one.state, batch)[0].batch_stats for one in (step, whole)]
    for parts, one in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(parts, one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "masked", "augmentation", "unfreeze"),
    [
        pytest.param("jit", 3, PRESETS["flip"], "block5", id="jit"),
        pytest.param("pmap", 3, PRESETS["flip"], "all", id="pmap", marks=pytest.mark.slow),
        pytest.param("jit", 3, MIXED, "all", id="jit_mixed", marks=pytest.mark.slow),
        pytest.param("pmap", 3, MIXED, "all", id="pmap_mixed", marks=pytest.mark.slow),
        pytest.param("pmap", 0, PRESETS["flip"], "all", id="pmap_whole", marks=pytest.mark.slow),
    ],
)
def test_four_devices_learn_what_one_learns(kind, masked, augmentation, unfreeze):
    # With 3 of 8 rows masked one device of four has no example. The sums are of up to 8 x 32 x 32
    # terms in another order, which differ by about sqrt(8192) float32 epsilons, 1e-5, per step.
    losses, state = learn("jit", 1, masked, augmentation, unfreeze=unfreeze)
    losses_4, state_4 = learn(kind, 4, masked, augmentation, unfreeze=unfreeze)
    np.testing.assert_allclose(losses_4, losses, rtol=1e-4)
    for a, b in zip(jax.tree.leaves(state_4), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_padding_has_no_effect_whatever_it_holds():
    augmentation = Augmentation(mixup=0.4)
    step, results = make_step(BN, augmentation=augmentation, unfreeze="block5"), []
    for noise in (0, 255):
        batch = make_batch(masked=3)
        batch["images"][5:] = noise
        batch["label"][5:] = noise % 3
        results.append(jax.tree.leaves(step(step.state, batch)))
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_padded_batch_teaches_what_its_real_rows_teach():
    step = make_step(head="gap-16-3", after="gap", unfreeze="none", optimizer="sgd")
    padded = make_feature_batch(masked=3)
    real = {name: rows[:5] for name, rows in padded.items()}
    states = [step(step.state, batch)[0] for batch in (padded, real)]
    for a, b in zip(*(jax.tree.leaves(state.params) for state in states), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_a_padded_row_may_hold_nan():
    batch = make_feature_batch(masked=1)
    logits = jnp.ones((8, 3)).at[7].set(jnp.nan)
    assert all(bool(jnp.isfinite(value)) for value in metric_sums(logits, batch).values())


def test_mixing_draws_from_seed_step_and_row():
    step = make_step(
        head="gap-16-3", augmentation=Augmentation(mixup=1.0), unfreeze="none", learning_rate=1e-3
    )
    batch = make_batch(masked=2)

    @jax.jit
    def mixed_metrics(batch):
        key = jax.random.fold_in(jax.random.key(5), 0)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(8))
        keys = jax.vmap(jax.random.split)(keys)[:, 0]
        mixed = mix(keys, batch["images"], batch["label"], batch["mask"], mixup=1.0)
        logits = step.model(preprocess(mixed.images, "torch"))
        return metric_sums(logits, batch | mixed._asdict())

    expected = mixed_metrics(batch)
    for name, value in step(step.state, batch)[1].items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("outputs", [3, 1], ids=["softmax", "sigmoid"])
def test_a_mixed_image_has_the_loss_of_its_soft_label_and_its_heavier_class(outputs):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (8, outputs))
    batch = make_batch(masked=2)
    batch["label"] %= max(outputs, 2)
    batch["other"] = (batch["label"] + 1) % max(outputs, 2)
    batch["share"] = np.linspace(0.1, 0.9, 8).astype(np.float32)
    sums = metric_sums(jnp.asarray(logits, jnp.float32), batch)
    two_sided = logits if outputs > 1 else np.concatenate([0 * logits, logits], axis=1)
    one_hot, share = np.eye(two_sided.shape[1]), batch["share"][:, None]
    soft = share * one_hot[batch["label"]] + (1 - share) * one_hot[batch["other"]]
    log_probs = two_sided - np.log(np.exp(two_sided).sum(1, keepdims=True))
    np.testing.assert_allclose(sums["loss"], -(soft * log_probs)[:6].sum(), rtol=1e-5)
    assert sums["correct"] == (two_sided.argmax(1) == soft.argmax(1))[:6].sum()
    assert sums["count"] == 6


def test_smoothing_changes_only_the_loss():
    logits, batch = jnp.asarray(np.random.default_rng(0).normal(0, 3, (8, 3))), make_batch()
    smoothed, plain = (metric_sums(logits, batch, label_smoothing=s) for s in (0.3, 0.0))
    assert smoothed["loss"] != plain["loss"]
    assert {**smoothed, "loss": 0} == {**plain, "loss": 0}


@pytest.mark.parametrize(("outputs", "smoothing"), [(3, 0.1), (1, 0.0)], ids=["softmax", "sigmoid"])
def test_an_example_of_weight_three_counts_as_three_of_weight_one(outputs, smoothing):
    logits = jnp.asarray(np.random.default_rng(1).normal(0, 2, (2, outputs)), jnp.float32)
    repeated, weights = jnp.array([0, 0, 0, 1]), np.array([3, 1, 1], np.float32)
    one = {"label": jnp.array([0, 1]), "mask": jnp.ones(2)}
    three = {"label": one["label"][repeated], "mask": jnp.ones(4)}

    def weighted(logits):
        options = dict(class_weights=weights, label_smoothing=smoothing)
        return metric_sums(logits, one, **options)["loss"]

    def copied(logits):
        return metric_sums(logits[repeated], three, label_smoothing=smoothing)["loss"]

    for a, b in zip(
        *(jax.jit(jax.value_and_grad(f))(logits) for f in (weighted, copied)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_balanced_weights_are_scikit_learns():
    labels = np.random.default_rng(0).choice(4, 200, p=[0.7, 0.2, 0.06, 0.04])
    expected = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    np.testing.assert_allclose(balanced_weights(labels, 4), expected, rtol=1e-6)
    assert balanced_weights(labels, 4)[labels].mean() == pytest.approx(1)


def test_a_class_without_an_example_has_weight_zero():
    weights = balanced_weights(np.array([0, 0, 2, 2]), 3)
    np.testing.assert_allclose(weights, [2 / 3, 0, 2 / 3], rtol=1e-6)


def test_the_step_weighs_classes_in_its_gradient():
    """The mean is over examples, not over weights: a weight of 2 doubles the step."""
    settings = dict(head="gap-16-3", after="gap", optimizer="sgd", unfreeze="none")
    twos = np.full(3, 2, np.float32)
    weighted = make_step(**settings, learning_rate=0.1, class_weights=twos)
    doubled = make_step(**settings, learning_rate=0.2)
    batch = make_feature_batch()
    after = [step(step.state, batch)[0].params for step in (weighted, doubled)]
    for a, b in zip(*map(jax.tree.leaves, after), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_seven_images_at_batch_four_score_as_seven_at_once():
    model = VGG(PLAIN, head=Head.parse("gap-16-3"), image_size=32, rngs=nnx.Rngs(0))
    eval_step = make_eval_step(model, placement=Placement(num_devices=1), mode="torch")
    state = nnx.split(model, nnx.Param, nnx.BatchStat)[1:]
    whole = make_batch(8, masked=1)
    parts = [{name: rows[i : i + 4] for name, rows in whole.items()} for i in (0, 4)]
    sums = jax.tree.map(lambda *s: float(sum(s)), *[eval_step(state, part) for part in parts])
    first_seven = {name: rows[:7] for name, rows in whole.items()}
    expected = eval_step(state, first_seven)
    assert sums["count"] == 7
    for name, value in expected.items():
        np.testing.assert_allclose(sums[name], value, rtol=1e-5)


def test_the_same_step_draws_the_same_dropout_and_another_step_draws_anew():
    step = make_step(after="gap", unfreeze="none")

    def loss(number):
        state = step.state._replace(step=jnp.asarray(number, jnp.int32))
        return float(step(state, make_feature_batch())[1]["loss"])

    assert loss(3) == loss(3)
    assert loss(3) != loss(4)


@pytest.mark.parametrize("outputs", [3, 1], ids=["softmax", "sigmoid"])
def test_gradient_descent_at_a_small_rate_lowers_the_loss_at_every_step(outputs):
    step = make_step(
        head=f"gap-16-{outputs}", after="gap", unfreeze="none", optimizer="sgd", learning_rate=1e-2
    )
    batch = make_feature_batch()
    batch["label"] %= max(outputs, 2)
    state, losses = step.state, []
    for _ in range(5):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert all(later < earlier for earlier, later in zip(losses, losses[1:], strict=False))


@pytest.mark.slow
def test_eight_images_are_memorized():
    step = make_step(BN, "gap-16-3", learning_rate=1e-2)
    state = step.state
    for _ in range(100):
        state, metrics = step(state, make_batch())
    assert float(metrics["correct"]) == 8


def test_one_sigmoid_unit_predicts_two_classes():
    model = VGG(PLAIN, head=Head.parse("gap-1"), image_size=32, rngs=nnx.Rngs(0))
    images = make_batch(3)["images"]
    probs = make_predict_step(model, "torch")(images)
    logits = jax.jit(lambda x: model(preprocess(x, "torch")))(images)
    p = 1 / (1 + np.exp(-np.asarray(logits)))
    np.testing.assert_allclose(probs, np.concatenate([1 - p, p], axis=1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [0, 5, -1])
def test_more_devices_than_there_are_and_less_than_one_are_refused(count):
    with pytest.raises(ConfigError, match=f"`devices` must be from 1 to 4.* got {count}"):
        Placement(num_devices=count)
    assert len(Placement(num_devices=3).devices) == 3 and len(Placement().devices) == 4


@pytest.mark.parametrize("count", [1, 8, 9, 20])
def test_microbatches_give_what_the_whole_batch_gives(count):
    """Eight images of 128 px, 2**17 pixels, are the most that go through `forward` at once."""
    sizes = []

    def forward(images):
        sizes.append(len(images))
        return images.mean((1, 2)), images[:, :2, 3]

    images = np.random.default_rng(0).random((count, 128, 128, 3), np.float32)
    outputs = map_microbatches(lambda x: forward(x)[0], jnp.asarray(images))
    rows = map_microbatches(lambda x: forward(x)[1], jnp.asarray(images))
    np.testing.assert_array_equal(rows, images[:, :2, 3])
    np.testing.assert_allclose(outputs, images.mean((1, 2)), rtol=1e-4)
    assert max(sizes) <= 8


def test_top5_counts_a_label_among_the_five_largest_logits_of_equals_the_first():
    logits = np.random.default_rng(0).integers(0, 4, (200, 9)).astype(np.float32)  # many are equal
    label = np.arange(200) % 9
    best = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    batch = {"label": jnp.asarray(label), "mask": jnp.ones(200)}
    sums = metric_sums(jnp.asarray(logits), batch)
    assert sums["top5"] == (best == label[:, None]).any(axis=1).sum()
