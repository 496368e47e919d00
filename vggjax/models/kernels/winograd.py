"""The 3x3 convolution at stride 1 and its kernel's gradient by Winograd's F(4x4, 3x3), for CPUs.

In: maps (N, H, W, C) of any size and kernels (3, 3, C, D), both float32; the compiled code also
reads and writes bfloat16 maps, with sums in float32. Out: (N, H, W, D) with zero padding, equal to
`lax.conv_general_dilated` within about 1e-5 of the largest value: a quarter of the multiplications,
at the cost of a decimal digit (Lavin and Gray, arXiv:1509.09308; the interpolation points 11/16 and
3/2 instead of their 1 and 2 halve the rounding error).

The compiled kernels compute it (native/, through `jax.ffi`) where they were built, and a Mesh can
split the batch; jax.numpy elsewhere. paths.py decides when this is faster than lax, primitives.py
makes it differentiable.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

from vggjax.models.kernels.library import load_library

Op = Callable[[jax.Array, jax.Array], jax.Array]


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve maps (N, H, W, C) with a kernel (3, 3, C, D)."""
    if is_compiled():
        return _compiled_convolve(x, kernel, jnp.zeros(0, jnp.float32), x.dtype)
    return _numpy_convolve(x, kernel)


def convolve_rotated(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve maps (N, H, W, D) with `rotate(kernel)`: (N, H, W, C), by compiled code."""
    return _compiled_rotated(x, kernel, jnp.zeros(0, jnp.float32), x.dtype)


def rotate(kernel: jax.Array) -> jax.Array:
    """Rotate a kernel (3, 3, C, D) by 180 degrees and exchange its channels: (3, 3, D, C)."""
    return lax.rev(kernel, (0, 1)).swapaxes(2, 3)


def convolve_relu(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, *, pool: bool, dtype: Any
) -> jax.Array:
    """Convolve, add a bias (D,), apply a ReLU and, with `pool`, 2x2 max pooling; by compiled code.

    Everything after the products happens while a tile is in registers, which saves up to three
    passes over the maps. `dtype` is the result's.
    """
    return (_compiled_pooled if pool else _compiled_convolve)(x, kernel, bias, dtype)


def kernel_gradient(x: jax.Array, grad: jax.Array) -> jax.Array:
    """Return the gradient (3, 3, C, D) of the kernel from that of the output, (N, H, W, D)."""
    if is_compiled():
        return _compiled_gradient(x, grad, jnp.float32)
    return _numpy_gradient(x, grad)


# Compiled kernels


def is_compiled() -> bool:
    """Return whether compiled kernels do the work; the first call loads them."""
    return load_library() is not None and _register()


@functools.cache
def _register() -> bool:
    library = load_library()
    try:
        for name in ("vggjax_conv3x3", "vggjax_conv3x3_gradient"):
            capsule = jax.ffi.pycapsule(getattr(library, name))
            jax.ffi.register_ffi_target(name, capsule, platform="cpu")
    except Exception:  # built for another version of XLA's interface
        return False
    return True


def _split_batch(rule: str, *, summed: bool) -> Callable[[Callable], Callable]:
    """Tell XLA that devices may compute an op of arrays on shares of the batch.

    An op is a function of arrays and of the dtype of its result. Otherwise a Mesh gathers the whole
    batch. All arrays have the batch and results are terms of a sum if `summed`; else the first has
    it, and results are rows.
    """

    def decorate(op: Callable) -> Callable:
        arity = len(rule.split("->")[0].split(","))
        whole = custom_partitioning(op, static_argnums=(arity,))

        def batch_axis(args: Any) -> Any:
            spec = args[0].sharding.spec
            return spec[0] if spec else None

        def infer(dtype: Any, mesh: Any, args: Any, result: Any) -> NamedSharding:
            spec = PartitionSpec() if summed else PartitionSpec(batch_axis(args))
            return NamedSharding(mesh, spec)

        def partition(dtype: Any, mesh: Any, args: Any, result: Any) -> tuple:
            axis = batch_axis(args)
            split = NamedSharding(mesh, PartitionSpec(axis))
            replicated = NamedSharding(mesh, PartitionSpec())

            def part(*arrays: jax.Array) -> jax.Array:
                result = op(*arrays, dtype)
                return lax.psum(result, axis) if summed and axis is not None else result

            if not summed:
                return mesh, part, split, (split, *[replicated] * (len(args) - 1))
            return mesh, part, replicated, (split,) * len(args)

        whole.def_partition(
            partition=partition, infer_sharding_from_operands=infer, sharding_rule=rule
        )
        return whole

    return decorate


@_split_batch("n h w c, i j c d, b -> n h w d", summed=False)
def _compiled_convolve(x: jax.Array, kernel: jax.Array, bias: jax.Array, dtype: Any) -> jax.Array:
    shape = (*x.shape[:3], kernel.shape[3])
    call = jax.ffi.ffi_call("vggjax_conv3x3", jax.ShapeDtypeStruct(shape, dtype))
    return call(x, kernel, bias, pool=False, rotated=False)


@_split_batch("n h w d, i j c d, b -> n h w c", summed=False)
def _compiled_rotated(x: jax.Array, kernel: jax.Array, bias: jax.Array, dtype: Any) -> jax.Array:
    shape = (*x.shape[:3], kernel.shape[2])
    call = jax.ffi.ffi_call("vggjax_conv3x3", jax.ShapeDtypeStruct(shape, dtype))
    return call(x, kernel, bias, pool=False, rotated=True)


@_split_batch("n h w c, i j c d, b -> n y z d", summed=False)
def _compiled_pooled(x: jax.Array, kernel: jax.Array, bias: jax.Array, dtype: Any) -> jax.Array:
    shape = (x.shape[0], x.shape[1] // 2, x.shape[2] // 2, kernel.shape[3])
    call = jax.ffi.ffi_call("vggjax_conv3x3", jax.ShapeDtypeStruct(shape, dtype))
    return call(x, kernel, bias, pool=True, rotated=False)


@_split_batch("n h w c, n h w d -> i j c d", summed=True)
def _compiled_gradient(x: jax.Array, grad: jax.Array, dtype: Any) -> jax.Array:
    shape = (3, 3, x.shape[3], grad.shape[3])
    call = jax.ffi.ffi_call("vggjax_conv3x3_gradient", jax.ShapeDtypeStruct(shape, dtype))
    return call(x, grad)


# The same in jax.numpy. The names are Lavin and Gray's: U, V and M are the transformed kernel,
# input and product, at 36 points. Each transform is sums of slices, down the columns and then along
# the rows; XLA makes small matrix products many times slower.


def _numpy_convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    n, height, width, _ = x.shape
    v = _transform_tiles(x, _input_sums, size=6)  # (36, N * tiles * tiles, C)
    u = _transform(kernel, _kernel_sums).reshape(36, *kernel.shape[2:])
    m = lax.batch_matmul(v, u)
    rows, columns = -(-height // 4), -(-width // 4)
    tiles = _transform(m.reshape(6, 6, n, rows, columns, kernel.shape[3]), _output_sums)
    y = tiles.transpose(2, 3, 0, 4, 1, 5)  # (N, tiles, 4, tiles, 4, D)
    return y.reshape(n, 4 * rows, 4 * columns, kernel.shape[3])[:, :height, :width]


def _numpy_gradient(x: jax.Array, grad: jax.Array) -> jax.Array:
    v = _transform_tiles(x, _input_sums, size=6)
    grads = _transform_tiles(grad, _gradient_sums, size=4)
    sums = lax.batch_matmul(v.swapaxes(1, 2), grads)  # (36, C, D)
    return _transform(sums.reshape(6, 6, *sums.shape[1:]), _tap_sums)


def _transform_tiles(x: jax.Array, sums: Callable, *, size: int) -> jax.Array:
    """Transform the patches of `size` x `size` px at stride 4 of a map (N, H, W, C)."""
    rows, columns = (-(-side // 4) for side in x.shape[1:3])
    before = (size - 4) // 2
    below, right = 4 * rows + before - x.shape[1], 4 * columns + before - x.shape[2]
    x = jnp.pad(x, ((0, 0), (before, below), (before, right), (0, 0)))
    x = jnp.stack(sums(*(x[:, i : i + 4 * rows - 3 : 4] for i in range(size))))
    x = jnp.stack(sums(*(x[:, :, :, j : j + 4 * columns - 3 : 4] for j in range(size))), 1)
    return x.reshape(36, math.prod(x.shape[2:5]), x.shape[5])


def _transform(x: jax.Array, sums: Callable) -> jax.Array:
    """Transform along both of the first two axes."""
    return jnp.stack(sums(*jnp.stack(sums(*x)).swapaxes(0, 1)), 1)


_A, _B = 0.6875, 1.5  # the interpolation points are 0, A, -A, B, -B and infinity
_A2, _B2 = _A**2, _B**2
_INVERSE_0, _INVERSE_A, _INVERSE_B = (  # 1 over the product of a point's distances to the others
    1 / (_A2 * _B2), 1 / (2 * _A2 * (_A2 - _B2)), 1 / (2 * _B2 * (_B2 - _A2))
)  # fmt: skip


def _input_sums(d0, d1, d2, d3, d4, d5):  # B^T
    even, odd, even2, odd2 = d4 - _B2 * d2, d3 - _B2 * d1, d4 - _A2 * d2, d3 - _A2 * d1
    first = _A2 * _B2 * d0 - (_A2 + _B2) * d2 + d4
    last = _A2 * _B2 * d1 - (_A2 + _B2) * d3 + d5
    return first, even + _A * odd, even - _A * odd, even2 + _B * odd2, even2 - _B * odd2, last


def _kernel_sums(g0, g1, g2):  # G
    even, odd = _INVERSE_A * (g0 + _A2 * g2), _INVERSE_A * _A * g1
    even2, odd2 = _INVERSE_B * (g0 + _B2 * g2), _INVERSE_B * _B * g1
    return _INVERSE_0 * g0, even + odd, even - odd, even2 + odd2, even2 - odd2, g2


def _output_sums(m0, m1, m2, m3, m4, m5):  # A^T
    even, odd, even2, odd2 = m1 + m2, _A * (m1 - m2), m3 + m4, _B * (m3 - m4)
    return (
        m0 + even + even2, odd + odd2, _A2 * even + _B2 * even2, _A2 * odd + _B2 * odd2 + m5
    )  # fmt: skip


def _gradient_sums(g0, g1, g2, g3):  # A
    even, odd, even2, odd2 = g0 + _A2 * g2, g1 + _A2 * g3, g0 + _B2 * g2, g1 + _B2 * g3
    return g0, even + _A * odd, even - _A * odd, even2 + _B * odd2, even2 - _B * odd2, g3


def _tap_sums(u0, u1, u2, u3, u4, u5):  # G^T
    even, even2 = _INVERSE_A * (u1 + u2), _INVERSE_B * (u3 + u4)
    odd, odd2 = _INVERSE_A * _A * (u1 - u2), _INVERSE_B * _B * (u3 - u4)
    return _INVERSE_0 * u0 + even + even2, odd + odd2, _A2 * even + _B2 * even2 + u5
