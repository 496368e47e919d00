"""Time VGG on one GPU: forward and three kinds of training step, against PyTorch at its best.

    python -m benchmarks.gpu [--archs vgg16 vgg19] [--works forward head block5 full]
                             [--precisions bfloat16 tf32] [--batch-size 256] [--size 224]
                             [--rounds 5] [--minutes 9] [--out gpu.jsonl]

`forward` runs the published network and `full` trains all of it; `head` trains a small head alone,
`block5` with block5, both with the frozen layers computed at every step. The uint8 images are on
the device, their preprocessing is part of the step, the optimizer is SGD with momentum. PyTorch
runs in channels_last with cuDNN's benchmark mode, in autocast (bfloat16) or TF32, once eagerly and
once under `torch.compile`; its frozen layers run under no_grad. Keras, where it is installed, runs
on JAX with `train_on_batch` and `predict_on_batch`, in mixed_bfloat16 or TF32. A round runs several
steps of each in turn and waits for the last. The share of the peak is the work's floating-point
operations per second over those of a product of two 8192x8192 matrices of that precision.

The first row is the input path: images a second from JPEG files of 500x375 px through a step of
the frozen network and its head, and of that step alone. Each row is printed, and appended to
`--out`, when it is ready; after `--minutes` no further row begins, and those left are named.
"""

import argparse
import gc
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from benchmarks.measure import Call, describe_machine, time_in_turn
from benchmarks.peers import installed
from vggjax.data.images.preprocess import Preprocessing, preprocess
from vggjax.data.loader import SplitLoader, prefetch
from vggjax.data.sources.open import open_source
from vggjax.models.arch import get_arch
from vggjax.models.head import PUBLISHED_TOP, Head
from vggjax.models.network import Network
from vggjax.training.config import Config
from vggjax.training.freezing import label_layers, make_optimizer, make_schedules, plan_stages
from vggjax.training.parallel import Placement
from vggjax.training.step import make_state, make_train_step

SMALL_HEAD = Head("gap", (256,), outputs=10)
WORKS = {"forward": PUBLISHED_TOP, "head": SMALL_HEAD, "block5": SMALL_HEAD, "full": PUBLISHED_TOP}
PRECISIONS = {"bfloat16": jnp.bfloat16, "tf32": jnp.float32}


def make_batch(batch_size: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch_size, size, size, 3), np.uint8)
    return images, rng.integers(0, 10, batch_size).astype(np.int32)


def make_vggjax(
    work: str, arch: str, precision: str, batch_size: int, size: int, steps: int
) -> Call:
    model = Network(arch, head=WORKS[work], image_size=size, dtype=PRECISIONS[precision])
    images, labels = make_batch(batch_size, size)
    if work == "forward":
        graphdef, state = nnx.split(model)
        forward = jax.jit(lambda state, x: nnx.merge(graphdef, state)(preprocess(x)))
        x = jnp.asarray(images)
        return lambda: [forward(state, x) for _ in range(steps)][-1].block_until_ready()

    step, state, placement = make_step(work, model)
    batch = placement.put_batch(
        {
            "images": images,
            "label": labels,
            "mask": np.ones(batch_size, np.float32),
            "index": np.arange(batch_size),
        }
    )

    def call() -> None:
        nonlocal state
        for _ in range(steps):
            state, metrics = step(state, batch)
        metrics["loss"].block_until_ready()

    return call


def make_step(work: str, model: Network) -> tuple[Callable[..., Any], Any, Placement]:
    """Return the train step of the work, its state on the device, and the placement."""
    unfreeze = {"head": "none", "full": "all"}.get(work, work)
    config = Config(
        model=model.arch.name, weights="none", unfreeze=(unfreeze,), optimizer="sgd",
        schedule="constant", learning_rate=1e-5, epochs=1000,
    )  # fmt: skip
    placement, stage = Placement(num_devices=1), plan_stages(config)[-1]
    names = label_layers(model, stage.unfreeze)
    tx = make_optimizer(config, names, make_schedules(config, stage, 1))
    step = make_train_step(model, tx, names, placement=placement, mode="caffe")
    return step, placement.put_state(make_state(model, tx, names)), placement


def measure_input(
    arch: str, precision: str, *, batch_size: int, size: int, batches: int = 8
) -> dict[str, object]:
    """Return the row of the input path, over so many batches of JPEG files."""
    model = Network(arch, head=WORKS["head"], image_size=size, dtype=PRECISIONS[precision])
    step, state, placement = make_step("head", model)
    count = batches * batch_size
    with tempfile.TemporaryDirectory(prefix="vggjax-gpu-") as root:
        rng = np.random.default_rng(0)
        for index in range(count):
            coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8))
            path = Path(root) / f"class_{index % 10}" / f"{index}.jpg"
            path.parent.mkdir(exist_ok=True)
            coarse.resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)
        source = open_source(root)
        loader = SplitLoader(source, np.arange(count), Preprocessing(image_size=size))
        seconds, batch = [], None
        for _ in range(2):  # the first pass compiles
            begin_s = time.perf_counter()
            for batch in prefetch(loader.batches(batch_size), placement.put_batch):
                state, metrics = step(state, batch)
            metrics["loss"].block_until_ready()
            seconds.append(time.perf_counter() - begin_s)
    begin_s = time.perf_counter()
    for _ in range(batches):
        state, metrics = step(state, batch)
    metrics["loss"].block_until_ready()
    return {
        "work": f"{arch.upper()} head from {count} JPEG files, {size} px, {precision}",
        "images_per_s": round(count / seconds[-1], 1),
        "step_images_per_s": round(count / (time.perf_counter() - begin_s), 1),
    }


def make_keras(
    work: str, arch: str, precision: str, batch_size: int, size: int, steps: int
) -> Call:
    """Return a call of Keras on JAX."""
    import keras

    keras.config.set_dtype_policy("mixed_bfloat16" if precision == "bfloat16" else "float32")
    build = {"vgg16": keras.applications.VGG16, "vgg19": keras.applications.VGG19}[arch]
    base = build(weights=None, include_top=False, input_shape=(size, size, 3))
    for layer in base.layers:
        layer.trainable = work == "full" or layer.name.startswith(work)
    head = WORKS[work]
    pool = (
        keras.layers.Flatten if head.pooling == "flatten" else keras.layers.GlobalAveragePooling2D
    )
    x = pool()(base.output)
    for width in head.hidden:
        x = keras.layers.Dense(width, "relu")(x)
    model = keras.Model(base.input, keras.layers.Dense(head.outputs, dtype="float32")(x))
    keras.config.set_dtype_policy("float32")
    model.compile(
        keras.optimizers.SGD(1e-5, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    images, labels = make_batch(batch_size, size)
    pixels, y = preprocess(jnp.asarray(images), "caffe"), jnp.asarray(labels)  # once, on the device

    def call() -> None:
        for _ in range(steps):
            model.predict_on_batch(pixels) if work == "forward" else model.train_on_batch(pixels, y)

    return call


def make_torch(
    work: str, arch: str, precision: str, batch_size: int, size: int, steps: int, *, compiled: bool
) -> Call:
    import torch
    from torch import nn

    device = "cuda" if torch.cuda.is_available() else "cpu"
    wait = torch.cuda.synchronize if device == "cuda" else torch.cpu.synchronize
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")  # TF32, as jax does by default
    frozen_blocks = {"head": 5, "block5": 4}.get(work, 0)
    blocks, width_in = [], 3
    for width, count in zip(get_arch(arch).widths, get_arch(arch).convs, strict=True):
        layers: list[nn.Module] = []
        for _ in range(count):
            layers += [nn.Conv2d(width_in, width, 3, padding=1), nn.ReLU(inplace=True)]
            width_in = width
        blocks.append(nn.Sequential(*layers, nn.MaxPool2d(2)))
    head, num_features = WORKS[work], width_in * (size // 32) ** 2
    pool: list[nn.Module] = [nn.Flatten()]
    if head.pooling == "gap":
        pool, num_features = [nn.AdaptiveAvgPool2d(1), nn.Flatten()], width_in
    dense: list[nn.Module] = []
    for width in head.hidden:
        dense += [nn.Linear(num_features, width), nn.ReLU(inplace=True)]
        num_features = width
    top = nn.Sequential(*pool, *dense, nn.Linear(num_features, head.outputs))
    frozen = nn.Sequential(*blocks[:frozen_blocks]).to(device).to(memory_format=torch.channels_last)
    trained = nn.Sequential(*blocks[frozen_blocks:], top)
    trained = trained.to(device).to(memory_format=torch.channels_last)
    images, labels = make_batch(batch_size, size)
    x, y = torch.from_numpy(images).to(device), torch.from_numpy(labels).long().to(device)
    mean = torch.tensor([103.939, 116.779, 123.68], device=device)
    autocast = partial(torch.autocast, device, torch.bfloat16, enabled=precision == "bfloat16")

    def pixels(x):
        return (x.flip(-1).float() - mean).permute(0, 3, 1, 2)  # channels_last in memory

    def forward(x):
        with autocast():
            with torch.no_grad():
                features = frozen(pixels(x))
            return trained(features)

    def loss_fn(x, y):
        return nn.functional.cross_entropy(forward(x).float(), y)

    if compiled:
        forward, loss_fn = torch.compile(forward), torch.compile(loss_fn)
    tx = torch.optim.SGD(trained.parameters(), lr=1e-5, momentum=0.9, foreach=True)

    def infer() -> None:
        with torch.inference_mode():
            for _ in range(steps):
                forward(x)
        wait()

    def train() -> None:
        for _ in range(steps):
            tx.zero_grad(set_to_none=True)
            loss_fn(x, y).backward()
            tx.step()
        wait()

    return infer if work == "forward" else train


def operations(work: str, arch: str, size: int) -> float:
    """Return the floating-point operations of an image: two a product, the optimizer's left out."""
    forward, backward, side = 0.0, 0.0, size
    spec, head, width_in = get_arch(arch), WORKS[work], 3
    for block, (width, count) in enumerate(zip(spec.widths, spec.convs, strict=True), 1):
        for _ in range(count):
            layer = 2.0 * 9 * width_in * width * side**2
            forward += layer
            if work == "full" or (work == "block5" and block == 5):
                # The first trained layer has no gradient of its input.
                backward += layer if not backward else 2 * layer
            width_in = width
        side //= 2
    num_features = head.num_features(side, width_in)
    for width in (*head.hidden, head.outputs):
        forward += 2.0 * num_features * width
        backward += 0 if work == "forward" else 4.0 * num_features * width
        num_features = width
    return forward + backward


def measure_peak(precision: str, *, side: int = 8192, rounds: int = 10) -> float:
    """Return the operations per second of a product of two random matrices."""
    keys = jax.random.split(jax.random.key(0))
    a, b = (jax.random.normal(key, (side, side), PRECISIONS[precision]) for key in keys)
    product = jax.jit(jnp.matmul)

    def call() -> None:
        for _ in range(rounds):
            c = product(a, b)
        c.block_until_ready()

    return rounds * 2.0 * side**3 / time_in_turn({"": call}, rounds=5)[""]


def measure(
    works: list[str], archs: list[str], precisions: list[str], *, batch_size: int, size: int,
    rounds: int, steps: int = 5, minutes: float = 9,
) -> Iterator[dict[str, object]]:  # fmt: skip
    """Return each row: milliseconds of a step for vggjax and its peers, and shares."""
    start_s, longest_s = time.perf_counter(), 0.0
    peers = {"PyTorch": False, "PyTorch compiled": True} if installed("torch") else {}
    with_keras = os.environ.get("KERAS_BACKEND") == "jax" and installed("keras")
    yield measure_input(archs[0], precisions[0], batch_size=batch_size, size=size)
    for precision in precisions:
        peak = measure_peak(precision)
        for arch in archs:
            for work in works:
                begin_s = time.perf_counter()
                title = f"{arch.upper()} {work}, {size} px, batch {batch_size}, {precision}"
                if begin_s - start_s + longest_s > 60 * minutes:
                    yield {"work": title, "left_out": f"not within {minutes:g} minutes"}
                    continue
                settings = (work, arch, precision, batch_size, size, steps)
                calls = {"vggjax": make_vggjax(*settings)}
                for name, compiled in peers.items():
                    calls[name] = make_torch(*settings, compiled=compiled)
                if with_keras and arch in ("vgg16", "vgg19"):
                    calls["Keras-JAX"] = make_keras(*settings)
                seconds = time_in_turn(calls, rounds=rounds)
                del calls
                gc.collect()
                step_ms = {name: 1e3 * value / steps for name, value in seconds.items()}
                others = [ms for name, ms in step_ms.items() if name != "vggjax"]
                best_peer_ms = min(others, default=float("nan"))
                longest_s = max(longest_s, time.perf_counter() - begin_s)
                rate = operations(work, arch, size) * batch_size / step_ms["vggjax"] * 1e3
                yield {
                    "work": title,
                    **{f"{name}_ms": round(value, 2) for name, value in step_ms.items()},
                    "speed_over_best_peer": round(best_peer_ms / step_ms["vggjax"], 3),
                    "tflops": round(rate / 1e12, 1),
                    "share_of_peak": round(rate / peak, 3),
                    "peak_tflops": round(peak / 1e12, 1),
                    "seconds_to_measure": round(time.perf_counter() - begin_s, 1),
                }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archs", nargs="+", default=["vgg16", "vgg19"])
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    os.environ["KERAS_BACKEND"] = "jax"
    print(f"{Placement(num_devices=1)}; {describe_machine()}", flush=True)
    for row in measure(
        args.works, args.archs, args.precisions,
        batch_size=args.batch_size, size=args.size, rounds=args.rounds, minutes=args.minutes,
    ):  # fmt: skip
        print(json.dumps(row), flush=True)
        if args.out:
            with args.out.open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
