"""What a batch scores: label smoothing is in the loss of training alone, and as Keras has it."""

import jax.numpy as jnp
import numpy as np
import pytest

from vggjax.training.step import metric_sums


def make_scored(outputs, rows=6):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (rows, outputs)).astype(np.float32)
    label = (np.arange(rows) % max(outputs, 2)).astype(np.int32)
    return logits, {"label": label, "mask": np.ones(rows, np.float32)}


def test_smoothing_is_keras_for_softmax_and_for_one_sigmoid_unit(keras):
    logits, batch = make_scored(3)
    loss = keras.losses.CategoricalCrossentropy(
        from_logits=True, label_smoothing=0.2, reduction="sum"
    )
    expected = float(loss(np.eye(3, dtype=np.float32)[batch["label"]], logits))
    ours = metric_sums(jnp.asarray(logits), batch, label_smoothing=0.2)["loss"]
    assert float(ours) == pytest.approx(expected, rel=1e-5)

    logits, batch = make_scored(1)
    loss = keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=0.2, reduction="sum")
    expected = float(loss(batch["label"][:, None].astype(np.float32), logits))
    ours = metric_sums(jnp.asarray(logits), batch, label_smoothing=0.2)["loss"]
    assert float(ours) == pytest.approx(expected, rel=1e-5)


def test_smoothing_changes_the_loss_alone_and_none_changes_no_bit():
    logits, batch = make_scored(3)
    plain, none = (metric_sums(jnp.asarray(logits), batch, label_smoothing=s) for s in (0.3, 0.0))
    assert plain["loss"] != none["loss"]
    for name in ("correct", "top5", "count"):
        assert plain[name] == none[name]
    np.testing.assert_array_equal(none["loss"], metric_sums(jnp.asarray(logits), batch)["loss"])


def test_the_weight_of_a_class_is_that_of_the_right_answer_smoothed_or_not():
    logits, batch = make_scored(3)
    weights = np.array([1.0, 2.0, 4.0], np.float32)
    ours = metric_sums(jnp.asarray(logits), batch, class_weights=weights, label_smoothing=0.1)[
        "loss"
    ]
    one_by_one = [
        weights[label] * metric_sums(
            jnp.asarray(logits[i : i + 1]),
            {"label": batch["label"][i : i + 1], "mask": batch["mask"][i : i + 1]},
            label_smoothing=0.1,
        )["loss"]
        for i, label in enumerate(batch["label"])
    ]  # fmt: skip
    assert float(ours) == pytest.approx(float(sum(one_by_one)), rel=1e-5)
