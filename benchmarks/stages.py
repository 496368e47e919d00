"""Time a stage of transfer learning: block5 and a head, or a head alone, on VGG16.

    python -m benchmarks.stages [--unfreeze block5] [--photographs 100] [--batch-size 16]

`--unfreeze none` trains the head alone. vggjax goes through the parts of its training loop: cached
features, batches, stacked steps. Its first epoch computes the outputs of the frozen layers, the
later ones reuse them. Keras runs `train_on_batch` of the same network and optimizer, PyTorch the
same by hand, both on preprocessed images in memory and with the frozen layers at every step, as in
`fit`. Weights and images are random, because the times do not depend on them. Compilation is not
counted.
"""

import contextlib
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.measure import Call, Row, make_row, print_measure, time_by_both_clocks
from benchmarks.peers import installed, torch_base
from vggjax.training.cache.features import FeatureCache
from vggjax.training.config import Config
from vggjax.training.prepare import prepare_run
from vggjax.training.progress import MetricAccumulator
from vggjax.training.run_dir.folder import make_workdir
from vggjax.training.signals import Stop
from vggjax.training.stage_loop import StageLoop

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

SIZE_PX, CLASSES, HEAD = 200, 5, "avg2-128-0.4-classes"


class Quiet:
    """A console that prints nothing and sums the seconds that compiling is reported to take."""

    compile_s = 0.0

    def begin(self, *_, **__) -> None:
        pass

    advance = begin

    def print(self, text: str) -> None:
        match = re.search(r"compiled in ([\d.]+) s", text)
        self.compile_s += float(match[1]) if match else 0.0


def make_photographs(root: Path, count: int) -> Path:
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (15, 20, 3), np.uint8)
        image = Image.fromarray(pixels).resize((320, 240), Image.Resampling.BICUBIC)
        (root / f"class_{i % CLASSES}").mkdir(parents=True, exist_ok=True)
        image.save(root / f"class_{i % CLASSES}" / f"{i:05}.jpg", quality=90)
    return root


class Stage:
    """A stage of vggjax: `fill_s` is the time of the features, `epoch()` trains on them.

    `fill_s` has the seconds of the wall and of the processor.
    """

    def __init__(self, photographs: Path, *, unfreeze: str, batch_size: int, dtype: str):
        self._open = contextlib.ExitStack()
        scratch = Path(self._open.enter_context(tempfile.TemporaryDirectory()))
        config = Config(
            dataset=str(photographs), workdir=str(scratch / "run"), weights="none", head=HEAD,
            unfreeze=(unfreeze,), head_epochs=None if unfreeze == "none" else 0, epochs=100,
            batch_size=batch_size, image_size=SIZE_PX, preprocess="caffe", augment="none",
            optimizer="nadam", duplicates="ignore", split="0.8,0.1,0.1", schedule="constant",
            dtype=dtype,
        )  # fmt: skip
        run = prepare_run(config)
        for examples in run.loaders.values():
            examples.prepare()
        make_workdir(run.workdir, config, run.source, run.splits)
        stage = run.stages[-1]
        console = Quiet()
        features = FeatureCache(run, console, Stop()).of(stage)
        begin_s, processor_begin_s = time.perf_counter(), time.process_time()
        self._run, cut = self._open.enter_context(features)
        images = sum(map(len, self._run.loaders.values()))
        self.images = len(self._run.loaders["train"])
        share = self.images / images
        self.fill_s = {
            "": (time.perf_counter() - begin_s - console.compile_s) * share,
            "processor ": (time.process_time() - processor_begin_s - console.compile_s) * share,
        }
        self._loop = StageLoop(self._run, stage, cut, console.print)
        self._loop.state = run.placement.put_state(self._loop.initial_state())
        self._step = 0

    def epoch(self) -> None:
        loop, metric_sums = self._loop, MetricAccumulator(self._run.placement)
        first, self._step = self._step, self._step + self._run.steps_per_epoch
        for steps, batch in loop.batches(first, self._step):
            loop.state, metrics = loop.train_step(loop.state, batch)
            metric_sums.add(steps, metrics)
            metric_sums.fetch()

    def close(self) -> None:
        self._open.close()


def make_keras(*, unfreeze: str, size: int = SIZE_PX):
    """Return the lesson's network compiled with Nadam, as (model, its base, its head alone)."""
    import keras

    shape = (size, size, 3)
    base = keras.applications.VGG16(weights=None, include_top=False, input_shape=shape)
    for layer in base.layers:
        layer.trainable = unfreeze == "all" or layer.name.startswith(unfreeze)
    layers = keras.layers
    head = keras.Sequential(
        [
            layers.Input(base.output_shape[1:]),
            layers.AveragePooling2D(2),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dropout(0.4),
            layers.Dense(CLASSES, activation="softmax"),
        ]
    )
    model = keras.Sequential([layers.Input(shape), base, head])
    for each in (model, head):
        each.compile("nadam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model, base, head


def make_peers(*, unfreeze: str, batch_size: int) -> dict[str, Call]:
    """Return the steps of the peers that are installed, in float32 and bfloat16."""
    calls: dict[str, Call] = {}
    settings: dict[str, Any] = dict(unfreeze=unfreeze, batch_size=batch_size)
    if installed("keras", "tensorflow"):
        calls["Keras-TF"] = keras_step(**settings)
        calls["Keras-TF bfloat16"] = keras_step(**settings, precision="mixed_bfloat16")
    if installed("torch"):
        calls["PyTorch"] = torch_step(**settings)
        calls["PyTorch bfloat16"] = torch_step(**settings, precision="bfloat16")
    return calls


def keras_step(*, unfreeze: str, batch_size: int, precision: str = "float32") -> Call:
    import keras

    keras.config.set_dtype_policy(precision)
    model, _, _ = make_keras(unfreeze=unfreeze)
    keras.config.set_dtype_policy("float32")
    images, labels = _batch(batch_size)
    return lambda: model.train_on_batch(images, labels) is None


def torch_step(
    *, unfreeze: str, batch_size: int, size: int = SIZE_PX, precision: str = "float32"
) -> Call:
    """Return a step of the same network in PyTorch; the frozen layers run under no_grad.

    bfloat16 is `torch.autocast`.
    """
    import torch

    base, width = torch_base("vgg16")
    pools = [i for i, layer in enumerate(base) if isinstance(layer, torch.nn.MaxPool2d)]
    if unfreeze in ("none", "all"):
        cut = len(base) if unfreeze == "none" else 0
    else:
        cut = pools[int(unfreeze[-1]) - 2] + 1
    frozen, trained = base[:cut], base[cut:]
    side = size // 64
    model = torch.nn.Sequential(
        *trained, torch.nn.AvgPool2d(2), torch.nn.Flatten(),
        torch.nn.Linear(width * side * side, 128), torch.nn.ReLU(), torch.nn.Dropout(0.4),
        torch.nn.Linear(128, CLASSES),
    ).to(memory_format=torch.channels_last)  # fmt: skip
    tx = torch.optim.NAdam(model.parameters(), lr=1e-3)
    images, labels = _batch(batch_size, size)
    x = torch.from_numpy(images).permute(0, 3, 1, 2)  # (N, H, W, C) in memory: channels_last
    y = torch.from_numpy(labels)

    def step() -> None:
        tx.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            with torch.no_grad():
                features = frozen(x)
            loss = torch.nn.functional.cross_entropy(model(features), y)
        loss.backward()
        tx.step()

    return step


def _batch(batch_size: int, size: int = SIZE_PX) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.normal(0, 60, (batch_size, size, size, 3)).astype(np.float32)
    return images, rng.integers(0, CLASSES, batch_size)


AIMS = {"block5": (0.55, 0.12), "none": (None, 0.02)}
"""The aims of the first epoch and of the later ones."""


def measure(
    *, unfreeze: str = "block5", photographs: int = 100, batch_size: int = 16, rounds: int = 5
) -> Iterator[Row]:
    """Return the rows of the first epoch, which computes the features, and of the later ones."""
    with tempfile.TemporaryDirectory(prefix="vggjax-stages-") as scratch:
        folder = make_photographs(Path(scratch), photographs)
        stages = {
            "vggjax": Stage(folder, unfreeze=unfreeze, batch_size=batch_size, dtype="float32"),
            "vggjax bfloat16": Stage(
                folder, unfreeze=unfreeze, batch_size=batch_size, dtype="bfloat16"
            ),
        }
        calls: dict[str, Call] = {name: stage.epoch for name, stage in stages.items()}
        calls |= make_peers(unfreeze=unfreeze, batch_size=batch_size)
        times = time_by_both_clocks(calls, rounds=rounds)
        for stage in stages.values():
            stage.close()
    what = "the head" if unfreeze == "none" else f"{unfreeze} + head"
    first_aim, later_aim = AIMS.get(unfreeze, (None, None))
    for epochs, aim in (("first epoch", first_aim), ("later epochs", later_aim)):
        work = f"train {what}, {SIZE_PX} px, batch {batch_size}, {epochs}"
        for clock, seconds in times.items():
            image_s = {name: step_s / batch_size for name, step_s in seconds.items()}
            for name, stage in stages.items():
                fill_s = stage.fill_s[clock] if epochs == "first epoch" else 0
                image_s[name] = (seconds[name] + fill_s) / stage.images
            yield make_row(work, f"{clock}ms an image", image_s, factor=1e3, aim=aim)


if __name__ == "__main__":
    print_measure(__doc__, measure)
