"""Our numbers against Keras' own, with TensorFlow's arithmetic: this file cannot be skipped.

Keras writes each of its layouts, and we read the same arrays bit for bit and compute the same
logits and taps; Keras opens each layout that we write. Narrow networks stand for the real ones:
tests/models/test_golden.py has the real widths.
"""

import inspect
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from support.networks import assert_same_weights

from vggjax.data.images.decode import load_image
from vggjax.data.images.preprocess import INTERPOLATIONS, Preprocessing, preprocess, resize_image
from vggjax.evaluation import imagenet
from vggjax.evaluation.imagenet import decode_predictions
from vggjax.models.arch import CONVS, Arch
from vggjax.models.head import Head
from vggjax.models.network import VGG
from vggjax.models.params import assign, extract
from vggjax.weights.digests import PUBLISHED
from vggjax.weights.load import load_pretrained
from vggjax.weights.weight_file import WeightFile, read_weights, write_weights

# Keras turns TensorFlow's variables into NumPy's in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)

KERAS_LAYOUTS = (".h5", ".weights.h5", ".keras")
RELATIVE = 1e-4
"""Of the largest value: two libraries add up to 25,088 float32 products in another order."""
WIDTHS = (4, 4, 8, 8, 8)
INDEX = Path(imagenet.__file__).with_name("imagenet_class_index.json")


def keras_vgg(keras, convs, *, top=(), batch_norm=False, image_size=32):
    """Return a narrow VGG of Keras under VGG's names, with random weights and biases."""
    x = inputs = keras.Input((image_size, image_size, 3))
    for block, (count, width) in enumerate(zip(convs, WIDTHS, strict=True), start=1):
        for i in range(1, count + 1):
            activation = None if batch_norm else "relu"
            name = f"block{block}_conv{i}"
            x = keras.layers.Conv2D(width, 3, padding="same", activation=activation, name=name)(x)
            if batch_norm:
                x = keras.layers.BatchNormalization(epsilon=1e-5, name=f"block{block}_bn{i}")(x)
                x = keras.layers.ReLU()(x)
        x = keras.layers.MaxPooling2D(name=f"block{block}_pool")(x)
    if top:
        x = keras.layers.Flatten(name="flatten")(x)
        names = [f"fc{i}" for i in range(1, len(top))] + ["predictions"]
        for units, name in zip(top, names, strict=True):
            activation = None if name == "predictions" else "relu"
            x = keras.layers.Dense(units, activation=activation, name=name)(x)
    model = keras.Model(inputs, x, name="vgg")
    randomize(model)
    return model


def random_array(rng, shape):
    """Return He-uniform kernels, which keep the activations' size, and other numbers near 1."""
    limit = np.sqrt(6 / np.prod(shape[:-1])) if len(shape) > 1 else None
    return rng.uniform(*((-limit, limit) if limit else (0.5, 1.5)), shape).astype(np.float32)


def randomize(model):
    rng = np.random.default_rng(3)
    for layer in model.layers:
        layer.set_weights([random_array(rng, array.shape) for array in layer.get_weights()])


def weights_of(model):
    """Return the values of a Keras model without batch normalization as this package's dict."""
    return {
        layer.name: dict(zip(("kernel", "bias"), layer.get_weights(), strict=True))
        for layer in model.layers
        if layer.weights
    }


def assert_close(got, want, message=""):
    want = np.asarray(want)
    largest = float(np.abs(want).max())
    assert 1e-3 < largest < 1e5, f"{message}: activations vanish or explode, {largest}"
    np.testing.assert_allclose(
        np.asarray(got), want, rtol=0, atol=RELATIVE * largest, err_msg=message
    )


def save(model, path):
    (model.save_weights if path.name.endswith(".weights.h5") else model.save)(path)


def images_of(size, count=2):
    return np.random.default_rng(5).uniform(-124, 151, (count, size, size, 3)).astype(np.float32)


def assert_layouts_and_taps_agree(keras, model, ours, folder):
    want = weights_of(model)
    for ending in KERAS_LAYOUTS:
        save(model, folder / f"keras{ending}")
        assert_same_weights(read_weights(folder / f"keras{ending}"), want)
    before = model.get_weights()
    for ending in (".h5", ".weights.h5"):
        write_weights(folder / f"ours{ending}", want)
        model.set_weights([np.zeros_like(array) for array in before])
        model.load_weights(folder / f"ours{ending}")
        for got, array in zip(model.get_weights(), before, strict=True):
            np.testing.assert_array_equal(got, array, err_msg=ending)
    assign(ours, want)
    images = images_of(ours.image_size)
    names = [layer.name for layer in model.layers[1:]]
    assert names == list(ours.layers)
    outputs = keras.Model(model.input, [layer.output for layer in model.layers[1:]])(images)
    taps = ours(images, taps=names)
    for name, output in zip(names, outputs, strict=True):
        assert_close(taps[name], output, name)


@pytest.mark.parametrize("name", ["vgg16", pytest.param("vgg19", marks=pytest.mark.slow)])
def test_every_layout_every_tap_and_the_logits_of_a_narrow_network_agree(keras, name, tmp_path):
    model = keras_vgg(keras, CONVS[name], top=(6, 5, 3))
    head = Head("flatten", (6, 5), outputs=3)
    arch = Arch(name, CONVS[name], WIDTHS)
    ours = nnx.eval_shape(lambda: VGG(arch, head=head, image_size=32))
    assert_layouts_and_taps_agree(keras, model, ours, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("include_top", "size"), [(False, 64), (True, 224)])
@pytest.mark.parametrize("name", ["vgg16", "vgg19"])
def test_every_layout_every_tap_and_the_logits_of_the_published_networks_agree(
    keras, name, include_top, size, tmp_path
):
    build = {"vgg16": keras.applications.VGG16, "vgg19": keras.applications.VGG19}[name]
    model = build(
        weights=None,
        include_top=include_top,
        input_shape=(size, size, 3),
        classifier_activation=None,
    )
    randomize(model)
    ours = nnx.eval_shape(lambda: VGG(name, include_top=include_top, image_size=size))
    assert_layouts_and_taps_agree(keras, model, ours, tmp_path)
    keras.backend.clear_session()


@pytest.fixture(scope="module")
def user_model(keras):
    """What people save: a backbone inside a Sequential, random layers, a head, an optimizer."""
    layers = keras.layers
    keras.utils.set_random_seed(0)  # of the head, whose relu may give only zeros
    model = keras.Sequential(
        [
            layers.Input((32, 32, 3)),
            layers.RandomFlip(),
            keras_vgg(keras, (1, 1, 2, 2, 2)),
            layers.Flatten(),
            layers.Dense(6, activation="relu"),
            layers.Dropout(0.5),
            layers.Dense(3),
        ]
    )
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)  # so that its state is in the files
    return model


@pytest.mark.parametrize(
    ("ending", "names"), [*((ending, True) for ending in KERAS_LAYOUTS), (".weights.h5", False)]
)
def test_a_user_s_model_loads_and_computes_the_same(user_model, tmp_path, ending, names):
    path = tmp_path / f"w{ending}"
    save(user_model, path)
    if not names:
        remove_layer_names(path)
    ours = load_pretrained(
        "tiny",
        weights=path,
        include_top=False,
        head=Head("flatten", (6,), outputs=3),
        image_size=32,
    )
    images = images_of(32)
    # In training mode the flip would be on.
    assert_close(ours(images), user_model(images, training=False))


def remove_layer_names(path):
    """Turn a .weights.h5 of Keras 3.8 and later into one of 3.5, which stored no layers' names."""

    def remove(_, node):
        if "name" in node.attrs:
            del node.attrs["name"]

    with h5py.File(path, "r+") as file:
        file.visititems(remove)
        assert "name" not in file["layers/dense/vars"].attrs


@pytest.fixture(scope="module")
def keras_bn(keras):
    return keras_vgg(keras, (1, 1, 2, 2, 2), batch_norm=True)


@pytest.mark.parametrize("ending", KERAS_LAYOUTS)
def test_batch_normalization_reads_and_computes_as_in_keras(keras_bn, tmp_path, ending):
    save(keras_bn, tmp_path / f"bn{ending}")
    ours = load_pretrained(
        "tiny_bn", weights=tmp_path / f"bn{ending}", include_top=False, image_size=32
    )
    images = images_of(32)
    assert_close(ours(images), keras_bn(images))


@pytest.mark.parametrize("ending", [".h5", ".weights.h5"])
def test_keras_loads_what_we_write_with_batch_normalization(keras, keras_bn, tmp_path, ending):
    save(keras_bn, tmp_path / "keras.weights.h5")
    write_weights(tmp_path / f"ours{ending}", read_weights(tmp_path / "keras.weights.h5"))
    other = keras.models.clone_model(keras_bn)
    other.load_weights(tmp_path / f"ours{ending}")
    for got, want in zip(other.get_weights(), keras_bn.get_weights(), strict=True):
        np.testing.assert_array_equal(got, want)


def our_model(head, *, arch="tiny", size=64):
    """Return a tiny network of this package whose every number is random."""
    model = VGG(arch, head=Head.parse(head) if head else None, image_size=size, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(1)
    weights = extract(model).items()
    assign(model, {k: {n: random_array(rng, a.shape) for n, a in v.items()} for k, v in weights})
    model.eval()
    return model


@pytest.mark.parametrize(
    ("head", "arch", "size"),
    [
        ("flatten-6-5-0.5-3", "tiny", 64),
        ("avg2-6-3", "tiny_bn", 150),
        ("gap-1", "tiny_bn", 64),
        (None, "tiny", 64),
    ],
)
def test_keras_opens_the_archive_and_predicts_the_same(keras, tmp_path, head, arch, size):
    model = our_model(head, arch=arch, size=size)
    metadata = {"head": head, "image_size": str(size)} if head else {}
    write_weights(tmp_path / "w.keras", extract(model), metadata=metadata)
    opened = keras.models.load_model(tmp_path / "w.keras")
    images = np.random.default_rng(5).normal(size=(3, size, size, 3)).astype(np.float32)
    probs = np.asarray(model(images))
    if head:
        probs = nnx.sigmoid(probs) if probs.shape[-1] == 1 else nnx.softmax(probs)
    assert_close(opened(images), probs)
    names = [layer.name for layer in opened.layers if layer.weights]
    assert names == [layer for layer in model.layers if layer in extract(model)]


def test_keras_saves_our_archive_again_with_the_same_bits(keras, tmp_path):
    want = extract(our_model("flatten-6-3", arch="tiny_bn"))
    write_weights(tmp_path / "ours.keras", want)
    keras.models.load_model(tmp_path / "ours.keras").save(tmp_path / "keras.keras")
    assert_same_weights(read_weights(tmp_path / "keras.keras"), want)


def test_keras_loads_the_legacy_file_by_name_into_a_model_with_another_top(keras, tmp_path):
    want = extract(our_model("flatten-6-3"))
    write_weights(tmp_path / "w.h5", want, metadata={"class_names": '["a", "b", "c"]'})
    write_weights(tmp_path / "w.keras", want)
    base = keras.models.load_model(tmp_path / "w.keras").layers[:-3]
    other = keras.Sequential([keras.Input((64, 64, 3)), *base, keras.layers.Dense(9, name="new")])
    other.set_weights([np.zeros_like(array) for array in other.get_weights()])
    other.load_weights(tmp_path / "w.h5", by_name=True)
    for layer in other.layers:
        if layer.weights and layer.name != "new":
            for got, name in zip(layer.get_weights(), ("kernel", "bias"), strict=True):
                np.testing.assert_array_equal(got, want[layer.name][name])
    assert not other.layers[-1].get_weights()[0].any()


@pytest.mark.parametrize("ending", [*KERAS_LAYOUTS, ".safetensors"])
def test_the_metadata_come_back_from_every_format(tmp_path, ending):
    names = json.dumps(["gänse", "<b>", "薔薇"])
    metadata = {"head": "gap-3", "class_names": names, "preprocess": "unit", "image_size": "64"}
    write_weights(tmp_path / f"w{ending}", extract(our_model("gap-3")), metadata=metadata)
    info = WeightFile(tmp_path / f"w{ending}").info
    assert info.metadata == metadata and info.preprocess == "unit"


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("wide.png", (90, 161, 3)),
        ("tall.jpg", (301, 133, 3)),
        ("small.png", (17, 9, 3)),
        ("gray.png", (50, 60)),
    ],
)
def test_a_squashed_image_is_what_keras_load_img_returns(
    keras, tmp_path, name, shape, interpolation
):
    coarse = np.random.default_rng(len(name)).integers(0, 256, (6, 7, *shape[2:]), np.uint8)
    smooth = Image.fromarray(coarse).resize(shape[1::-1], Image.Resampling.BICUBIC)
    smooth.save(tmp_path / name)
    want = keras.utils.load_img(tmp_path / name, target_size=(64, 64), interpolation=interpolation)
    settings = Preprocessing(image_size=64, resize="squash", interpolation=interpolation)
    got = resize_image(load_image(tmp_path / name), settings)
    np.testing.assert_array_equal(got, np.asarray(want))


@pytest.mark.parametrize(("mode", "atol"), [("caffe", 0), ("torch", 2e-6)])
def test_preprocessing_is_keras_preprocess_input(keras, mode, atol):
    from keras.src.applications.imagenet_utils import preprocess_input

    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    want = preprocess_input(images.astype(np.float32), mode=mode)
    # Of values up to 2.7, some ulps of float32: the divisions come in another order.
    np.testing.assert_allclose(preprocess(images, mode=mode), want, rtol=0, atol=atol)


@pytest.mark.parametrize("top", [1, 5, 1000])
def test_decode_predictions_is_keras(keras, top, tmp_path, monkeypatch):
    from keras.src.applications import imagenet_utils

    shutil.copy(INDEX, tmp_path / "index.json")
    monkeypatch.setattr(imagenet_utils, "CLASS_INDEX", None)
    monkeypatch.setattr(
        imagenet_utils.file_utils, "get_file", lambda *a, **k: str(tmp_path / "index.json")
    )
    probs = np.random.default_rng(1).dirichlet(np.ones(1000), 4).astype(np.float32)
    probs[3] = 1e-3  # all equal: the order of ties is Keras' too
    want = keras.applications.vgg16.decode_predictions(probs, top=top)
    assert decode_predictions(probs, top=top) == [[tuple(row) for row in rows] for rows in want]


def test_the_published_files_have_keras_addresses_and_checksums(keras):
    from keras.src.applications import vgg16, vgg19

    for entry in PUBLISHED:
        module = {"vgg16": vgg16, "vgg19": vgg19}[entry.arch]
        address = module.WEIGHTS_PATH if entry.include_top else module.WEIGHTS_PATH_NO_TOP
        assert (entry.url, entry.md5 in inspect.getsource(module)) == (address, True)
