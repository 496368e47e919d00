"""The convolution that the networks call, with the signature of `lax.conv_general_dilated`.

On CPUs, a 3x3 kernel at stride 1 takes the fastest of four paths, in float32 even for bfloat16
maps; every other convolution, and every other device, is lax's. `make_convolve` fixes the method of
a whole network:

- `auto` uses `winograd`, except where measurements favor another path (see `choose_path`).
- `winograd` uses Winograd's F(4x4, 3x3) wherever it is defined (see winograd.py).
- `direct` adds up every product as lax does, and replaces lax in the two cases where XLA
  (jax 0.10.2) is slow on CPUs: maps of 4x4 px or less (512 channels at 2x2 px, batch 32: 1,127 ms;
  one product over the patches: 9 ms), and the gradient of the kernel (256 channels at 56x56 px,
  batch 8: 1,322 ms; nine products of the shifted map with the output's gradient: 422 ms).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from vggjax.errors import ConfigError, unknown_name
from vggjax.models.kernels import winograd

METHODS = ("auto", "winograd", "direct")

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def convolve(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Any,
    padding: Any,
    *,
    method: str = "auto",
    **options: Any,
) -> jax.Array:
    """Convolve `lhs` (N, H, W, C) with `rhs` (3, 3, C, D), or anything else that lax accepts."""
    if jax.default_backend() == "cpu" and _is_3x3(lhs, rhs, window_strides, padding, options):
        path = _PATHS[choose_path(lhs.shape, rhs.shape, method=method)]
        # On CPUs without bfloat16 products (AVX2), lax's take 3 to 5 times as long as float32.
        y = path(lhs.astype(jnp.float32), rhs.astype(jnp.float32)).astype(lhs.dtype)
        # VALID omits the border. Computing it costs a few percent of the products, and lax is so
        # much slower that a small convnet's step takes a half to a quarter of the time this way.
        return y[:, 1:-1, 1:-1] if padding == "VALID" else y
    return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)


def make_convolve(method: str) -> Callable[..., jax.Array]:
    """Return `convolve` with its method fixed, for `Network(conv=...)`.

    Raises:
        ConfigError: there is no such method.
    """
    if method not in METHODS:
        raise ConfigError(unknown_name("`convolution`", method, METHODS))
    return functools.partial(convolve, method=method)


def choose_path(
    map_shape: tuple[int, ...], kernel_shape: tuple[int, ...], *, method: str = "auto"
) -> str:
    """Return the path for a map (N, H, W, C) and a kernel (3, 3, C, D)."""
    longest, channels = max(map_shape[1:3]), kernel_shape[2]
    if method == "winograd":
        return "winograd"
    # On such maps most of a Winograd tile is padding; in jax.numpy, tiles cost more than patches.
    if longest <= (2 if method == "auto" and winograd.is_compiled() else 4):
        return "patches"
    if method == "direct":
        return "direct"
    # With few channels the transforms cost more than the products that they save.
    return "few_channels" if channels < 8 else "winograd"


def _is_3x3(
    lhs: jax.Array, rhs: jax.Array, window_strides: Any, padding: Any, options: dict[str, Any]
) -> bool:
    numbers = options.get("dimension_numbers")
    dilations = [options.get(name) for name in ("lhs_dilation", "rhs_dilation")]
    return (
        numbers is not None
        and numbers == lax.conv_dimension_numbers(lhs.shape, rhs.shape, _LAYOUT)
        and lhs.dtype == rhs.dtype
        and lhs.dtype in (jnp.float32, jnp.bfloat16)
        and rhs.shape[:2] == (3, 3)
        and tuple(window_strides) == (1, 1)
        and padding in ("SAME", "VALID")
        and (padding == "SAME" or min(lhs.shape[1:3]) > 2)
        and all(rates is None or set(rates) == {1} for rates in dilations)
        and options.get("feature_group_count", 1) == 1
        and options.get("batch_group_count", 1) == 1
    )


def _patches(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    n, height, width, channels = lhs.shape
    patches = jnp.concatenate(_shifts(lhs), -1).reshape(-1, 9 * channels)
    return (patches @ rhs.reshape(9 * channels, -1)).reshape(n, height, width, -1)


def _lax(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(lhs, rhs, (1, 1), "SAME", dimension_numbers=_LAYOUT)


def _nine_products(lhs: jax.Array, grad: jax.Array) -> jax.Array:
    channels, outputs = lhs.shape[-1], grad.shape[-1]
    rows = grad.reshape(-1, outputs)  # (N*H*W, D)
    # One product per tap of the kernel: (C, N*H*W) @ (N*H*W, D) -> (C, D)
    products = [shift.reshape(-1, channels).T @ rows for shift in _shifts(lhs)]
    return jnp.stack(products).reshape(3, 3, channels, outputs)


def _shifts(x: jax.Array) -> list[jax.Array]:
    """Return the nine shifted maps that the taps of a 3x3 kernel multiply, in the taps' order."""
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]


_PATHS: dict[str, winograd.Op] = {
    "direct": winograd.differentiable(_lax, _nine_products),
    "few_channels": winograd.differentiable(_lax, winograd.kernel_gradient),
    "patches": _patches,
    "winograd": winograd.convolve,
}
