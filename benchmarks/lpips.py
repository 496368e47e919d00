"""Time LPIPS, and its gradient, against the reference's formula in PyTorch.

    python -m benchmarks.lpips [--sizes 64 224] [--batch-size 4] [--rounds 7]

The peer is what `lpips` 0.1.4 computes with net="vgg", in channels_last, which is faster here than
the reference's own layout: two passes of VGG16, unit features, and 1x1 convolutions. Weights and
images are random. Milliseconds a pair, medians of rounds in which both take turns.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import peers
from benchmarks.measure import Call, Row, make_row, print_measure, time_by_both_clocks
from vggjax.features.lpips import LPIPS, convolve_exactly
from vggjax.models.arch import get_arch
from vggjax.models.network import VGG


def measure(
    *, sizes: tuple[int, ...] = (64, 224), batch_size: int = 4, rounds: int = 7
) -> Iterator[Row]:
    for size in sizes:
        for name, grad in (("LPIPS", False), ("LPIPS and its gradient", True)):
            calls = {
                "vggjax": make_vggjax(batch_size, size, grad=grad),
                "PyTorch": make_torch(batch_size, size, grad=grad),
            }
            work = f"{name}, {size} px, batch {batch_size}"
            for clock, seconds in time_by_both_clocks(calls, rounds=rounds).items():
                unit = f"{clock}ms a pair"
                yield make_row(work, unit, seconds, factor=1e3 / batch_size, aim=0.5)


def make_pairs(batch_size: int, size: int) -> list[np.ndarray]:
    """Return two batches of images from -1 to 1."""
    rng = np.random.default_rng(0)
    return [rng.uniform(-1, 1, (batch_size, size, size, 3)).astype(np.float32) for _ in "ab"]


def make_vggjax(batch_size: int, size: int, *, grad: bool) -> Call:
    graphdef, state = nnx.split(LPIPS(weights=VGG("vgg16", conv=convolve_exactly)))

    def total(x, state, y):
        return nnx.merge(graphdef, state)(x, y, value_range=(-1, 1)).sum()

    x, y = map(jnp.asarray, make_pairs(batch_size, size))
    function = jax.jit(jax.grad(total) if grad else total).lower(x, state, y).compile()
    return lambda: function(x, state, y).block_until_ready() is None


def make_torch(batch_size: int, size: int, *, grad: bool) -> Call | None:
    if not peers.installed("torch"):
        return None
    import torch

    base = peers.torch_base("vgg16")[0].requires_grad_(False)
    widths = get_arch("vgg16").widths
    linear = [torch.rand(1, width, 1, 1) for width in widths]
    shift = torch.tensor([-0.030, -0.088, -0.188]).reshape(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).reshape(1, 3, 1, 1)

    def outputs(x):
        x = (x - shift) / scale
        for layer in base:
            if isinstance(layer, torch.nn.MaxPool2d):
                yield x / (torch.sqrt((x**2).sum(1, keepdim=True)) + 1e-10)
            x = layer(x)

    def distance(x, y):
        pairs = zip(linear, outputs(x), outputs(y), strict=True)
        maps = (torch.nn.functional.conv2d((a - b) ** 2, weights) for weights, a, b in pairs)
        return sum(x.mean((2, 3)) for x in maps)

    x, y = (
        torch.from_numpy(a).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        for a in make_pairs(batch_size, size)
    )

    def call() -> None:
        if not grad:
            with torch.inference_mode():
                distance(x, y)
            return
        image = x.clone().requires_grad_()
        distance(image, y).sum().backward()

    return call


if __name__ == "__main__":
    print_measure(__doc__, measure)
