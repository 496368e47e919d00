"""The 3x3 convolution at stride 1 with zero padding as a JAX primitive, for CPUs.

The convolution of a map with a kernel and the gradients of its map and of its kernel are three
bilinear functions, and the derivatives of each are the others. As primitives with rules that lead
from one to the other they run the compiled kernels in any derivative, forward or backward, and can
be mapped, exported, and split over a mesh by their batch. `jax.custom_vjp` allows only one reverse
derivative, `custom_partitioning` by itself none and no mapping.

`conv3x3_relu` adds the bias, the ReLU and the pooling after a layer to the same pass over its map.

Maps are (N, H, W, C), float32 or bfloat16, kernels (3, 3, C, D). Kernels and their gradients are
float32 inside: compiled kernels then round them once, after their transform, and no pass over the
parameters casts them.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

from vggjax.models.kernels import paths, winograd
from vggjax.models.kernels.pooling import max_pool
from vggjax.models.kernels.winograd import Op

Transpose = Callable[[jax.Array, jax.Array, jax.Array, str], jax.Array]


class _Operation:
    """A function of arrays as a primitive; call it with a method of paths.py.

    Args:
        name: of the primitive.
        on_cpu: computes it on this machine, given `method` and `options`.
        plain: computes it by lax alone, given `options`, for other devices and in exported
            programs; a call of compiled code needs this machine's library.
        options: further static arguments of both.
    """

    def __init__(
        self,
        name: str,
        *,
        on_cpu: Callable[..., jax.Array],
        plain: Callable[..., jax.Array],
        **options: Any,
    ):
        def run(*arrays: jax.Array, method: str, compiled: bool) -> jax.Array:
            return on_cpu(*arrays, method=method, **options)

        self._run = jax.jit(run, static_argnames=("method", "compiled"))
        self._plain = jax.jit(functools.partial(plain, **options))
        self._primitive = Primitive(name)
        self._primitive.def_impl(self._evaluate)
        self._primitive.def_abstract_eval(self._result_type)
        batching.primitive_batchers[self._primitive] = self._map
        mlir.register_lowering(self._primitive, self._lower)

    def __call__(self, *arrays: jax.Array, method: str) -> jax.Array:
        # The program is a parameter for jax to see that compiling it needs the devices, over which
        # it may split the batch.
        return self._primitive.bind(*arrays, method=method, program=self._program(arrays, method))

    def _program(self, arrays: Sequence[jax.Array], method: str) -> Any:
        shapes = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays]
        if not all(isinstance(side, int) for array in arrays for side in array.shape):
            return self._plain.trace(*shapes).jaxpr  # of symbolic shapes, which are only exported
        compiled = winograd.is_compiled()
        return self._run.trace(*shapes, method=method, compiled=compiled).jaxpr

    def _evaluate(self, *arrays: jax.Array, method: str, **_: Any) -> jax.Array:
        return self._run(*arrays, method=method, compiled=winograd.is_compiled())

    def _result_type(self, *arrays: Any, **_: Any) -> Any:
        return self._plain.trace(*arrays).jaxpr.out_avals[0]

    def _lower(self, ctx: mlir.LoweringRuleContext, *arrays: Any, program: Any, **_: Any):
        module, function = ctx.module_context, self._plain
        if tuple(module.platforms) == ("cpu",) and not module.lowering_parameters.for_export:
            ctx, function = ctx.replace(avals_in=program.in_avals), jaxpr_as_fun(program)
        return mlir.lower_fun(lambda *xs: jax.tree.leaves(function(*xs)))(ctx, *arrays)

    def _map(
        self,
        arrays: Sequence[jax.Array],
        dims: Sequence[int | None],
        *,
        method: str,
        **_: Any,
    ) -> tuple[jax.Array, int]:
        """Map over the dimensions `dims` of the arrays: a batch of images in one call, or a loop.

        Images mapped for one kernel are one batch.
        """
        moved = [
            array if dim is None else jnp.moveaxis(array, dim, 0)
            for array, dim in zip(arrays, dims, strict=True)
        ]
        if any(dim is not None for dim in dims[1:]):
            mapped = [i for i, dim in enumerate(dims) if dim is not None]

            def one(parts: Sequence[jax.Array]) -> jax.Array:
                whole = dict(zip(mapped, parts, strict=True))
                return self(*(whole.get(i, x) for i, x in enumerate(moved)), method=method)

            return lax.map(one, [moved[i] for i in mapped]), 0
        x, *others = moved
        result = self(x.reshape(-1, *x.shape[2:]), *others, method=method)
        return result.reshape(*x.shape[:2], *result.shape[1:]), 0


class _Bilinear(_Operation):
    """A function of two arrays, linear in each.

    Args:
        axes: for each argument its axis that a mapped dimension can join, because the function
            computes independent results along it, and the axis of the result.
    """

    def __init__(
        self,
        name: str,
        *,
        on_cpu: Callable[..., jax.Array],
        plain: Op,
        axes: tuple[tuple[int, int], tuple[int, int]],
    ):
        super().__init__(name, on_cpu=on_cpu, plain=plain)
        self._axes = axes

    def set_transposes(self, first: Transpose, second: Transpose) -> None:
        """Set the transposes by each argument, functions of (grad, x, y, method).

        With them, and since a bilinear function is its own derivative by each argument, jax
        differentiates it in every way.
        """
        ad.defbilinear(
            self._primitive,
            lambda grad, x, y, *, method, **_: first(grad, x, y, method),
            lambda grad, x, y, *, method, **_: second(grad, x, y, method),
        )

    def _map(
        self,
        arrays: Sequence[jax.Array],
        dims: Sequence[int | None],
        *,
        method: str,
        **_: Any,
    ) -> tuple[jax.Array, int]:
        """Map over the dimensions `dims` of the two arrays in one call, or loop if both have one.

        Images mapped for one kernel are one batch, kernels mapped for one batch are the output
        channels of one kernel.
        """
        if None not in dims:
            return super()._map(arrays, dims, method=method)
        x, y = (
            array if dim is None else jnp.moveaxis(array, dim, 0)
            for array, dim in zip(arrays, dims, strict=True)
        )
        first_is_mapped = dims[1] is None
        axis, result_axis = self._axes[0 if first_is_mapped else 1]
        mapped = jnp.moveaxis(x if first_is_mapped else y, 0, axis)
        sizes = mapped.shape[axis : axis + 2]
        merged = mapped.reshape(
            *mapped.shape[:axis], sizes[0] * sizes[1], *mapped.shape[axis + 2 :]
        )
        both = (merged, y) if first_is_mapped else (x, merged)
        result = self(*both, method=method)
        before, after = result.shape[:result_axis], result.shape[result_axis + 1 :]
        return result.reshape(*before, *sizes, *after), result_axis


_convolve = _Bilinear(  # (N, H, W, C), (3, 3, C, D) -> (N, H, W, D)
    "conv3x3", on_cpu=paths.convolve_on_cpu, plain=paths.lax_convolve, axes=((0, 0), (3, 3))
)
_convolve_rotated = _Bilinear(  # (N, H, W, D), (3, 3, C, D) -> (N, H, W, C): a map's gradient
    "conv3x3_rotated",
    on_cpu=paths.convolve_rotated_on_cpu,
    plain=paths.lax_convolve_rotated,
    axes=((0, 0), (2, 3)),
)
_kernel_gradient = _Bilinear(  # (N, H, W, C), (N, H, W, D) -> (3, 3, C, D)
    "conv3x3_kernel_gradient",
    on_cpu=paths.kernel_gradient_on_cpu,
    plain=paths.lax_kernel_gradient,
    axes=((3, 2), (3, 3)),
)


_convolve.set_transposes(
    lambda grad, _, kernel, method: _convolve_rotated(grad, kernel, method=method),
    lambda grad, x, _, method: _kernel_gradient(x, grad, method=method),
)
_convolve_rotated.set_transposes(  # here the gradient of the result is a map, x a gradient
    lambda grad, _, kernel, method: _convolve(grad, kernel, method=method),
    lambda grad, x, _, method: _kernel_gradient(grad, x, method=method),
)
_kernel_gradient.set_transposes(  # here the gradient of the result is a kernel, y a gradient
    lambda kernel, _, y, method: _convolve_rotated(y, kernel, method=method),
    lambda kernel, x, _, method: _convolve(x, kernel, method=method),
)


_fused = {
    (pool, dtype): _Operation(
        f"conv3x3_relu{'_pool' * pool}_{dtype}",
        on_cpu=paths.convolve_relu_on_cpu,
        plain=paths.lax_convolve_relu,
        pool=pool,
        dtype=jnp.dtype(dtype),
    )
    for pool in (False, True)
    for dtype in ("float32", "bfloat16")
}


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4, 5))
def _convolve_relu(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, method: str, pool: bool, dtype: str
) -> jax.Array:
    return _fused[pool, dtype](x, kernel, bias, method=method)


def _convolve_relu_jvp(method: str, pool: bool, dtype: str, primals: Any, tangents: Any) -> Any:
    x, kernel, bias = primals
    dx, dkernel, dbias = (
        None if isinstance(tangent, SymbolicZero) else tangent for tangent in tangents
    )
    y = _convolve_relu(x, kernel, bias, method, False, dtype)
    dy = jnp.zeros_like(y)
    if dbias is not None:
        # Its transpose is a sum over the map. XLA sums bfloat16 by windows, several times slower.
        dy = jnp.broadcast_to(dbias, y.shape).astype(y.dtype)
    if dx is not None:
        dy += _convolve(dx, kernel, method=method).astype(y.dtype)
    if dkernel is not None:
        dy += _convolve(x, dkernel, method=method).astype(y.dtype)
    dy = jnp.where(y > 0, dy, jnp.zeros_like(dy))
    return jax.jvp(max_pool, (y,), (dy,)) if pool else (y, dy)


_convolve_relu.defjvp(_convolve_relu_jvp, symbolic_zeros=True)


def conv3x3(x: jax.Array, kernel: jax.Array, *, method: str = "auto") -> jax.Array:
    """Convolve x (N, H, W, C) with a kernel (3, 3, C, D): (N, H, W, D), of the dtype of x."""
    return _convolve(*_vary_alike(x, kernel.astype(jnp.float32)), method=method)


def conv3x3_relu(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    *,
    method: str = "auto",
    pool: bool = False,
    dtype: jax.typing.DTypeLike | None = None,
) -> jax.Array:
    """Convolve as `conv3x3`, add a bias (D,), apply a ReLU and, with `pool`, 2x2 max pooling.

    One pass of the compiled kernels computes all of it. Differentiated, the pooling is a pass of
    its own, because its gradient needs the map before it. The result has the dtype of x, or
    `dtype`.
    """
    arrays = _vary_alike(x, kernel.astype(jnp.float32), bias.astype(jnp.float32))
    return _convolve_relu(*arrays, method, pool, jnp.dtype(dtype or x.dtype).name)


def _vary_alike(*arrays: jax.Array) -> list[jax.Array]:
    """Declare arrays as varying over the axes over which any of them does, as lax does.

    Reverse differentiation then sums the gradient of a replicated kernel over the devices.
    """
    axes = frozenset().union(*map(_varying_axes, arrays))
    return [_vary(array, axes - _varying_axes(array)) for array in arrays]


def _varying_axes(array: jax.Array) -> frozenset[Any]:
    """Return the axes of a `jax.shard_map` over which an array differs between devices."""
    kind = jax.typeof(array)
    axes = getattr(kind, "vma", None)  # jax 0.8
    return getattr(getattr(kind, "manual_axis_type", None), "varying", axes or frozenset())


def _vary(array: jax.Array, axes: frozenset[Any]) -> jax.Array:
    """Declare an array as varying over more axes."""
    if not axes:
        return array
    if hasattr(lax, "pcast"):
        return lax.pcast(array, tuple(axes), to="varying")
    return lax.pvary(array, tuple(axes))  # type: ignore[attr-defined]  # jax 0.8
