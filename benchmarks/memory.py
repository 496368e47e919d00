"""Peak memory of training block5 and a head, VGG16, 200 px, batch 32, against Keras-TF and PyTorch.

    python -m benchmarks.memory [--photographs 96] [--rounds 5]

Each is a process of its own, and the figure the largest resident set that the system saw of it, the
libraries' own weight included. Ours is the training of `train.py` with what it keeps by itself,
images, features and checkpoints, its validation included; the peers hold their images as uint8
in memory and make the steps of one epoch.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.measure import Row, print_table
from benchmarks.peers import installed
from benchmarks.stages import SIZE_PX, make_keras, make_photographs, torch_step

BATCH = 32


def peer(name: str, photographs: int) -> None:
    """Trains with one of the peers, in this process."""
    images = np.zeros((photographs, SIZE_PX, SIZE_PX, 3), np.uint8)
    steps = range(0, photographs * 8 // 10, BATCH)
    if name == "Keras-TF":
        model, _, _ = make_keras(unfreeze="block5")
        for at in steps:
            x = images[at : at + BATCH].astype(np.float32)
            model.train_on_batch(x, np.zeros(len(x), np.int64))
    else:
        step = torch_step(unfreeze="block5", batch_size=BATCH)
        for _ in steps:
            step()


def command(name: str, photographs: int, scratch: Path, folder: Path) -> list[str]:
    if name != "ours":
        code = f"from benchmarks.memory import peer; peer({name!r}, {photographs})"
        return [sys.executable, "-c", code]
    settings = dict(
        dataset=str(folder), workdir=str(scratch / "run"), weights="none", preprocess="caffe",
        unfreeze=("block5",), augment="none", epochs=2, image_size=SIZE_PX, batch_size=BATCH,
        optimizer="nadam", head="avg2-128-0.4-classes",
    )  # fmt: skip
    code = f"from vggjax.training.trainer import train, Config; train(Config(**{settings!r}))"
    return [sys.executable, "-c", code]


def peak_mb(arguments: list[str]) -> float:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with {process.returncode}")
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def measure(*, photographs: int = 96, rounds: int = 5) -> Iterator[Row]:
    names = ["ours"]
    names += ["Keras-TF"] if installed("keras", "tensorflow") else []
    names += ["PyTorch"] if installed("torch") else []
    found: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(prefix="vggjax-memory-") as made:
        folder = make_photographs(Path(made), photographs)
        for _ in range(rounds):
            for name in names:
                with tempfile.TemporaryDirectory(prefix="vggjax-memory-") as scratch:
                    found[name].append(peak_mb(command(name, photographs, Path(scratch), folder)))
    medians = {name: statistics.median(values) for name, values in found.items()}
    work = f"peak memory of training block5 + head, {SIZE_PX} px, batch {BATCH}"
    yield Row(work, "MB", medians.pop("ours"), medians, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photographs", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    print_table(measure(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
