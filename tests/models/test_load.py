"""Loading is strict: what fits goes in bit for bit, and leaving out a top is asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vggjax.errors import ConfigError, WeightsError
from vggjax.models.head import Head
from vggjax.models.network import VGG
from vggjax.models.params import assign, extract, shapes
from vggjax.weights.load import load_base, load_pretrained, open_weights
from vggjax.weights.weight_file import WeightFile, write_weights

THREE = Head("flatten", (6,), outputs=3)
FIVE = Head("flatten", (6,), outputs=5)


def random_weights(arch, head=None, seed=0):
    rng = np.random.default_rng(seed)
    model = nnx.eval_shape(lambda: VGG(arch, head=head, image_size=32))
    return {
        layer: {n: rng.uniform(0.1, 1, shape).astype(np.float32) for n, shape in sizes.items()}
        for layer, sizes in shapes(model).items()
    }


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


def test_a_file_of_the_same_layers_goes_in_bit_for_bit(tiny_arch, with_top, without_top):
    assert_holds(load(tiny_arch, with_top[0], THREE), with_top[1])
    assert_holds(load(tiny_arch, without_top[0]), without_top[1])


def test_nothing_random_is_drawn_for_a_file_that_fills_the_model(tiny_arch, with_top, monkeypatch):
    drawn = []

    def spy(key, shape, *args, **kwargs):
        drawn.append(not isinstance(jax.random.key_data(key), jax.core.Tracer))
        return jnp.zeros(shape)

    monkeypatch.setattr("vggjax.models.network._he_normal", spy)
    load(tiny_arch, with_top[0], THREE)
    assert drawn and not any(drawn)
    load(tiny_arch, with_top[0], FIVE, base_only=True)
    assert any(drawn)


def test_a_file_with_a_top_into_a_model_without_says_how_to_ask(tiny_arch, with_top):
    with pytest.raises(WeightsError, match="unexpected: .*base_only=True to leave out"):
        load(tiny_arch, with_top[0])


def test_a_file_without_a_top_into_a_model_with_one_says_how_to_ask(tiny_arch, without_top):
    with pytest.raises(WeightsError, match="missing: .*no top.*base_only=True"):
        load(tiny_arch, without_top[0], THREE)


def test_another_number_of_classes_says_how_to_ask(tiny_arch, with_top):
    with pytest.raises(WeightsError, match=r"predictions/kernel is \(6, 3\).*base_only=True"):
        load(tiny_arch, with_top[0], FIVE)


def test_another_network_lists_the_names_and_gives_no_false_hint(with_top):
    from vggjax.models.arch import Arch

    other = Arch("other", (1, 1, 2, 2, 1), (4, 4, 8, 8, 8))
    with pytest.raises(WeightsError, match="unexpected: .*block5_conv2/kernel") as caught:
        load(other, with_top[0], THREE)
    assert "base_only" not in str(caught.value)


def test_base_only_takes_the_base_and_leaves_the_top(tiny_arch, with_top, without_top):
    path, weights = with_top
    base = {k: v for k, v in weights.items() if k.startswith("block")}
    model = load(tiny_arch, path, FIVE, base_only=True)
    assert_holds(model, base)
    assert model.predictions.kernel.shape == (6, 5)
    assert extract(model)["fc1"]["kernel"].std() > 0
    assert_holds(load(tiny_arch, path, base_only=True), base)
    assert_holds(load(tiny_arch, without_top[0], FIVE, base_only=True), without_top[1])


def test_load_base_leaves_the_head_of_a_model_as_it_was(tiny_arch, with_top):
    model = nnx.eval_shape(lambda: VGG(tiny_arch, head=FIVE, image_size=32))
    assign(model, random_weights(tiny_arch, FIVE, seed=1))
    before = extract(model)
    load_base(model, WeightFile(with_top[0]))
    after = extract(model)
    changed = {k for k in after if not np.array_equal(before[k]["kernel"], after[k]["kernel"])}
    assert changed == set(tiny_arch.conv_channels())


def test_load_base_wants_the_whole_base(tiny_arch, tmp_path):
    weights = random_weights(tiny_arch)
    del weights["block3_conv2"]
    write_weights(tmp_path / "w.h5", weights)
    with pytest.raises(WeightsError, match="missing: block3_conv2"):
        load_base(nnx.eval_shape(lambda: VGG(tiny_arch)), WeightFile(tmp_path / "w.h5"))


def test_weights_none_is_random_and_ready_to_run(tiny_arch):
    model = load_pretrained(tiny_arch, weights="none", include_top=False, head=FIVE, image_size=32)
    assert model(np.zeros((1, 32, 32, 3), np.float32)).shape == (1, 5)


def test_base_only_beside_the_published_top_is_refused():
    with pytest.raises(ConfigError, match="include_top=False"):
        load_pretrained("vgg16", weights="none", base_only=True)


def test_a_misspelt_name_is_told_from_a_missing_file(tmp_path):
    with pytest.raises(WeightsError, match="Did you mean 'imagenet'"):
        open_weights("imagnet", "vgg16", include_top=True)
    with pytest.raises(WeightsError, match=r"no weight file .*gone\.h5"):
        open_weights(tmp_path / "gone.h5", "vgg16", include_top=True)


def test_a_model_with_batch_normalization_comes_ready_for_evaluation(tmp_path):
    from vggjax.models.arch import Arch

    arch = Arch("tiny_bn", (1, 1, 2, 2, 2), (4, 4, 8, 8, 8), batch_norm=True)
    write_weights(tmp_path / "w.weights.h5", random_weights(arch))
    model = load(arch, tmp_path / "w.weights.h5")
    images = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)
    np.testing.assert_allclose(model(images)[:1], model(images[:1]), rtol=1e-5)
