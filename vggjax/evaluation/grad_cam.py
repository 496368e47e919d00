"""Shows where a network looked: Grad-CAM, for any model of the package, by the cut law alone.

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization" (arXiv:1610.02391). In: images as the network expects them, float (N, S, S, 3). Out:
maps float32 (N, h, w) from 0, as fine as the layer's own output. With a head that is one dense
layer on the averaged map, Grad-CAM is CAM (the paper's section 3.1). Nothing is drawn but colors.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vggjax.errors import ConfigError, unknown_name

MIN_MAP_PX = 7
"""A coarser map than 4 by 4 says nothing of where: an earlier layer is taken then."""


def grad_cam(
    model: Any, images: jax.Array, classes: np.ndarray | jax.Array, *, layer: str | None = None
) -> np.ndarray:
    """Gives how much each place of a layer's output speaks for a class: (N, h, w), 0 for nothing.

    Args:
        model: whatever offers `layers`, `after` and `until`; it is run as it predicts.
        images: (N, S, S, 3), preprocessed.
        classes: (N,), the class that each image's map is of; with one sigmoid unit 0 or 1.
        layer: the layer whose output is weighed; None is `map_layer`'s choice.

    Raises:
        ConfigError: an unknown layer, or one whose output is no map.
    """
    images, classes = jnp.asarray(images), jnp.asarray(classes, jnp.int32)
    layer = map_layer(model, images.shape[1]) if layer is None else layer
    if layer not in model.layers:
        raise ConfigError(unknown_name("layer", layer, model.layers))
    if len(_shapes(model, images.shape[1])[layer]) != 4:
        raise ConfigError(f"The output of {layer} is no map, so that Grad-CAM has none to weigh.")
    model.eval()
    graphdef, state = nnx.split(model)
    return np.asarray(_maps(graphdef, layer, state, images, classes))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _maps(
    graphdef: Any, layer: str, state: nnx.State, images: jax.Array, classes: jax.Array
) -> jax.Array:
    model = nnx.merge(graphdef, state)
    features = model(images, until=layer)

    def score(features: jax.Array) -> jax.Array:
        logits = model(features, after=layer)
        if logits.shape[-1] == 1:  # one sigmoid unit: its logit speaks for 1 and against 0
            logits = jnp.concatenate([-logits, logits], axis=-1)
        return jnp.take_along_axis(logits, classes[:, None], axis=1).sum()

    gradient = jax.grad(score)(features).astype(jnp.float32)  # (N, h, w, C)
    weights = gradient.mean((1, 2), keepdims=True)  # alpha of the paper's equation 1
    maps = (weights * features.astype(jnp.float32)).sum(-1)  # equation 2, before its relu
    # A fast convolution rounds 0 to 1e-9, which a drawing would stretch to full strength.
    floor = 1e-5 * jnp.abs(maps).max((1, 2), keepdims=True)
    return jnp.where(maps > floor, maps, 0.0)


def map_layer(model: Any, image_size: int) -> str:
    """Names the layer to look at: the last one before a pooling whose map has 4 by 4 places.

    The paper takes the last convolution, as the best compromise of meaning and place. Images so
    small that its map is coarser than that are looked at earlier; the finest is taken at worst.
    """
    shapes = _shapes(model, image_size)
    last: dict[int, str] = {}  # side of a map -> the last layer that gives one, if it learned
    for name, shape in shapes.items():
        if len(shape) == 4 and (shape[1] in last or hasattr(model, name)):
            last[shape[1]] = name
    if not last:
        raise ConfigError("The network has no layer whose output is a map; Grad-CAM needs one.")
    fine = [side for side in last if side >= MIN_MAP_PX]
    return last[min(fine) if fine else max(last)]


def _shapes(model: Any, image_size: int) -> dict[str, tuple[int, ...]]:
    """Gives the shape of each layer's output for one image, in the order of the layers."""
    graphdef, state = nnx.split(model)

    def run(state: nnx.State, images: jax.Array) -> dict[str, jax.Array]:
        return nnx.merge(graphdef, state)(images, taps=model.layers)

    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    outputs = jax.eval_shape(run, state, images)
    return {name: outputs[name].shape for name in model.layers}


def overlay(image: np.ndarray, heat: np.ndarray, *, strength: float = 0.6) -> np.ndarray:
    """Lays a map (h, w) over an image, uint8 RGB (H, W, 3), and gives the same shape.

    The map is stretched over the image, its highest place is drawn at full strength, and a place
    at 0 leaves the image as it is, only a little darker and grayer.
    """
    from PIL import Image

    top = float(heat.max())
    share = np.asarray(heat, np.float32) / top if top > 0 else np.zeros_like(heat, np.float32)
    size = image.shape[1], image.shape[0]
    fine = Image.fromarray(share).resize(size, Image.Resampling.BICUBIC)
    share = np.clip(np.asarray(fine), 0, 1)[..., None]
    gray = image.mean(-1, keepdims=True)
    still = 0.75 * (0.5 * image + 0.5 * gray)
    drawn = still + strength * share**0.8 * (_color(share[..., 0]) - still) + 30 * share
    return np.clip(drawn + 0.5, 0, 255).astype(np.uint8)


_HEAT = np.array([(48, 18, 120), (190, 30, 110), (250, 110, 30), (255, 230, 80)], np.float32)


def _color(share: np.ndarray) -> np.ndarray:
    """Gives RGB 0-255 (H, W, 3) of shares in [0, 1]: violet, red, orange, yellow."""
    places = np.linspace(0, 1, len(_HEAT))
    return np.stack([np.interp(share, places, _HEAT[:, i]) for i in range(3)], axis=-1)
