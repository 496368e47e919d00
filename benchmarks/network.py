"""Time the VGG base, forward and training, against PyTorch and Keras.

    python -m benchmarks.network forward [--archs vgg16 vgg19] [--batches 1 8] [--rounds 7]
    python -m benchmarks.network train [--arch vgg16] [--batch-size 16] [--rounds 5]

`forward` runs the convolutional base at 224 px; `train` is a whole training step at 200 px with a
linear head: forward, backward and an SGD update with momentum. Milliseconds per image, medians of
rounds in which all take turns, on all cores that the process may use.
"""

import sys
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from benchmarks import peers
from benchmarks.measure import Call, Row, make_row, print_measure, time_by_both_clocks
from vggjax.models.head import Head
from vggjax.models.network import VGG

FORWARD_PX, TRAIN_PX = 224, 200


def measure_forward(
    *, archs: tuple[str, ...] = ("vgg16", "vgg19"), batches: tuple[int, ...] = (1, 8),
    rounds: int = 7,
) -> Iterator[Row]:  # fmt: skip
    for arch in archs:
        for batch_size in batches:
            calls = {"vggjax": make_forward(arch, batch_size)}
            calls["vggjax bfloat16"] = make_forward(arch, batch_size, dtype="bfloat16")
            calls |= peers.make_peers(arch, batch_size, FORWARD_PX, train=False)
            work = f"{arch.upper()} forward, {FORWARD_PX} px, batch {batch_size}"
            for clock, seconds in time_by_both_clocks(calls, rounds=rounds).items():
                unit = f"{clock}ms an image"
                yield make_row(work, unit, seconds, factor=1e3 / batch_size, aim=0.45)


def measure_train(*, arch: str = "vgg16", batch_size: int = 16, rounds: int = 5) -> Iterator[Row]:
    calls = {"vggjax": make_train_step(arch, batch_size)}
    calls["vggjax bfloat16"] = make_train_step(arch, batch_size, dtype="bfloat16")
    calls |= peers.make_peers(arch, batch_size, TRAIN_PX, train=True)
    work = f"train all of {arch.upper()}, {TRAIN_PX} px, batch {batch_size}"
    for clock, seconds in time_by_both_clocks(calls, rounds=rounds).items():
        yield make_row(work, f"{clock}ms an image", seconds, factor=1e3 / batch_size, aim=0.45)


def make_forward(arch: str, batch_size: int, *, dtype: str = "float32") -> Call:
    graph, state = nnx.split(VGG(arch, dtype=jnp.dtype(dtype)))
    images = jnp.asarray(peers.make_batch(batch_size, FORWARD_PX)[0])
    compiled = jax.jit(lambda state, x: nnx.merge(graph, state)(x)).lower(state, images).compile()
    return lambda: compiled(state, images).block_until_ready() is None


def make_train_step(arch: str, batch_size: int, *, dtype: str = "float32") -> Call:
    graph, params = nnx.split(VGG(arch, head=Head.parse("gap-5"), dtype=jnp.dtype(dtype)))
    images, labels = map(jnp.asarray, peers.make_batch(batch_size, TRAIN_PX))
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


if __name__ == "__main__":
    modes = {"forward": measure_forward, "train": measure_train}
    if sys.argv[1:2] == [] or sys.argv[1] not in modes:
        sys.exit(__doc__)
    print_measure(__doc__, modes[sys.argv.pop(1)])
