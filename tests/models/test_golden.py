"""Our numbers against what Keras computed once and golden/golden.npz keeps: no Keras needed."""

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
def test_preprocessing_is_keras(golden, mode):
    got = preprocess(maker["make_images"](), mode=mode)
    np.testing.assert_allclose(got, golden[f"preprocess/{mode}"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("arch", maker["ARCHS"])
def test_every_tap_and_the_logits_are_keras(golden, arch):
    model = nnx.eval_shape(lambda: VGG(arch, include_top=True, image_size=maker["SIZE_PX"]))
    assign(model, maker["rule_weights"](shapes(model)))
    taps = model(preprocess(maker["make_images"]()), taps=model.layers)
    assert {f"{arch}/{name}" for name in taps} == {key for key in golden if key.startswith(arch)}
    for name, tap in taps.items():
        want = golden[f"{arch}/{name}"]
        assert 1 < want[-1] < 1e5, f"{name}: the stored activations vanish or explode"
        # 1e-4 of the largest value: two libraries add in another order.
        got = maker["summarize"](name, tap)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * want[-1], err_msg=name)
