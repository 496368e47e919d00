"""Run the usual scripts of Keras and PyTorch on photographs, each as a process of its own.

    python -m benchmarks.usual WORK PHOTOS [--weights FILE] [--epochs N] [--state FILE]

PHOTOS has the folders train, val and test, each with one folder per class. WORK is one of
`SCRIPTS`. Prints one line of JSON; seconds are pairs of the wall's and the processor's. This module
needs nothing of vggjax but its table of layers, so that another interpreter can run it.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import peers

SIZE_PX, BATCH, GOOD = 224, 32, 0.95
DENSE, DROPOUT = 256, 0.5
"""The head, as vggjax' default."""

HEAD_RATE, BLOCK5_RATE = 1e-3, 1e-5


class Clock:
    """Wall and processor seconds since it was made."""

    def __init__(self) -> None:
        self._begin = time.perf_counter(), time.process_time()

    def __call__(self) -> tuple[float, float]:
        wall_s, cpu_s = self._begin
        return time.perf_counter() - wall_s, time.process_time() - cpu_s


def open_keras(photos: Path) -> dict[str, Any]:
    """Return Keras' datasets of the three splits, and under `classes` their number."""
    import keras

    options = dict(image_size=(SIZE_PX, SIZE_PX), batch_size=BATCH, verbose=False)
    read = keras.utils.image_dataset_from_directory
    data = {"train": read(photos / "train", seed=0, **options)}
    data |= {name: read(photos / name, shuffle=False, **options) for name in ("val", "test")}
    classes = len(data["train"].class_names)
    return {name: each.prefetch(2) for name, each in data.items()} | {"classes": classes}


def make_keras_base(weights: Path) -> Any:
    import keras

    shape = (SIZE_PX, SIZE_PX, 3)
    return keras.applications.VGG16(weights=str(weights), include_top=False, input_shape=shape)


def keras_head(x: Any, classes: int) -> Any:
    from keras import layers

    x = layers.Dense(DENSE, activation="relu")(x)
    return layers.Dense(classes, activation="softmax")(layers.Dropout(DROPOUT)(x))


def compile_keras(model: Any, rate: float) -> None:
    import keras

    loss = "sparse_categorical_crossentropy"
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])


def make_epoch_clock() -> Any:
    """Return a callback of `fit` that keeps `epochs`, their seconds, and `compiling` apart.

    Compilation is how much longer the first batch took than the median, of training and of
    validation.
    """
    import keras

    class EpochClock(keras.callbacks.Callback):
        def __init__(self) -> None:
            super().__init__()
            self.epochs: list[np.ndarray] = []
            self.compiling = np.zeros(2)
            self._batches: dict[str, list[tuple[float, float]]] = {"train": [], "test": []}

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self._epoch = Clock()

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            self._batch = Clock()

        on_test_batch_begin = on_train_batch_begin

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self._batches["train"].append(self._batch())

        def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
            self._batches["test"].append(self._batch())

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            seconds = np.array(self._epoch())
            if epoch == 0:
                for each in self._batches.values():
                    self.compiling += np.maximum(0, each[0] - np.median(each, axis=0))
                seconds -= self.compiling
            self.epochs.append(seconds)

    return EpochClock()


def keras_stage(
    photos: Path, weights: Path, *, block5: bool, epochs: int, state: Path | None
) -> dict[str, Any]:
    """Fit a stage of Keras' guide to transfer learning: the head, or block5 with it.

    The flip is in the model and each epoch is validated. The head's stage ends by saving `state`;
    block5's begins with it, if it exists, and ends with the evaluation of the test split.
    """
    clock = Clock()
    import keras

    data, base = open_keras(photos), make_keras_base(weights)
    inputs = keras.Input((SIZE_PX, SIZE_PX, 3))
    x = keras.layers.RandomFlip("horizontal")(inputs)
    x = base(keras.applications.vgg16.preprocess_input(x), training=False)
    outputs = keras_head(keras.layers.GlobalAveragePooling2D()(x), data["classes"])
    model = keras.Model(inputs, outputs)
    for layer in base.layers:
        layer.trainable = block5 and layer.name.startswith("block5")
    if block5 and state and state.exists():
        model.load_weights(state)
    compile_keras(model, BLOCK5_RATE if block5 else HEAD_RATE)
    start_s, epoch_clock = clock(), make_epoch_clock()
    history = model.fit(
        data["train"],
        validation_data=data["val"],
        epochs=epochs,
        callbacks=[epoch_clock],
        verbose=0,
    )
    result = {
        "start": start_s,
        "compiling": epoch_clock.compiling.tolist(),
        "epochs": [each.tolist() for each in epoch_clock.epochs],
        "val": history.history["val_accuracy"],
    }
    if not block5:
        if state:
            model.save_weights(state)
        return result
    clock = Clock()
    accuracy = model.evaluate(data["test"], verbose=0)[1]
    return result | {"test": clock(), "accuracy": accuracy}


def keras_features(photos: Path, weights: Path, *, epochs: int) -> dict[str, Any]:
    """Compute features once by `predict`, and fit a dense head on them until it is good."""
    import keras

    data, base = open_keras(photos), make_keras_base(weights)
    preprocess = keras.applications.vgg16.preprocess_input
    labels: dict[str, np.ndarray] = {}
    features: dict[str, np.ndarray] = {}
    for split in ("train", "val", "test"):
        parts = [(base.predict_on_batch(preprocess(x)), y.numpy()) for x, y in data[split]]
        features[split], labels[split] = map(np.concatenate, zip(*parts, strict=True))
    inputs = keras.Input(features["train"].shape[1:])
    outputs = keras_head(keras.layers.GlobalAveragePooling2D()(inputs), data["classes"])
    model = keras.Model(inputs, outputs)
    compile_keras(model, HEAD_RATE)
    val, history = (features["val"], labels["val"]), []
    while len(history) < epochs and max(history, default=0) < GOOD:
        fit = model.fit(features["train"], labels["train"], BATCH, validation_data=val, verbose=0)
        history += fit.history["val_accuracy"]
    accuracy = model.evaluate(features["test"], labels["test"], verbose=0)[1]
    return {"val": history, "accuracy": accuracy}


def torch_head(photos: Path, *, is_bfloat16: bool) -> dict[str, Any]:
    """Train a head for an epoch, the base frozen under `no_grad`; evaluate val and test.

    The base has random weights, so there is no accuracy: an epoch counts as if it were enough.
    """
    import torch
    from PIL import Image

    class Photographs(torch.utils.data.Dataset):
        def __init__(self, folder: Path):
            kinds = sorted(path for path in folder.iterdir() if path.is_dir())
            self.items = [(f, i) for i, kind in enumerate(kinds) for f in sorted(kind.iterdir())]
            self.classes = len(kinds)

        def __len__(self) -> int:
            return len(self.items)

        def __getitem__(self, i: int) -> tuple[Any, int]:
            path, label = self.items[i]
            image = Image.open(path).convert("RGB").resize((SIZE_PX, SIZE_PX), Image.BILINEAR)
            x = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
            mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
            std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
            return (x - mean) / std, label

    data = {name: Photographs(photos / name) for name in ("train", "val", "test")}
    base, width = peers.torch_base("vgg16")
    pool = torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    dense = torch.nn.Linear(width, DENSE), torch.nn.ReLU(), torch.nn.Dropout(DROPOUT)
    head = torch.nn.Sequential(*pool, *dense, torch.nn.Linear(DENSE, data["train"].classes))
    tx = torch.optim.Adam(head.parameters(), lr=HEAD_RATE)

    def logits_of(split: str) -> Any:
        loader = torch.utils.data.DataLoader(
            data[split], BATCH, shuffle=split == "train", num_workers=2
        )
        for x, y in loader:
            x = x.contiguous(memory_format=torch.channels_last)
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=is_bfloat16):
                maps = base(x)
            yield head(maps.float()), y

    for logits, y in logits_of("train"):
        tx.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(logits, y).backward()
        tx.step()
    head.eval()
    for split in ("val", "test"):
        for logits, _ in logits_of(split):
            logits.argmax(1)
    return {}


FEATURES = ("keras-features", "keras-features-bfloat16", "torch-head", "torch-head-bfloat16")
SCRIPTS = ("keras-head", "keras-block5", *FEATURES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", choices=SCRIPTS)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--state", type=Path)
    args = parser.parse_args()
    is_bfloat16 = args.work.endswith("bfloat16")
    if args.work.startswith("torch-head"):
        result = torch_head(args.photos, is_bfloat16=is_bfloat16)
    elif args.work in FEATURES:
        if is_bfloat16:
            import keras

            keras.config.set_dtype_policy("mixed_bfloat16")
        result = keras_features(args.photos, args.weights, epochs=args.epochs)
    else:
        result = keras_stage(
            args.photos,
            args.weights,
            block5=args.work == "keras-block5",
            epochs=args.epochs,
            state=args.state,
        )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
