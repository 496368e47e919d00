"""VGG's convolutional base in PyTorch and Keras, on TensorFlow and JAX, as calls to time.

Each call runs one forward pass or one training step on a fixed batch and waits for it. Weights are
random, because the times do not depend on them. Each library comes with the settings for speed
that its users have: channels_last, autocast or mixed_bfloat16, and torch.compile.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import weakref
from typing import Any

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


def make_peers(arch: str, batch_size: int, size: int, *, train: bool) -> dict[str, Call]:
    """Return every peer that is installed, with each setting that its users have for speed.

    `torch.compile` is left out of the training step, whose compilation takes minutes.
    """
    calls: dict[str, Call] = {}
    settings: dict[str, Any] = dict(arch=arch, batch_size=batch_size, size=size, train=train)
    if installed("torch"):
        for name, precision, is_compiled in (
            ("PyTorch", "float32", False),
            ("PyTorch bfloat16", "bfloat16", False),
            ("PyTorch compiled", "float32", True),
            ("PyTorch compiled, bfloat16", "bfloat16", True),
        ):
            if is_compiled and (train or shutil.which("c++") is None):
                continue
            calls[name] = make_torch(**settings, precision=precision, is_compiled=is_compiled)
    if installed("keras", "tensorflow"):
        calls["Keras-TF"] = make_keras(**settings)
        calls["Keras-TF bfloat16"] = make_keras(**settings, precision="mixed_bfloat16")
    if installed("keras"):
        calls["Keras-JAX"] = Worker("jax", **settings)
    return calls


def make_torch(
    arch: str, batch_size: int, size: int, *, train: bool, precision: str = "float32",
    is_compiled: bool = False,
) -> Call:  # fmt: skip
    """Return a call of PyTorch in channels_last, its faster layout on CPUs.

    bfloat16 is `torch.autocast`; `is_compiled` is `torch.compile`, which in a forward pass also
    lays out the weights for the convolutions, once.
    """
    import torch

    base, width_in = torch_base(arch)
    images, labels = make_batch(batch_size, size)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    cast = lambda: torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")  # noqa: E731
    if not train:
        if is_compiled:
            import torch._inductor.config

            torch._inductor.config.freezing = True
            base = torch.compile(base.eval())

        def forward() -> None:
            with torch.inference_mode(not is_compiled), torch.no_grad(), cast():
                base(x)

        return forward

    gap = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(width_in, 5)]
    model = torch.nn.Sequential(base, *gap).to(memory_format=torch.channels_last)
    tx = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    y = torch.from_numpy(labels)
    run = torch.compile(model) if is_compiled else model

    def step() -> None:
        tx.zero_grad(set_to_none=True)
        with cast():
            loss = torch.nn.functional.cross_entropy(run(x), y)
        loss.backward()
        tx.step()

    return step


def make_keras(
    arch: str, batch_size: int, size: int, *, train: bool, precision: str = "float32"
) -> Call:
    """Return a call of `predict_on_batch` or `train_on_batch`, which Keras compiles."""
    import keras

    keras.config.set_dtype_policy(precision)
    build = {"vgg16": keras.applications.VGG16, "vgg19": keras.applications.VGG19}[arch]
    base = build(weights=None, include_top=False, input_shape=(size, size, 3))
    images, labels = make_batch(batch_size, size)
    if not train:
        keras.config.set_dtype_policy("float32")
        return lambda: base.predict_on_batch(images) is None
    features = keras.layers.GlobalAveragePooling2D()(base.output)
    model = keras.Model(base.input, keras.layers.Dense(5, dtype="float32")(features))
    keras.config.set_dtype_policy("float32")
    tx = keras.optimizers.SGD(1e-4, momentum=0.9)
    model.compile(tx, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return lambda: model.train_on_batch(images, labels) is None


class Worker:
    """A call of `make_keras` in a process of its own, because Keras has one backend a process."""

    in_other_process = True

    def __init__(self, backend: str, **settings: Any):
        environment = os.environ | {
            "KERAS_BACKEND": backend,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        code = (
            "import sys\nfrom benchmarks.peers import make_keras\n"
            f"call = make_keras(**{settings})\n"
            "for _ in sys.stdin: call(); print(flush=True)"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment,
        )  # fmt: skip
        weakref.finalize(self, self._process.kill)

    def __call__(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("\n")
        if not self._process.stdout.readline():
            raise SystemExit("The worker of Keras ended.")
