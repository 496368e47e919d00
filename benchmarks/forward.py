"""The convolutional base's forward pass at 224 px, against PyTorch and Keras-TensorFlow.

    python -m benchmarks.forward [--arch vgg16 vgg19] [--batch-size 1 8] [--rounds 7]

Milliseconds an image, medians of rounds in which all take their turn, on all cores that the
process may use.
"""

import argparse
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks import peers
from benchmarks.measure import Call, Row, in_turn, make_row, print_table
from vggjax.models.kernels.conv import make_convolve
from vggjax.models.network import VGG

SIZE_PX = 224


def make_ours(arch: str, batch_size: int, *, method: str) -> Call:
    graph, state = nnx.split(VGG(arch, conv=make_convolve(method)))
    images = jnp.asarray(peers.make_batch(batch_size, SIZE_PX)[0])
    compiled = jax.jit(lambda state, x: nnx.merge(graph, state)(x)).lower(state, images).compile()
    return lambda: compiled(state, images).block_until_ready() is None


def measure(
    archs: Sequence[str] = ("vgg16", "vgg19"), *, batches: Sequence[int] = (1, 8), rounds: int = 7
) -> Iterator[Row]:
    for arch in archs:
        for batch_size in batches:
            calls = {
                "ours": make_ours(arch, batch_size, method="auto"),
                "Keras-TF": peers.make_keras(arch, batch_size, SIZE_PX, train=False),
                "PyTorch": peers.make_torch(arch, batch_size, SIZE_PX, train=False),
            }
            work = f"{arch.upper()} forward, {SIZE_PX} px, batch {batch_size}"
            seconds = in_turn(calls, rounds=rounds)
            yield make_row(work, "ms an image", seconds, times=1e3 / batch_size, aim=0.6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="+", default=["vgg16", "vgg19"])
    parser.add_argument("--batch-size", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    print_table(measure(args.arch, batches=args.batch_size, rounds=args.rounds))


if __name__ == "__main__":
    main()
