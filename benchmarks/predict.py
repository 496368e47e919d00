"""Time the whole prediction, from the command to the CSV, against scripts of Keras and PyTorch.

    python -m benchmarks.predict [--photos FOLDER] [--photographs 2000] [--rounds 3]

VGG16 at 224 px with a small head, on JPEG photographs of 500x375 px. Each contender is a new
process that opens a folder, decodes and resizes, predicts in batches of 32 and writes a CSV; they
take turns. vggjax is `vggjax predict FOLDER --workdir RUN --csv FILE`, which also loads its
weights, of a run in float32 or bfloat16; Keras is `image_dataset_from_directory` and `predict`,
PyTorch a `DataLoader` with one worker and channels_last, both on random weights, in float32 and in
bfloat16. On a busy machine fewer photographs and the seconds of the processor, in the second row,
are what to look at.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np
from flax import nnx
from PIL import Image

from benchmarks.measure import Row, print_measure, run_process
from benchmarks.peers import installed
from vggjax.data.images.preprocess import Preprocessing
from vggjax.models.head import Head
from vggjax.models.network import Network
from vggjax.training.run_dir.run_result import ModelInfo, save_model

SIZE_PX, BATCH, CLASSES = 224, 32, 5

KERAS = f"""
import sys, keras
folder, out, precision = sys.argv[1:]
keras.config.set_dtype_policy(precision)
data = keras.utils.image_dataset_from_directory(
    folder, labels=None, image_size=({SIZE_PX}, {SIZE_PX}), batch_size={BATCH}, shuffle=False,
    verbose=False)
files = data.file_paths
base = keras.applications.VGG16(
    weights=None, include_top=False, input_shape=({SIZE_PX}, {SIZE_PX}, 3))
x = keras.layers.GlobalAveragePooling2D()(base.output)
x = keras.layers.Dense(256, activation="relu")(x)
model = keras.Model(base.input, keras.layers.Dense({CLASSES}, "softmax", dtype="float32")(x))
data = data.map(keras.applications.vgg16.preprocess_input).prefetch(2)
probs = model.predict(data, verbose=0)
"""

TORCH = f"""
import sys, torch
from pathlib import Path
import numpy as np
from PIL import Image
from benchmarks.peers import torch_base
folder, out, precision = sys.argv[1:]
files = sorted(Path(folder).rglob("*.jpg"))

class Photographs(torch.utils.data.Dataset):
    def __len__(self):
        return len(files)
    def __getitem__(self, i):
        image = Image.open(files[i]).convert("RGB")
        image = image.resize(({SIZE_PX}, {SIZE_PX}), Image.Resampling.BILINEAR)
        x = np.asarray(image, np.float32)[..., ::-1] - (103.939, 116.779, 123.68)
        return torch.from_numpy(x.astype(np.float32).transpose(2, 0, 1))

base, width = torch_base("vgg16")
model = torch.nn.Sequential(
    base, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(width, 256),
    torch.nn.ReLU(), torch.nn.Linear(256, {CLASSES})).to(memory_format=torch.channels_last)
loader = torch.utils.data.DataLoader(Photographs(), batch_size={BATCH}, num_workers=1)
rows = []
with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, precision == "bfloat16"):
    for x in loader:
        rows.append(model(x.contiguous(memory_format=torch.channels_last)).float().softmax(1))
probs = torch.cat(rows).numpy()
"""

WRITE = """
with open(out, "w") as file:
    for name, row in zip(files, probs, strict=True):
        file.write(",".join([str(name), *map(str, row)]) + "\\n")
"""


def make_run(folder: Path, dtype: str) -> Path:
    """Save a finished run of VGG16 in a dtype with a small head and random weights."""
    head = Head.parse(f"gap-256-{CLASSES}")
    model = Network("vgg16", head=head, image_size=SIZE_PX, rngs=nnx.Rngs(0))
    names = tuple(f"class {i}" for i in range(CLASSES))
    preprocessing = Preprocessing(mode="caffe", image_size=SIZE_PX)
    info = ModelInfo("vgg16", str(head), names, preprocessing, dtype, {})
    folder.mkdir()
    save_model(folder, model, info)
    return folder


def make_photographs(folder: Path, count: int, photos: Path | None) -> Path:
    """Write JPEG photographs of 500x375 px: of a folder, resized, or generated ones."""
    folder.mkdir()
    files = sorted(photos.rglob("*.jpg")) if photos else []
    for i in range(count):
        if files:
            image = Image.open(files[i % len(files)]).convert("RGB")
        else:
            pixels = np.random.default_rng(i).integers(0, 256, (24, 32, 3), np.uint8)
            image = Image.fromarray(pixels)
        image.resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{i:05}.jpg", quality=90)
    return folder


def commands(folder: Path, runs: dict[str, Path], out: Path) -> dict[str, list[str]]:
    """Return the command of each contender that is installed; `runs` are vggjax's."""
    own = [sys.executable, "-m", "vggjax", "predict", str(folder), "--csv", str(out)]
    found = {name: [*own, "--workdir", str(run)] for name, run in runs.items()}
    arguments = [str(folder), str(out)]
    if installed("keras", "tensorflow"):
        script = [sys.executable, "-c", KERAS + WRITE, *arguments]
        found["Keras-TF"] = [*script, "float32"]
        found["Keras-TF bfloat16"] = [*script, "mixed_bfloat16"]
    if installed("torch"):
        script = [sys.executable, "-c", TORCH + WRITE, *arguments]
        found["PyTorch"] = [*script, "float32"]
        found["PyTorch bfloat16"] = [*script, "bfloat16"]
    return found


def measure(
    *, photos: Path | None = None, photographs: int = 2000, rounds: int = 3
) -> Iterator[Row]:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    seconds: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="vggjax-predict-") as scratch:
        root = Path(scratch)
        out = root / "out.csv"
        folder = make_photographs(root / "photos", photographs, photos)
        runs = {
            "vggjax": make_run(root / "run", "float32"),
            "vggjax bfloat16": make_run(root / "run_bfloat16", "bfloat16"),
        }
        few = make_photographs(root / "few", BATCH, photos)
        for command in commands(few, runs, out).values():  # fills the caches
            run_process(command)
            out.unlink()
        for _ in range(rounds):
            for name, command in commands(folder, runs, out).items():
                usage = run_process(command)
                if sum(1 for _ in islice(out.open(), photographs)) < photographs:
                    raise SystemExit(f"{name} wrote too few rows.")
                out.unlink()
                seconds.setdefault(name, []).append((usage.wall_s, usage.cpu_s))
    work = f"predict {photographs:,} photographs of 500x375 px, files to CSV"
    for i, unit in enumerate(("s", "processor s")):
        figures = {name: median(each[i] for each in values) for name, values in seconds.items()}
        yield Row(work, unit, figures.pop("vggjax"), figures, 0.45)


if __name__ == "__main__":
    print_measure(__doc__, measure)
