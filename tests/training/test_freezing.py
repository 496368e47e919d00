"""One labeling decides what is differentiated, what is updated, and what holds moments."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vggjax.models.arch import Arch
from vggjax.models.head import Head
from vggjax.models.kernels import conv, winograd
from vggjax.models.network import VGG
from vggjax.models.params import extract
from vggjax.training.config import Config
from vggjax.training.freezing import label_layers, make_optimizer, make_schedules, plan_stages
from vggjax.training.parallel import Placement
from vggjax.training.step import make_state, make_train_step

TINY = Arch("tiny", (1, 1, 2, 2, 2), (4, 4, 8, 8, 8))
TINY_BN = Arch("tiny_bn", TINY.convs, TINY.widths, batch_norm=True)


def make_batch(rows=4, size=96):
    rng = np.random.default_rng(0)
    return {
        "images": rng.integers(0, 256, (rows, size, size, 3), dtype=np.uint8),
        "label": np.arange(rows, dtype=np.int32) % 3,
        "mask": np.ones(rows, np.float32),
    }


def prepare_run(arch, unfreeze, **settings):
    """96 px leave block5 a map of 6x6 px, which goes through XLA's own convolution."""
    model = VGG(arch, head=Head.parse("gap-16-3"), image_size=96, rngs=nnx.Rngs(0))
    settings = {"unfreeze": unfreeze, "warmup_epochs": 0, "schedule": "constant"} | settings
    config = Config(weights="none", **settings)
    labels = label_layers(model, unfreeze, by_block=config.layer_decay != 1)
    stage = plan_stages(config)[-1]
    tx = make_optimizer(config, labels, make_schedules(config, stage, 10))
    placement = Placement(num_devices=1)
    options = {"label_smoothing": config.label_smoothing, "ema": config.ema, "donate": False}
    step = make_train_step(model, tx, labels, placement=placement, mode="torch", **options)
    return model, step, make_state(model, tx, labels, ema=config.ema)


def changed_layers(model, before):
    after = extract(model)
    return {
        f"{layer}/{name}"
        for layer, arrays in before.items()
        for name in arrays
        if not np.array_equal(arrays[name], after[layer][name])
    }


def test_unfreeze_block5_leaves_all_before_it_bit_identical():
    model, step, state = prepare_run(TINY, ("block5",))
    before = extract(model)
    for _ in range(3):
        state, _ = step(state, make_batch())
    nnx.update(model, state.params)
    layers = ("block5_conv1", "block5_conv2", "fc1", "predictions")
    assert changed_layers(model, before) == {
        f"{layer}/{name}" for layer in layers for name in ("kernel", "bias")
    }


def test_frozen_batch_norm_keeps_its_statistics_and_trained_ones_update_them():
    model, step, state = prepare_run(TINY_BN, ("block5",))
    before = extract(model)
    state, _ = step(state, make_batch())
    nnx.update(model, state.params, state.batch_stats)
    statistics = {n for n in changed_layers(model, before) if n.endswith(("/mean", "/var"))}
    assert statistics == {f"block5_bn{i}/{n}" for i in (1, 2) for n in ("mean", "var")}


def compiled_step(unfreeze, **settings):
    _, step, state = prepare_run(TINY, unfreeze, **settings)
    return step.lower(state, make_batch()).compile().as_text()


def count_work(unfreeze, **settings):
    """Counts the compiled step's convolutions, and its products beyond those of the head alone."""
    text = compiled_step(unfreeze, **settings)
    return tuple(len(re.findall(rf"= \S+ {name}\(", text)) for name in ("convolution", "dot"))


def test_the_compiled_step_holds_no_winograd_gradient_of_frozen_blocks():
    if not winograd.native():
        pytest.skip("the compiled kernel is not installed: pip install -e .")
    target = 'custom_call_target="vggjax_winograd_gradient"'
    counts = [compiled_step(unfreeze).count(target) for unfreeze in (("none",), ("block5",))]
    assert counts == [0, 2]


def test_the_compiled_step_holds_no_backward_convolution_of_frozen_blocks(monkeypatch):
    monkeypatch.setattr(conv, "choose_path", lambda *shapes, method: "direct")
    forward = len(TINY.conv_channels())
    convolutions, products = count_work(("none",))
    assert convolutions == forward
    # block5_conv2: gradients of kernel (nine products) and input; block5_conv1: of the kernel.
    # The head's first layer hands its gradient down: one product more.
    of_block5 = (forward + 1, products + 2 * 9 + 1)
    assert count_work(("block5",)) == of_block5
    # Their norm asks for no more of them, nor does what else hangs on them.
    asking = {"clip_norm": 1.0, "ema": 0.9, "label_smoothing": 0.1, "layer_decay": 0.5}
    assert count_work(("block5",), **asking) == of_block5
    # Every convolution has both, but the first, whose input are the images.
    assert count_work(("all",)) == (forward + forward - 1, products + forward * 9 + 1)


@pytest.mark.parametrize("optimizer", ["adam", "nadam", "rmsprop", "sgd"])
def test_frozen_parameters_hold_no_moments(optimizer):
    model, _, state = prepare_run(TINY, ("block5",), optimizer=optimizer)
    moments = {"adam": 2, "nadam": 2, "rmsprop": 1, "sgd": 1}[optimizer]
    trained = sum(
        array.size
        for layer, arrays in extract(model).items()
        for array in arrays.values()
        if layer.startswith(("block5", "fc1", "predictions"))
    )
    held = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)
    assert held == moments * trained


def test_head_and_backbone_learn_at_their_own_rates():
    model, step, state = prepare_run(TINY, ("block5",), optimizer="sgd", learning_rate=1.0,
                                backbone_learning_rate=0.25)  # fmt: skip
    same = {"optimizer": "sgd", "learning_rate": 1.0, "backbone_learning_rate": 1.0}
    _, step_same, _ = prepare_run(TINY, ("block5",), **same)
    ours, reference = step(state, make_batch())[0], step_same(state, make_batch())[0]

    def moved(new, layer):
        return new.params[layer]["kernel"].get_value() - state.params[layer]["kernel"].get_value()

    np.testing.assert_allclose(moved(ours, "fc1"), moved(reference, "fc1"), rtol=1e-6)
    np.testing.assert_allclose(
        moved(ours, "block5_conv1"), 0.25 * moved(reference, "block5_conv1"), atol=1e-7
    )


def test_weight_decay_shrinks_kernels_and_leaves_biases():
    settings = {"optimizer": "sgd", "learning_rate": 0.5, "weight_decay": 0.1}
    model, step, state = prepare_run(TINY, ("none",), **settings)
    batch = make_batch() | {"mask": np.zeros(4, np.float32)}  # no gradient at all
    after = step(state, batch)[0].params
    np.testing.assert_allclose(
        after["fc1"]["kernel"].get_value(), 0.95 * model.fc1.kernel.get_value(), rtol=1e-6
    )
    np.testing.assert_array_equal(after["fc1"]["bias"].get_value(), model.fc1.bias.get_value())


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


def test_pretrained_layers_learn_at_a_hundredth_of_the_heads_rate_unless_told():
    config = Config(unfreeze="block5", schedule="constant", warmup_epochs=0, learning_rate=1e-3)
    rates = make_schedules(config, plan_stages(config)[1], 10)
    np.testing.assert_allclose(float(rates["backbone"](5)), 1e-5, rtol=1e-6)
    assert jnp.isclose(rates["head"](5), 1e-3)
