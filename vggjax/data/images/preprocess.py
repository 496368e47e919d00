"""Turn decoded images into what VGG's weights expect.

In:  uint8 RGB (H, W, 3), resized to (S, S, 3), batched to (N, S, S, 3), values 0-255.
Out: float32 (N, S, S, 3), per the weights' `mode`: 'caffe' (Keras): BGR minus (103.939, 116.779,
123.68), no scaling; 'torch': RGB/255, ImageNet's mean and standard deviation; 'unit': RGB/255.
`Preprocessing` is saved with a model, which is never used with another. Everything here is
deterministic: random augmentation is in data/augment, decoding in decode.py.
"""

import dataclasses
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vggjax.data.images.decode import Rendering
from vggjax.data.images.resize import FILTERS, Box, resize
from vggjax.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    import jax

MODES = ("caffe", "torch", "unit")
RESIZES = ("squash", "crop")
INTERPOLATIONS = tuple(FILTERS)

BGR_MEAN = (103.939, 116.779, 123.68)
RGB_MEAN = (0.485, 0.456, 0.406)
RGB_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """Everything that happens between an image and the network.

    `squash` resizes the whole image to a square, as `keras.utils.load_img(target_size=...)` does;
    `crop` resizes the short side to 256/224 of `image_size` and takes the center crop, which
    ImageNet's published accuracies need. Keras' own default interpolation is `nearest`.
    """

    mode: str = "caffe"
    image_size: int = 224
    resize: str = "squash"
    interpolation: str = "bilinear"
    background: str = "white"
    """What transparency is laid over."""
    pixel_range: tuple[float, float] | None = None
    """What becomes black and white in images of more than 8 bits; None is their full range."""

    def __post_init__(self) -> None:
        _check_choice("mode", self.mode, MODES)
        _check_choice("resize", self.resize, RESIZES)
        _check_choice("interpolation", self.interpolation, INTERPOLATIONS)
        size = self.image_size
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ConfigError(
                f"`image_size` must be a whole number of pixels above 0; got {size!r}."
            )

    @property
    def rendering(self) -> Rendering:
        """How images are decoded for it."""
        return Rendering(self.background, self.pixel_range)

    def to_json(self) -> dict[str, Any]:
        """Return the fields by name, for `json.dump`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Preprocessing":
        """Restore what `to_json` returned; the rendering's fields may be missing.

        Raises:
            ConfigError: a missing, unknown or impossible field.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        fields = {"background": cls.background, "pixel_range": cls.pixel_range, **fields}
        if fields["pixel_range"] is not None:
            fields["pixel_range"] = tuple(fields["pixel_range"])
        if set(fields) != names:
            raise ConfigError(
                f"The preprocessing must have the fields {', '.join(sorted(names))}; "
                f"got {', '.join(sorted(map(str, fields)))}."
            )
        return cls(**fields)


def preprocess(images: "np.ndarray | jax.Array", mode: str = "caffe") -> "jax.Array":
    """Shift and scale RGB images, 0-255, to what the weights of this `mode` expect.

    (N, S, S, 3) of any dtype in, float32 of the same shape out; works inside jit. Outside, it warns
    of floats that are all between -1 and 1.

    Raises:
        ConfigError: an unknown mode, or images without three channels.
    """
    import jax
    import jax.numpy as jnp

    _check_choice("mode", mode, MODES)
    if images.ndim < 1 or images.shape[-1] != 3:
        raise ConfigError(f"Images must be RGB, (N, H, W, 3); got the shape {images.shape}.")

    def along_channels(values: tuple[float, ...]) -> "jax.Array":
        return jnp.asarray(values, jnp.float32).reshape((1,) * (images.ndim - 1) + (3,))

    if not isinstance(images, jax.core.Tracer):
        _warn_of_small_range(images)
    pixels = jnp.asarray(images).astype(jnp.float32)
    if mode == "caffe":
        return pixels[..., ::-1] - along_channels(BGR_MEAN)
    pixels = pixels / 255.0
    if mode == "torch":
        pixels = (pixels - along_channels(RGB_MEAN)) / along_channels(RGB_STD)
    return pixels


def _warn_of_small_range(images: "np.ndarray | jax.Array") -> None:
    import jax.numpy as jnp

    if not images.size or not jnp.issubdtype(images.dtype, jnp.floating):
        return
    low, high = float(images.min()), float(images.max())
    if -1 <= low and high <= 1 and low < high:
        warnings.warn(
            f"`preprocess` takes pixels from 0 to 255; these are {low:.3g} to {high:.3g}. If 1 is "
            "white in them, multiply by 255 first.",
            stacklevel=3,
        )


def resize_image(
    image: np.ndarray, preprocessing: Preprocessing, *, out: np.ndarray | None = None
) -> np.ndarray:
    """Resize one image, uint8 RGB (H, W, 3), to (S, S, 3); into `out`, if it is given.

    Pillow's filters, which antialias, and so Keras' load_img bit for bit (see resize.py).
    """
    size = preprocessing.image_size
    if out is None:
        out = np.empty((size, size, 3), np.uint8)
    box = _center_box(image, size) if preprocessing.resize == "crop" else None
    if box is None and image.shape == out.shape:
        out[...] = image
        return out
    return resize(image, (size, size), filter=preprocessing.interpolation, box=box, out=out)


def short_side(size: int) -> int:
    """Return the px that an image's short side is resized to for a center crop of `size`."""
    return round(size * 256 / 224)


def _center_box(image: np.ndarray, size: int) -> Box:
    """Return the box of the image that a center crop shows, in pixels of the image.

    Resizing before cropping would turn a strip of 1 x 5,000 px into 256 x 1,280,000.
    """
    height, width = image.shape[:2]
    short = short_side(size)
    scale = short / min(height, width)
    full_width, full_height = max(short, int(width * scale)), max(short, int(height * scale))
    left, top = round((full_width - size) / 2), round((full_height - size) / 2)
    x, y = width / full_width, height / full_height
    return left * x, top * y, (left + size) * x, (top + size) * y


def _check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise ConfigError(unknown_name(name, value, choices))
