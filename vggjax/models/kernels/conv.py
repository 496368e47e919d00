"""The convolution that the networks call, with the signature of `lax.conv_general_dilated`.

On CPUs, a 3x3 kernel at stride 1 takes the fastest of four paths. bfloat16 maps are multiplied and
summed in float32, on CPUs with AVX512_BF16 multiplied in bfloat16. Every other convolution, and
every other device, is lax's. `make_convolve` fixes the method of a whole network:

- `auto` uses `winograd`, except where measurements favor another path (see paths.py).
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
from flax import nnx
from jax import lax

from vggjax.errors import ConfigError, unknown_name
from vggjax.models.kernels.paths import METHODS
from vggjax.models.kernels.pooling import max_pool
from vggjax.models.kernels.primitives import conv3x3, conv3x3_relu

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
        y = conv3x3(lhs, rhs, method=method)
        # VALID omits the border. Computing it costs a few percent of the products, and lax is so
        # much slower that a small convnet's step takes a half to a quarter of the time this way.
        return y[:, 1:-1, 1:-1] if padding == "VALID" else y
    return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)


def convolve_relu(layer: nnx.Conv, x: jax.Array, *, pool: bool = False) -> jax.Array:
    """Apply a layer of 3x3 at stride 1, its ReLU and, with `pool`, 2x2 max pooling.

    On CPUs in one pass, if the layer convolves by `convolve` or `make_convolve`, which reads x, the
    kernel and the bias as they are and rounds its result to the layer's dtype.
    """
    conv, padding = layer.conv_general_dilated, layer.padding
    method = "auto" if conv is convolve else None
    if isinstance(conv, functools.partial) and conv.func is convolve:
        method = conv.keywords["method"]
    kernel, bias = layer.kernel[...], layer.bias
    fits = x.ndim == 4 and _is_larger(x.shape, 2 if padding == "VALID" else 0)
    fits &= layer.dtype in (jnp.float32, jnp.bfloat16)
    if jax.default_backend() != "cpu" or method is None or bias is None or not fits:
        y = nnx.relu(layer(x))
        return max_pool(y) if pool else y
    run = functools.partial(conv3x3_relu, x, kernel, bias[...], method=method, dtype=layer.dtype)
    if padding == "SAME":
        return run(pool=pool)
    y = run()[:, 1:-1, 1:-1]
    return max_pool(y) if pool else y


def make_convolve(method: str) -> Callable[..., jax.Array]:
    """Return `convolve` with its method fixed, for `Network(conv=...)`.

    Raises:
        ConfigError: there is no such method.
    """
    if method not in METHODS:
        raise ConfigError(unknown_name("`convolution`", method, METHODS))
    return functools.partial(convolve, method=method)


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
        and (padding == "SAME" or _is_larger(lhs.shape, 2))
        and all(rates is None or set(rates) == {1} for rates in dilations)
        and options.get("feature_group_count", 1) == 1
        and options.get("batch_group_count", 1) == 1
    )


def _is_larger(map_shape: tuple[int, ...], side: int) -> bool:
    """Return whether both sides are above `side`; symbolic ones have no smallest to compare."""
    return all(length > side for length in map_shape[1:3])
