"""Measure the peak memory of training block5 and a head of VGG16, against Keras-TF and PyTorch.

    python -m benchmarks.memory [--photographs 96] [--rounds 5]

At 200 px and batch 32. Each contender is a process of its own, and the figure is its largest
resident set, libraries included. vggjax runs the whole command, with validation, cached images and
features, checkpoints and the report; the peers hold their images as uint8 in memory and run the
steps of one epoch.
"""

import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.measure import Row, print_measure, run_process
from benchmarks.peers import installed
from benchmarks.stages import SIZE_PX, make_keras, make_photographs, torch_step

BATCH = 32


def train_peer(name: str, photographs: int) -> None:
    """Train with one of the peers in this process."""
    images = np.zeros((photographs, SIZE_PX, SIZE_PX, 3), np.uint8)
    steps = range(0, photographs * 8 // 10, BATCH)
    if name == "Keras-TF":
        model, _, _ = make_keras(unfreeze="block5")
        for first in steps:
            x = images[first : first + BATCH].astype(np.float32)
            model.train_on_batch(x, np.zeros(len(x), np.int64))
    else:
        step = torch_step(unfreeze="block5", batch_size=BATCH)
        for _ in steps:
            step()


def command(name: str, photographs: int, scratch: Path, folder: Path) -> list[str]:
    if name != "vggjax":
        code = f"from benchmarks.memory import train_peer; train_peer({name!r}, {photographs})"
        return [sys.executable, "-c", code]
    flags = {
        "dataset": str(folder), "workdir": str(scratch / "run"), "weights": "none",
        "preprocess": "caffe", "unfreeze": "block5", "augment": "none", "epochs": "2",
        "image-size": str(SIZE_PX), "batch-size": str(BATCH), "optimizer": "nadam",
        "head": "avg2-128-0.4-classes",
    }  # fmt: skip
    words = [word for name, value in flags.items() for word in (f"--{name}", value)]
    return [sys.executable, "-m", "vggjax", "train", *words]


def measure(*, photographs: int = 96, rounds: int = 5) -> Iterator[Row]:
    names = ["vggjax"]
    names += ["Keras-TF"] if installed("keras", "tensorflow") else []
    names += ["PyTorch"] if installed("torch") else []
    peaks: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(prefix="vggjax-memory-") as root:
        folder = make_photographs(Path(root), photographs)
        for _ in range(rounds):
            for name in names:
                with tempfile.TemporaryDirectory(prefix="vggjax-memory-") as scratch:
                    arguments = command(name, photographs, Path(scratch), folder)
                    peaks[name].append(run_process(arguments).peak_mb)
    medians = {name: statistics.median(values) for name, values in peaks.items()}
    work = f"peak memory of training block5 + head, {SIZE_PX} px, batch {BATCH}"
    yield Row(work, "MB", medians.pop("vggjax"), medians, 0.85)


if __name__ == "__main__":
    print_measure(__doc__, measure)
