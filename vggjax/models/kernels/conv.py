"""The convolution that VGG's layers call, behind the signature of `lax.conv_general_dilated`.

On CPUs, for 3x3 kernels at stride 1, this door leads to the fastest of three ways, in float32 also
where the maps are bfloat16; all else, and every other device, is lax's. `make_convolve` fixes the
way for a whole network:

- `auto` takes `winograd` but where a measurement says otherwise (see `choose_path`).
- `winograd` takes Winograd's F(4x4, 3x3) wherever it is defined (see winograd.py).
- `direct` adds up every product, as lax does, but for what XLA (jax 0.10.2) is slow at on CPUs:
  maps of 4x4 px or less (512 channels at 2x2 px, batch 32, took 1,127 ms; one product over the
  patches takes 9 ms), and the kernel's gradient (256 channels at 56x56 px, batch 8, took 1,322 ms;
  nine products of the shifted map with the output's gradient take 422 ms).
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
    """Convolves `lhs` (N, H, W, C) with `rhs` (3, 3, C, D), or whatever else lax takes."""
    if jax.default_backend() == "cpu" and _is_vgg(lhs, rhs, window_strides, padding, options):
        path = _PATHS[choose_path(lhs.shape, rhs.shape, method=method)]
        # CPUs without bfloat16 products (AVX2) take 3 to 5 times as long for lax's as for these.
        y = path(lhs.astype(jnp.float32), rhs.astype(jnp.float32)).astype(lhs.dtype)
        # The border that VALID leaves out is a few products in a hundred, and lax is no match for
        # the rest: a small convnet's step takes half to a quarter of the time.
        return y[:, 1:-1, 1:-1] if padding == "VALID" else y
    return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)


def make_convolve(method: str) -> Callable[..., jax.Array]:
    """Gives `convolve` with its method fixed, as `VGG(conv=...)` takes it.

    Raises:
        ConfigError: no such method.
    """
    if method not in METHODS:
        raise ConfigError(unknown_name("--convolution", method, METHODS))
    return functools.partial(convolve, method=method)


def choose_path(
    map_shape: tuple[int, ...], kernel_shape: tuple[int, ...], *, method: str = "auto"
) -> str:
    """Names the way for a map (N, H, W, C) and a kernel (3, 3, C, D)."""
    longest, channels = max(map_shape[1:3]), kernel_shape[2]
    if method == "winograd":
        return "winograd"
    # Nine tenths of a Winograd tile would be padding; jax.numpy's tiles are dearer than patches.
    if longest <= (2 if method == "auto" and winograd.native() else 4):
        return "patches"
    if method == "direct":
        return "direct"
    # Of few channels the transforms cost more than the products that they save.
    return "few_channels" if channels < 8 else "winograd"


def _is_vgg(lhs, rhs, window_strides, padding, options) -> bool:
    numbers = options.get("dimension_numbers")
    dilated = [options.get(name) for name in ("lhs_dilation", "rhs_dilation")]
    return (
        numbers is not None
        and numbers == lax.conv_dimension_numbers(lhs.shape, rhs.shape, _LAYOUT)
        and lhs.dtype == rhs.dtype
        and lhs.dtype in (jnp.float32, jnp.bfloat16)
        and rhs.shape[:2] == (3, 3)
        and tuple(window_strides) == (1, 1)
        and padding in ("SAME", "VALID")
        and (padding == "SAME" or min(lhs.shape[1:3]) > 2)
        and all(rates is None or set(rates) == {1} for rates in dilated)
        and options.get("feature_group_count", 1) == 1
        and options.get("batch_group_count", 1) == 1
    )


def _patches(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    n, height, width, channels = lhs.shape
    patches = jnp.concatenate(_shifts(lhs), -1).reshape(-1, 9 * channels)
    return (patches @ rhs.reshape(9 * channels, -1)).reshape(n, height, width, -1)


def _lax(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(lhs, rhs, (1, 1), "SAME", dimension_numbers=_LAYOUT)


def _with_gradients(kernel_gradient: Callable) -> Callable:
    """Gives lax's convolution with another way to the kernel's gradient."""

    @jax.custom_vjp
    def conv(lhs, rhs):
        return _lax(lhs, rhs)

    def backward(saved, grad):
        lhs, rhs = saved
        # The input's gradient is the same convolution with the kernel turned round.
        turned = rhs[::-1, ::-1].swapaxes(2, 3)
        return conv(grad, turned), kernel_gradient(lhs, grad)

    conv.defvjp(lambda lhs, rhs: (_lax(lhs, rhs), (lhs, rhs)), backward)
    return conv


def _nine_products(lhs: jax.Array, grad: jax.Array) -> jax.Array:
    channels, outputs = lhs.shape[-1], grad.shape[-1]
    rows = grad.reshape(-1, outputs)  # (N*H*W, D)
    # One product a tap of the kernel: (C, N*H*W) @ (N*H*W, D) -> (C, D)
    products = [shift.reshape(-1, channels).T @ rows for shift in _shifts(lhs)]
    return jnp.stack(products).reshape(3, 3, channels, outputs)


def _shifts(x: jax.Array) -> list[jax.Array]:
    """Gives the nine maps that a 3x3 kernel's taps see, in the kernel's order."""
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]


_PATHS = {
    "direct": _with_gradients(_nine_products),
    "few_channels": _with_gradients(winograd.kernel_gradient),
    "patches": _patches,
    "winograd": winograd.convolve,
}
