"""The step: masks, devices, dropout and learning."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vggjax.data.augment.mix import mix
from vggjax.data.augment.settings import PRESETS, Augmentation
from vggjax.data.images.preprocess import preprocess
from vggjax.errors import ConfigError
from vggjax.models.arch import Arch
from vggjax.models.head import Head
from vggjax.models.network import VGG
from vggjax.training.config import Config
from vggjax.training.freezing import label_layers, make_optimizer, make_schedules, plan_stages
from vggjax.training.parallel import Placement
from vggjax.training.step import (
    make_eval_step,
    make_predict_step,
    make_state,
    make_train_step,
    map_microbatches,
)

PLAIN = Arch("tiny", (1, 1, 1, 1, 1), (4, 4, 8, 8, 8))
BN = Arch("tiny_bn", PLAIN.convs, PLAIN.widths, batch_norm=True)


def make_batch(rows=8, masked=0, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "images": rng.integers(0, 256, (rows, 32, 32, 3), dtype=np.uint8),
        "label": (np.arange(rows) % 3).astype(np.int32),
        "mask": (np.arange(rows) < rows - masked).astype(np.float32),
    }


def prepare_run(
    arch=PLAIN, head="gap-16-0.5-3", *, placement=None, augmentation=PRESETS["flip"], donate=True,
    **settings,
):  # fmt: skip
    model = VGG(arch, head=Head.parse(head), image_size=32, rngs=nnx.Rngs(0))
    settings = {"weights": "none", "unfreeze": "all", "warmup_epochs": 0} | settings
    config = Config(**settings)
    labels = label_layers(model, config.unfreeze, by_block=config.layer_decay != 1)
    tx = make_optimizer(config, labels, make_schedules(config, plan_stages(config)[-1], 10))
    placement = placement or Placement(num_devices=1)
    options = dict(mode="torch", augmentation=augmentation, seed=5, donate=donate, ema=config.ema)
    step = make_train_step(model, tx, labels, placement=placement, **options)
    state = make_state(model, tx, labels, ema=config.ema)
    return model, step, placement.put_state(state), placement


# All that could tell one device's rows from four devices': own draws, and partners elsewhere.
MIXED = Augmentation(rotation_range=30, horizontal_flip=True, mixup=0.4, cutmix=1.0)


def run(kind, devices, arch, masked, augmentation):
    placement = Placement(kind, num_devices=devices)
    options = dict(optimizer="sgd", learning_rate=0.05, augmentation=augmentation)
    _, step, state, _ = prepare_run(arch, placement=placement, **options)
    losses = []
    for seed in range(4):
        state, metrics = step(state, placement.put_batch(make_batch(8, masked, seed)))
        losses.append(float(placement.fetch(metrics)["loss"]))
    return losses, placement.fetch(state)


@pytest.mark.parametrize(
    ("arch", "masked", "augmentation"),
    [
        pytest.param(PLAIN, 0, PRESETS["flip"], id="plain"),
        pytest.param(BN, 3, PRESETS["flip"], id="batch_norm"),
        pytest.param(BN, 3, MIXED, id="mixed", marks=pytest.mark.slow),
    ],
)
def test_four_devices_under_jit_or_pmap_learn_what_one_does(arch, masked, augmentation):
    # 3 of 8 rows masked leave one device of four without an example.
    losses, state = run("jit", 1, arch, masked, augmentation)
    assert losses[0] > 1
    for kind in ("jit", "pmap"):
        losses_4, state_4 = run(kind, 4, arch, masked, augmentation)
        np.testing.assert_allclose(losses_4, losses, rtol=1e-5)
        for a, b in zip(jax.tree.leaves(state_4), jax.tree.leaves(state), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("augmentation", [PRESETS["flip"], MIXED], ids=["flip", "mixed"])
def test_padding_changes_nothing_whatever_it_holds(augmentation):
    results = []
    for noise in (0, 255):
        batch = make_batch(8, masked=3)
        batch["images"][5:] = noise
        batch["label"][5:] = noise % 3
        _, step, state, placement = prepare_run(BN, augmentation=augmentation)
        state, metrics = step(state, placement.put_batch(batch))
        results.append(jax.tree.leaves((placement.fetch(state), placement.fetch(metrics))))
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("outputs", [3, 1])
def test_a_mixed_batch_is_scored_by_its_soft_labels_and_its_heavier_ones(outputs):
    head = f"gap-16-{outputs}"
    model, step, state, _ = prepare_run(
        head=head, augmentation=Augmentation(mixup=1.0), donate=False
    )
    batch = make_batch(8, masked=2)
    batch["label"] %= max(outputs, 2)
    key = jax.random.fold_in(jax.random.key(5), 0)  # randomness is of (seed, step, row)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(8))
    keys = jax.vmap(jax.random.split)(keys)[:, 0]
    mixed = jax.jit(mix, static_argnames="mixup")(
        keys, batch["images"], batch["label"], batch["mask"], mixup=1.0
    )
    logits = np.asarray(model(preprocess(mixed.images, "torch")), np.float64)
    logits = logits if outputs > 1 else np.concatenate([0 * logits, logits], axis=1)
    one_hot, share = np.eye(logits.shape[1]), np.asarray(mixed.share)[:, None]
    soft = share * one_hot[batch["label"]] + (1 - share) * one_hot[mixed.other]
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    metrics = step(state, batch)[1]
    np.testing.assert_allclose(metrics["loss"], -(soft * log_probs)[:6].sum(), rtol=1e-5)
    assert metrics["correct"] == (logits.argmax(1) == soft.argmax(1))[:6].sum()
    assert metrics["count"] == 6
    assert (soft.argmax(1) != batch["label"])[:6].any()  # or the test could not tell


def test_only_training_is_augmented():
    # The same weights, whatever the augmentation: an evaluation is the same to the last bit.
    scores = []
    for augmentation in (None, MIXED):
        model, _, _, placement = prepare_run(BN, augmentation=augmentation)
        eval_step = make_eval_step(model, placement=placement, mode="torch")
        state = nnx.split(model, nnx.Param, nnx.BatchStat)[1:]
        scores.append([eval_step(state, make_batch(seed=seed)) for seed in (0, 0, 1)])
        assert scores[-1][0] == scores[-1][1]
    assert scores[0] == scores[1]


def test_seven_images_at_batch_four_score_as_the_mean_of_seven():
    model, _, _, placement = prepare_run()
    eval_step = make_eval_step(model, placement=placement, mode="torch")
    state = nnx.split(model, nnx.Param, nnx.BatchStat)[1:]
    whole = make_batch(7)
    parts = [
        {name: rows[:4] for name, rows in whole.items()},
        {name: np.concatenate([rows[4:], rows[:1]]) for name, rows in whole.items()},
    ]
    parts[1]["mask"] = np.array([1, 1, 1, 0], np.float32)
    sums = jax.tree.map(lambda *s: float(sum(s)), *[eval_step(state, part) for part in parts])
    expected = eval_step(state, whole)
    assert sums["count"] == 7
    for name, value in expected.items():
        np.testing.assert_allclose(sums[name], value, rtol=1e-5)


def test_the_same_step_draws_the_same_and_another_step_draws_anew():
    _, step, state, placement = prepare_run()
    batch = placement.put_batch(make_batch())

    def loss(step_number):
        fresh = placement.put_state(state._replace(step=jnp.asarray(step_number, jnp.int32)))
        return float(step(fresh, batch)[1]["loss"])

    assert loss(3) == loss(3)
    assert loss(3) != loss(4)


def test_dropout_keeps_the_expected_activation():
    model = VGG(PLAIN, head=Head.parse("gap-16-0.5-3"), image_size=32)
    x = jnp.ones((256, 1, 1, 8))
    keys = jax.random.split(jax.random.key(0), 256)
    calm = model(x, after="block5_pool", until="fc1")
    noisy = model(x, after="block5_pool", until="fc1", dropout_keys=keys)
    np.testing.assert_allclose(noisy.mean(0), calm.mean(0), rtol=0.25, atol=1e-3)
    assert set(np.unique(np.isclose(noisy, 0) | np.isclose(noisy, 2 * calm))) == {True}


def test_eight_images_are_learned_by_heart():
    _, step, state, placement = prepare_run(
        BN, "gap-16-3", augmentation=None, learning_rate=1e-2, epochs=100, schedule="constant"
    )
    batch = placement.put_batch(make_batch())
    for _ in range(60):
        state, metrics = step(state, batch)
    assert float(metrics["correct"]) == 8


def test_one_sigmoid_unit_learns_and_predicts_two_classes():
    model, step, state, placement = prepare_run(
        BN, "gap-16-1", augmentation=None, learning_rate=1e-2, epochs=100, schedule="constant"
    )
    batch = make_batch()
    batch["label"] = (np.arange(8) % 2).astype(np.int32)
    for _ in range(60):
        state, metrics = step(state, placement.put_batch(batch))
    assert float(metrics["correct"]) == 8
    nnx.update(model, state.params, state.batch_stats)
    probs = make_predict_step(model, "torch")(batch["images"])
    np.testing.assert_allclose(probs.sum(-1), 1, rtol=1e-6)
    assert probs.shape == (8, 2)


def test_bfloat16_computes_close_to_float32_and_keeps_float32_logits():
    make = dict(head=Head.parse("gap-16-3"), image_size=32)
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    full = VGG(PLAIN, rngs=nnx.Rngs(0), **make)(images)
    half = VGG(PLAIN, dtype=jnp.bfloat16, rngs=nnx.Rngs(0), **make)(images)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, full, atol=0.02 * float(jnp.abs(full).max()))


def test_a_batch_that_does_not_divide_over_the_devices_is_refused_with_one_that_does():
    with pytest.raises(ConfigError, match="30 does not divide over 4 devices; use 28 or 32"):
        Placement(num_devices=4).check_batch_size(30)


@pytest.mark.parametrize("count", [1, 8, 9, 20])
def test_a_few_images_at_a_time_give_what_all_at_once_give(tiny_arch, monkeypatch, count):
    monkeypatch.setattr("vggjax.training.step.MAX_MICROBATCH_PIXELS", 9 * 32**2)  # eight of them
    model = VGG(tiny_arch, head=Head.parse("gap-3"), image_size=32)
    images = jnp.asarray(np.random.default_rng(0).normal(0, 60, (count, 32, 32, 3)), jnp.float32)
    for forward in (model, lambda x: model(x, until="block2_pool")):
        expected = forward(images)
        found = map_microbatches(forward, images)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())
