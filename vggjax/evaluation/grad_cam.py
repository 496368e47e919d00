"""Compute Grad-CAM maps for any `Network`: which places of an image speak for a class.

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization" (arXiv:1610.02391). In: images as the network expects them, float (N, S, S, 3). Out:
maps float32 (N, h, w), 0 or more, at the resolution of the layer's output. With a head that is one
dense layer on the averaged map, Grad-CAM is CAM (the paper's section 3.1).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vggjax.models.network import Network

_HEAT = np.array([(48, 18, 120), (190, 30, 110), (250, 110, 30), (255, 230, 80)], np.float32)
"""RGB of a map at 0, 1/3, 2/3 and 1: violet, red, orange, yellow."""

MIN_MAP_PX = 7
"""Side of the coarsest map that is useful; below it an earlier layer is used."""


def grad_cam(model: Network, images: jax.Array, classes: np.ndarray, *, layer: str) -> np.ndarray:
    """Return how much each place of a layer's output speaks for a class: (N, h, w), 0 for nothing.

    Args:
        model: put into evaluation mode.
        images: (N, S, S, 3), preprocessed.
        classes: (N,), the class of each image's map; 0 or 1 with one sigmoid unit.
        layer: a layer with an output (N, h, w, C), as `map_layer` chooses it.

    Raises:
        ConfigError: an unknown layer.
    """
    model.eval()
    graphdef, state = nnx.split(model)
    labels = jnp.asarray(classes, jnp.int32)
    return np.asarray(_maps(graphdef, layer, state, jnp.asarray(images), labels))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _maps(
    graphdef: Any, layer: str, state: nnx.State, images: jax.Array, classes: jax.Array
) -> jax.Array:
    model = nnx.merge(graphdef, state)
    needed = [name for name in model.pooled_layers if layer in model.uncut_layers]
    earlier = needed[: needed.index(layer)] if layer in needed else needed
    taps = model(images, until=layer, taps=(*earlier, layer))
    features = taps[layer]

    def score(features: jax.Array) -> jax.Array:
        logits = model(taps | {layer: features}, after=layer)
        if logits.shape[-1] == 1:  # one sigmoid unit: for class 1, against class 0
            logits = jnp.concatenate([-logits, logits], axis=-1)
        return jnp.take_along_axis(logits, classes[:, None], axis=1).sum()

    gradient = jax.grad(score)(features).astype(jnp.float32)  # (N, h, w, C)
    weights = gradient.mean((1, 2), keepdims=True)  # alpha of the paper's equation 1
    maps = (weights * features.astype(jnp.float32)).sum(-1)  # equation 2, before its relu
    # A fast convolution rounds 0 to 1e-9, which `overlay` would scale to full strength.
    floor = 1e-5 * jnp.abs(maps).max((1, 2), keepdims=True)
    return jnp.where(maps > floor, maps, 0.0)


def map_layer(model: Network, image_size: int) -> str:
    """Return the last layer before a pooling whose output is at least `MIN_MAP_PX` wide.

    The paper uses the last convolution, the best compromise between semantics and spatial detail.
    Small images need an earlier layer; if all are too coarse, the finest is used.
    """
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    outputs = nnx.eval_shape(lambda network, x: network(x, taps=network.layers), model, images)
    last: dict[int, str] = {}  # side of an output -> the last layer that has it
    for name in model.layers:
        shape = outputs[name].shape
        if len(shape) == 4 and (shape[1] in last or hasattr(model, name)):
            last[shape[1]] = name
    fine = [side for side in last if side >= MIN_MAP_PX]
    return last[min(fine) if fine else max(last)]


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Draw a map (h, w), scaled to its maximum, over an image, uint8 RGB (H, W, 3)."""
    from PIL import Image

    share = np.asarray(heat, np.float32) / (float(heat.max()) or 1)
    size = image.shape[1], image.shape[0]
    fine = Image.fromarray(share).resize(size, Image.Resampling.BICUBIC)
    share = np.clip(np.asarray(fine), 0, 1)[..., None]
    gray = image.mean(-1, keepdims=True)
    # Where the map is 0, the image is only slightly darker and grayer.
    background = 0.75 * (0.5 * image + 0.5 * gray)
    steps = np.linspace(0, 1, len(_HEAT))
    colors = np.stack([np.interp(share[..., 0], steps, _HEAT[:, i]) for i in range(3)], axis=-1)
    drawn = background + 0.6 * share**0.8 * (colors - background) + 30 * share
    return np.clip(drawn + 0.5, 0, 255).astype(np.uint8)
