"""The ways to compute a 3x3 convolution and the gradient of its kernel on CPUs.

Each takes maps (N, H, W, C) and float32 kernels (3, 3, C, D) at stride 1 with zero padding, and
equals lax within rounding; `choose_path` takes the fastest. primitives.py makes them
differentiable.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from vggjax.models.kernels import winograd
from vggjax.models.kernels.pooling import max_pool
from vggjax.models.kernels.winograd import Op

METHODS = ("auto", "winograd", "direct")
"""The methods of a network, which conv.py describes."""

_FEW_CHANNELS = 8
"""Fewer are convolved directly, by the compiled kernels too."""

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def choose_path(
    map_shape: tuple[int, ...], kernel_shape: tuple[int, ...], *, method: str = "auto"
) -> str:
    """Return the path for a map (N, H, W, C) and a kernel (3, 3, C, D)."""
    longest, channels, outputs = max(map_shape[1:3]), kernel_shape[2], kernel_shape[3]
    if method == "winograd":
        return "winograd"
    # On such maps most of a Winograd tile is padding; in jax.numpy, tiles cost more than patches.
    if longest <= (2 if method == "auto" and winograd.is_compiled() else 4):
        return "patches"
    if method == "direct":
        return "direct"
    # With few channels the transforms cost more than the products that they save.
    return "few_channels" if channels < _FEW_CHANNELS or outputs < 4 else "winograd"


def convolve_on_cpu(x: jax.Array, kernel: jax.Array, *, method: str) -> jax.Array:
    """Convolve x with a kernel: a map of the dtype of x, with sums in float32, rounded once.

    On CPUs, lax's products of bfloat16 take 3 to 5 times as long as float32.
    """
    path = choose_path(x.shape, kernel.shape, method=method)
    forward, _ = _PATHS[path]
    return forward(_readable(path, x)[0], kernel).astype(x.dtype)


def convolve_rotated_on_cpu(x: jax.Array, kernel: jax.Array, *, method: str) -> jax.Array:
    """Convolve x (N, H, W, D) with `rotate(kernel)`: the gradient of a map."""
    path = choose_path(x.shape, (3, 3, kernel.shape[3], kernel.shape[2]), method=method)
    if path != "winograd" or not winograd.is_compiled():
        return convolve_on_cpu(x, winograd.rotate(kernel), method=method)
    return winograd.convolve_rotated(x, kernel)


def convolve_relu_on_cpu(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, *, method: str, pool: bool, dtype: Any
) -> jax.Array:
    """Convolve x, add a bias (D,), apply a ReLU and, with `pool`, 2x2 max pooling: of a dtype."""
    path = choose_path(x.shape, kernel.shape, method=method)
    if not _is_compiled(path, x):
        y = convolve_on_cpu(x, kernel, method=method) + bias.reshape(1, 1, 1, -1)
        y = jax.nn.relu(y).astype(dtype)
        return max_pool(y) if pool else y
    y = winograd.convolve_relu(x, kernel, bias, pool=pool and path == "winograd", dtype=dtype)
    return max_pool(y) if pool and path != "winograd" else y


def kernel_gradient_on_cpu(x: jax.Array, grad: jax.Array, *, method: str) -> jax.Array:
    """Return the gradient (3, 3, C, D) of the kernel from that of the output, (N, H, W, D)."""
    path = choose_path(x.shape, (3, 3, x.shape[3], grad.shape[3]), method=method)
    _, gradient = _PATHS[path]
    return gradient(*_readable("winograd" if path == "few_channels" else path, x, grad))


def _readable(path: str, *maps: jax.Array) -> tuple[jax.Array, ...]:
    """Return maps in float32, unless compiled kernels take them as they are."""
    if _is_compiled(path, maps[0]):
        return maps
    return tuple(array.astype(jnp.float32) for array in maps)


def _is_compiled(path: str, x: jax.Array) -> bool:
    """Return whether compiled kernels convolve x by a path."""
    few_channels = path == "few_channels" and x.shape[3] < _FEW_CHANNELS
    return winograd.is_compiled() and (path == "winograd" or few_channels)


def lax_convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Return lax's convolution with a kernel in the dtype of x, on any device."""
    kernel = kernel.astype(x.dtype)
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=_LAYOUT)


def lax_convolve_rotated(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Return lax's convolution with `rotate(kernel)`."""
    return lax_convolve(x, winograd.rotate(kernel))


def lax_convolve_relu(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, *, pool: bool, dtype: Any
) -> jax.Array:
    """Return what `convolve_relu_on_cpu` does, by lax in a dtype, on any device."""
    y = lax_convolve(x.astype(dtype), kernel) + bias.astype(dtype).reshape(1, 1, 1, -1)
    y = jax.nn.relu(y)
    return max_pool(y) if pool else y


def lax_kernel_gradient(x: jax.Array, grad: jax.Array) -> jax.Array:
    """Return the gradient of the kernel of `lax_convolve`, as lax computes it."""
    transpose = jax.linear_transpose(functools.partial(lax_convolve, x), _kernel_type(x, grad))
    return transpose(grad)[0]


def _kernel_type(x: jax.Array, grad: jax.Array) -> Any:
    """Return the type of the kernel's gradient, with its sharding, from two traced arrays."""

    def outer_product(x: jax.Array, grad: jax.Array) -> jax.Array:  # the shape of one tap
        x, grad = x.astype(jnp.float32), grad.astype(jnp.float32)
        tap = x.sum((0, 1, 2))[:, None] * grad.sum((0, 1, 2))[None]
        return jnp.broadcast_to(tap, (3, 3, *tap.shape))

    return jax.make_jaxpr(outer_product)(x, grad).out_avals[0]


def _convolve_few_channels(x: jax.Array, kernel: jax.Array) -> jax.Array:
    is_compiled = _is_compiled("few_channels", x)
    return (winograd.convolve if is_compiled else lax_convolve)(x, kernel)


def _convolve_patches(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return (_patches(x) @ kernel.reshape(-1, kernel.shape[3])).reshape(*x.shape[:3], -1)


def _patches_gradient(x: jax.Array, grad: jax.Array) -> jax.Array:
    products = _patches(x).T @ grad.reshape(-1, grad.shape[3])
    return products.reshape(3, 3, x.shape[3], grad.shape[3])


def _patches(x: jax.Array) -> jax.Array:
    return jnp.concatenate(_shifts(x), -1).reshape(-1, 9 * x.shape[3])  # (N*H*W, 9*C)


def _nine_products(x: jax.Array, grad: jax.Array) -> jax.Array:
    channels, outputs = x.shape[-1], grad.shape[-1]
    rows = grad.reshape(-1, outputs)  # (N*H*W, D)
    # One product per tap of the kernel: (C, N*H*W) @ (N*H*W, D) -> (C, D)
    products = [shift.reshape(-1, channels).T @ rows for shift in _shifts(x)]
    return jnp.stack(products).reshape(3, 3, channels, outputs)


def _shifts(x: jax.Array) -> list[jax.Array]:
    """Return the nine shifted maps that the taps of a 3x3 kernel multiply, in the taps' order."""
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]


_PATHS: dict[str, tuple[Op, Op]] = {
    "direct": (lax_convolve, _nine_products),
    "few_channels": (_convolve_few_channels, winograd.kernel_gradient),
    "patches": (_convolve_patches, _patches_gradient),
    "winograd": (winograd.convolve, winograd.kernel_gradient),
}
"""The convolution and the gradient of its kernel, by path."""
