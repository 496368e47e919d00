"""A training step of all of VGG16's base and a head at 200 px, against PyTorch and Keras.

    python -m benchmarks.train_all [--arch vgg16] [--batch-size 16] [--rounds 5]

Milliseconds an image for forward, backward and an SGD update with momentum; medians of rounds in
which all take their turn.
"""

import argparse
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from benchmarks import peers
from benchmarks.measure import Call, Row, in_turn, make_row, print_table
from vggjax.models.head import Head
from vggjax.models.kernels.conv import make_convolve
from vggjax.models.network import VGG

SIZE_PX = 200


def make_ours(arch: str, batch_size: int, *, method: str) -> Call:
    graph, params = nnx.split(VGG(arch, head=Head.parse("gap-5"), conv=make_convolve(method)))
    images, labels = map(jnp.asarray, peers.make_batch(batch_size, SIZE_PX))
    tx = optax.sgd(1e-4, momentum=0.9)

    def loss_fn(params):
        logits = nnx.merge(graph, params)(images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(params, opt_state):
        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = tx.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state, loss

    state = (params, tx.init(params))
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*state).compile()

    def call() -> None:
        nonlocal state
        *state, loss = compiled(*state)
        loss.block_until_ready()

    return call


def measure(*, arch: str = "vgg16", batch_size: int = 16, rounds: int = 5) -> Iterator[Row]:
    calls = {
        "ours": make_ours(arch, batch_size, method="auto"),
        "Keras-TF": peers.make_keras(arch, batch_size, SIZE_PX, train=True),
        "PyTorch": peers.make_torch(arch, batch_size, SIZE_PX, train=True),
    }
    work = f"train all of {arch.upper()}, {SIZE_PX} px, batch {batch_size}"
    seconds = in_turn(calls, rounds=rounds)
    yield make_row(work, "ms an image", seconds, times=1e3 / batch_size, aim=0.7)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="vgg16")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    print_table(measure(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
