"""Turns decoded images into what VGG's weights expect.

In:  uint8 RGB (H, W, 3), resized to (S, S, 3), batched to (N, S, S, 3), values 0-255.
Out: float32 (N, S, S, 3), per the weights' `mode`: 'caffe' (Keras): BGR minus (103.939, 116.779,
123.68), no scaling; 'torch': RGB/255, ImageNet's mean and deviation; 'unit': RGB/255.
`Preprocessing` is saved with a model, so that it can be used with nothing else. Everything here is
deterministic: random augmentation is in augment.py, the reading of files in images.py.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from vggjax.data.images.decode import load_image as load_image
from vggjax.data.images.resize import FILTERS, Box, resize
from vggjax.errors import ConfigError, unknown_name

MODES = ("caffe", "torch", "unit")
RESIZES = ("squash", "crop")
INTERPOLATIONS = tuple(FILTERS)

_BGR_MEAN = (103.939, 116.779, 123.68)
_RGB_MEAN = (0.485, 0.456, 0.406)
_RGB_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """What happens between an image and the network, all of it.

    `squash` resizes the whole image to a square, as `keras.utils.load_img(target_size=...)`
    does; `crop` resizes the short side to 256/224 of `image_size` and cuts the center out, which
    ImageNet's published accuracies need. Keras' own default interpolation is `nearest`.
    """

    mode: str = "caffe"
    image_size: int = 224
    resize: str = "squash"
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        _check("mode", self.mode, MODES)
        _check("resize", self.resize, RESIZES)
        _check("interpolation", self.interpolation, INTERPOLATIONS)
        size = self.image_size
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ConfigError(f"image_size must be a whole number of pixels above 0; got {size!r}.")

    def to_json(self) -> dict[str, str | int]:
        """Gives the fields by name, for `json.dump`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, str | int]) -> "Preprocessing":
        """Restores what `to_json` gave; a missing or unknown field is a `ConfigError`."""
        names = {field.name for field in dataclasses.fields(cls)}
        if set(fields) != names:
            raise ConfigError(
                f"The preprocessing must have the fields {', '.join(sorted(names))}; "
                f"got {', '.join(sorted(map(str, fields)))}."
            )
        return cls(**fields)


def preprocess(images: np.ndarray | jax.Array, mode: str = "caffe") -> jax.Array:
    """Shifts and scales RGB images, 0-255, to what the weights of this `mode` expect.

    (N, S, S, 3) of any dtype in, float32 of the same shape out; works inside jit.
    """
    _check("mode", mode, MODES)
    if images.ndim < 1 or images.shape[-1] != 3:
        raise ConfigError(f"Images must be RGB, (N, H, W, 3); got the shape {images.shape}.")
    pixels = jnp.asarray(images).astype(jnp.float32)
    if mode == "caffe":
        return pixels[..., ::-1] - _along_channels(_BGR_MEAN, pixels.ndim)
    pixels = pixels / 255.0
    if mode == "torch":
        pixels = pixels - _along_channels(_RGB_MEAN, pixels.ndim)
        pixels = pixels / _along_channels(_RGB_STD, pixels.ndim)
    return pixels


def resize_image(
    image: np.ndarray, preprocessing: Preprocessing, *, out: np.ndarray | None = None
) -> np.ndarray:
    """Resizes one image, uint8 RGB (H, W, 3), to (S, S, 3); into `out`, if it is given.

    By Pillow's filters, which smooth what they make smaller, and so what Keras' load_img gives, bit
    for bit (see resample.py).
    """
    size = preprocessing.image_size
    if out is None:
        out = np.empty((size, size, 3), np.uint8)
    box = _center(image, size) if preprocessing.resize == "crop" else None
    if box is None and image.shape == out.shape:
        out[...] = image
        return out
    return resize(image, (size, size), filter=preprocessing.interpolation, box=box, out=out)


def _center(image: np.ndarray, size: int) -> Box:
    """Gives what a crop shows, in pixels of the image.

    A strip of 1 x 5,000 px would otherwise grow to 256 x 1,280,000 before it is cut.
    """
    height, width = image.shape[:2]
    short = round(size * 256 / 224)
    scale = short / min(height, width)
    full_width, full_height = max(short, int(width * scale)), max(short, int(height * scale))
    left, top = round((full_width - size) / 2), round((full_height - size) / 2)
    x, y = width / full_width, height / full_height
    return left * x, top * y, (left + size) * x, (top + size) * y


def _along_channels(values: tuple[float, ...], ndim: int) -> jax.Array:
    return jnp.asarray(values, jnp.float32).reshape((1,) * (ndim - 1) + (3,))


def _check(what: str, value: str, choices) -> None:
    if value not in choices:
        raise ConfigError(unknown_name(what, value, choices))
