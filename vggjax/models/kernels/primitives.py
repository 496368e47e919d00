"""The 3x3 convolution at stride 1 with zero padding as a JAX primitive, for CPUs.

The convolution of a map with a kernel and the gradient of its kernel are two bilinear functions,
and the derivatives of each are one or the other of them. As two primitives with rules that lead
from one to the other they run the compiled kernels in any derivative, forward or backward, and can
be mapped, exported, and split over a mesh by their batch. `jax.custom_vjp` allows only one reverse
derivative, `custom_partitioning` by itself none and no mapping.

Maps are (N, H, W, C), kernels (3, 3, C, D), both float32 or both bfloat16.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

from vggjax.models.kernels import paths, winograd
from vggjax.models.kernels.winograd import Op

Transpose = Callable[[jax.Array, jax.Array, jax.Array, str], jax.Array]


class _Bilinear:
    """A function of two arrays, linear in each, as a primitive; call it with a method of paths.py.

    Args:
        name: of the primitive.
        on_cpu: computes it on this machine, given `method`.
        plain: computes it by lax alone, for other devices and in exported programs; a call of
            compiled code needs this machine's library.
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
        def run(x: jax.Array, y: jax.Array, *, method: str, compiled: bool) -> jax.Array:
            return on_cpu(x, y, method=method)

        self._run = jax.jit(run, static_argnames=("method", "compiled"))
        self._plain = jax.jit(plain)
        self._axes = axes
        self._primitive = Primitive(name)
        self._primitive.def_impl(self._evaluate)
        self._primitive.def_abstract_eval(self._result_type)
        batching.primitive_batchers[self._primitive] = self._map
        mlir.register_lowering(self._primitive, self._lower)

    def __call__(self, x: jax.Array, y: jax.Array, method: str) -> jax.Array:
        # The program is a parameter for jax to see that compiling it needs the devices, over which
        # it may split the batch.
        return self._primitive.bind(x, y, method=method, program=self._program(x, y, method))

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

    def _program(self, x: jax.Array, y: jax.Array, method: str) -> Any:
        shapes = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in (x, y)]
        if not all(isinstance(side, int) for side in (*x.shape, *y.shape)):
            return self._plain.trace(*shapes).jaxpr  # of symbolic shapes, which are only exported
        compiled = winograd.is_compiled()
        return self._run.trace(*shapes, method=method, compiled=compiled).jaxpr

    def _evaluate(self, x: jax.Array, y: jax.Array, *, method: str, **_: Any) -> jax.Array:
        return self._run(x, y, method=method, compiled=winograd.is_compiled())

    def _result_type(self, x: Any, y: Any, **_: Any) -> Any:
        return self._plain.trace(x, y).jaxpr.out_avals[0]

    def _lower(self, ctx: mlir.LoweringRuleContext, x: Any, y: Any, *, program: Any, **_: Any):
        module, function = ctx.module_context, self._plain
        if tuple(module.platforms) == ("cpu",) and not module.lowering_parameters.for_export:
            ctx, function = ctx.replace(avals_in=program.in_avals), jaxpr_as_fun(program)
        return mlir.lower_fun(lambda x, y: jax.tree.leaves(function(x, y)))(ctx, x, y)

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
        x, y = (
            array if dim is None else jnp.moveaxis(array, dim, 0)
            for array, dim in zip(arrays, dims, strict=True)
        )
        if None not in dims:
            return lax.map(lambda pair: self(pair[0], pair[1], method), (x, y)), 0
        first_is_mapped = dims[1] is None
        axis, result_axis = self._axes[0 if first_is_mapped else 1]
        mapped = jnp.moveaxis(x if first_is_mapped else y, 0, axis)
        sizes = mapped.shape[axis : axis + 2]
        merged = mapped.reshape(
            *mapped.shape[:axis], sizes[0] * sizes[1], *mapped.shape[axis + 2 :]
        )
        result = self(merged, y, method) if first_is_mapped else self(x, merged, method)
        before, after = result.shape[:result_axis], result.shape[result_axis + 1 :]
        return result.reshape(*before, *sizes, *after), result_axis


_convolve = _Bilinear(  # (N, H, W, C), (3, 3, C, D) -> (N, H, W, D)
    "conv3x3", on_cpu=paths.convolve_on_cpu, plain=paths.lax_convolve, axes=((0, 0), (3, 3))
)
_kernel_gradient = _Bilinear(  # (N, H, W, C), (N, H, W, D) -> (3, 3, C, D)
    "conv3x3_kernel_gradient",
    on_cpu=paths.kernel_gradient_on_cpu,
    plain=paths.lax_kernel_gradient,
    axes=((3, 2), (3, 3)),
)


def _convolve_rotated(grad: jax.Array, kernel: jax.Array, method: str) -> jax.Array:
    """Return the gradient of a map: convolve with the kernel rotated by 180 degrees."""
    return _convolve(grad, lax.rev(kernel, (0, 1)).swapaxes(2, 3), method)


_convolve.set_transposes(
    lambda grad, _, kernel, method: _convolve_rotated(grad, kernel, method),
    lambda grad, x, _, method: _kernel_gradient(x, grad, method),
)
_kernel_gradient.set_transposes(  # here the gradient of the result is a kernel, y a gradient
    lambda kernel, _, y, method: _convolve_rotated(y, kernel, method),
    lambda kernel, x, _, method: _convolve(x, kernel, method),
)


def conv3x3(x: jax.Array, kernel: jax.Array, *, method: str = "auto") -> jax.Array:
    """Convolve x (N, H, W, C) with a kernel (3, 3, C, D) of the same dtype: (N, H, W, D)."""
    axes = _varying_axes(x), _varying_axes(kernel)
    return _convolve(_vary(x, axes[1] - axes[0]), _vary(kernel, axes[0] - axes[1]), method)


def _varying_axes(array: jax.Array) -> frozenset[Any]:
    """Return the axes of a `jax.shard_map` over which an array differs between devices."""
    kind = jax.typeof(array)
    axes = getattr(kind, "vma", None)  # jax 0.8
    return getattr(getattr(kind, "manual_axis_type", None), "varying", axes or frozenset())


def _vary(array: jax.Array, axes: frozenset[Any]) -> jax.Array:
    """Declare an array as varying over more axes, as lax does with its operands.

    Reverse differentiation then sums the gradient of a replicated kernel over the devices.
    """
    if not axes:
        return array
    if hasattr(lax, "pcast"):
        return lax.pcast(array, tuple(axes), to="varying")
    return lax.pvary(array, tuple(axes))  # type: ignore[attr-defined]  # jax 0.8
