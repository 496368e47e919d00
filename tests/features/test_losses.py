"""Perceptual, content and style losses and total variation, against numpy on the taps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.networks import random_network

from vggjax.data.images.preprocess import preprocess
from vggjax.errors import ConfigError
from vggjax.features import (
    content_loss,
    gram_matrix,
    layer_features,
    perceptual_loss,
    style_loss,
    total_variation,
)
from vggjax.models.arch import ARCHS


def pixels(count=3, size=36, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size + 4, 3), np.uint8)


IMAGES, TARGETS = pixels(), pixels(seed=1)


@pytest.fixture(scope="module")
def model():
    model = random_network("tiny")
    model.preprocess_mode = "torch"
    return model


def taps(model, images, layers):
    outputs = run(lambda x: model(preprocess(x, "torch"), taps=layers), images.astype(np.float32))
    return [np.asarray(outputs[layer], np.float64) for layer in layers]


def run(function, *arrays):
    """Compile and call: one program takes less time than an operation at a time."""
    return jax.jit(function)(*arrays)


def test_perceptual_loss_is_the_weighted_mean_difference_of_the_taps(model):
    layers = {"block1_conv1": 2.0, "relu3_2": 0.5}
    pairs = zip(*(taps(model, x, tuple(layers)) for x in (IMAGES, TARGETS)), strict=True)
    differences = [a - b for a, b in pairs]
    for distance, error in (("l2", np.square), ("l1", np.abs)):
        expected = sum(
            w * error(d).mean((1, 2, 3)) for w, d in zip(layers.values(), differences, strict=True)
        )
        loss = functools.partial(perceptual_loss, model, layers=layers, distance=distance)
        received = run(loss, IMAGES, TARGETS)
        assert received.shape == (3,) and received.dtype == jnp.float32
        np.testing.assert_allclose(received, expected, rtol=1e-4)


def test_style_loss_compares_gram_matrices_of_any_size(model):
    layers, style = ("block1_conv1", "block2_conv1"), pixels(1, 50, seed=2)

    def grams(images):
        maps = (x.reshape(len(x), -1, x.shape[3]) for x in taps(model, images, layers))
        return [x.transpose(0, 2, 1) @ x / x[0].size for x in maps]

    pairs = zip(grams(IMAGES), grams(style), strict=True)
    expected = sum(((a - b) ** 2).sum((1, 2)) for a, b in pairs)
    loss = functools.partial(style_loss, model, layers=layers)
    np.testing.assert_allclose(run(loss, IMAGES, style), expected, rtol=1e-4)
    features = run(lambda x: layer_features(model, x, layers), style)
    kept = {name: gram_matrix(x) for name, x in features.items()}
    np.testing.assert_allclose(run(loss, IMAGES, kept), expected, rtol=1e-4)


def test_targets_may_be_features_that_were_computed_before(model):
    kept = run(lambda x: layer_features(model, x, ("block4_conv2",)), TARGETS)
    received = run(functools.partial(content_loss, model), IMAGES, kept)
    loss = functools.partial(perceptual_loss, model, layers=("conv4_2",))
    np.testing.assert_allclose(received, run(loss, IMAGES, TARGETS), rtol=1e-4)
    with pytest.raises(ConfigError, match="lack the layer 'block1_conv1'; they have block4_conv2"):
        run(functools.partial(style_loss, model), IMAGES, kept)


@pytest.mark.parametrize("loss", [perceptual_loss, style_loss])
def test_a_loss_is_that_of_each_image_in_any_range_under_jit_and_vmap(model, loss):
    expected = run(functools.partial(loss, model), IMAGES, TARGETS)
    assert (np.asarray(expected) > 0).all()
    unit = [x.astype(np.float32) / 127.5 - 1 for x in (IMAGES, TARGETS)]

    def one(x, y):
        return loss(model, x[None], y[None], value_range=(-1, 1))[0]

    batch = run(jax.grad(lambda x, y: loss(model, x, y, value_range=(-1, 1)).sum()), *unit)
    each, alone = run(jax.vmap(jax.value_and_grad(one)), *unit)
    np.testing.assert_allclose(each, expected, rtol=1e-3)
    np.testing.assert_allclose(alone, batch, rtol=0, atol=1e-3 * float(jnp.abs(batch).max()))
    assert float(jnp.abs(batch).max()) > 0


def test_bfloat16_differs_by_its_rounding_and_sums_in_float32():
    half, whole = (random_network("tiny_bn", dtype=dtype) for dtype in (jnp.bfloat16, jnp.float32))

    def losses(x, y):
        models = (half, whole)
        return [
            [loss(m, x, y, mode="caffe") for m in models] for loss in (content_loss, style_loss)
        ]

    for received, expected in run(losses, IMAGES, TARGETS):
        assert received.dtype == jnp.float32
        np.testing.assert_allclose(received, expected, rtol=0.2)
    gram = gram_matrix(jnp.ones((1, 40, 40, 2), jnp.bfloat16))  # ones end at 256 in bfloat16
    np.testing.assert_allclose(gram, 0.5)


@pytest.mark.parametrize("arch", ARCHS)
def test_the_default_layers_exist_in_every_network_and_end_in_a_relu(arch):
    from vggjax.features.losses import first_relus, last_relus

    arch = ARCHS[arch]
    kind = "bn" if arch.batch_norm else "conv"
    assert first_relus(arch) == tuple(f"block{i}_{kind}1" for i in range(1, 6))
    ends = zip(last_relus(arch), arch.convs, strict=True)
    assert all(name == f"block{i}_{kind}{n}" for i, (name, n) in enumerate(ends, 1))


def test_total_variation_is_the_sum_of_neighbors_differences_per_pixel():
    values = IMAGES / 255.0
    expected = [
        sum(np.abs(np.diff(image, axis=axis)).sum() for axis in (0, 1)) / image[..., 0].size
        for image in values
    ]
    np.testing.assert_allclose(total_variation(IMAGES), expected, rtol=1e-5)
    signed = (values * 2 - 1).astype(np.float32)
    np.testing.assert_allclose(total_variation(signed, value_range=(-1, 1)), expected, rtol=1e-5)


def test_a_range_a_mode_and_fitting_targets_are_asked_for(model):
    unit = IMAGES.astype(np.float32) / 255
    with pytest.raises(ConfigError, match="float32 images need `value_range`.*\\(0, 1\\)"):
        content_loss(model, unit, unit)
    with pytest.raises(ConfigError, match="values are 0 to 255, far outside .* 0 to 1"):
        content_loss(model, unit * 255, unit, value_range=(0, 1))
    with pytest.raises(ConfigError, match="ascending; got \\(1, 0\\)"):
        content_loss(model, unit, unit, value_range=(1, 0))
    with pytest.raises(ConfigError, match="uint8 images is \\(0, 255\\)"):
        content_loss(model, IMAGES, IMAGES, value_range=(0, 1))
    with pytest.raises(ConfigError, match="must be uint8 or floats; got int32"):
        content_loss(model, IMAGES.astype(np.int32), IMAGES)
    with pytest.raises(ConfigError, match="shape \\(N, H, W, 3\\); got \\(36, 40, 3\\)"):
        content_loss(model, IMAGES[0], IMAGES[0])
    with pytest.raises(ConfigError, match="features of block4_conv2 are .* the targets'"):
        run(functools.partial(content_loss, model), IMAGES, pixels(3, 80))
    with pytest.raises(ConfigError, match="as many targets as images, or one"):
        run(functools.partial(style_loss, model), IMAGES, TARGETS[:2])
    with pytest.raises(ConfigError, match="state no preprocessing. Give `mode`: caffe"):
        content_loss(random_network("tiny"), IMAGES, TARGETS)
