"""The rates of the layers, from block to block and from epoch to epoch."""

import functools

import jax
import numpy as np
import pytest
from test_step import BN, PLAIN, make_batch, prepare_run

from vggjax.data.augment.settings import PRESETS
from vggjax.training.config import Config
from vggjax.training.freezing import label_layers, peak_rates
from vggjax.training.progress import TrainProgress

SGD = {"optimizer": "sgd", "learning_rate": 1.0, "backbone_learning_rate": 1.0}


def make(arch=PLAIN, **settings):
    settings = SGD | {"schedule": "constant"} | settings
    return prepare_run(arch, augmentation=PRESETS["none"], donate=False, **settings)


@functools.cache
def moved(unfreeze, **settings):
    """Gives how far each parameter goes in one step: {layer/name: array}."""
    _, step, state, _ = make(unfreeze=(unfreeze,), **settings)
    new = step(state, make_batch())[0]
    change = jax.tree.map(
        lambda after, before: np.asarray(after - before), new.params, state.params
    )
    return {
        f"{layer}/{name}": np.asarray(change[layer][name][...])
        for layer in change
        for name in change[layer]
    }


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def norm(arrays):
    return float(np.sqrt(sum(np.square(array).sum() for array in arrays.values())))


def test_each_block_learns_at_the_decay_times_the_rate_of_the_block_after_it():
    whole, decayed = moved("block[345]_conv1"), moved("block[345]_conv1", layer_decay=0.5)
    for layer in ("block3_conv1", "block4_conv1", "block5_conv1"):
        name, share = f"{layer}/kernel", 0.5 ** (5 - int(layer[5]))
        np.testing.assert_allclose(decayed[name], share * whole[name], rtol=1e-3, atol=1e-7)
        assert np.any(decayed[name])
    np.testing.assert_array_equal(decayed["fc1/kernel"], whole["fc1/kernel"])


def test_blocks_have_the_same_rate_whether_others_are_unfrozen_or_not():
    model, *_ = make(unfreeze=("block5",))
    labels = label_layers(model, ("block4", "block5"), by_block=True)
    assert {layer: label for layer, label in labels.items() if label != "frozen"} == {
        "block4_conv1": "block4",
        "block5_conv1": "block5",
        "fc1": "head",
        "predictions": "head",
    }
    config = Config(weights="none", unfreeze=("block4",), learning_rate=1.0, layer_decay=0.5)
    assert peak_rates(config) == {
        "head": 1.0, "block5": 1.0, "block4": 0.5, "block3": 0.25, "block2": 0.125,
        "block1": 0.0625,
    }  # fmt: skip


def test_layer_decay_leaves_what_one_block_learns_and_frozen_blocks_as_they_are():
    decayed = moved("block5", layer_decay=0.65)
    assert_same(decayed, moved("block5"))
    assert not np.any(decayed["block4_conv1/kernel"])


def test_the_norm_of_all_that_trains_is_clipped_together():
    whole = moved("block5")
    limit = norm(whole) / 3
    clipped = moved("block5", clip_norm=limit)
    assert norm(clipped) == pytest.approx(limit, rel=1e-4)
    for name in ("fc1/kernel", "block5_conv1/kernel"):
        np.testing.assert_allclose(3 * clipped[name], whole[name], rtol=1e-3, atol=1e-6)


def test_a_clip_that_is_never_reached_changes_no_bit():
    assert_same(moved("block5", clip_norm=1e6), moved("block5"))


def test_averages_follow_the_weights_and_leave_what_is_learned_as_it_is():
    settings = {"unfreeze": ("block5",), "learning_rate": 0.1}
    model, step, state, _ = make(BN, **settings, ema=0.3)
    _, plain_step, plain, _ = make(BN, **settings)
    first, seen = state, []
    for _ in range(4):
        state, plain = step(state, make_batch())[0], plain_step(plain, make_batch())[0]
        seen.append(state)
    jax.tree.map(np.testing.assert_array_equal, state.params, plain.params)

    def average(get):
        value = np.asarray(get(first))
        for t, new in enumerate(seen):
            keeps = min(0.3, (1 + t) / (10 + t))
            value = keeps * value + (1 - keeps) * np.asarray(get(new))
        return value

    params, batch_stats = state.eval_params
    np.testing.assert_allclose(
        params["fc1"]["kernel"][...],
        average(lambda state: state.params["fc1"]["kernel"][...]), rtol=1e-4, atol=1e-6,
    )  # fmt: skip
    np.testing.assert_allclose(
        batch_stats["block5_bn1"]["mean"][...],
        average(lambda state: state.batch_stats["block5_bn1"]["mean"][...]), rtol=1e-4, atol=1e-6,
    )  # fmt: skip
    for name in ("mean", "var"):  # of a frozen layer, not one bit
        np.testing.assert_array_equal(
            batch_stats["block4_bn1"][name][...], first.batch_stats["block4_bn1"][name][...]
        )
    assert set(state.averages[0]) == {"block5_conv1", "block5_bn1", "fc1", "predictions"}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras' own
def test_a_plateau_lowers_the_rates_as_keras_reducelronplateau_does(keras):
    losses = [2.0, 1.5, 1.49995, 1.6, 1.5, 1.2, 1.2, 1.2, 1.2, 1.2, 1.2, float("nan"), 1.0, 1.1]
    config = Config(schedule="plateau", plateau_factor=0.5, plateau_patience=2)
    position, ours = TrainProgress(), []
    for loss in losses:
        position.reduce_on_plateau(config, loss)
        ours.append(position.factor)

    model = keras.Sequential([keras.layers.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(1.0), "mse")
    callback = keras.callbacks.ReduceLROnPlateau(factor=0.5, patience=2)
    callback.set_model(model)
    callback.on_train_begin()
    theirs = []
    for epoch, loss in enumerate(losses):
        callback.on_epoch_end(epoch, {"val_loss": loss})
        theirs.append(float(model.optimizer.learning_rate))
    assert ours == theirs and ours[-1] < 0.3


def test_a_new_stage_has_its_full_rates_but_for_a_recovery():
    position = TrainProgress(rate_factor=0.1, plateau_factor=0.5, plateau_best=1.0)
    position.begin_stage("head+block5")
    assert (position.factor, position.plateau_best) == (0.1, None)
