"""Losses on VGG's features: perceptual, content and style loss; and total variation.

    loss = perceptual_loss(model, images, targets, value_range=(0, 1)).mean()

Images are RGB, (N, H, W, 3), uint8 or floats of a stated `value_range`; each loss is float32 (N,),
one number per image. Any network of arch.py serves, in float32 or bfloat16: differences and sums
are float32. All of it works under jit, vmap and every derivative.

Where the targets stay the same from step to step, compute their features (`layer_features`) or Gram
matrices once and give those in place of the target images.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from vggjax.data.images.preprocess import preprocess
from vggjax.errors import ConfigError
from vggjax.features.pixels import ValueRange, to_pixels
from vggjax.models.arch import Backbone
from vggjax.models.network import Network

Images: TypeAlias = np.ndarray | jax.Array

Layers: TypeAlias = Mapping[str, float] | Sequence[str]
"""Layer -> weight, or layers that all have the weight 1."""

Targets: TypeAlias = Images | Mapping[str, jax.Array]
"""Images, or what was computed of them before: {layer: array}."""


def last_relus(arch: Backbone) -> tuple[str, ...]:
    """Return the last ReLU before each pooling: relu1_2 ... relu5_3 of VGG16 in Caffe's names."""
    layers = arch.layers()
    return tuple(layers[i - 1] for i, name in enumerate(layers) if name.endswith("_pool"))


def first_relus(arch: Backbone) -> tuple[str, ...]:
    """Return the first ReLU of each block: relu1_1 ... relu5_1."""
    blocks = dict.fromkeys(name[:6] for name in arch.layers() if "_conv" in name)
    return tuple(_relu_of(arch, f"{block}_conv1") for block in blocks)


def content_relu(arch: Backbone) -> str:
    """Return the content layer of Gatys et al., relu4_2."""
    return _relu_of(arch, "block4_conv2")


def _relu_of(arch: Backbone, conv: str) -> str:
    """Return the layer with a convolution's ReLU, which comes after batch normalization."""
    norm = conv.replace("_conv", "_bn")
    return norm if norm in arch.layers() else conv


def layer_features(
    model: Network,
    images: Images,
    layers: Sequence[str],
    *,
    value_range: ValueRange = None,
    mode: str | None = None,
) -> dict[str, jax.Array]:
    """Return the outputs of layers, float32 (N, h, w, C), by their names in `layers`.

    Args:
        model: any network.
        images: RGB, (N, H, W, 3), uint8 or floats.
        layers: names as in calling the model.
        value_range: the values of black and white in floats; uint8 needs none.
        mode: the preprocessing of the model's weights, `caffe`, `torch` or `unit`; None is what
            its weight file states.

    Raises:
        ConfigError: images without the range or the mode that they need, or an unknown layer.
    """
    mode = model.preprocess_mode if mode is None else mode
    if mode is None:
        raise ConfigError(
            "The weights of this model state no preprocessing. Give `mode`: caffe for weights of "
            "Keras, torch for torchvision's, unit for RGB from 0 to 1."
        )
    x = preprocess(to_pixels(images, value_range), mode)
    outputs = model(x, taps=tuple(layers))
    return {name: output.astype(jnp.float32) for name, output in outputs.items()}


def perceptual_loss(
    model: Network,
    images: Images,
    targets: Targets,
    *,
    layers: Layers | None = None,
    distance: Literal["l1", "l2"] = "l2",
    value_range: ValueRange = None,
    mode: str | None = None,
) -> jax.Array:
    """Return the distance of images and targets in VGG's features, float32 (N,).

    The weighted sum over layers of the mean squared difference: the feature reconstruction loss of
    Johnson et al. (arXiv:1603.08155), equation 2; `l1` takes absolute differences, as pix2pixHD
    (arXiv:1711.11585) does.

    Args:
        model: any network.
        images: RGB, (N, H, W, 3), uint8 or floats.
        targets: images of the same shape, or their `layer_features`.
        layers: {layer: weight}; None is the last ReLU of each block, each of weight 1.
        distance: `l1` or `l2`.
        value_range: the values of black and white in floats, for images and targets.
        mode: the preprocessing of the weights; None is what their file states.

    Raises:
        ConfigError: images that do not fit the targets or need a range, or an unknown layer.
    """
    if distance not in ("l1", "l2"):
        raise ConfigError(f"`distance` is l1 or l2; got {distance!r}.")
    weights = _weights(last_relus(model.arch) if layers is None else layers)
    options = {"value_range": value_range, "mode": mode}
    features, others = _both(model, images, targets, tuple(weights), options)
    total = jnp.zeros(jnp.shape(images)[0], jnp.float32)
    for name, weight in weights.items():
        if features[name].shape != others[name].shape:
            raise ConfigError(
                f"The images' features of {name} are {features[name].shape}, the targets' "
                f"{others[name].shape}; both need the same shape."
            )
        difference = features[name] - others[name]
        error = jnp.abs(difference) if distance == "l1" else jnp.square(difference)
        total += weight * error.mean((1, 2, 3))
    return total


def content_loss(
    model: Network,
    images: Images,
    targets: Targets,
    *,
    layers: Layers | None = None,
    value_range: ValueRange = None,
    mode: str | None = None,
) -> jax.Array:
    """Return the content loss of Gatys et al. (CVPR 2016), equation 1, as a mean, float32 (N,).

    It is `perceptual_loss` on the layer of that paper, `block4_conv2` (with batch normalization its
    `block4_bn2`), with the same arguments. The paper has half the sum of squares where this is
    their mean.

    Raises:
        ConfigError: images that do not fit the targets or need a range, or an unknown layer.
    """
    layers = (content_relu(model.arch),) if layers is None else layers
    return perceptual_loss(
        model, images, targets, layers=layers, value_range=value_range, mode=mode
    )


def style_loss(
    model: Network,
    images: Images,
    targets: Targets,
    *,
    layers: Layers | None = None,
    value_range: ValueRange = None,
    mode: str | None = None,
) -> jax.Array:
    """Return the distance of images and targets in their Gram matrices, float32 (N,).

    The weighted sum over layers of the squared Frobenius norm of the difference: the style
    reconstruction loss of Johnson et al. (arXiv:1603.08155), equation 4, which is four times that
    of Gatys et al. (CVPR 2016), equation 4. Arguments not named here are as in `perceptual_loss`.

    Args:
        targets: images of any size, N or 1 of them, or {layer: their `gram_matrix`}.
        layers: {layer: weight}; None is the first ReLU of each block, as in Gatys et al., each of
            weight 1.

    Raises:
        ConfigError: images that need a range, targets of another number, or an unknown layer.
    """
    weights = _weights(first_relus(model.arch) if layers is None else layers)
    options = {"value_range": value_range, "mode": mode}
    features, others = _both(model, images, targets, tuple(weights), options)
    total = jnp.zeros(jnp.shape(images)[0], jnp.float32)
    for name, weight in weights.items():
        target = others[name] if isinstance(targets, Mapping) else gram_matrix(others[name])
        gram = gram_matrix(features[name])
        if target.shape not in (gram.shape, (1, *gram.shape[1:])):
            raise ConfigError(
                f"The Gram matrices of {name} are {gram.shape}, the targets' {target.shape}; there "
                "must be as many targets as images, or one."
            )
        total += weight * jnp.square(gram - target).sum((1, 2))
    return total


def gram_matrix(features: jax.Array) -> jax.Array:
    """Return the channels' products, averaged over a map: (N, h, w, C) -> float32 (N, C, C).

    Divided by h * w * C, as in Johnson et al. (arXiv:1603.08155), equation 3.
    """
    height, width, channels = features.shape[1:]
    products = jnp.einsum("nhwc,nhwd->ncd", features, features, preferred_element_type=jnp.float32)
    return products / (height * width * channels)


def total_variation(images: Images, *, value_range: ValueRange = None) -> jax.Array:
    """Return the total variation per pixel, float32 (N,), of values scaled to 0 to 1.

    The sum of the absolute differences between neighbors, down and across, over all channels
    (Rudin et al. 1992, anisotropic), divided by H * W.

    Raises:
        ConfigError: floats without `value_range`.
    """
    values = to_pixels(images, value_range) / 255
    down = jnp.abs(values[:, 1:] - values[:, :-1]).sum((1, 2, 3))
    across = jnp.abs(values[:, :, 1:] - values[:, :, :-1]).sum((1, 2, 3))
    return (down + across) / (values.shape[1] * values.shape[2])


def _weights(layers: Layers) -> dict[str, float]:
    weights = dict(layers) if isinstance(layers, Mapping) else dict.fromkeys(layers, 1.0)
    if isinstance(layers, str) or not weights:
        raise ConfigError(f"`layers` must be names or {{layer: weight}}; got {layers!r}.")
    return weights


def _both(
    model: Network,
    images: Images,
    targets: Targets,
    layers: tuple[str, ...],
    options: dict,
) -> tuple[dict[str, jax.Array], Mapping[str, jax.Array]]:
    """Return the layers' features of the images, and those of the targets, or what is given."""
    features = layer_features(model, images, layers, **options)
    if not isinstance(targets, Mapping):
        return features, layer_features(model, targets, layers, **options)
    if missing := [name for name in layers if name not in targets]:
        raise ConfigError(
            f"The targets lack the layer {missing[0]!r}; they have {', '.join(targets)}."
        )
    return features, targets
