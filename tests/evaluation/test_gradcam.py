"""Grad-CAM on cases whose answer is known: built by hand, and CAM where the two are the same."""

import numpy as np
import pytest
from support.tiny_run import random_model

from vggjax.errors import ConfigError
from vggjax.evaluation.grad_cam import grad_cam, map_layer, overlay
from vggjax.models.head import Head
from vggjax.models.params import assign, extract


def corner_model(outputs=2):
    """Gives a network whose first channel is the red of the image, layer after layer.

    Only its kernels' middles are not 0, so that no place sees another but by pooling; class 0's
    logit is the mean red, class 1's its negative.
    """
    model = random_model("tiny", head=Head("gap", outputs=outputs), image_size=64)
    weights = {
        layer: {name: np.zeros_like(value) for name, value in params.items()}
        for layer, params in extract(model).items()
    }
    for layer, params in weights.items():
        if layer == "predictions":
            params["kernel"][0] = [1.0, -1.0] if outputs == 2 else [1.0]
        else:
            params["kernel"][1, 1, 0, 0] = 1.0
    assign(model, weights)
    return model


def red_corner():
    images = np.zeros((1, 64, 64, 3), np.float32)
    images[0, :16, :16, 0] = 1.0
    images[0, :, :, 1] = 0.7  # green is everywhere and speaks for nothing
    return images


def test_a_logit_that_rests_on_one_corner_lights_that_corner_and_nothing_else():
    heat = grad_cam(corner_model(), red_corner(), np.array([0]), layer="block4_conv2").copy()
    assert heat.shape == (1, 8, 8)
    assert (heat[0, :2, :2] > 0).all()
    heat[0, :2, :2] = 0
    assert (heat == 0).all()


def test_what_speaks_against_a_class_is_0():
    assert (grad_cam(corner_model(), red_corner(), np.array([1])) == 0).all()


def test_one_sigmoid_unit_speaks_for_1_and_against_0():
    model, images = corner_model(outputs=1), red_corner()
    for_0, for_1 = (grad_cam(model, images, np.array([k])) for k in (0, 1))
    assert (for_0 == 0).all() and for_1.max() > 0


def test_on_an_averaged_map_grad_cam_is_cam():
    model = random_model("tiny", head=Head("gap", outputs=3), image_size=64)
    images = np.random.default_rng(0).normal(0, 1, (4, 64, 64, 3)).astype(np.float32)
    classes = np.array([0, 1, 2, 1])
    found = grad_cam(model, images, classes, layer="block5_pool")
    features = np.asarray(model(images, until="block5_pool"))
    kernel = extract(model)["predictions"]["kernel"]  # (C, 3)
    places = features.shape[1] * features.shape[2]
    cam = np.einsum("nhwc,cn->nhw", features, kernel[:, classes]) / places
    np.testing.assert_allclose(found, np.maximum(cam, 0), rtol=1e-4, atol=1e-7)
    assert (found > 0).any()


@pytest.mark.parametrize(
    ("name", "pooling", "size", "layer"),
    [
        ("vgg16", "flatten", 224, "block5_conv3"),
        ("vgg11_bn", "avg2", 128, "block5_bn2"),
        ("vgg16", "gap", 64, "block4_conv3"),
        ("vgg11_bn", "gap", 32, "block3_bn2"),
    ],
)
def test_the_last_layer_whose_map_is_fine_enough_is_looked_at(name, pooling, size, layer):
    from flax import nnx

    from vggjax.models.network import VGG

    head = Head(pooling, (8,), outputs=5)
    model = nnx.eval_shape(lambda: VGG(name, head=head, image_size=size))
    assert map_layer(model, size) == layer


def test_a_layer_that_gives_no_map_or_is_none_is_refused():
    with pytest.raises(ConfigError, match="'block4_conv2'"):
        grad_cam(corner_model(), red_corner(), np.array([0]), layer="blok4_conv2")
    with pytest.raises(ConfigError, match="got 'gap'"):
        grad_cam(corner_model(), red_corner(), np.array([0]), layer="gap")


def test_an_overlay_is_brightest_where_the_map_is_and_keeps_the_image_where_it_is_0():
    image = np.full((40, 60, 3), 120, np.uint8)
    heat = np.zeros((4, 6), np.float32)
    heat[0, 5] = 3.0
    drawn = overlay(image, heat)
    assert drawn.shape == image.shape and drawn.dtype == np.uint8
    assert drawn[2, 57].astype(int).sum() > drawn[2, 2].astype(int).sum() + 100
    assert (drawn[30:, :30] == drawn[30, 0]).all()
    assert (overlay(image, np.zeros((4, 6), np.float32)) == 90).all()
