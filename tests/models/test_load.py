"""Loading is strict: every bit is kept, every misfit named, and a top left out only on request."""

import numpy as np
import pytest
from flax import nnx
from support.networks import random_network, random_weights

from vggjax.errors import ConfigError, WeightsError
from vggjax.models.arch import Arch
from vggjax.models.head import Head
from vggjax.models.network import VGG
from vggjax.models.params import assign, extract
from vggjax.weights.load import load_base, load_pretrained, open_weights
from vggjax.weights.weight_file import WeightFile, write_weights

THREE = Head("flatten", (6,), outputs=3)
FIVE = Head("flatten", (6,), outputs=5)


@pytest.fixture
def with_top(tmp_path, tiny_arch):
    weights = random_weights(tiny_arch, THREE)
    write_weights(tmp_path / "with_top.h5", weights)
    return tmp_path / "with_top.h5", weights


@pytest.fixture
def without_top(tmp_path, tiny_arch):
    weights = random_weights(tiny_arch)
    write_weights(tmp_path / "without_top.safetensors", weights)
    return tmp_path / "without_top.safetensors", weights


def load(arch, path, head=None, **kwargs):
    return load_pretrained(
        arch, weights=path, include_top=False, head=head, image_size=32, **kwargs
    )


def assert_holds(model, weights):
    held = extract(model)
    for layer, params in weights.items():
        for name, array in params.items():
            np.testing.assert_array_equal(held[layer][name], array, err_msg=layer)


def test_a_file_of_the_same_layers_is_loaded_bit_for_bit(tiny_arch, with_top, without_top):
    assert_holds(load(tiny_arch, with_top[0], THREE), with_top[1])
    assert_holds(load(tiny_arch, without_top[0]), without_top[1])


def test_a_file_that_fills_the_model_draws_no_random_numbers(tiny_arch, with_top, monkeypatch):
    drawn = []
    default_rng = np.random.default_rng
    monkeypatch.setattr(
        np.random, "default_rng", lambda *seed: drawn.append(1) or default_rng(*seed)
    )
    load(tiny_arch, with_top[0], THREE)
    assert not drawn
    load(tiny_arch, with_top[0], FIVE, base_only=True)
    assert drawn


def test_a_top_that_does_not_fit_is_refused_with_the_way_out(tiny_arch, with_top, without_top):
    for (path, _), head, message in (
        (with_top, None, "unexpected: .*base_only=True to leave out"),
        (without_top, THREE, "missing: .*no top.*base_only=True"),
        (with_top, FIVE, r"predictions/kernel is \(6, 3\).*base_only=True"),
    ):
        with pytest.raises(WeightsError, match=message):
            load(tiny_arch, path, head)


def test_another_network_is_refused_without_a_false_hint(with_top):
    other = Arch("other", (1, 1, 2, 2, 1), (4, 4, 8, 8, 8))
    with pytest.raises(WeightsError, match="unexpected: .*block5_conv2/kernel") as caught:
        load(other, with_top[0], THREE)
    assert "base_only" not in str(caught.value)


def test_base_only_loads_the_base_and_not_the_top(tiny_arch, with_top, without_top):
    path, weights = with_top
    base = {k: v for k, v in weights.items() if k.startswith("block")}
    model = load(tiny_arch, path, FIVE, base_only=True)
    assert_holds(model, base)
    assert model.predictions.kernel.shape == (6, 5)
    assert extract(model)["fc1"]["kernel"].std() > 0
    assert_holds(load(tiny_arch, path, base_only=True), base)
    assert_holds(load(tiny_arch, without_top[0], FIVE, base_only=True), without_top[1])


def test_load_base_does_not_change_the_head(tiny_arch, with_top):
    model = nnx.eval_shape(lambda: VGG(tiny_arch, head=FIVE, image_size=32))
    assign(model, random_weights(tiny_arch, FIVE, seed=1))
    before = extract(model)
    load_base(model, WeightFile(with_top[0]))
    after = extract(model)
    changed = {k for k in after if not np.array_equal(before[k]["kernel"], after[k]["kernel"])}
    assert changed == set(tiny_arch.conv_channels())


def test_load_base_refuses_a_part_of_the_base(tiny_arch, tmp_path):
    weights = random_weights(tiny_arch)
    del weights["block3_conv2"]
    write_weights(tmp_path / "w.h5", weights)
    with pytest.raises(WeightsError, match="missing: block3_conv2"):
        load_base(nnx.eval_shape(lambda: VGG(tiny_arch)), WeightFile(tmp_path / "w.h5"))


@pytest.mark.parametrize("weights", [None, "none"])
def test_weights_none_is_random_and_ready_to_run(tiny_arch, weights):
    model = load_pretrained(tiny_arch, weights=weights, include_top=False, head=FIVE, image_size=32)
    assert model(np.zeros((1, 32, 32, 3), np.float32)).shape == (1, 5)


def test_base_only_with_the_published_top_is_refused():
    with pytest.raises(ConfigError, match="include_top=False"):
        load_pretrained("vgg16", weights="none", base_only=True)


def test_a_misspelled_name_and_a_missing_file_have_messages_of_their_own(tmp_path):
    with pytest.raises(WeightsError, match="Did you mean 'imagenet'"):
        open_weights("imagnet", "vgg16", include_top=True)
    with pytest.raises(WeightsError, match=r"no weight file .*gone\.h5"):
        open_weights(tmp_path / "gone.h5", "vgg16", include_top=True)


def test_a_model_with_batch_normalization_is_loaded_in_evaluation_mode(tmp_path):
    write_weights(tmp_path / "w.weights.h5", random_weights("tiny_bn"))
    model = load("tiny_bn", tmp_path / "w.weights.h5")
    assert model.block1_bn1.use_running_average and model.block5_bn2.use_running_average
    assert_holds(model, random_weights("tiny_bn"))


def test_assign_lists_every_problem_by_name_and_changes_nothing(tiny_arch):
    model = random_network(tiny_arch, head=Head("gap", outputs=2))
    before, weights = extract(model), extract(model)
    weights = {layer: {n: a + 1 for n, a in params.items()} for layer, params in weights.items()}
    del weights["block3_conv1"]["bias"]
    weights["fc9"] = {"kernel": np.zeros((2, 2), np.float32)}
    weights["predictions"]["kernel"] = np.zeros((8, 7), np.float32)
    with pytest.raises(WeightsError) as caught:
        assign(model, weights)
    for words in ("missing: block3_conv1/bias", "unexpected: fc9/kernel",
                  "predictions/kernel is (8, 7), the model has (8, 2)"):  # fmt: skip
        assert words in str(caught.value)
    assert_holds(model, before)


def test_assign_skips_layers_on_both_sides(tiny_arch):
    model = random_network(tiny_arch, head=Head("gap", outputs=2))
    before = extract(model)
    weights = random_weights(tiny_arch, Head("gap", outputs=7))
    assign(model, weights, skip=["predictions"])
    assert_holds(model, weights | {"predictions": before["predictions"]})
