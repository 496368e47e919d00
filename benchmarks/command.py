"""Time the whole default command, and the way to a good model, against the usual scripts.

    python -m benchmarks.command --photos FOLDER --weights FILE [--steps 6] [--torch-python PYTHON]

FOLDER has one folder per class, FILE the VGG16 base as Keras publishes it. vggjax runs two whole
commands in new processes, from the start to the report: `train --unfreeze block5` (two epochs of
the head, four of block5, flips), and `train --augment none`, which trains the head alone.

The peers' scripts read the same folder in their usual way, and would take from half an hour to
hours. So the medians of their steps, with decoding, are multiplied by the numbers of steps of the
same split, batch size and epochs; half of the steps are timed before vggjax and half after it (of
a single one none after). Start, building and compilation are counted once, as for vggjax. Beside
the wall's seconds stand those of the processor, which hardly depend on what else the machine does.

- Keras as in the guide to transfer learning: `fit` with the base frozen, then with block5, the
  flip in the model, each epoch validated, the test split evaluated at the end.
- Keras with its features computed once by `predict`, without flips, and a dense head on them.
- PyTorch with the base frozen under `no_grad`, decoding in two workers; counted as if a single
  epoch were enough. `--torch-python` is an interpreter that has torch, if this one has not.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.measure import Row, describe_machine, print_table

SIZE_PX, BATCH = 224, 32

KERAS = f"""
import json, sys, time

class Clock:
    # Wall and processor seconds since it was made.
    def __init__(self):
        self.begin = time.perf_counter(), time.process_time()
    def __call__(self):
        return time.perf_counter() - self.begin[0], time.process_time() - self.begin[1]

clock = Clock()
import keras, numpy as np
photos, weights, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
data = keras.utils.image_dataset_from_directory(
    photos, image_size=({SIZE_PX}, {SIZE_PX}), batch_size={BATCH}, seed=0, verbose=False)
classes = len(data.class_names)
base = keras.applications.VGG16(
    weights=weights, include_top=False, input_shape=({SIZE_PX}, {SIZE_PX}, 3))
inputs = keras.Input(({SIZE_PX}, {SIZE_PX}, 3))
x = keras.layers.RandomFlip("horizontal")(inputs)
x = keras.applications.vgg16.preprocess_input(x)
pooled = keras.layers.GlobalAveragePooling2D()(base(x, training=False))

def make_head(x):
    x = keras.layers.Dense(256, activation="relu")(x)
    x = keras.layers.Dropout(0.5)(x)
    return keras.layers.Dense(classes, activation="softmax")(x)

model = keras.Model(inputs, make_head(pooled))
loss = "sparse_categorical_crossentropy"
batches = iter(data.repeat().prefetch(2))
seconds = {{"start": [clock()]}}

def measure(name, step):
    clock = Clock()
    step(*next(batches))
    first, seconds[name] = clock(), []
    for _ in range(steps):
        clock = Clock()
        step(*next(batches))
        seconds[name].append(clock())
    least = map(min, zip(*seconds[name]))
    compiling = [max(0.0, a - b) for a, b in zip(first, least)]
    seconds["start"] = [[a + b for a, b in zip(seconds["start"][0], compiling)]]

base.trainable = False
model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
measure("head", model.train_on_batch)
measure("evaluate", model.test_on_batch)
preprocess = keras.applications.vgg16.preprocess_input
measure("features", lambda x, y: base.predict_on_batch(preprocess(np.array(x))))
base.trainable = True
for layer in base.layers:
    layer.trainable = layer.name.startswith("block5")
model.compile(keras.optimizers.Adam(1e-5), loss, metrics=["accuracy"])
measure("block5", model.train_on_batch)
rows = np.random.default_rng(0).random((int(sys.argv[4]), 512), np.float32)
inputs = keras.Input((512,))
head = keras.Model(inputs, make_head(inputs))
head.compile("adam", loss, metrics=["accuracy"])
clock = Clock()
head.fit(rows, np.zeros(len(rows), int), epochs=6, batch_size={BATCH}, verbose=0)
seconds["fit"] = [clock()]
print(json.dumps(seconds))
"""

TORCH = f"""
import json, sys, time

class Clock:
    # Wall and processor seconds since it was made.
    def __init__(self):
        self.begin = time.perf_counter(), time.process_time()
    def __call__(self):
        return time.perf_counter() - self.begin[0], time.process_time() - self.begin[1]

clock = Clock()
from pathlib import Path
import numpy as np, torch
from PIL import Image
from benchmarks.peers import torch_base
photos, steps = Path(sys.argv[1]), int(sys.argv[3])

class Photographs(torch.utils.data.Dataset):
    def __init__(self):
        kinds = sorted(path for path in photos.iterdir() if path.is_dir())
        self.items = [(f, i) for i, kind in enumerate(kinds) for f in sorted(kind.iterdir())]
    def __len__(self):
        return len(self.items)
    def __getitem__(self, i):
        path, label = self.items[i]
        image = Image.open(path).convert("RGB").resize(({SIZE_PX}, {SIZE_PX}), Image.BILINEAR)
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
        std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
        return (x - mean) / std, label

base, width = torch_base("vgg16")
head = torch.nn.Sequential(
    torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(width, 256),
    torch.nn.ReLU(), torch.nn.Dropout(0.5), torch.nn.Linear(256, 2))
tx = torch.optim.Adam(head.parameters(), lr=1e-3)
loader = torch.utils.data.DataLoader(
    Photographs(), {BATCH}, shuffle=True, num_workers=2, drop_last=True)
batches = iter(loader)
seconds = {{"start": [clock()]}}

def forward(x):
    with torch.no_grad():
        return base(x.contiguous(memory_format=torch.channels_last))

def train(x, y):
    tx.zero_grad(set_to_none=True)
    torch.nn.functional.cross_entropy(head(forward(x)), y).backward()
    tx.step()

def evaluate(x, y):
    with torch.no_grad():
        head(forward(x))

for name, step in (("head", train), ("evaluate", evaluate)):
    step(*next(batches))
    seconds[name] = []
    for _ in range(steps):
        clock = Clock()
        step(*next(batches))
        seconds[name].append(clock())
print(json.dumps(seconds))
"""


def time_peer(python: str, script: str, arguments: list[str]) -> dict | None:
    """Run a peer's script; return its seconds by part, None where its library is missing."""
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}
    command = [python, "-c", script, *arguments]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    if process.returncode:
        print(process.stderr.strip().splitlines()[-1], "(skipped)", file=sys.stderr)
        return None
    return json.loads(process.stdout.strip().splitlines()[-1])


def join(parts: list[dict | None]) -> dict[str, np.ndarray] | None:
    """Return the medians over all parts, as (wall, processor) seconds; None without any."""
    known = [part for part in parts if part]
    if not known:
        return None
    return {name: np.median(sum((part[name] for part in known), []), axis=0) for name in known[0]}


def time_vggjax(
    photos: Path, weights: Path, workdir: Path, flags: list[str]
) -> tuple[np.ndarray, dict]:
    """Run a whole command; return its (wall, processor) seconds and its eval.json."""
    command = [sys.executable, "-m", "vggjax", "train", "--dataset", str(photos)]
    command += ["--weights", str(weights), "--workdir", str(workdir), *flags]
    begin_s, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    log = workdir.with_suffix(".log")
    with log.open("w") as file:
        subprocess.run(command, stdout=file, stderr=file, check=True)
    wall_s, after = time.perf_counter() - begin_s, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    lines = [line for line in log.read_text().splitlines() if "epoch " in line or " in " in line]
    print(*lines, sep="\n", file=sys.stderr, flush=True)
    return np.array([wall_s, processor_s]), json.loads((workdir / "eval.json").read_text())


def measure(
    photos: Path, weights: Path, *, steps: int = 6, torch_python: str = sys.executable
) -> Iterator[Row]:
    count = sum(path.is_file() for path in photos.glob("*/*"))
    val = test = round(count * 0.1)
    train = count - val - test
    arguments = [str(photos), str(weights), str(-(-steps // 2)), str(train)]

    def time_peers() -> tuple[dict | None, dict | None]:
        peers = (sys.executable, KERAS), (torch_python, TORCH)
        parts = [time_peer(python, script, arguments) for python, script in peers]
        print(*parts, sep="\n", file=sys.stderr, flush=True)
        return parts[0], parts[1]

    before = time_peers()
    with tempfile.TemporaryDirectory(prefix="vggjax-command-") as scratch:
        run = Path(scratch)
        frozen_s, frozen = time_vggjax(photos, weights, run / "frozen", ["--augment", "none"])
        block5_s, block5 = time_vggjax(photos, weights, run / "block5", ["--unfreeze", "block5"])
    after = time_peers() if steps > 1 else (None, None)
    keras, torch = (join(list(parts)) for parts in zip(before, after, strict=True))
    train_steps, val_steps, test_steps = (-(-n // BATCH) for n in (train, val, test))
    whole: dict[str, np.ndarray] = {}
    good: dict[str, np.ndarray] = {}
    if keras:
        stages = 2 * keras["head"] + 4 * keras["block5"]
        evaluations = (6 * val_steps + test_steps) * keras["evaluate"]
        whole["Keras-TF"] = keras["start"] + stages * train_steps + evaluations
        every = (train_steps + val_steps + test_steps) * keras["features"]
        good["Keras-TF"] = keras["start"] + every + keras["fit"]
    if torch:
        evaluations = (val_steps + test_steps) * torch["evaluate"]
        good["PyTorch"] = torch["start"] + train_steps * torch["head"] + evaluations
    text = f"`train PHOTOS --unfreeze block5`, {count:,} photographs, test {block5['accuracy']:.1%}"
    head = f"`train PHOTOS --augment none`, the head alone, test {frozen['accuracy']:.1%}"
    for work, own, peers, aim in ((text, block5_s, whole, 0.40), (head, frozen_s, good, 0.45)):
        for i, unit in enumerate(("s", "processor s")):
            figures = {name: float(each[i]) for name, each in peers.items()}
            yield Row(f"{work}; peers from their steps", unit, float(own[i]), figures, aim)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--torch-python", default=sys.executable)
    args = parser.parse_args()
    print(describe_machine(), f"Load {os.getloadavg()[0]:.1f}.", end="\n\n")
    print_table(
        measure(args.photos, args.weights, steps=args.steps, torch_python=args.torch_python)
    )


if __name__ == "__main__":
    main()
