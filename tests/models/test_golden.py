"""The networks' outputs against golden/golden.npz, which Keras computed: needs no Keras."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from vggjax.data.images.preprocess import preprocess
from vggjax.models.network import VGG
from vggjax.models.params import assign, shapes

maker = runpy.run_path(str(Path(__file__).with_name("golden") / "make_golden.py"))


@pytest.fixture(scope="module")
def golden():
    with np.load(maker["GOLDEN"]) as stored:
        return dict(stored)


@pytest.mark.parametrize("mode", ["caffe", "torch"])
def test_preprocessing_equals_keras_s(golden, mode):
    images = preprocess(maker["make_images"](), mode=mode)
    np.testing.assert_allclose(images, golden[f"preprocess/{mode}"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("arch", ["vgg16", pytest.param("vgg19", marks=pytest.mark.slow)])
def test_every_layer_s_output_equals_keras_s(golden, arch):
    model = nnx.eval_shape(lambda: VGG(arch, include_top=True, image_size=maker["SIZE_PX"]))
    assign(model, maker["rule_weights"](shapes(model)))
    taps = model(preprocess(maker["make_images"]()), taps=model.layers)
    assert {f"{arch}/{name}" for name in taps} == {key for key in golden if key.startswith(arch)}
    for name, tap in taps.items():
        expected = golden[f"{arch}/{name}"]
        largest = expected[-1]
        assert 1 < largest < 1e5, f"{name}: the stored activations vanish or explode"
        # The two libraries add up to 25,088 float32 products in another order, layer upon layer.
        summary = maker["summarize"](name, tap)
        np.testing.assert_allclose(summary, expected, rtol=0, atol=1e-4 * largest, err_msg=name)
