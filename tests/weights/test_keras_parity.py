"""Our numbers against Keras' own, with TensorFlow's arithmetic: this file cannot be skipped.

Keras makes VGG16 and VGG19 with random weights, full and without their tops, and writes each of its
layouts; we read the same arrays bit for bit and compute the same logits and the same taps.
"""

import numpy as np
import pytest
from flax import nnx

from vggjax.models.head import Head
from vggjax.models.network import VGG
from vggjax.models.params import assign
from vggjax.weights.load import load_pretrained
from vggjax.weights.names import order
from vggjax.weights.weight_file import read_weights, write_weights

# Keras turns TensorFlow's variables into numpy by a way that numpy 2 calls old.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)

KERAS_LAYOUTS = (".h5", ".weights.h5", ".keras")
RELATIVE = 1e-4  # of the tap's largest value: two libraries add in another order


def make(keras, arch, *, include_top, size):
    """Keras' model; random weights that keep the activations' size, and biases that are not 0."""
    build = {"vgg16": keras.applications.VGG16, "vgg19": keras.applications.VGG19}[arch]
    model = build(
        weights=None,
        include_top=include_top,
        input_shape=(size, size, 3),
        classifier_activation=None,
    )
    rng = np.random.default_rng(sum(map(ord, arch)))
    for layer in model.layers:
        if layer.weights:
            kernel, bias = (tuple(w.shape) for w in layer.weights)
            limit = np.sqrt(6 / np.prod(kernel[:-1]))  # uniform with He's variance
            layer.set_weights(
                [
                    (rng.random(kernel, np.float32) * 2 - 1) * np.float32(limit),
                    (rng.random(bias, np.float32) * 2 - 1) * np.float32(10),
                ]
            )
    return model


def arrays(model):
    """Keras' own values as our dict."""
    return {
        layer.name: dict(zip(("kernel", "bias"), layer.get_weights(), strict=True))
        for layer in model.layers
        if layer.weights
    }


def assert_equal(got, want):
    assert list(got) == sorted(want, key=order)
    for layer, params in want.items():
        assert set(got[layer]) == set(params)
        for name, array in params.items():
            assert np.array_equal(got[layer][name], array), f"{layer}/{name}"


def save(model, path):
    (model.save_weights if path.name.endswith(".weights.h5") else model.save)(path)


def assert_layouts_agree(model, folder):
    want = arrays(model)
    for ending in KERAS_LAYOUTS:
        path = folder / f"keras{ending}"
        save(model, path)
        assert_equal(read_weights(path), want)
        path.unlink()
    blank = [np.zeros_like(w) for w in model.get_weights()]
    before = model.get_weights()
    for ending in (".h5", ".weights.h5"):
        path = folder / f"ours{ending}"
        write_weights(path, want)
        model.set_weights(blank)
        model.load_weights(path)
        for got, array in zip(model.get_weights(), before, strict=True):
            assert np.array_equal(got, array), ending
        path.unlink()


def assert_taps_agree(keras, model, ours, size):
    images = np.random.default_rng(5).uniform(-124, 151, (2, size, size, 3)).astype(np.float32)
    names = [layer.name for layer in model.layers[1:]]
    theirs = keras.Model(model.input, [layer.output for layer in model.layers[1:]])(images)
    taps = ours(images, taps=names)
    assert names == list(ours.layers)
    for name, tap in zip(names, theirs, strict=True):
        tap = np.asarray(tap)
        scale = float(np.abs(tap).max())
        assert 1e-2 < scale < 1e5, f"{name}: activations vanish or explode, {scale}"
        np.testing.assert_allclose(
            np.asarray(taps[name]), tap, rtol=0, atol=RELATIVE * scale, err_msg=name
        )


def assert_parity(keras, arch, include_top, size, folder):
    model = make(keras, arch, include_top=include_top, size=size)
    assert_layouts_agree(model, folder)
    ours = nnx.eval_shape(lambda: VGG(arch, include_top=include_top, image_size=size))
    assign(ours, arrays(model))
    assert_taps_agree(keras, model, ours, size)


@pytest.mark.parametrize("arch", ["vgg16", "vgg19"])
def test_every_layout_and_every_tap_agree_without_the_top(keras, arch, tmp_path):
    assert_parity(keras, arch, False, 64, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["vgg16", "vgg19"])
def test_every_layout_every_tap_and_the_logits_agree_at_224_px(keras, arch, tmp_path):
    assert_parity(keras, arch, True, 224, tmp_path)
    keras.backend.clear_session()


def tiny(keras, *, bn=False):
    """VGG11's layers, narrow, under VGG's names."""
    x = inputs = keras.Input((32, 32, 3))
    for block, (count, width) in enumerate(
        zip((1, 1, 2, 2, 2), (4, 4, 8, 8, 8), strict=True), start=1
    ):
        for i in range(1, count + 1):
            activation = None if bn else "relu"
            name = f"block{block}_conv{i}"
            x = keras.layers.Conv2D(width, 3, padding="same", activation=activation, name=name)(x)
            if bn:
                x = keras.layers.BatchNormalization(epsilon=1e-5, name=f"block{block}_bn{i}")(x)
                x = keras.layers.ReLU()(x)
        x = keras.layers.MaxPooling2D(name=f"block{block}_pool")(x)
    return keras.Model(inputs, x, name="vgg")


def shake(model):
    rng = np.random.default_rng(3)
    for weight in model.weights:
        if weight.dtype == "float32":
            noise = rng.uniform(0.02, 0.3, weight.shape).astype(np.float32)
            weight.assign(weight.numpy() + noise)


@pytest.fixture(scope="module")
def own_model(keras):
    """What people save: a backbone inside a Sequential, random layers, a head, an optimizer."""
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((32, 32, 3)),
            layers.RandomFlip(),
            tiny(keras),
            layers.Flatten(),
            layers.Dense(6, activation="relu"),
            layers.Dropout(0.5),
            layers.Dense(3),
        ]
    )
    model.compile("adam", "mse")
    model.fit(np.zeros((2, 32, 32, 3)), np.zeros((2, 3)), verbose=0)
    shake(model)
    return model


@pytest.mark.parametrize(
    ("ending", "names"), [*((ending, True) for ending in KERAS_LAYOUTS), (".weights.h5", False)]
)
def test_a_trained_model_of_one_s_own_loads_and_computes_the_same(
    own_model, tiny_arch, tmp_path, ending, names
):
    path = tmp_path / f"own{ending}"
    save(own_model, path)
    if not names:
        forget_names(path)
    ours = load_pretrained(
        tiny_arch,
        weights=path,
        include_top=False,
        head=Head("flatten", (6,), outputs=3),
        image_size=32,
    )
    images = np.random.default_rng(5).uniform(-1, 1, (4, 32, 32, 3)).astype(np.float32)
    theirs = np.asarray(own_model(images, training=False))  # else the flip is on
    np.testing.assert_allclose(ours(images), theirs, rtol=0, atol=RELATIVE * np.abs(theirs).max())


def forget_names(path):
    """Turns a .weights.h5 of Keras 3.8 and later into one of 3.5, which stored no layers' names."""
    import h5py

    def forget(_, node):
        if "name" in node.attrs:
            del node.attrs["name"]

    with h5py.File(path, "r+") as file:
        file.visititems(forget)
        assert "name" not in file["layers/dense/vars"].attrs


@pytest.mark.parametrize("ending", KERAS_LAYOUTS)
def test_batch_normalization_reads_and_computes_as_keras(keras, tmp_path, ending):
    from vggjax.models.arch import Arch

    model = tiny(keras, bn=True)
    shake(model)
    path = tmp_path / f"bn{ending}"
    save(model, path)
    arch = Arch("tiny_bn", (1, 1, 2, 2, 2), (4, 4, 8, 8, 8), batch_norm=True)
    ours = load_pretrained(arch, weights=path, include_top=False, image_size=32)
    images = np.random.default_rng(5).uniform(-1, 1, (4, 32, 32, 3)).astype(np.float32)
    theirs = np.asarray(model(images))
    np.testing.assert_allclose(ours(images), theirs, rtol=0, atol=RELATIVE * np.abs(theirs).max())


@pytest.mark.parametrize("ending", [".h5", ".weights.h5"])
def test_keras_takes_what_we_write_with_batch_normalization(keras, tmp_path, ending):
    model, blank = tiny(keras, bn=True), tiny(keras, bn=True)
    shake(model)
    save(model, tmp_path / "theirs.weights.h5")
    write_weights(tmp_path / f"ours{ending}", read_weights(tmp_path / "theirs.weights.h5"))
    blank.load_weights(tmp_path / f"ours{ending}")
    for got, want in zip(blank.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(got, want)
