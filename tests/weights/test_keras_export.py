"""Keras opens what we write: `.keras` as a model that predicts the same, `.h5` also by name."""

import json

import numpy as np
import pytest
from flax import nnx

from vggjax.models.arch import Arch
from vggjax.models.head import Head
from vggjax.models.network import VGG
from vggjax.models.params import assign, extract
from vggjax.weights.weight_file import WeightFile, read_weights, write_weights

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)

CONVS, WIDTHS = (1, 1, 2, 2, 2), (4, 4, 8, 8, 8)


def make(head, *, norm=False, size=64):
    """A tiny network of ours whose every number is drawn."""
    arch = Arch("tiny", CONVS, WIDTHS, batch_norm=norm)
    head = Head.parse(head) if head else None
    model = VGG(arch, head=head, image_size=size, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(1)
    assign(model, {k: {n: a + rng.uniform(0.05, 0.2, a.shape) for n, a in v.items()}
                   for k, v in extract(model).items()})  # fmt: skip
    model.eval()
    return model


@pytest.mark.parametrize(
    ("head", "norm", "size"),
    [
        ("flatten-6-5-0.5-3", False, 64),
        ("avg2-6-3", True, 150),
        ("gap-1", True, 64),
        (None, False, 64),
    ],
)
def test_keras_opens_the_archive_and_predicts_the_same(keras, tmp_path, head, norm, size):
    model = make(head, norm=norm, size=size)
    path = tmp_path / "w.keras"
    metadata = {"head": head, "image_size": str(size)} if head else {}
    write_weights(path, extract(model), metadata=metadata)
    theirs = keras.models.load_model(path)
    images = np.random.default_rng(5).normal(size=(3, size, size, 3)).astype(np.float32)
    logits = np.asarray(model(images))
    if head:
        logits = nnx.sigmoid(logits) if logits.shape[-1] == 1 else nnx.softmax(logits)
    got = np.asarray(theirs(images))
    np.testing.assert_allclose(got, logits, rtol=0, atol=1e-4 * np.abs(logits).max())
    names = [layer.name for layer in theirs.layers if layer.weights]
    assert names == [layer for layer in model.layers if layer in extract(model)]


def test_keras_saves_it_again_and_we_read_the_same_bits(keras, tmp_path):
    model = make("flatten-6-3", norm=True)
    write_weights(tmp_path / "ours.keras", extract(model))
    keras.models.load_model(tmp_path / "ours.keras").save(tmp_path / "theirs.keras")
    got = read_weights(tmp_path / "theirs.keras")
    for layer, params in extract(model).items():
        for name, array in params.items():
            np.testing.assert_array_equal(got[layer][name], array, err_msg=f"{layer}/{name}")


def test_keras_takes_the_legacy_file_by_name_into_a_model_with_another_top(keras, tmp_path):
    model = make("flatten-6-3")
    write_weights(tmp_path / "w.h5", extract(model), metadata={"class_names": '["a", "b", "c"]'})
    write_weights(tmp_path / "w.keras", extract(model))
    base = keras.models.load_model(tmp_path / "w.keras").layers[:-3]
    other = keras.Sequential([keras.Input((64, 64, 3)), *base, keras.layers.Dense(9, name="new")])
    other.set_weights([np.zeros_like(array) for array in other.get_weights()])
    other.load_weights(tmp_path / "w.h5", by_name=True)
    want = extract(model)
    for layer in other.layers:
        if layer.weights and layer.name != "new":
            for got, name in zip(layer.get_weights(), ("kernel", "bias"), strict=True):
                np.testing.assert_array_equal(got, want[layer.name][name])
    assert not other.layers[-1].get_weights()[0].any()


@pytest.mark.parametrize("ending", [".h5", ".weights.h5", ".keras", ".safetensors"])
def test_the_head_and_the_names_of_the_classes_travel_with_the_file(tmp_path, ending):
    names = json.dumps(["gänse", "<b>", "薔薇"])
    metadata = {"head": "gap-3", "class_names": names, "preprocess": "unit", "image_size": "64"}
    write_weights(tmp_path / f"w{ending}", extract(make("gap-3")), metadata=metadata)
    facts = WeightFile(tmp_path / f"w{ending}").info
    assert facts.metadata == metadata and facts.preprocess == "unit"
