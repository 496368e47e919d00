"""The 3x3 convolution at stride 1 by Winograd's F(4x4, 3x3), forward and backward, for CPUs.

In: float32 maps (N, H, W, C) of any size and kernels (3, 3, C, D). Out: (N, H, W, D), zeros taken
around the map, equal to `lax.conv_general_dilated` within 1e-5 of the largest value or so: 4 times
fewer multiplications, at the price of a decimal digit (Lavin and Gray, arXiv:1509.09308).

`convolve` is differentiable and works under jit, pmap and jit over a Mesh that splits the batch. A
compiled kernel (native/, through `jax.ffi`) does the work where it was built at installation, and
jax.numpy elsewhere. When this is faster than lax is not decided here (see convolution.py).
"""

import ctypes
import functools
import math
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

LIBRARY = Path(__file__).parent / "native" / "winograd.so"
"""Built by hatch_build.py; its absence is no error."""


@jax.custom_vjp
def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves maps (N, H, W, C) with a kernel (3, 3, C, D), both float32."""
    return (_native_convolve if native() else _numpy_convolve)(x, kernel)


def _forward(x, kernel):
    return convolve(x, kernel), (x, kernel)


def _backward(saved, grad):
    x, kernel = saved
    # The input's gradient is the same convolution with the kernel turned round.
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    return convolve(grad, turned), kernel_gradient(x, grad)


convolve.defvjp(_forward, _backward)


def kernel_gradient(x: jax.Array, grad: jax.Array) -> jax.Array:
    """Gives the kernel's gradient (3, 3, C, D) for that of the output, (N, H, W, D)."""
    return (_native_gradient if native() else _numpy_gradient)(x, grad)


# The compiled kernel


@functools.cache
def native() -> bool:
    """Says whether the compiled kernel is there; the first call loads it."""
    try:
        library = ctypes.CDLL(str(LIBRARY))
        for name in ("forward", "gradient"):
            capsule = jax.ffi.pycapsule(getattr(library, f"vggjax_winograd_{name}"))
            jax.ffi.register_ffi_target(f"vggjax_winograd_{name}", capsule, platform="cpu")
    except Exception:  # not built, another machine's, or for another version of XLA's interface
        return False
    return True


def _split_batch(rule: str, *, summed: bool) -> Callable:
    """Tells XLA that an op of two arrays may be done on shares of the batch.

    Without it a custom call over a Mesh gathers the whole batch on each device. `summed`: each
    share gives a term of the result, else rows of it.
    """

    def decorate(op):
        whole = custom_partitioning(op)

        def axis(args):
            spec = args[0].sharding.spec
            return spec[0] if spec else None

        def infer(mesh, args, result):
            return NamedSharding(mesh, PartitionSpec() if summed else PartitionSpec(axis(args)))

        def partition(mesh, args, result):
            split, same = (NamedSharding(mesh, PartitionSpec(*s)) for s in ((axis(args),), ()))

            def summed_op(x, grad):
                return lax.psum(op(x, grad), axis(args))

            if not summed:
                return mesh, op, split, (split, same)
            return mesh, op if axis(args) is None else summed_op, same, (split, split)

        whole.def_partition(
            partition=partition, infer_sharding_from_operands=infer, sharding_rule=rule
        )
        return whole

    return decorate


@_split_batch("n h w c, i j c d -> n h w d", summed=False)
def _native_convolve(x, kernel):
    shape = (*x.shape[:3], kernel.shape[3])
    call = jax.ffi.ffi_call("vggjax_winograd_forward", jax.ShapeDtypeStruct(shape, x.dtype))
    return call(x, kernel)


@_split_batch("n h w c, n h w d -> i j c d", summed=True)
def _native_gradient(x, grad):
    shape = (3, 3, x.shape[3], grad.shape[3])
    call = jax.ffi.ffi_call("vggjax_winograd_gradient", jax.ShapeDtypeStruct(shape, x.dtype))
    return call(x, grad)


# The same in jax.numpy. Each transform is sums of slices, down the columns and then along the rows:
# as small matrix products XLA makes them many times slower.


def _numpy_convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    n, height, width, _ = x.shape
    points = _points(x, _input_sums, size=6)  # (36, N * tiles * tiles, C)
    taps = _grid(kernel, _kernel_sums).reshape(36, *kernel.shape[2:])
    products = lax.batch_matmul(points, taps)
    rows, columns = _tiles(height, width)
    outputs = _grid(products.reshape(6, 6, n, rows, columns, kernel.shape[3]), _output_sums)
    whole = outputs.transpose(2, 3, 0, 4, 1, 5)  # (N, tiles, 4, tiles, 4, D)
    return whole.reshape(n, 4 * rows, 4 * columns, kernel.shape[3])[:, :height, :width]


def _numpy_gradient(x: jax.Array, grad: jax.Array) -> jax.Array:
    points, grads = _points(x, _input_sums, size=6), _points(grad, _gradient_sums, size=4)
    sums = lax.batch_matmul(points.swapaxes(1, 2), grads)  # (36, C, D)
    return _grid(sums.reshape(6, 6, *sums.shape[1:]), _tap_sums)


def _tiles(height: int, width: int) -> tuple[int, int]:
    return -(-height // 4), -(-width // 4)


def _points(x: jax.Array, sums: Callable, *, size: int) -> jax.Array:
    """Cuts a map into patches of `size` px at a distance of 4 and transforms them."""
    rows, columns = _tiles(*x.shape[1:3])
    before = (size - 4) // 2
    below, beside = 4 * rows + before - x.shape[1], 4 * columns + before - x.shape[2]
    x = jnp.pad(x, ((0, 0), (before, below), (before, beside), (0, 0)))
    x = jnp.stack(sums(*(x[:, i : i + 4 * rows - 3 : 4] for i in range(size))))
    x = jnp.stack(sums(*(x[:, :, :, j : j + 4 * columns - 3 : 4] for j in range(size))), 1)
    return x.reshape(36, math.prod(x.shape[2:5]), x.shape[5])


def _grid(x: jax.Array, sums: Callable) -> jax.Array:
    """Transforms along both of the first two axes."""
    return jnp.stack(sums(*jnp.stack(sums(*x)).swapaxes(0, 1)), 1)


def _input_sums(d0, d1, d2, d3, d4, d5):
    even, odd, even2, odd2 = d4 - 4 * d2, d3 - 4 * d1, d4 - d2, 2 * (d3 - d1)
    outer = 4 * d0 - 5 * d2 + d4, 4 * d1 - 5 * d3 + d5
    return outer[0], even + odd, even - odd, even2 + odd2, even2 - odd2, outer[1]


def _kernel_sums(g0, g1, g2):
    even, odd, even2, odd2 = (g0 + g2) / -6, g1 / -6, (g0 + 4 * g2) / 24, g1 / 12
    return g0 / 4, even + odd, even - odd, even2 + odd2, even2 - odd2, g2


def _output_sums(m0, m1, m2, m3, m4, m5):
    even, odd, even2, odd2 = m1 + m2, m1 - m2, m3 + m4, m3 - m4
    return m0 + even + even2, odd + 2 * odd2, even + 4 * even2, odd + 8 * odd2 + m5


def _gradient_sums(g0, g1, g2, g3):
    even, odd, even2, odd2 = g0 + g2, g1 + g3, g0 + 4 * g2, 2 * g1 + 8 * g3
    return g0, even + odd, even - odd, even2 + odd2, even2 - odd2, g3


def _tap_sums(u0, u1, u2, u3, u4, u5):
    even, even2 = (u1 + u2) / 6, u3 + u4
    return u0 / 4 - even + even2 / 24, (u2 - u1) / 6 + (u3 - u4) / 12, u5 - even + even2 / 6
