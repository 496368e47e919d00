"""Heads that pool several layers: what they compute, and where the network may be cut."""

import jax.numpy as jnp
import numpy as np
import pytest
from support.networks import random_network

from vggjax.errors import ConfigError
from vggjax.evaluation.grad_cam import grad_cam
from vggjax.models.head import Head
from vggjax.training.cache.plan import find_cut
from vggjax.training.freezing import label_layers


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 3)), jnp.float32)


@pytest.fixture(scope="module", params=["tiny", "tiny_bn"])
def model(request):
    return random_network(request.param, head=Head.parse("convs2-3"), image_size=32)


def test_the_head_has_mean_and_maximum_of_each_convolution_at_unit_length(model, images):
    taps = model(images, taps=(*model.pooled_layers, "convs2"))
    parts = []
    for name in model.pooled_layers:
        rows = np.asarray(taps[name])
        parts += [rows.mean((1, 2)), rows.max((1, 2))]
    wanted = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in parts]
    np.testing.assert_allclose(taps["convs2"], np.concatenate(wanted, 1), atol=1e-5)
    assert {name.split("_")[0] for name in model.pooled_layers} == {"block4", "block5"}


def test_the_network_is_cut_anywhere_but_where_the_head_needs_an_earlier_layer(model, images):
    whole = model(images)
    assert "block3_pool" not in model.uncut_layers and "block4_pool" in model.uncut_layers
    for layer in ("block3_pool", "convs2"):
        cut = model(model(images, until=layer), after=layer)
        np.testing.assert_allclose(cut, whole, atol=1e-5)
    with pytest.raises(ConfigError, match="cannot go on after 'block4_pool' alone"):
        model(model(images, until="block4_pool"), after="block4_pool")


def test_cached_features_are_cut_where_the_network_can_go_on(model):
    cuts = [find_cut(model, label_layers(model, (name,))) for name in ("none", "block5")]
    assert cuts == ["convs2", "block3_pool"]


def test_from_inside_the_pooled_blocks_the_network_goes_on_from_all_outputs_so_far(model, images):
    first, second, *_ = model.pooled_layers
    outputs = model(images, taps=(first, second))
    np.testing.assert_allclose(model(outputs, after=second), model(images), atol=1e-5)
    heat = grad_cam(model, images, np.array([0, 1]), layer=second)
    assert heat.shape == outputs[second].shape[:3]
