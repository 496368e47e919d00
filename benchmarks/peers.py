"""VGG's convolutional base in PyTorch (channels_last) and Keras on TensorFlow, as timed callables.

Each maker gives a function of no arguments that does one forward pass or one training step on a
batch of its own and waits for the end, or None, with a line that says so, where its library is not
installed. Weights are random: times do not depend on them.
"""

import importlib.util
import os
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np

from vggjax.models.arch import get_arch

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

Call = Callable[[], None]


def _installed(*modules: str) -> bool:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        print(f"{' and '.join(missing)} not installed: left out")
    return not missing


def make_batch(batch_size: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch_size, size, size, 3), np.float32)
    return images, rng.integers(0, 5, batch_size)


def make_torch(arch: str, batch_size: int, size: int, *, train: bool) -> Call | None:
    """PyTorch in float32 and channels_last, its fastest layout on CPUs."""
    if not _installed("torch"):
        return None
    import torch

    layers: list[torch.nn.Module] = []
    width_in = 3
    for block, count in enumerate(get_arch(arch).convs):
        for _ in range(count):
            width = get_arch(arch).widths[block]
            layers += [torch.nn.Conv2d(width_in, width, 3, padding=1), torch.nn.ReLU(inplace=True)]
            width_in = width
        layers.append(torch.nn.MaxPool2d(2))
    images, labels = make_batch(batch_size, size)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    base = torch.nn.Sequential(*layers).to(memory_format=torch.channels_last)
    if not train:

        def forward() -> None:
            with torch.inference_mode():
                base(x)

        return forward

    gap = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(width_in, 5)]
    model = torch.nn.Sequential(base, *gap).to(memory_format=torch.channels_last)
    tx = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    y = torch.from_numpy(labels)

    def step() -> None:
        tx.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(model(x), y).backward()
        tx.step()

    return step


def make_keras(arch: str, batch_size: int, size: int, *, train: bool) -> Call | None:
    """Keras with TensorFlow, compiled by tf.function as `predict` and `fit` do."""
    if not _installed("keras", "tensorflow"):
        return None
    import keras
    import tensorflow as tf

    build = {"vgg16": keras.applications.VGG16, "vgg19": keras.applications.VGG19}[arch]
    base = build(weights=None, include_top=False, input_shape=(size, size, 3))
    images, labels = make_batch(batch_size, size)
    x = tf.constant(images)
    if not train:
        function = tf.function(lambda x: base(x, training=False))
        return lambda: function(x).numpy() is None

    features = keras.layers.GlobalAveragePooling2D()(base.output)
    model = keras.Model(base.input, keras.layers.Dense(5)(features))
    tx = keras.optimizers.SGD(1e-4, momentum=0.9)
    tx.build(model.trainable_variables)
    y = tf.constant(labels)

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, model(x, training=True))
            loss = tf.reduce_mean(losses)
        variables = model.trainable_variables
        tx.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    return lambda: step(x, y).numpy() is None


def in_turn(calls: dict[str, Call | None], *, rounds: int) -> dict[str, float]:
    """Gives each call's median seconds over the rounds, in each of which all take their turn."""
    present = {name: call for name, call in calls.items() if call is not None}
    for call in present.values():
        call()  # compiles
    seconds: dict[str, list[float]] = {name: [] for name in present}
    for _ in range(rounds):
        for name, call in present.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def print_row(work: str, seconds: dict[str, float], batch_size: int, peers: Sequence[str]) -> None:
    """Prints milliseconds an image and ours as a share of the best peer's time."""
    cells = [f"{name} {value / batch_size * 1e3:.0f} ms" for name, value in seconds.items()]
    best = min((seconds[name] for name in peers if name in seconds), default=None)
    share = (
        "no peer installed" if best is None else f"ours / best peer {seconds['ours'] / best:.2f}"
    )
    print(f"{work}: {', '.join(cells)}; {share}", flush=True)
