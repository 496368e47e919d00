"""The small convnets: their text form, their published sizes, and the laws that VGG keeps too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_models import TINY, filled

from vggjax.errors import ConfigError
from vggjax.models.convnets import CNNS, ConvSpec
from vggjax.models.head import Head
from vggjax.models.network import VGG, Network
from vggjax.models.params import assign, extract, shapes
from vggjax.models.registry import find_arch
from vggjax.training.cache.plan import find_cut
from vggjax.training.config import Config
from vggjax.training.freezing import label_layers

EVERYTHING = ConvSpec("gray-4-bn-pool-0.25-6-0.5-5-bn-pool-7")
LAYERS = (
    "gray", "block1_conv1", "block1_bn1", "block1_pool", "block1_drop1", "block2_conv1",
    "block2_drop1", "block2_conv2", "block2_bn2", "block2_pool", "block3_conv1",
    "flatten", "fc1", "predictions",
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    head = Head.parse("flatten-6-0.4-3")
    return filled(EVERYTHING, make=Network, head=head, image_size=32)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(0, 1, (2, 32, 32, 3)).astype(np.float32)


def count(name):
    model = nnx.eval_shape(lambda: Network(name, include_top=True))
    return sum(
        int(np.prod(shape))
        for params in shapes(model).values()
        for name, shape in params.items()
        if name not in ("mean", "var")
    )


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("mnist-cnn", 258_090), ("cifar10-cnn", 122_570), ("cifar10-cnn-dropout", 122_570)],
)
def test_the_lessons_nets_have_the_lessons_numbers_of_parameters(name, parameters):
    assert count(name) == parameters


def test_a_pooling_ends_a_block_and_names_are_as_vgg_s(model):
    assert model.layers == LAYERS
    assert EVERYTHING.weighted_layers() == tuple(n for n in LAYERS if "_conv" in n or "_bn" in n)
    assert model.dropout_rates == {"block1_drop1": 0.25, "block2_drop1": 0.5, "fc1": 0.4}
    assert EVERYTHING.conv_channels()["block1_conv1"] == (1, 4)


def test_the_cut_law_holds_for_every_layer(model, images):
    whole = model(images)
    assert float(jnp.abs(whole).max()) > 0
    for layer in model.layers:
        cut = model(model(images, until=layer), after=layer)
        np.testing.assert_array_equal(cut, whole, err_msg=layer)


def test_the_cut_law_holds_with_dropout_drawn(model, images):
    keys = jax.random.split(jax.random.key(5), 2)
    whole = model(images, dropout_keys=keys)
    assert not np.array_equal(whole, model(images))
    for layer in model.layers:
        first = model(images, until=layer, dropout_keys=keys)
        cut = model(first, after=layer, dropout_keys=keys)
        np.testing.assert_array_equal(cut, whole, err_msg=layer)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_vgg_written_as_a_convnet_is_vgg(batch_norm):
    arch = TINY[batch_norm]
    bn = "-bn" if batch_norm else ""
    text = "-pool-".join(
        "-".join([f"{width}{bn}"] * convs)
        for convs, width in zip(arch.convs, arch.widths, strict=True)
    )
    head = Head.parse("flatten-6-3")
    vgg = filled(arch, head=head, image_size=32)
    twin = Network(ConvSpec(f"same-{text}-pool"), head=head, image_size=32)
    twin.eval()
    assert twin.layers == vgg.layers
    assign(twin, extract(vgg))
    images = np.random.default_rng(3).normal(0, 50, (2, 32, 32, 3)).astype(np.float32)
    np.testing.assert_array_equal(twin(images), vgg(images))


def test_each_dropout_draws_for_itself():
    model = filled(TINY[False], head=Head.parse("flatten-64-64-0.5-2"), image_size=32)
    keys = jax.random.split(jax.random.key(0), 1)
    weights = extract(model)
    for name in ("fc1", "fc2"):  # no unit is 0 but those that are dropped
        weights[name] = {key: np.ones_like(array) for key, array in weights[name].items()}
    assign(model, weights)
    kept = model(
        jnp.ones((1, 1, 1, 8)), after="block5_pool", taps=("fc1", "fc2"), dropout_keys=keys
    )
    first, second = kept["fc1"] != 0, kept["fc2"] != 0
    assert 16 < int(first.sum()) < 48
    assert 16 < int(second.sum()) < 48
    assert not np.array_equal(first, second)


def test_a_gray_image_is_its_own_gray_and_green_counts_most(model):
    images = np.zeros((4, 32, 32, 3), np.float32)
    images[0], images[1, ..., 0], images[2, ..., 1], images[3, ..., 2] = 0.5, 1, 1, 1
    gray = model(images, until="gray")
    assert gray.shape == (4, 32, 32, 1)
    np.testing.assert_allclose(gray[:, 0, 0, 0], [0.5, 0.299, 0.587, 0.114], atol=1e-6)


@pytest.mark.parametrize("name", CNNS)
def test_the_map_is_as_large_as_the_spec_says_and_the_least_image_runs(name):
    spec = CNNS[name]
    for size in (spec.min_size_px, 33):
        model = nnx.eval_shape(lambda size=size: Network(spec, image_size=size))
        images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
        shape = nnx.eval_shape(lambda m, x: m(x), model, images).shape
        assert shape == (1, spec.map_size(size), spec.map_size(size), spec.width)
    with pytest.raises(ConfigError, match=f"{name} .* {spec.min_size_px} px or more"):
        Network(spec, image_size=spec.min_size_px - 1)


@pytest.mark.parametrize(
    "text",
    ["", "gray", "same", "32-", "bn-32", "pool-32", "0.5-32", "32-pool-pool", "32-bn-bn", "32-1.5",
     "32-0.2-0.2", "0", "32-pool-bn", "32-x", "-".join("123456789" + "1"), "same-gray-32"],
)  # fmt: skip
def test_a_convnet_that_cannot_be_is_refused_on_one_line(text):
    with pytest.raises(ConfigError, match="A convnet") as caught:
        ConvSpec(text)
    assert "\n" not in str(caught.value)


def test_networks_are_found_by_name_by_spec_or_by_the_nearest_name():
    assert find_arch("cnn-gray-32-pool-32").text == CNNS["mnist-cnn"].text
    assert find_arch("cnn-conv") is CNNS["cnn-conv"]
    assert Network("vgg11", image_size=32).layers == VGG("vgg11", image_size=32).layers
    for wrong, near in [("cnn-pol-bn", "cnn-pool-bn"), ("cifar10_cnn", "cifar10-cnn"),
                        ("vgg61", "vgg1")]:  # fmt: skip
        with pytest.raises(ConfigError, match=f"Did you mean '{near}"):
            find_arch(wrong)


def test_a_top_that_a_net_does_not_have_is_refused():
    with pytest.raises(ConfigError, match="no head of its own"):
        Network(ConvSpec("8-pool-8"), include_top=True)
    with pytest.raises(ConfigError, match="as well"):
        Network("cifar10-cnn", include_top=True, head=Head.parse("gap-3"))


def test_a_config_takes_a_convnet_s_own_layers_and_sizes():
    config = Config(model="mnist-cnn", image_size=8, weights="none", unfreeze=("block2",))
    assert config.base_layers == ("block1_conv1", "block2_conv1")
    with pytest.raises(ConfigError, match="8 px or more; got image size 7"):
        Config(model="mnist-cnn", image_size=7)
    with pytest.raises(ConfigError, match="Did you mean 'block2'"):
        Config(model="mnist-cnn", image_size=28, unfreeze=("block5",))


def test_what_has_parameters_is_labeled_and_kept_features_end_before_dropout(model):
    labels = label_layers(model, ("block3",))
    assert labels["block3_conv1"] == "backbone"
    assert labels["predictions"] == "head"
    assert set(labels) == {*EVERYTHING.weighted_layers(), "fc1", "predictions"}
    assert find_cut(model, labels) == "block1_pool"  # block1_drop1 is random
    assert find_cut(model, label_layers(model, ("all",))) is None  # `gray` is not worth keeping
