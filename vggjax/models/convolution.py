"""The convolution that VGG's layers call, behind the signature of `lax.conv_general_dilated`.

On CPUs XLA (jax 0.10.2) is slow in two places that VGG lives in, and matrix products serve instead,
for 3x3 kernels at stride 1 in float32. Figures are the best of three or four calls, both ways in
one run, on 2 shared cores:

- Maps of 4x4 px or less: 512 channels at 2x2 px, batch 32, took 1,127 ms; one product over the
  patches takes 9 ms. Block5 works at that size for 32 px pictures.
- The kernel's gradient: 256 channels at 56x56 px, batch 8, took 1,322 ms; nine products of the
  shifted map with the output's gradient take 422 ms.

Everything else is lax's.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

SMALL_MAP_PX = 4
"""Longest side of a map that patches are faster for."""

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def convolve(
    lhs: jax.Array, rhs: jax.Array, window_strides: Any, padding: Any, **options: Any
) -> jax.Array:
    """Convolves `lhs` (N, H, W, C) with `rhs` (3, 3, C, D), or whatever else lax takes."""
    if jax.default_backend() == "cpu" and _is_vgg(lhs, rhs, window_strides, padding, options):
        small = max(lhs.shape[1:3]) <= SMALL_MAP_PX
        return _convolve_patches(lhs, rhs) if small else _convolve(lhs, rhs)
    return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)


def _is_vgg(lhs, rhs, window_strides, padding, options) -> bool:
    numbers = options.get("dimension_numbers")
    dilated = [options.get(name) for name in ("lhs_dilation", "rhs_dilation")]
    return (
        numbers is not None
        and numbers == lax.conv_dimension_numbers(lhs.shape, rhs.shape, _LAYOUT)
        and lhs.dtype == rhs.dtype == jnp.float32
        and rhs.shape[:2] == (3, 3)
        and tuple(window_strides) == (1, 1)
        and padding == "SAME"
        and all(rates is None or set(rates) == {1} for rates in dilated)
        and options.get("feature_group_count", 1) == 1
        and options.get("batch_group_count", 1) == 1
    )


def _convolve_patches(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    n, height, width, channels = lhs.shape
    patches = jnp.concatenate(_shifts(lhs), -1).reshape(-1, 9 * channels)
    return (patches @ rhs.reshape(9 * channels, -1)).reshape(n, height, width, -1)


@jax.custom_vjp
def _convolve(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(lhs, rhs, (1, 1), "SAME", dimension_numbers=_LAYOUT)


def _forward(lhs: jax.Array, rhs: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolve(lhs, rhs), (lhs, rhs)


def _backward(saved: tuple[jax.Array, jax.Array], grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    lhs, rhs = saved
    rows = grad.reshape(-1, grad.shape[-1])  # (N*H*W, D)
    # One product a tap of the kernel: (C, N*H*W) @ (N*H*W, D) -> (C, D)
    products = [shift.reshape(-1, lhs.shape[-1]).T @ rows for shift in _shifts(lhs)]
    # The input's gradient is the same convolution with the kernel turned round.
    return _convolve(grad, rhs[::-1, ::-1].swapaxes(2, 3)), jnp.stack(products).reshape(rhs.shape)


_convolve.defvjp(_forward, _backward)


def _shifts(x: jax.Array) -> list[jax.Array]:
    """Gives the nine maps that a 3x3 kernel's taps see, in the kernel's order."""
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
