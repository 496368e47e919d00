"""Profile the forward pass of VGG16 by layer, for each instruction set of this machine.

    python -m benchmarks.layers [--sets avx2 avx512] [--dtype bfloat16] [--batch-size 8]

A row is a convolution at 224 px with its bias, its ReLU and the pooling after it, if any: the CPU
time of all threads for an image, and the shares of it that the stages of Winograd's algorithm take.
The rest is what has a pass of its own, and XLA's. `direct` is the rate at which a direct
convolution would have to run to take as long, `products` that of the products alone, and `bound`
that of a large product of matrices in XLA, all in GFLOP/s of one core. CPU time and not elapsed
time, because other processes change it least.
"""

import argparse
import ctypes
import os
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.measure import describe_machine
from vggjax.models.kernels.library import kernel_choices, load_library
from vggjax.models.network import VGG

SIZE_PX = 224
HEADINGS = (
    "set", "layers", "ms an image", "input", "kernel", "products", "output", "rest",
    "direct", "products' rate", "bound",
)  # fmt: skip


def take_stage_seconds() -> list[float]:
    """Return the CPU seconds of each stage since the last call."""
    seconds = (ctypes.c_double * 4)()
    if library := load_library():
        library.vggjax_take_stage_seconds(seconds)
    return list(seconds)


def median_cpu_s(call: Callable[[], object], rounds: int) -> tuple[float, list[float]]:
    """Return the median CPU seconds of a call, and those of the stages in the median call."""
    call()
    results = []
    for _ in range(rounds):
        take_stage_seconds()
        begin_s = time.process_time()
        call()
        results.append((time.process_time() - begin_s, take_stage_seconds()))
    return sorted(results)[rounds // 2]


def measure_bound(rounds: int) -> float:
    """Return the GFLOP/s of a core in a product of two matrices of 2,048 rows and columns."""
    matrix = jnp.ones((2048, 2048))
    product = jax.jit(jnp.matmul)
    seconds, _ = median_cpu_s(lambda: product(matrix, matrix).block_until_ready(), rounds)
    return 2 * 2048**3 / seconds / 1e9


def layers_and_maps(model: VGG) -> Iterator[tuple[str, str | None, str, int]]:
    """Yield (convolution, the layer before it, its last layer, its side in px) in order."""
    layers, side, before = model.layers, SIZE_PX, None
    for name, following in zip(layers, (*layers[1:], ""), strict=True):
        if "_conv" in name:
            last = following if following.endswith("_pool") else name
            yield name, before, last, side
            before, side = last, side // 2 if last != name else side


def measure(kernels: str, *, dtype: str, batch_size: int, rounds: int) -> Iterator[list[str]]:
    """Yield the cells of the rows of one instruction set, with maps of a dtype."""
    os.environ["VGGJAX_KERNELS"] = kernels
    jax.clear_caches()
    if library := load_library():
        library.vggjax_profile(1)
    bound, model = measure_bound(rounds), VGG("vgg16", dtype=jnp.dtype(dtype))
    graph, params = nnx.split(model)
    widths, totals = model.arch.conv_channels(), [0.0] * 6
    for name, before, last, side in layers_and_maps(model):
        channels, outputs = widths[name]
        x = jax.random.normal(jax.random.key(0), (batch_size, side, side, channels), dtype)

        def run(params, x, before=before, last=last):
            return nnx.merge(graph, params)(x, after=before, until=last)

        compiled = jax.jit(run).lower(params, x).compile()
        call = lambda: compiled(params, x).block_until_ready()  # noqa: B023, E731
        seconds, stages = median_cpu_s(call, rounds)
        flop = 2 * 9 * channels * outputs * side**2 * batch_size
        tile_flop = 2 * 36 * channels * outputs * (-(-side // 4)) ** 2 * batch_size
        numbers = [seconds, *stages, flop]
        totals = [total + number for total, number in zip(totals, numbers, strict=True)]
        label = name if last == name else f"{name}, pool"
        rate = f"{tile_flop / stages[2] / 1e9:.0f}" if stages[2] else "-"
        yield [kernels, label, *_cells(numbers, batch_size), rate, f"{bound:.0f}"]
    yield [kernels, "all", *_cells(totals, batch_size), "", f"{bound:.0f}"]


def _cells(numbers: list[float], batch_size: int) -> list[str]:
    seconds, *stages, flop = numbers
    shares = [*stages, seconds - sum(stages)]
    cells = [f"{share / seconds:.0%}" if sum(stages) else "-" for share in shares]
    return [f"{seconds / batch_size * 1e3:.2f}", *cells, f"{flop / seconds / 1e9:.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", choices=kernel_choices(), default=kernel_choices())
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print(describe_machine(), f"Load {os.getloadavg()[0]:.1f}.", end="\n\n")
    print("| " + " | ".join(HEADINGS) + " |\n|" + "---|" * len(HEADINGS))
    for kernels in args.sets:
        options = {"dtype": args.dtype, "batch_size": args.batch_size, "rounds": args.rounds}
        for cells in measure(kernels, **options):
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
