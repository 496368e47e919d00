"""The networks: the cut law for every layer, taps, published sizes, heads and dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support.networks import num_parameters, random_network

from vggjax.errors import ConfigError
from vggjax.models.arch import get_arch
from vggjax.models.convnets import CNNS, ConvSpec
from vggjax.models.head import Head
from vggjax.models.network import VGG, Network
from vggjax.models.params import assign, extract
from vggjax.training.cache.plan import find_cut
from vggjax.training.freezing import label_layers

HEAD = Head("avg2", (6, 5), 0.4, 3)
EVERYTHING = ConvSpec("gray-4-bn-pool-0.25-6-0.5-5-bn-pool-7")
NETWORKS = {
    "vgg_bfloat16": ("tiny", {"dtype": jnp.bfloat16}),
    "convnet": (EVERYTHING, {}),  # with batch normalization and dropout
}


@pytest.fixture(scope="module", params=NETWORKS)
def model(request):
    arch, settings = NETWORKS[request.param]
    return random_network(arch, head=HEAD, image_size=64, **settings)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(0, 50, (2, 64, 64, 3)).astype(np.float32)


def test_cutting_at_any_layer_changes_nothing_and_taps_are_the_outputs(model, images):
    keys = jax.random.split(jax.random.key(5), 2)
    for settings in ({}, {"dropout_keys": keys}):
        taps = model(images, taps=model.layers, **settings)
        assert list(taps) == list(model.layers)
        logits = taps["predictions"]
        assert logits.dtype == jnp.float32 and float(jnp.abs(logits).max()) > 0
        for layer in model.layers:
            cut = model(taps[layer], after=layer, **settings)
            np.testing.assert_array_equal(cut, logits, err_msg=layer)
    assert not np.array_equal(logits, model(images))  # dropout did something


def test_until_and_taps_inside_a_slice_give_what_taps_of_the_whole_give(model, images):
    taps = model(images, taps=model.layers)
    middle = model.layers.index("block2_pool")
    for layer in model.layers[: middle + 1]:
        np.testing.assert_array_equal(model(images, until=layer), taps[layer], err_msg=layer)
    later = model.layers[middle + 2]
    tap = model(taps["block2_pool"], after="block2_pool", taps=(later,))[later]
    np.testing.assert_array_equal(tap, taps[later])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"until": "blok5_pool"}, "Did you mean 'block5_pool'"),
        ({"until": "relu33"}, "Did you mean 'relu3_2'"),
        ({"taps": ("block9_conv1",)}, "block9_conv1"),
        ({"after": "block3_pool", "until": "block1_pool"}, "Nothing to run"),
        ({"until": "block1_pool", "taps": ("block2_conv1",)}, "Nothing to run"),
        ({"after": "block2_conv1", "taps": ("block2_conv1",)}, "Nothing to run"),
    ],
)
def test_an_unknown_layer_or_an_empty_slice_is_refused(images, arguments, message):
    model = nnx.eval_shape(lambda: VGG("tiny"))
    with pytest.raises(ConfigError, match=message):
        model(images, **arguments)


@pytest.mark.parametrize(
    ("arch", "alias", "layer"),
    [
        ("vgg16", "features.15", "block3_conv3"),
        ("vgg16", "relu3_3", "block3_conv3"),
        ("vgg16", "conv3_3", "block3_conv3"),
        ("vgg16", "features.30", "block5_pool"),
        ("vgg19", "features.35", "block5_conv4"),
        ("vgg16", "pool5", "block5_pool"),
        ("vgg16", "fc7", "fc2"),
        ("vgg16", "classifier.6", "predictions"),
        ("vgg16_bn", "features.40", "block5_conv3"),
        ("vgg16_bn", "features.42", "block5_bn3"),
        ("vgg16_bn", "relu5_3", "block5_bn3"),
    ],
)
def test_torchvision_s_and_caffe_s_names_are_those_of_layers(arch, alias, layer):
    aliases = get_arch(arch).aliases() | Head.parse("flatten-4096-4096-1000").aliases()
    assert aliases[alias] == layer


def test_a_tap_may_have_another_library_s_name_and_keeps_it(images):
    model = random_network("tiny")
    taps = model(images, taps=("features.4", "relu2_1", "block2_conv1"))
    assert list(taps) == ["features.4", "relu2_1", "block2_conv1"]
    for name in taps:
        np.testing.assert_array_equal(taps[name], taps["block2_conv1"])
    last = model(images, until="pool3")
    np.testing.assert_array_equal(model(taps["relu2_1"], after="relu2_1", until="pool3"), last)


@pytest.mark.parametrize(("arch", "name"), [("tiny", "features.3"), ("tiny_bn", "features.5")])
def test_an_output_before_its_relu_is_refused_with_the_layer_after_it(images, arch, name):
    model = nnx.eval_shape(lambda: VGG(arch))
    with pytest.raises(ConfigError, match=f"no output '{name}', before a ReLU.* is 'block"):
        model(images, until=name)


def test_images_that_are_not_preprocessed_are_refused_with_the_line_to_write():
    model = nnx.eval_shape(lambda: VGG("tiny"))
    with pytest.raises(ConfigError, match=r"got uint8. Write model\(vggjax.preprocess\(images"):
        model(np.zeros((1, 32, 32, 3), np.uint8))


def test_a_model_is_printed_in_one_line():
    for text in (repr, str):
        assert text(nnx.eval_shape(lambda: VGG("vgg16", include_top=True))) == (
            "VGG('vgg16', head='flatten-4096-4096-1000', image_size=224, dtype=float32, "
            "parameters=138,357,544)"
        )
    assert "head=None," in repr(nnx.eval_shape(lambda: VGG("tiny")))


def test_bfloat16_rounds_the_first_layer_once_and_its_images_not_at_all(images):
    half, whole = (random_network("tiny", dtype=dtype) for dtype in (jnp.bfloat16, jnp.float32))
    received, expected = (model(images + 100, until="block1_conv1") for model in (half, whole))
    assert received.dtype == jnp.bfloat16
    np.testing.assert_allclose(received.astype(jnp.float32), expected, rtol=2**-8, atol=1e-4)


def test_bfloat16_computes_in_bfloat16_with_float32_parameters(images):
    model = random_network("tiny", head=HEAD, image_size=64, dtype=jnp.bfloat16)
    assert model(images, until="block5_pool").dtype == jnp.bfloat16
    assert {a.dtype for p in extract(model).values() for a in p.values()} == {np.dtype("float32")}


def test_the_model_jits_under_strict_promotion(images):
    model = random_network("tiny", head=Head("gap", outputs=3))
    graph, state = nnx.split(model)
    with jax.numpy_dtype_promotion("strict"):
        jitted = jax.jit(lambda state, x: nnx.merge(graph, state)(x))(state, images)
    np.testing.assert_allclose(jitted, model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arch", "include_top", "parameters"),
    [
        ("vgg16", True, 138_357_544),
        ("vgg16", False, 14_714_688),
        ("vgg19", True, 143_667_240),
        ("vgg19", False, 20_024_384),
        ("vgg11", True, 132_863_336),
        ("vgg13", True, 133_047_848),
        ("vgg16_bn", True, 138_365_992),
        ("mnist-cnn", True, 258_090),
        ("cifar10-cnn", True, 122_570),
        ("cifar10-cnn-dropout", True, 122_570),
    ],
)
def test_parameter_counts_are_the_published_ones(arch, include_top, parameters):
    assert num_parameters(arch, include_top=include_top) == parameters


@pytest.mark.parametrize(
    ("head", "image_size", "parameters"),
    [
        ("avg2-128-0.4-5", 200, 590_597),
        ("flatten-131", 100, 603_779),
        ("flatten-256-0.5-1", 224, 6_423_041),
    ],
)
def test_heads_have_the_parameter_counts_of_the_recipes(head, image_size, parameters):
    whole = num_parameters("vgg16", head=Head.parse(head), image_size=image_size)
    assert whole - 14_714_688 == parameters


@pytest.mark.parametrize("name", CNNS)
def test_map_size_is_the_size_of_the_map_and_the_smallest_image_runs(name):
    spec = CNNS[name]
    for size in (spec.min_size_px, 33):
        model = nnx.eval_shape(lambda size=size: Network(name, image_size=size))
        images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
        shape = nnx.eval_shape(lambda m, x: m(x), model, images).shape
        assert shape == (1, spec.map_size(size), spec.map_size(size), spec.width)
    with pytest.raises(ConfigError, match=f"{name} .* {spec.min_size_px} px or more"):
        Network(name, image_size=spec.min_size_px - 1)


@pytest.mark.parametrize("size", [(31, 31), (32, 16), (1, 224)])
def test_an_image_below_32_px_is_refused(size):
    model = nnx.eval_shape(lambda: VGG("tiny"))
    with pytest.raises(ConfigError, match=rf"32 px or more; got {size[0]}x{size[1]} px"):
        model(np.zeros((1, *size, 3), np.float32))
    with pytest.raises(ConfigError, match="32 px or more; got 31 px"):
        VGG("tiny", image_size=31)


def test_a_head_that_flattens_accepts_one_size_and_any_other_head_every_size():
    shapes = [jax.ShapeDtypeStruct((1, *s, 3), jnp.float32) for s in ((32, 32), (33, 47), (64, 96))]
    for shape in shapes:
        model = nnx.eval_shape(lambda: VGG("tiny", head=Head("gap", outputs=2)))
        assert nnx.eval_shape(lambda m, x: m(x), model, shape).shape == (1, 2)
    flattening = nnx.eval_shape(lambda: VGG("tiny", head=Head("flatten", outputs=2), image_size=64))
    with pytest.raises(ConfigError, match="built for 64 px; got 96x96 px"):
        flattening(np.zeros((1, 96, 96, 3), np.float32))


@pytest.mark.parametrize(
    ("arch", "settings", "message"),
    [
        (ConvSpec("8-pool-8"), {"include_top": True}, "no head of its own"),
        ("vgg16", {"include_top": True, "head": Head.parse("gap-3")}, "exclude each other"),
        ("tiny", {"head": Head("gap")}, "lacks its number of outputs.*'gap-10'"),
        ("tiny", {"head": Head("avg2", outputs=2), "image_size": 63}, "needs images of 64 px"),
    ],
)
def test_a_head_that_cannot_be_built_is_refused(arch, settings, message):
    with pytest.raises(ConfigError, match=message):
        nnx.eval_shape(lambda: Network(arch, **settings))


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_vgg_written_as_a_convnet_is_the_vgg(images, batch_norm):
    arch = get_arch("tiny_bn" if batch_norm else "tiny")
    bn = "-bn" if batch_norm else ""
    text = "-pool-".join(
        "-".join([f"{width}{bn}"] * convs)
        for convs, width in zip(arch.convs, arch.widths, strict=True)
    )
    vgg = random_network(arch, head=HEAD, image_size=64)
    convnet = random_network(ConvSpec(f"same-{text}-pool"), head=HEAD, image_size=64)
    assert convnet.layers == vgg.layers
    assign(convnet, extract(vgg))
    np.testing.assert_array_equal(convnet(images), vgg(images))


def test_each_dropout_layer_draws_its_own_numbers_at_its_rate():
    model = random_network("tiny", head=Head.parse("flatten-64-64-0.5-2"), image_size=32)
    weights = extract(model)
    for name in ("fc1", "fc2"):  # so that only dropped units are 0
        weights[name] = {key: np.ones_like(array) for key, array in weights[name].items()}
    assign(model, weights)
    keys = jax.random.split(jax.random.key(0), 1)
    features = jnp.ones((1, 1, 1, 8))
    taps = model(features, after="block5_pool", taps=("fc1", "fc2"), dropout_keys=keys)
    first, second = taps["fc1"] != 0, taps["fc2"] != 0
    assert 16 < int(first.sum()) < 48 and 16 < int(second.sum()) < 48  # 4 sigma around 32
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(taps["fc1"][first], 2 * 9)  # 8 features and a bias, over 0.5


def test_gray_weights_the_channels_by_luma():
    images = np.zeros((4, 32, 32, 3), np.float32)
    images[0], images[1, ..., 0], images[2, ..., 1], images[3, ..., 2] = 0.5, 1, 1, 1
    gray = random_network(EVERYTHING)(images, until="gray")
    assert gray.shape == (4, 32, 32, 1)
    np.testing.assert_allclose(gray[:, 0, 0, 0], [0.5, 0.299, 0.587, 0.114], atol=1e-6)


def test_a_convnet_s_layers_are_labeled_and_its_cached_features_end_before_dropout():
    model = nnx.eval_shape(lambda: Network(EVERYTHING, head=Head.parse("flatten-6-0.4-3")))
    labels = label_layers(model, ("block3",))
    assert labels["block3_conv1"] == "backbone"
    assert labels["predictions"] == "head"
    assert set(labels) == {*EVERYTHING.weighted_layers(), "fc1", "predictions"}
    assert find_cut(model, labels) == "block1_pool"  # block1_drop1 is random
    assert find_cut(model, label_layers(model, ("all",))) is None  # `gray` is not worth keeping
