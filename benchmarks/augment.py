"""What augmentation costs: alone, and in a step that trains block5.

    python -m benchmarks.augment [--photos FOLDER] [--batch-size 8] [--rounds 5]

Prints ms for each image of 224 px, medians over the rounds, everything in turn in each round, so
that a busy machine slows all alike. Without photographs it makes images itself. The weights are
random: arithmetic takes as long with any.
"""

import argparse
import dataclasses
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from vggjax.data.augment.augment import augment
from vggjax.data.augment.mix import mix
from vggjax.data.augment.settings import PRESETS, Augmentation, describe
from vggjax.data.images.preprocess import Preprocessing, resize_image
from vggjax.data.sources.open import open_source
from vggjax.models.head import Head
from vggjax.models.network import VGG
from vggjax.training.config import Config
from vggjax.training.freezing import label_layers, make_optimizer, make_schedules, plan_stages
from vggjax.training.parallel import Placement
from vggjax.training.step import make_state, make_train_step

SIZE_PX = 224

LESSON = Augmentation(
    rotation_range=30.0,
    width_shift_range=0.2,
    height_shift_range=0.2,
    shear_range=0.2,
    zoom_range=(0.2,),
    horizontal_flip=True,
)
"""The call that every lesson on ImageDataGenerator has: the full affine."""

ALONE = {
    "flip": PRESETS["flip"],
    "full affine": LESSON,
    **{
        f"full affine, {mode}": dataclasses.replace(LESSON, fill_mode=mode)
        for mode in ("reflect", "wrap", "constant")
    },
    "full affine + levels": dataclasses.replace(
        LESSON, channel_shift_range=20.0, brightness_range=(0.8, 1.2)
    ),
    "crop-flip": PRESETS["crop-flip"],
    "randaugment": PRESETS["randaugment"],
    "erasing": Augmentation(random_erasing=0.5),
    "mixup": Augmentation(mixup=0.2),
    "cutmix": Augmentation(cutmix=1.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures what augmentation costs.")
    parser.add_argument("--photos", type=Path, help="a folder of images, one folder per class")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="vgg16")
    args = parser.parse_args()
    images = load(args.photos, args.batch_size)
    device = jax.devices()[0]
    print(
        f"{device.device_kind} ({device.platform}), {os.cpu_count()} cores, jax {jax.__version__}"
    )
    print(f"{len(images)} images of {SIZE_PX} px at a time, medians of {args.rounds}\n")

    print("ms an image, alone")
    calls = {name: alone(images, augmentation) for name, augmentation in ALONE.items()}
    for name, ms in measure(calls, args.rounds, len(images)).items():
        print(f"  {name:<24}{ms:8.2f}")

    print(f"\nms an image, a step of {args.model} that trains block5")
    calls = {
        name: train(images, args.model, augmentation)
        for name, augmentation in (("none", Augmentation()), ("full affine", LESSON))
    }
    found = measure(calls, args.rounds, len(images))
    for name, ms in found.items():
        print(f"  {name:<24}{ms:8.1f}")
    added = found["full affine"] / found["none"] - 1
    print(f"  {'added':<24}{added:8.1%}   ({describe(LESSON)})")


def load(folder: Path | None, count: int) -> np.ndarray:
    """Gives uint8 (count, 224, 224, 3), from all over the folder, or made here."""
    preprocessing = Preprocessing("caffe", SIZE_PX)
    if folder is not None:
        source = open_source(str(folder))
        chosen = np.linspace(0, len(source) - 1, count).astype(int)
        images = [resize_image(source.read(int(i)).pixels, preprocessing) for i in chosen]
    else:
        rng = np.random.default_rng(0)
        coarse = rng.integers(0, 256, (count, 14, 14, 3), np.uint8)
        images = [resize_image(image, preprocessing) for image in coarse]
    return np.stack(images)


def alone(images: np.ndarray, a: Augmentation) -> Callable[[], object]:
    """Compiles the augmentation of a batch by itself."""
    labels, mask = np.arange(len(images)), np.ones(len(images), np.float32)

    @jax.jit
    def run(key: jax.Array, images: jax.Array) -> object:
        changed = augment(key, images, a)
        if a.mixup or a.cutmix:
            return mix(key, changed, labels, mask, mixup=a.mixup, cutmix=a.cutmix)
        return changed

    key, on_device = jax.random.key(0), jax.device_put(images)
    return lambda: run(key, on_device)


def train(images: np.ndarray, name: str, augmentation: Augmentation) -> Callable[[], object]:
    """Compiles a training step with this augmentation; each call goes one step on."""
    config = Config(model=name, weights="none", unfreeze="block5")
    placement = Placement(num_devices=1)
    model = VGG(name, head=Head.parse(config.head).for_classes(5), rngs=nnx.Rngs(0))
    labels = label_layers(model, config.unfreeze)
    tx = make_optimizer(config, labels, make_schedules(config, plan_stages(config)[-1], 10))
    options = {"placement": placement, "mode": "caffe", "augmentation": augmentation}
    step = make_train_step(model, tx, labels, **options)
    count = len(images)
    batch = {
        "images": images,
        "label": (np.arange(count) % 5).astype(np.int32),
        "mask": np.ones(count, np.float32),
    }
    batch = placement.put_batch(batch)
    state = placement.put_state(make_state(model, tx, labels))

    def call() -> object:
        nonlocal state
        state, metrics = step(state, batch)
        return metrics

    return call


def measure(calls: dict[str, Callable[[], object]], rounds: int, count: int) -> dict[str, float]:
    """Gives the median ms an image of each call, all in turn, `rounds` times."""
    for call in calls.values():
        jax.block_until_ready(call())
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            begin_s = time.perf_counter()
            jax.block_until_ready(call())
            times[name].append(1e3 * (time.perf_counter() - begin_s) / count)
    return {name: statistics.median(ms) for name, ms in times.items()}


if __name__ == "__main__":
    main()
