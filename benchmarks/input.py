"""Images per second from files to augmented 224 px batches: vggjax, tf.data and Keras.

    python -m benchmarks.input [--photos FOLDER]

All three read the same files in one process, each in turn, and the figure is the median of the
passes. FOLDER holds class folders of photographs; without it images are made. Larger
photographs are made of them by enlarging. TensorFlow and Keras come with the `bench` extra.
"""

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from vggjax.data.augment.augment import augment
from vggjax.data.augment.settings import Augmentation
from vggjax.data.images.formats import ENDINGS
from vggjax.data.images.preprocess import Preprocessing
from vggjax.data.loader import SplitLoader, prefetch
from vggjax.data.sources.open import open_source
from vggjax.data.sources.source import Source

SIZE, BATCH = 224, 32
AUGMENTATIONS = {
    "nothing": Augmentation(),
    "flip": Augmentation(horizontal_flip=True),
    "affine": Augmentation(
        rotation_range=30.0,
        width_shift_range=0.2,
        height_shift_range=0.2,
        shear_range=10.0,
        zoom_range=(0.2,),
        horizontal_flip=True,
    ),
}
Pass = Callable[[], int]
"""Reads every image once; gives their number."""


def ours(source: Source, kind: str, *, cache_mb: int = 0) -> Pass:
    examples = SplitLoader(source, np.arange(len(source)), Preprocessing(), cache_mb=cache_mb)
    examples.prepare()
    change = jax.jit(partial(augment, augmentation=AUGMENTATIONS[kind]))
    if kind == "nothing":
        change = lambda key, images: images  # noqa: E731
    key = jax.random.key(0)

    def run() -> int:
        count, changed = 0, None
        for batch in prefetch(examples.batches(BATCH), jax.device_put):
            ready, changed = changed, change(key, batch["images"])
            jax.block_until_ready(ready)  # as a step would, one batch behind
            count += int((batch["index"] >= 0).sum())
        jax.block_until_ready(changed)
        return count

    return run


def tf_data(files: list[str], kind: str, *, cached: bool = False, antialias: bool = False) -> Pass:
    def load(path: tf.Tensor) -> tf.Tensor:
        image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        image = tf.image.resize(image, (SIZE, SIZE), antialias=antialias)
        if cached:  # as bytes: floats would take four times the memory
            image = tf.cast(tf.round(image), tf.uint8)
        return tf.image.random_flip_left_right(image) if kind == "flip" else image

    def move(images: tf.Tensor) -> tf.Tensor:
        return tf.raw_ops.ImageProjectiveTransformV3(
            images=images,
            transforms=draw_matrices(tf.shape(images)[0]),
            output_shape=(SIZE, SIZE),
            fill_value=0.0,
            interpolation="BILINEAR",
            fill_mode="NEAREST",
        )

    data = tf.data.Dataset.from_tensor_slices(files).map(load, tf.data.AUTOTUNE)
    data = (data.cache() if cached else data).batch(BATCH)
    if kind == "affine":
        data = data.map(move, tf.data.AUTOTUNE)
    return drain(data.prefetch(tf.data.AUTOTUNE))


def draw_matrices(count: tf.Tensor) -> tf.Tensor:
    """Draws one matrix for each image: turn, shear, zoom and flip about the center, shift."""
    uniform = lambda low, high: tf.random.uniform([count], low, high)  # noqa: E731
    turn, shear = uniform(-0.52, 0.52), uniform(-0.17, 0.17)
    flip = tf.sign(uniform(-1.0, 1.0))
    across, down = uniform(0.8, 1.2) * flip, uniform(0.8, 1.2)
    a, b = tf.cos(turn) * across, -tf.sin(turn + shear) * down
    c, d = tf.sin(turn) * across, tf.cos(turn + shear) * down
    middle = (SIZE - 1) / 2
    x = middle - a * middle - b * middle + uniform(-0.2, 0.2) * SIZE
    y = middle - c * middle - d * middle + uniform(-0.2, 0.2) * SIZE
    none = tf.zeros([count])
    return tf.stack([a, b, x, c, d, y, none, none], axis=1)


def keras_folder(folder: Path, kind: str) -> Pass:
    layers = {
        "nothing": [],
        "flip": [keras.layers.RandomFlip("horizontal")],
        "affine": [
            keras.layers.RandomFlip("horizontal"),
            keras.layers.RandomRotation(30 / 360, fill_mode="nearest"),
            keras.layers.RandomTranslation(0.2, 0.2, fill_mode="nearest"),
            keras.layers.RandomZoom(0.2, 0.2, fill_mode="nearest"),
            keras.layers.RandomShear(0.17, 0.0, fill_mode="nearest"),
        ],
    }[kind]
    data = keras.utils.image_dataset_from_directory(
        folder, image_size=(SIZE, SIZE), batch_size=BATCH, shuffle=False, verbose=False
    )
    if layers:
        change = keras.Sequential(layers)
        data = data.map(lambda x, _: (change(x, training=True), _), tf.data.AUTOTUNE)
    return drain(data.map(lambda x, _: x).prefetch(tf.data.AUTOTUNE))


def drain(data: tf.data.Dataset) -> Pass:
    return lambda: sum(int(batch.shape[0]) for batch in data)


class Figure(NamedTuple):
    """Of one contender, medians over the passes."""

    images_per_s: float
    cpu_us: float
    """CPU time for an image, of all threads: it says what a busy machine hides."""


def compare(contenders: dict[str, Pass], passes: int, expected: int) -> dict[str, Figure]:
    """Runs each in turn, `passes` times after one to warm up."""
    figures: dict[str, list[Figure]] = {name: [] for name in contenders}
    for turn, (name, run) in itertools.product(range(passes + 1), contenders.items()):
        begin_s, begin_cpu_s = time.perf_counter(), time.process_time()
        count = run()
        seconds, cpu_s = time.perf_counter() - begin_s, time.process_time() - begin_cpu_s
        assert count == expected, f"{name} read {count} of {expected} images"
        if turn:
            figures[name].append(Figure(count / seconds, cpu_s / count * 1e6))
    return {
        name: Figure(*map(statistics.median, zip(*values, strict=True)))
        for name, values in figures.items()
    }


def report(title: str, figures: dict[str, Figure]) -> None:
    print(title)
    mine, *others = figures.values()
    for name, figure in figures.items():
        print(
            f"    {name:20} {figure.images_per_s:9,.1f} images/s "
            f"{figure.cpu_us:11,.0f} us CPU each "
            f"{figure.images_per_s / mine.images_per_s:8.2f}"
        )
    ratio = mine.images_per_s / max(other.images_per_s for other in others)
    print(f"    vggjax is {ratio:.2f} times the best of the others", flush=True)


def find_photographs(folder: str | None, scratch: Path, most: int) -> Path:
    """Links up to `most` photographs, evenly taken, into a folder of their own, or makes some."""
    here = scratch / "photographs"
    if folder is None:
        for i in range(most):
            coarse = np.random.default_rng(i).integers(0, 256, (9, 9, 3), np.uint8)
            target = here / "abcde"[i % 5] / f"{i:05d}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(coarse).resize((128, 128), Image.Resampling.BICUBIC)
            image.save(target, quality=90)
        return here
    found = sorted(path for path in Path(folder).resolve().glob("*/*") if is_jpeg(path))
    for path in found[:: max(1, -(-len(found) // most))]:
        target = here / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path)
    return here


def is_jpeg(path: Path) -> bool:
    return path.suffix.lower() in ENDINGS and path.read_bytes()[:2] == b"\xff\xd8"


def enlarge(photographs: Path, scratch: Path, size: tuple[int, int], count: int) -> Path:
    here = scratch / f"{size[0]}x{size[1]}"
    found = sorted(photographs.glob("*/*"))
    for path in found[:: max(1, len(found) // count)][:count]:
        target = here / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            image.resize(size, Image.Resampling.BICUBIC).save(target, "JPEG", quality=90)
    return here


def measure(folder: Path, kinds: Iterable[str], passes: int, *, shrinks: bool = False) -> None:
    """Compares decode + resize + augmentation; images that shrink also with equal filters.

    vggjax smooths what it makes smaller, as load_img does, which tf.data does only when told to
    and image_dataset_from_directory cannot.
    """
    source = open_source(str(folder))
    files = [str(folder / name) for name in source.ids]
    for kind in kinds:
        contenders = {
            "vggjax": ours(source, kind),
            "tf.data": tf_data(files, kind),
            "keras": keras_folder(folder, kind),
        }
        if shrinks:
            contenders["tf.data, antialias"] = tf_data(files, kind, antialias=True)
        augmented = "" if kind == "nothing" else f" + {kind}"
        title = f"{len(source)} {folder.name}, decode + resize{augmented}"
        report(title, compare(contenders, passes, len(source)))


def measure_cached(folder: Path, passes: int) -> None:
    """Shows that a set in memory touches no file: reads are counted."""
    plain = open_source(str(folder))
    reads: list[int] = []
    counted = Source(**{**vars(plain), "read": lambda i: (reads.append(i), plain.read(i))[1]})
    files = [str(folder / name) for name in plain.ids]
    contenders = {
        "vggjax": ours(counted, "nothing", cache_mb=16_384),
        "tf.data": tf_data(files, "nothing", cached=True),
    }
    read = len(reads)
    report(f"{len(plain)} {folder.name}, in memory", compare(contenders, passes, len(plain)))
    print(f"    vggjax read {read} files to fill it, and {len(reads) - read} after that")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", help="a folder of class folders; without it some are made")
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--most", type=int, default=2000, help="photographs to use")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vggjax-input-") as scratch:
        scratch = Path(scratch)
        photographs = find_photographs(options.photos, scratch, options.most)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        print(
            f"to {SIZE} px, batches of {BATCH}, {cores} cores, medians of {options.passes} passes"
        )
        measure(photographs, AUGMENTATIONS, options.passes)
        measure_cached(photographs, options.passes)
        few = max(10, options.most // 5)
        for size, count in (((500, 375), few), ((4000, 3000), max(10, options.most // 100))):
            larger = enlarge(photographs, scratch, size, count)
            measure(larger, ("flip",), options.passes, shrinks=True)


if __name__ == "__main__":
    main()
