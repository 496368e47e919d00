"""Grad-CAM on networks whose maps are known: built by hand, and CAM where both are the same."""

import numpy as np
import pytest
from support.tiny_run import random_model

from vggjax.evaluation.grad_cam import grad_cam, map_layer, overlay
from vggjax.models.head import Head
from vggjax.models.params import assign, extract


def corner_model(outputs=2):
    """Return a network whose first channel is the image's red, in every layer.

    Only the centers of its kernels are not 0, so that places mix by pooling alone; the logit of
    class 0 is the mean red, that of class 1 its negative.
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
    images[0, :, :, 1] = 0.7  # green is everywhere and has no weight
    return images


def test_the_map_of_a_logit_that_depends_on_one_corner_is_that_corner():
    heat = grad_cam(corner_model(), red_corner(), np.array([0]), layer="block4_conv2").copy()
    assert heat.shape == (1, 8, 8)
    assert (heat[0, :2, :2] > 0).all()
    heat[0, :2, :2] = 0
    assert (heat == 0).all()


def test_evidence_against_a_class_is_0():
    assert (grad_cam(corner_model(), red_corner(), np.array([1]), layer="block4_conv2") == 0).all()


def test_one_sigmoid_unit_is_evidence_for_class_1_and_against_class_0():
    model, images = corner_model(outputs=1), red_corner()
    for_0, for_1 = (grad_cam(model, images, np.array([k]), layer="block4_conv2") for k in (0, 1))
    assert (for_0 == 0).all() and for_1.max() > 0


def test_on_an_averaged_map_grad_cam_is_cam():
    model = random_model("tiny", head=Head("gap", outputs=3), image_size=64)
    images = np.random.default_rng(0).normal(0, 1, (4, 64, 64, 3)).astype(np.float32)
    classes = np.array([0, 1, 2, 1])
    heat = grad_cam(model, images, classes, layer="block5_pool")
    features = np.asarray(model(images, until="block5_pool"))
    kernel = extract(model)["predictions"]["kernel"]  # (C, 3)
    num_places = features.shape[1] * features.shape[2]
    cam = np.einsum("nhwc,cn->nhw", features, kernel[:, classes]) / num_places
    # Values below 1e-5 of the maximum are cut to 0; sums of 8 signed products cancel to 1e-6 of it.
    expected, peak = np.maximum(cam, 0), np.abs(cam).max()
    np.testing.assert_allclose(heat, expected, rtol=1e-4, atol=2e-5 * peak)
    assert (heat > 0).any()


@pytest.mark.parametrize(
    ("name", "pooling", "size", "layer"),
    [
        ("vgg16", "flatten", 224, "block5_conv3"),
        ("vgg11_bn", "avg2", 128, "block5_bn2"),
        ("vgg16", "gap", 64, "block4_conv3"),
        ("vgg11_bn", "gap", 32, "block3_bn2"),
    ],
)
def test_the_last_layer_with_a_fine_enough_map_is_used(name, pooling, size, layer):
    from flax import nnx

    from vggjax.models.network import VGG

    head = Head(pooling, (8,), outputs=5)
    model = nnx.eval_shape(lambda: VGG(name, head=head, image_size=size))
    assert map_layer(model, size) == layer


def test_an_overlay_is_brightest_at_the_map_s_peak_and_keeps_the_image_where_it_is_0():
    image = np.full((40, 60, 3), 120, np.uint8)
    heat = np.zeros((4, 6), np.float32)
    heat[0, 5] = 3.0
    drawn = overlay(image, heat)
    assert drawn.shape == image.shape and drawn.dtype == np.uint8
    assert drawn[2, 57].astype(int).sum() > drawn[2, 2].astype(int).sum() + 100
    assert (drawn[30:, :30] == drawn[30, 0]).all()
    assert (overlay(image, np.zeros((4, 6), np.float32)) == 90).all()
