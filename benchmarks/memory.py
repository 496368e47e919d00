"""Measure the peak memory of training VGG16 with a head, against Keras-TF and PyTorch.

    python -m benchmarks.memory [--unfreeze block5] [--size 200] [--photographs 96] [--rounds 5]
    python -m benchmarks.memory --unfreeze all --size 224

At batch 32. Each contender is a process of its own, and the figure is its largest
resident set, libraries included. vggjax runs the whole command, with validation, cached images and
features, checkpoints and the report; the peers hold their images as uint8 in memory and run the
steps of one epoch.
"""

import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import Row, print_measure, run_process
from benchmarks.peers import installed
from benchmarks.stages import SIZE_PX, make_keras, make_photographs, torch_step

BATCH = 32


def train_peer(name: str, *, photographs: int, unfreeze: str, size: int) -> None:
    """Train with one of the peers in this process."""
    images = np.zeros((photographs, size, size, 3), np.uint8)
    steps = range(0, photographs * 8 // 10, BATCH)
    if name == "Keras-TF":
        model, _, _ = make_keras(unfreeze=unfreeze, size=size)
        for first in steps:
            x = images[first : first + BATCH].astype(np.float32)
            model.train_on_batch(x, np.zeros(len(x), np.int64))
    else:
        step = torch_step(unfreeze=unfreeze, batch_size=BATCH, size=size)
        for _ in steps:
            step()


def command(
    name: str, scratch: Path, folder: Path, *, photographs: int, unfreeze: str, size: int
) -> list[str]:
    if name != "vggjax":
        options = f"photographs={photographs}, unfreeze={unfreeze!r}, size={size}"
        code = f"from benchmarks.memory import train_peer; train_peer({name!r}, {options})"
        return [sys.executable, "-c", code]
    flags = {
        "dataset": str(folder), "workdir": str(scratch / "run"), "weights": "none",
        "preprocess": "caffe", "unfreeze": unfreeze, "augment": "none", "epochs": "2",
        "image-size": str(size), "batch-size": str(BATCH), "optimizer": "nadam",
        "head": "avg2-128-0.4-classes",
    }  # fmt: skip
    words = [word for name, value in flags.items() for word in (f"--{name}", value)]
    return [sys.executable, "-m", "vggjax", "train", *words]


def measure(
    *, unfreeze: str = "block5", size: int = SIZE_PX, photographs: int = 96, rounds: int = 5
) -> Iterator[Row]:
    settings: dict[str, Any] = dict(photographs=photographs, unfreeze=unfreeze, size=size)
    names = ["vggjax"]
    names += ["Keras-TF"] if installed("keras", "tensorflow") else []
    names += ["PyTorch"] if installed("torch") else []
    peaks: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(prefix="vggjax-memory-") as root:
        folder = make_photographs(Path(root), photographs)
        for _ in range(rounds):
            for name in names:
                with tempfile.TemporaryDirectory(prefix="vggjax-memory-") as scratch:
                    arguments = command(name, Path(scratch), folder, **settings)
                    peaks[name].append(run_process(arguments).peak_mb)
    medians = {name: statistics.median(values) for name, values in peaks.items()}
    work = f"peak memory of training {unfreeze} + head, {size} px, batch {BATCH}"
    yield Row(work, "MB", medians.pop("vggjax"), medians, 0.85 if unfreeze == "block5" else 1)


if __name__ == "__main__":
    print_measure(__doc__, measure)
