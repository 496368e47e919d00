"""The convolutional base's forward pass at 224 px, against PyTorch and Keras-TensorFlow.

    python -m benchmarks.forward [--arch vgg16 vgg19] [--batch-size 1 8] [--rounds 7]

Milliseconds an image, medians of rounds in which all take their turn, on all cores that the
process may use. Below, what `--convolution direct` takes in our own.
"""

import argparse

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks import peers
from vggjax.models.convolution import make_convolve
from vggjax.models.vgg import VGG

SIZE_PX = 224


def make_ours(arch: str, batch_size: int, *, method: str) -> peers.Call:
    graph, state = nnx.split(VGG(arch, conv=make_convolve(method)))
    images = jnp.asarray(peers.make_batch(batch_size, SIZE_PX)[0])
    compiled = jax.jit(lambda state, x: nnx.merge(graph, state)(x)).lower(state, images).compile()
    return lambda: compiled(state, images).block_until_ready() is None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="+", default=["vgg16", "vgg19"])
    parser.add_argument("--batch-size", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    for arch in args.arch:
        for batch_size in args.batch_size:
            calls = {
                "ours": make_ours(arch, batch_size, method="auto"),
                "ours, direct": make_ours(arch, batch_size, method="direct"),
                "torch": peers.make_torch(arch, batch_size, SIZE_PX, train=False),
                "keras": peers.make_keras(arch, batch_size, SIZE_PX, train=False),
            }
            seconds = peers.in_turn(calls, rounds=args.rounds)
            work = f"{arch} forward, {SIZE_PX} px, batch {batch_size}"
            peers.print_row(work, seconds, batch_size, ("torch", "keras"))


if __name__ == "__main__":
    main()
