"""LPIPS, the learned perceptual distance of two images (Zhang et al., arXiv:1801.03924).

The same numbers as `lpips.LPIPS(net="vgg")` of the reference, version 0.1: torchvision's VGG16, the
outputs of the last ReLU before each pooling divided by their norm over the channels, their squared
difference weighted by channel, averaged over the map, and summed over the five layers.

lpips_vgg.npz holds the reference's linear weights, (C,) each, bit for bit; LICENSE.lpips is their
license. The base is not part of the package, see weights/README.md.
"""

import functools
import os
from importlib import resources
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vggjax.data.images.preprocess import preprocess
from vggjax.errors import ConfigError, WeightsError, printable
from vggjax.features.pixels import ValueRange, to_pixels
from vggjax.models.kernels.conv import convolve
from vggjax.models.network import VGG
from vggjax.training.step import map_microbatches
from vggjax.weights.load import load_pretrained, open_weights
from vggjax.weights.pretrained import find_torchvision
from vggjax.weights.weight_file import WeightFile

LAYERS = tuple(f"block{block}_conv{convs}" for block, convs in enumerate((2, 2, 3, 3, 3), 1))

_EPSILON = 1e-10
"""Added to the norm of a pixel's features, as in the reference."""


def convolve_exactly(lhs: jax.Array, rhs: jax.Array, *args: Any, **options: Any) -> jax.Array:
    """Convolve, in block1 by direct sums.

    A ReLU whose input is within rounding of 0 opens or closes, and in dark, flat areas, where the
    features' norm is small, that changes the gradient visibly. Winograd's rounding in block1 causes
    most of what differs from the reference.
    """
    method = "direct" if rhs.shape[-1] <= 64 else "auto"
    return convolve(lhs, rhs, *args, method=method, **options)


class LPIPS(nnx.Module):
    """The perceptual distance of pairs of images; 0 for equal ones, larger for less similar ones.

    distance = LPIPS()
    distances = distance(images, others)  # uint8 (N, H, W, 3), or floats with value_range

    Args:
        net: `vgg`, the only network of the reference that is here.
        weights: `torchvision` finds torchvision's VGG16 on this machine; or the path of a weight
            file, or a VGG16 that is loaded already.
        dtype: of the network's arithmetic, float32 or bfloat16; sums are float32.

    Raises:
        ConfigError: another network.
        WeightsError: the weights cannot be found or read, or are Keras', for which the linear
            weights were not made.
    """

    def __init__(
        self,
        net: str = "vgg",
        *,
        weights: str | os.PathLike | WeightFile | VGG = "torchvision",
        dtype: jax.typing.DTypeLike = jnp.float32,
    ):
        if net != "vgg":
            raise ConfigError(f"LPIPS has the network vgg; got {net!r}.")
        self.network = weights if isinstance(weights, VGG) else _load_base(weights, dtype)
        if self.network.arch.name != "vgg16":
            raise ConfigError(f"LPIPS needs vgg16; got {self.network.arch.name}.")
        with resources.files("vggjax.features").joinpath("lpips_vgg.npz").open("rb") as file:
            linear = np.load(file)
            for i, layer in enumerate(LAYERS):
                setattr(self, layer, nnx.Param(jnp.asarray(linear[f"lin{i}"].reshape(-1))))

    def __call__(
        self,
        images: "np.ndarray | jax.Array",
        others: "np.ndarray | jax.Array",
        *,
        value_range: ValueRange = None,
        spatial: bool = False,
    ) -> jax.Array:
        """Return the distance of each pair, float32 (N,).

        Args:
            images: RGB, (N, H, W, 3), uint8 or floats, 32 px or more.
            others: images of the same shape.
            value_range: the values of black and white in floats, such as (0, 1) or (-1, 1).
            spatial: return the distance at each pixel, (N, H, W), whose mean is nearly the
                distance; the layers' maps are enlarged by bilinear interpolation.

        Raises:
            ConfigError: images of different shapes, or floats without `value_range`.
        """
        if jnp.shape(images) != jnp.shape(others):
            raise ConfigError(
                f"LPIPS compares images of one shape; got {jnp.shape(images)} and "
                f"{jnp.shape(others)}."
            )
        pixels = [to_pixels(x, value_range) for x in (images, others)]
        return _compare(*nnx.split(self), *pixels, spatial=spatial)

    def __repr__(self) -> str:
        """Return the network and its arithmetic in one line."""
        return f"LPIPS('vgg', dtype={self.network.dtype})"

    __str__ = __repr__


@functools.partial(jax.jit, static_argnames=("graphdef", "spatial"))
def _compare(
    graphdef: Any, state: nnx.State, images: jax.Array, others: jax.Array, *, spatial: bool
) -> jax.Array:
    lpips = nnx.merge(graphdef, state)
    return map_microbatches(lambda x, y: _distances(lpips, x, y, spatial), images, others)


def _distances(lpips: LPIPS, images: jax.Array, others: jax.Array, spatial: bool) -> jax.Array:
    count, *size, _ = images.shape
    # Where black and white are -1 and 1, the reference's shift and scale are these means and
    # deviations: (-0.030 + 1) / 2 = 0.485, 0.458 / 2 = 0.229. Two passes, because the gradient is
    # often that of one image alone.
    first, second = (lpips.network(preprocess(x, "torch"), taps=LAYERS) for x in (images, others))
    total = jnp.zeros((count, *size) if spatial else count, jnp.float32)
    for layer in LAYERS:
        difference = _unit(first[layer]) - _unit(second[layer])
        weights = getattr(lpips, layer)[...].reshape(1, 1, 1, -1)
        distances = (jnp.square(difference) * weights).sum(-1)  # (N, h, w)
        if spatial:
            total += jax.image.resize(distances, (count, *size), "bilinear")
        else:
            total += distances.mean((1, 2))
    return total


def _unit(features: jax.Array) -> jax.Array:
    """Divide each pixel's features by their norm; where all are 0, the gradient is finite."""
    features = features.astype(jnp.float32)
    squares = jnp.square(features).sum(-1, keepdims=True)
    norm = jnp.sqrt(jnp.where(squares > 0, squares, 1.0))
    return features / (norm + _EPSILON)


def _load_base(weights: str | os.PathLike | WeightFile, dtype: jax.typing.DTypeLike) -> VGG:
    if weights == "torchvision":
        weights = find_torchvision()
    with open_weights(weights, "vgg16", include_top=False) as file:
        base = file.published_base
        if base is not None and base.preprocess != "torch":
            raise WeightsError(
                f"{printable(file.path)} is {base}. LPIPS needs torchvision's VGG16, for which its "
                "linear weights were made; weights/README.md says where it is."
            )
        options: dict[str, Any] = {"include_top": False, "dtype": dtype, "conv": convolve_exactly}
        return load_pretrained("vgg16", weights=file, base_only=True, **options)
