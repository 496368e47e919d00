"""VGG's convolutional base in PyTorch (channels_last) and Keras on TensorFlow, as calls to time.

Each `make_` function returns a call that runs one forward pass or one training step on a fixed
batch and waits for it, or prints that its library is not installed and returns None. Weights are
random, because the times do not depend on them.
"""

import importlib.util
import os

import numpy as np

from benchmarks.measure import Call
from vggjax.models.arch import get_arch

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")


def installed(*modules: str) -> bool:
    """Return whether the libraries are installed; print those that are not."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        print(f"{' and '.join(missing)} not installed, skipped")
    return not missing


def make_batch(batch_size: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch_size, size, size, 3), np.float32)
    return images, rng.integers(0, 5, batch_size)


def torch_base(arch: str):
    """Return the base as a torch.nn.Sequential in channels_last, and its last width."""
    import torch

    layers: list[torch.nn.Module] = []
    width_in = 3
    for width, count in zip(get_arch(arch).widths, get_arch(arch).convs, strict=True):
        for _ in range(count):
            layers += [torch.nn.Conv2d(width_in, width, 3, padding=1), torch.nn.ReLU(inplace=True)]
            width_in = width
        layers.append(torch.nn.MaxPool2d(2))
    return torch.nn.Sequential(*layers).to(memory_format=torch.channels_last), width_in


def make_torch(arch: str, batch_size: int, size: int, *, train: bool) -> Call | None:
    """Return a call of PyTorch in float32 and channels_last, its fastest layout on CPUs."""
    if not installed("torch"):
        return None
    import torch

    base, width_in = torch_base(arch)
    images, labels = make_batch(batch_size, size)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
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
    """Return a call of Keras on TensorFlow, compiled by tf.function like `predict` and `fit`."""
    if not installed("keras", "tensorflow"):
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
