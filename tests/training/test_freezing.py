"""One labeling decides what is differentiated, what is updated and at which rate."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support.steps import BN, PLAIN, make_batch, make_step

from vggjax.models.arch import ARCHS
from vggjax.models.head import Head
from vggjax.models.kernels import winograd
from vggjax.models.kernels.conv import make_convolve
from vggjax.models.network import VGG
from vggjax.training.config import Config
from vggjax.training.freezing import (
    label_layers,
    make_optimizer,
    make_schedules,
    peak_rates,
    plan_stages,
    trainable,
)
from vggjax.training.parallel import Placement
from vggjax.training.step import make_state, make_train_step

SGD = dict(
    optimizer="sgd", learning_rate=1.0, backbone_learning_rate=1.0, schedule="constant",
    warmup_epochs=0, weights="none",
)  # fmt: skip


@functools.cache
def plain_model():
    return VGG(PLAIN, head=Head.parse("gap-16-3"), image_size=32, rngs=nnx.Rngs(0))


def labels_and_optimizer(model, config):
    labels = label_layers(model, config.unfreeze, by_block=config.layer_decay != 1)
    schedules = make_schedules(config, plan_stages(config)[-1], steps_per_epoch=10)
    return labels, make_optimizer(config, labels, schedules)


def updates(unfreeze, gradient=1.0, **settings):
    """Return the optimizer's first updates, {layer/name: array}, for constant gradients."""
    config = Config(**SGD | {"unfreeze": unfreeze} | settings)
    model = plain_model()
    labels, tx = labels_and_optimizer(model, config)
    training = nnx.filter_state(nnx.state(model, nnx.Param), trainable(labels))
    grads = jax.tree.map(lambda p: jnp.full(p.shape, gradient), training)
    new = jax.jit(tx.update)(grads, tx.init(training), training, factor=1.0)[0]
    return {f"{layer}/{name}": np.asarray(new[layer][name][...]) for layer in new
            for name in new[layer]}  # fmt: skip


def norm(arrays):
    return float(np.sqrt(sum(np.square(array).sum() for array in arrays.values())))


def test_each_block_learns_at_the_decay_times_the_rate_of_the_block_after_it():
    decayed = updates("block[345]_conv1", layer_decay=0.5)
    for name, update in decayed.items():
        share = 0.5 ** (5 - int(name[5])) if name.startswith("block") else 1.0
        np.testing.assert_allclose(update, -share, rtol=1e-6, err_msg=name)
    assert {name[:6] for name in decayed} >= {"block3", "block4", "block5"}


def test_the_rate_of_a_block_does_not_depend_on_what_is_unfrozen():
    config = Config(weights="none", unfreeze=("block4",), learning_rate=1.0, layer_decay=0.5)
    assert peak_rates(config) == {
        "head": 1.0, "block5": 1.0, "block4": 0.5, "block3": 0.25, "block2": 0.125,
        "block1": 0.0625,
    }  # fmt: skip


def test_head_and_backbone_learn_at_their_own_rates_and_frozen_layers_have_no_update():
    for name, update in updates("block5", backbone_learning_rate=0.25).items():
        rate = 0.25 if name.startswith("block5") else 1.0
        np.testing.assert_allclose(update, -rate, rtol=1e-6, err_msg=name)
        assert not name.startswith("block4")


def test_the_norm_of_all_trainable_gradients_is_clipped_together():
    whole = updates("block5")
    clipped = updates("block5", clip_norm=norm(whole) / 3)
    for name in whole:
        np.testing.assert_allclose(3 * clipped[name], whole[name], rtol=1e-5, err_msg=name)
    unclipped = updates("block5", clip_norm=1e6)
    for name in whole:
        np.testing.assert_array_equal(unclipped[name], whole[name], err_msg=name)


def test_weight_decay_shrinks_kernels_and_leaves_biases():
    decayed = updates("none", 0.0, weight_decay=0.1, backbone_learning_rate=None)
    kernel = plain_model().fc1.kernel.get_value()
    np.testing.assert_allclose(decayed["fc1/kernel"], -0.1 * kernel, rtol=1e-6)
    assert not decayed["fc1/bias"].any()


@pytest.mark.parametrize("optimizer", ["adam", "nadam", "rmsprop", "sgd"])
def test_frozen_parameters_hold_no_moments(optimizer):
    model, config = plain_model(), Config(**SGD | {"optimizer": optimizer, "unfreeze": "block5"})
    labels, tx = labels_and_optimizer(model, config)
    state = make_state(model, tx, labels)
    trained = nnx.filter_state(state.params, trainable(labels))
    moments = {"adam": 2, "nadam": 2, "rmsprop": 1, "sgd": 1}[optimizer]
    held = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)
    assert held == moments * sum(leaf.size for leaf in jax.tree.leaves(trained)) > 0


def three_steps(**settings):
    step = make_step(BN, unfreeze="block5", optimizer="sgd", learning_rate=0.1, **settings)
    states = [step.state]
    for seed in range(3):
        states.append(step(states[-1], make_batch(seed=seed))[0])
    return states


def layers_that_differ(one, other):
    return {
        f"{layer}/{name}"
        for layer in one
        for name in one[layer]
        if not np.array_equal(one[layer][name][...], other[layer][name][...])
    }


def test_unfreeze_block5_leaves_all_before_it_bit_identical_and_averages_follow_the_weights():
    states = three_steps(ema=0.3)
    first, last = states[0], states[-1]
    # The normalization cancels the bias before it, whose gradient is 0 or rounding.
    assert layers_that_differ(first.params, last.params) - {"block5_conv1/bias"} == {
        "block5_conv1/kernel", "block5_bn1/scale", "block5_bn1/bias",
        "fc1/kernel", "fc1/bias", "predictions/kernel", "predictions/bias",
    }  # fmt: skip
    statistics = {"block5_bn1/mean", "block5_bn1/var"}
    assert layers_that_differ(first.batch_stats, last.batch_stats) == statistics
    params, batch_stats = last.eval_params
    assert layers_that_differ(first.batch_stats, batch_stats) == statistics
    assert set(last.averages[0]) == {"block5_conv1", "block5_bn1", "fc1", "predictions"}

    def average(get):
        value = np.asarray(get(first))
        for t, new in enumerate(states[1:]):
            decay = min(0.3, (1 + t) / (10 + t))
            value = decay * value + (1 - decay) * np.asarray(get(new))
        return value

    expected = average(lambda state: state.params["fc1"]["kernel"][...])
    np.testing.assert_allclose(params["fc1"]["kernel"][...], expected, rtol=1e-5, atol=1e-6)
    expected = average(lambda state: state.batch_stats["block5_bn1"]["mean"][...])
    np.testing.assert_allclose(
        batch_stats["block5_bn1"]["mean"][...], expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.slow
def test_averages_leave_what_is_learned_as_it_is():
    averaged, plain = three_steps(ema=0.3)[-1], three_steps()[-1]
    for a, b in zip(*(jax.tree.leaves(s.params) for s in (averaged, plain)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def lowered_step(unfreeze, *, method, **settings):
    """Return the step's program before XLA: what is differentiated is decided by then."""
    model = VGG(
        "tiny", head=Head.parse("gap-16-3"), image_size=96, conv=make_convolve(method),
        rngs=nnx.Rngs(0),
    )  # fmt: skip
    config = Config(weights="none", unfreeze=unfreeze, **settings)
    labels, tx = labels_and_optimizer(model, config)
    options = dict(placement=Placement(num_devices=1), mode="torch", ema=config.ema)
    step = make_train_step(model, tx, labels, **options, label_smoothing=config.label_smoothing)
    images = np.zeros((4, 96, 96, 3), np.uint8)  # a map of 6 px in block5, which XLA convolves
    batch = make_batch(4) | {"images": images}
    return step.lower(make_state(model, tx, labels, ema=config.ema), batch).as_text()


def count_work(unfreeze, **settings):
    text = lowered_step(unfreeze, method="direct", **settings)
    return tuple(
        len(re.findall(f"stablehlo.{name}", text)) for name in ("convolution", "dot_general")
    )


def test_the_step_has_no_winograd_gradient_of_frozen_blocks():
    if not winograd.is_compiled():
        pytest.skip("the compiled kernel is not installed: pip install -e .")
    texts = [lowered_step(unfreeze, method="winograd") for unfreeze in ("none", "block5")]
    assert [text.count("@vggjax_conv3x3_gradient") for text in texts] == [0, 2]


def test_the_step_has_no_backward_convolution_of_frozen_blocks():
    forward = len(ARCHS["tiny"].conv_channels())
    convolutions, products = count_work("none")
    assert convolutions == forward
    # block5_conv2: gradients of kernel (nine products) and input; block5_conv1: of the kernel.
    # The head's first layer passes its gradient on: one product more.
    block5 = (forward + 1, products + 2 * 9 + 1)
    assert count_work("block5") == block5
    # Neither clipping by their norm nor any other setting needs more gradients.
    settings = {"clip_norm": 1.0, "ema": 0.9, "label_smoothing": 0.1, "layer_decay": 0.5}
    assert count_work("block5", **settings) == block5
    # Every convolution has both, except that the first needs no gradient of the images.
    assert count_work("all") == (forward + forward - 1, products + forward * 9 + 1)


def test_the_head_trains_alone_first_only_where_pretrained_layers_are_unfrozen():
    def plan(**settings):
        return [(s.name, s.first_epoch, s.epochs) for s in plan_stages(Config(**settings))]

    assert plan(unfreeze="none", epochs=9) == [("head", 0, 9)]
    assert plan(unfreeze="block5", epochs=9) == [("head", 0, 3), ("head+block5", 3, 6)]
    assert plan(unfreeze="block5", epochs=2) == [("head", 0, 1), ("head+block5", 1, 1)]
    assert plan(unfreeze="block5", epochs=1) == [("head+block5", 0, 1)]
    assert plan(unfreeze="block5", epochs=9, head_epochs=0) == [("head+block5", 0, 9)]
    assert plan(unfreeze="all", weights="none", epochs=9) == [("head+all", 0, 9)]


def test_rates_warm_up_and_fall_to_nothing_within_the_stage():
    config = Config(unfreeze="block5", epochs=9, learning_rate=1.0)
    rate = make_schedules(config, plan_stages(config)[1], steps_per_epoch=10)["head"]
    rates = [float(rate(step)) for step in range(61)]
    assert 0 < rates[0] < 0.1 and max(rates) == rates[10] == 1.0 and rates[60] < 1e-6
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_pretrained_layers_learn_at_a_hundredth_of_the_rate_of_the_head_by_default():
    config = Config(unfreeze="block5", schedule="constant", warmup_epochs=0, learning_rate=1e-3)
    rates = make_schedules(config, plan_stages(config)[1], 10)
    np.testing.assert_allclose(float(rates["backbone"](5)), 1e-5, rtol=1e-6)
    np.testing.assert_allclose(float(rates["head"](5)), 1e-3, rtol=1e-6)
