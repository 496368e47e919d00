"""Print how the time of an image grows, with batch, image size, devices, files and classes.

    python -m benchmarks.growth [PART ...] [--out growth.jsonl]

    batch     VGG16 at 96 px: the frozen network with a head that trains, and block5 with it
    size      the same in batches of 4, from 32 to 224 px
    devices   what the devices of a step of VGG16 send one another, from the compiled program, on
              up to 8 devices that the CPU simulates; with block5, all, and --shard-fc
    files     a folder of tiny JPEG files: open it, compare its images, decode each once
    classes   a linear head on features: a step, the metrics of 2,000 images, and their file

Each part runs in a process of its own. Each line says what it shows, is printed when it is ready
and appended to `--out`.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from PIL import Image

from benchmarks.gpu import make_vggjax
from benchmarks.measure import describe_machine, time_in_turn
from vggjax.data.images.preprocess import Preprocessing
from vggjax.data.loader import SplitLoader
from vggjax.data.quality.duplicates import find_duplicates
from vggjax.data.sources.open import open_source
from vggjax.evaluation.metrics import summarize
from vggjax.models.arch import get_arch
from vggjax.models.head import PUBLISHED_TOP, Head
from vggjax.models.network import Network
from vggjax.training.config import Config
from vggjax.training.devices.collectives import describe_collectives, parse_collectives
from vggjax.training.devices.memory import abstract_step
from vggjax.training.freezing import label_layers, make_optimizer, make_schedules, plan_stages
from vggjax.training.parallel import Placement, simulate_devices
from vggjax.training.step import make_state, make_train_step

Line = dict[str, object]

ROUNDS = 3


def _time_step(arch: str, batch: int, size: int, *, work: str = "head", rounds: int) -> float:
    """Return the seconds of a step; enough of them for 32 images run in one call."""
    steps = max(1, 32 // batch)
    call = make_vggjax(work, arch, "tf32", batch, size, steps)
    return time_in_turn({"": call}, rounds=rounds)[""] / steps


def grow_batch(
    arch: str = "vgg16",
    sizes: Sequence[int] = (1, 2, 4, 8, 16, 32),
    *,
    size_px: int = 96,
    rounds: int = ROUNDS,
) -> Iterator[Line]:
    """Yield the milliseconds of an image by batch size."""
    first: float | None = None
    for batch in sizes:
        ms = {
            work: 1e3 * _time_step(arch, batch, size_px, work=work, rounds=rounds) / batch
            for work in ("head", "block5")
        }
        first = first or ms["head"]
        line: Line = {"batch": batch, **{f"{work}_ms": round(v, 2) for work, v in ms.items()}}
        yield line | {
            "explained": f"{first / ms['head']:.2f} times the first line's images per second: the "
            f"call, the optimizer and the transformed kernels are shared by {batch}"
        }


def grow_size(
    arch: str = "vgg16",
    sizes: Sequence[int] = (32, 64, 96, 128, 160, 192, 224),
    *,
    batch: int = 4,
    rounds: int = ROUNDS,
) -> Iterator[Line]:
    """Yield the milliseconds of an image by its side."""
    for size in sizes:
        ms = 1e3 * _time_step(arch, batch, size, rounds=rounds) / batch
        last = get_arch(arch).map_size(size) * 2  # block5's maps, before their pooling
        yield {
            "side_px": size,
            "ms": round(ms, 2),
            "ns_per_pixel": round(1e6 * ms / size**2, 1),
            "explained": "convolutions cost the same for each pixel; block5 has maps of "
            f"{last} x {last} for the same 28 MB of kernels",
        }


def grow_devices(
    arch: str = "vgg16",
    meshes: Sequence[tuple[int, int]] = ((1, 1), (2, 1), (4, 1), (8, 1), (8, 2), (8, 4)),
    *,
    batch: int = 64,
    size: int = 224,
    head: Head = PUBLISHED_TOP,
    unfrozen: Sequence[str] = ("block5", "all"),
) -> Iterator[Line]:
    """Yield what each device of a step gets, by their number and the size of the model axis."""
    simulate_devices(max(devices for devices, _ in meshes))
    model = nnx.eval_shape(lambda: Network(arch, head=head, image_size=size))
    for unfreeze in unfrozen:
        config = Config(model=arch, weights="none", image_size=size, unfreeze=(unfreeze,))
        labels = label_layers(model, (unfreeze,))
        trained = sum(
            leaf.size
            for path, leaf in jax.tree.leaves_with_path(nnx.state(model, nnx.Param))
            if labels[path[0].key] != "frozen"
        )
        for devices, shard_fc in meshes:
            placement = Placement(num_devices=devices, shard_fc=shard_fc)
            step, *arguments = abstract_step(config, model, placement, batch)
            found = parse_collectives(step.lower(*arguments).compile().as_text())
            size_bytes = sum(one.size_bytes for one in found)
            where = "as much on any number of devices" if shard_fc == 1 else "those of fc1 and fc2"
            yield {
                "trains": unfreeze,
                "devices": f"{devices // shard_fc} x {shard_fc}",
                "megabytes": round(size_bytes / 1e6, 3),
                "collectives": "; ".join(describe_collectives(found)) or "none",
                "explained": "one device has no other"
                if devices == 1
                else f"{trained:,} parameters train, gradients of {4 * trained / 1e6:,.1f} MB: "
                + (where if shard_fc == 1 else f"{where} in {shard_fc} parts, and their rows"),
            }


def make_files(folder: Path, count: int, *, per_class: int = 1000) -> Path:
    """Write so many different JPEG files of 8 px into class folders."""
    rng = np.random.default_rng(0)
    for index in range(count):
        parent = folder / f"class_{index % max(2, count // per_class):04d}"
        parent.mkdir(parents=True, exist_ok=True)
        stream = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(stream, "JPEG")
        (parent / f"{index:07d}.jpg").write_bytes(stream.getvalue())
    return folder


def grow_files(
    counts: Sequence[int] = (1_000, 5_000, 20_000, 50_000, 200_000), *, batch: int = 256
) -> Iterator[Line]:
    """Yield the microseconds of a file by the number of files in a folder."""
    _time_files(16, batch)  # the imports
    for count in counts:
        opened, compared, decoded = (1e6 * seconds / count for seconds in _time_files(count, batch))
        yield {
            "files": count,
            "open_us": round(opened, 1),
            "compare_us": round(compared, 1),
            "decode_us": round(decoded, 1),
            "explained": "a file costs the same however many there are; two readings of it, for "
            "comparing and for decoding",
        }


def _time_files(count: int, batch: int) -> list[float]:
    """Return the seconds of opening, comparing and decoding a folder of new files."""
    with tempfile.TemporaryDirectory(prefix="vggjax-growth-") as root:
        folder = make_files(Path(root) / "photos", count)
        times = [time.perf_counter()]
        source = open_source(str(folder))
        times.append(time.perf_counter())
        find_duplicates(source, near=True)
        times.append(time.perf_counter())
        loader = SplitLoader(source, np.arange(count), Preprocessing(image_size=32))
        for _ in loader.batches(batch):
            pass
        times.append(time.perf_counter())
    return np.diff(times).tolist()


def grow_classes(
    counts: Sequence[int] = (2, 10, 100, 1_000, 5_000, 21_000),
    *,
    images: int = 2_000,
    width: int = 512,
    batch: int = 32,
    rounds: int = ROUNDS,
) -> Iterator[Line]:
    """Yield what a linear head, the metrics and their file take, by the number of classes."""
    rng = np.random.default_rng(0)
    for count in counts:
        step = _make_head_step(count, width, batch)
        ms = 1e3 * time_in_turn({"": step}, rounds=rounds)[""] / batch
        probs = rng.random((images, count), np.float32)
        probs /= probs.sum(1, keepdims=True)
        names, labels = [f"class {i:05d}" for i in range(count)], rng.integers(0, count, images)
        begin_s = time.perf_counter()
        result = summarize(probs, labels, names)
        seconds = time.perf_counter() - begin_s
        yield {
            "classes": count,
            "step_ms": round(ms, 3),
            "metrics_s": round(seconds, 3),
            "eval_json_mb": round(len(json.dumps(result)) / 1e6, 2),
            "explained": f"{width * count:,} weights with their moments are updated for {batch} "
            f"images; the metrics pass over {images * count:,} probabilities, and "
            + (
                "the file has the whole matrix" if result["confusion"] else "the file has the pairs"
            ),
        }


def _make_head_step(classes: int, width: int, batch: int) -> Callable[[], object]:
    """Return a call of the train step of a linear head on features (batch, width)."""
    arch = "vgg11"  # its frozen layers are not computed
    model = Network(arch, head=Head("gap", (), outputs=classes), image_size=32)
    config = Config(model=arch, weights="none", schedule="constant", epochs=1000)
    labels, stage = label_layers(model, ("none",)), plan_stages(config)[-1]
    tx = make_optimizer(config, labels, make_schedules(config, stage, 1))
    placement = Placement(num_devices=1)
    run = make_train_step(model, tx, labels, placement=placement, mode="caffe", after="gap")
    rng = np.random.default_rng(0)
    rows = placement.put_batch(
        {
            "features": rng.random((batch, width), np.float32),
            "label": rng.integers(0, classes, batch).astype(np.int32),
            "mask": np.ones(batch, np.float32),
            "index": np.arange(batch),
        }
    )
    state = placement.put_state(make_state(model, tx, labels))

    def call() -> None:
        nonlocal state
        state, metrics = run(state, rows)
        metrics["loss"].block_until_ready()

    return call


PARTS: dict[str, Callable[..., Iterator[Line]]] = {
    "batch": grow_batch,
    "size": grow_size,
    "devices": grow_devices,
    "files": grow_files,
    "classes": grow_classes,
}


def print_part(name: str, lines: Iterator[Line], out: Path | None = None) -> None:
    """Print the lines of a part as a Markdown table, each when it is ready, and append it."""
    for number, line in enumerate(lines):
        if number == 0:
            print("\n| " + " | ".join(line) + " |\n|" + "---|" * len(line))
        print("| " + " | ".join(map(str, line.values())) + " |", flush=True)
        if out:
            with out.open("a") as file:
                file.write(json.dumps({"part": name} | line) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="*", choices=[*PARTS, []], default=[])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if len(args.part) == 1:
        print_part(args.part[0], PARTS[args.part[0]](), args.out)
        return
    print(describe_machine(), flush=True)
    for part in args.part or PARTS:
        words = [part] + (["--out", str(args.out)] if args.out else [])
        subprocess.run([sys.executable, "-m", "benchmarks.growth", *words], check=True)


if __name__ == "__main__":
    main()
