"""Time the way from the command to the first training step, against Keras-TF.

    python -m benchmarks.start [--photographs 100] [--rounds 5]

`vggjax train` runs on a folder of photographs until the first step appears in log.jsonl: in one row
as it is by default, which computes the features of all photographs and of their mirror images
first, in the other with `--cache-features off`. The script of Keras opens the same folder in its
usual way, builds the same network, compiles it and runs one step. All are new processes that take
turns; a first round, which fills the compilation cache and the disk's cache, is not counted.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import Call, Row, make_row, print_measure, time_in_turn
from benchmarks.peers import installed
from benchmarks.stages import CLASSES, SIZE_PX, make_photographs

KERAS = f"""
import sys, keras
data = keras.utils.image_dataset_from_directory(
    sys.argv[1], image_size=({SIZE_PX}, {SIZE_PX}), batch_size=16, verbose=False)
data = data.map(lambda x, y: (keras.applications.vgg16.preprocess_input(x), y))
base = keras.applications.VGG16(
    weights=None, include_top=False, input_shape=({SIZE_PX}, {SIZE_PX}, 3))
for layer in base.layers:
    layer.trainable = layer.name.startswith("block5")
x = keras.layers.GlobalAveragePooling2D()(base.output)
x = keras.layers.Dense(256, activation="relu")(x)
model = keras.Model(base.input, keras.layers.Dense({CLASSES}, activation="softmax")(x))
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
model.fit(data.take(1), verbose=0)
"""


def start_vggjax(photographs: Path, *flags: str) -> None:
    with tempfile.TemporaryDirectory(prefix="vggjax-start-") as scratch:
        workdir = Path(scratch) / "run"
        command = [
            *(sys.executable, "-m", "vggjax", "train", "--dataset", str(photographs)),
            *("--workdir", str(workdir), "--weights", "none", "--preprocess", "caffe"),
            *("--unfreeze", "block5", "--image-size", str(SIZE_PX), "--batch-size", "16"),
            *("--log-every-steps", "1", *flags),
        ]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        log = workdir / "log.jsonl"
        while not (log.exists() and '"step"' in log.read_text()):
            if process.poll() is not None:
                raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
            time.sleep(0.01)
        process.kill()
        process.wait()


def start_keras(photographs: Path) -> None:
    environment = os.environ | {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", KERAS, str(photographs)]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)


def measure(*, photographs: int = 100, rounds: int = 5) -> Iterator[Row]:
    with tempfile.TemporaryDirectory(prefix="vggjax-start-") as scratch:
        folder = make_photographs(Path(scratch), photographs)
        calls: dict[str, Call] = {
            "default": lambda: start_vggjax(folder),
            "uncached": lambda: start_vggjax(folder, "--cache-features", "off"),
        }
        if installed("keras", "tensorflow"):
            calls["Keras-TF"] = lambda: start_keras(folder)
        seconds = time_in_turn(calls, rounds=rounds)
    own = {name: seconds.pop(name) for name in ("default", "uncached")}
    for name, what in (("default", f", features of {photographs} photographs"), ("uncached", "")):
        work = f"command to first training step{what}"
        yield make_row(work, "s", {"vggjax": own[name], **seconds}, factor=1, aim=0.35)


if __name__ == "__main__":
    print_measure(__doc__, measure)
