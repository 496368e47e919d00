"""Measure the time and memory that a folder of 200,000 images takes before the first step.

    python -m benchmarks.scan [--files 200000]

The files are hard links to twenty images, in ten classes. Each size runs in its own process, whose
peak memory is measured; 2,000 files show what the imports take.
"""

import argparse
import itertools
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from vggjax.data.images.preprocess import Preprocessing
from vggjax.data.loader import SplitLoader
from vggjax.data.sources.open import open_source
from vggjax.data.splits.splits import make_splits

FEW, CLASSES, IMAGES, BATCHES = 2_000, 10, 20, 50


def make_folder(root: Path, files: int) -> None:
    originals = root / "originals"
    originals.mkdir(parents=True)
    for i in range(IMAGES):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)
        image = Image.fromarray(pixels).resize((128, 128), Image.Resampling.BICUBIC)
        image.save(originals / f"{i}.jpg")
    for label in range(CLASSES):
        (root / "photos" / f"class_{label}").mkdir(parents=True)
    for i in range(files):
        # Filesystems limit the links to a file: make another copy for each ten thousand.
        original = originals / f"{i % IMAGES}.jpg"
        target = root / "photos" / f"class_{i % CLASSES}" / f"photograph_{i:06d}.jpg"
        if i and i % 10_000 < IMAGES:
            original.write_bytes(replace(original))
        os.link(original, target)


def replace(original: Path) -> bytes:
    data = original.read_bytes()
    original.unlink()
    return data


def peak_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def measure(folder: str) -> None:
    """Open a folder, split it and run some batches; print files, seconds and peaks."""
    imported = peak_mb()
    begin_s = time.perf_counter()
    source = open_source(folder)
    scan_s = time.perf_counter() - begin_s
    scanned = peak_mb()
    splits = make_splits(source)
    split_s = time.perf_counter() - begin_s - scan_s
    examples = SplitLoader(source, splits["train"], Preprocessing(), cache_mb=0)
    batches = examples.batches(32, seed=0, epoch=0, shuffle=True)
    first_s = time.perf_counter()
    images = sum(len(batch["index"]) for batch in itertools.islice(batches, BATCHES))
    rate = images / (time.perf_counter() - first_s)
    print(
        f"{len(source):8,} files: scanned in {scan_s:5.2f} s, split in {split_s:4.2f} s, "
        f"{BATCHES} batches at {rate:5.0f} images/s; peak {imported:4.0f} MB imported, "
        f"{scanned:4.0f} scanned, {peak_mb():4.0f} in all",
        flush=True,
    )
    print(peak_mb(), file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=200_000)
    parser.add_argument("--folder", help="measure this folder in this process")
    options = parser.parse_args()
    if options.folder:
        return measure(options.folder)
    peaks = []
    with tempfile.TemporaryDirectory(prefix="vggjax-scan-") as scratch:
        for files in (FEW, options.files):
            make_folder(Path(scratch) / str(files), files)
            command = [sys.executable, "-m", "benchmarks.scan", "--folder"]
            command.append(str(Path(scratch) / str(files) / "photos"))
            ran = subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True)
            peaks.append(float(ran.stderr.split()[-1]))
    more = peaks[1] - peaks[0]
    print(
        f"{options.files:,} files take {more:.0f} MB more than {FEW:,}: "
        f"{more * 2**20 / (options.files - FEW):.0f} bytes each"
    )


if __name__ == "__main__":
    main()
