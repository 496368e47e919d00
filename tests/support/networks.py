"""Networks and weights of random numbers that numpy draws: jax would compile each shape."""

import functools

import numpy as np
from flax import nnx

from vggjax.models.network import Network
from vggjax.models.params import assign, shapes
from vggjax.weights.names import PARAMS


def random_weights(arch, head=None, *, image_size=32, seed=0):
    """Return weights from 0.1 to 1 for every parameter of a network, `{layer: {name: array}}`."""
    rng = np.random.default_rng(seed)
    return {
        layer: {n: rng.uniform(0.1, 1, sizes[n]).astype(np.float32) for n in PARAMS if n in sizes}
        for layer, sizes in _shapes(arch, head, image_size).items()
    }


@functools.cache
def _shapes(arch, head, image_size):
    return shapes(nnx.eval_shape(lambda: Network(arch, head=head, image_size=image_size)))


def assert_same_weights(got, want):
    """Assert that both have the same layers in the same order, float32 and bit for bit."""
    assert list(got) == list(want)
    for layer, params in want.items():
        assert got[layer].keys() == params.keys()
        for name, array in params.items():
            assert got[layer][name].dtype == np.float32
            np.testing.assert_array_equal(got[layer][name], array, err_msg=f"{layer}/{name}")


def random_network(arch, **settings):
    """Return a network in evaluation mode whose every parameter matters to its output.

    Biases and running statistics are random too: zeros and ones would hide a missing term.
    """
    model = nnx.eval_shape(lambda: Network(arch, **settings))
    rng = np.random.default_rng(1)
    weights = {
        layer: {name: rng.uniform(-0.1, 0.3, shape) for name, shape in params.items()}
        for layer, params in shapes(model).items()
    }
    for params in weights.values():
        if "var" in params:
            params["var"] = params["var"] ** 2 + 0.5
    assign(model, weights)
    model.eval()
    return model


def num_parameters(arch, **settings):
    """Count the parameters that train, as Keras and torchvision count them."""
    model = nnx.eval_shape(lambda: Network(arch, **settings))
    return sum(
        int(np.prod(shape))
        for params in shapes(model).values()
        for name, shape in params.items()
        if name not in ("mean", "var")
    )
