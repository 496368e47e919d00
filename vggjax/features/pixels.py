"""Scale images of any stated range to the pixels, 0 to 255, that `preprocess` takes."""

from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from vggjax.errors import ConfigError

ValueRange: TypeAlias = tuple[float, float] | None
"""The values of black and white, as (0, 1); None is (0, 255) of uint8."""


def to_pixels(images: "np.ndarray | jax.Array", value_range: ValueRange) -> jax.Array:
    """Return images (N, H, W, 3) as float32 from 0 to 255; differentiable, also under jit and vmap.

    Values a little beyond the range pass unchanged, as an optimizer needs them.

    Args:
        images: RGB, uint8 or floats.
        value_range: the values of black and white. Floats need it, because 0.5 is gray in (0, 1)
            and in (-1, 1) another gray, and almost black in (0, 255).

    Raises:
        ConfigError: images of another shape or type, floats without a range, or floats (outside
            jit) that are far outside it.
    """
    shape, dtype = jnp.shape(images), getattr(images, "dtype", None)
    if len(shape) != 4 or shape[3] != 3:
        raise ConfigError(f"Images must be RGB, of shape (N, H, W, 3); got {shape}.")
    if dtype == jnp.uint8:
        if value_range not in (None, (0, 255)):
            raise ConfigError(
                f"`value_range` of uint8 images is (0, 255) and needs no argument; got "
                f"{value_range}."
            )
        return jnp.asarray(images).astype(jnp.float32)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise ConfigError(f"Images must be uint8 or floats; got {dtype or type(images).__name__}.")
    if value_range is None:
        raise ConfigError(
            f"{dtype} images need `value_range`, the values of black and white: (0, 1), (-1, 1) or "
            f"(0, 255)."
        )
    low, high = value_range
    if not low < high:
        raise ConfigError(f"`value_range` must be (black, white), ascending; got {value_range}.")
    _check_values(images, low, high)
    return (jnp.asarray(images).astype(jnp.float32) - low) * (255 / (high - low))


def _check_values(images: "np.ndarray | jax.Array", low: float, high: float) -> None:
    if isinstance(images, jax.core.Tracer) or not images.size:
        return
    least, most, slack = float(images.min()), float(images.max()), (high - low) / 2
    if least < low - slack or most > high + slack:
        raise ConfigError(
            f"The images' values are {least:.3g} to {most:.3g}, far outside the `value_range` "
            f"{low:g} to {high:g}. Give the values of black and white."
        )
