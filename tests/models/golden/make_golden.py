"""Compute golden.npz, the reference outputs of Keras' VGG16 and VGG19.

    python tests/models/golden/make_golden.py    # from the repository root, with the [test] extra

The weights are not stored: `rule_weights` derives them from the layers' names, at the published
widths with tops for 32 px. The file holds 32 values of each layer's output at fixed positions, the
mean and the largest magnitude.
"""

import os
import zlib
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).with_name("golden.npz")
ARCHS = ("vgg16", "vgg19")
SIZE_PX = 32
NUM_PLACES = 32


def rule_array(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return uniform numbers that depend on the name; numpy keeps RandomState's stream fixed."""
    state = np.random.RandomState(zlib.crc32(name.encode()))
    # He's variance keeps the scale of the activations; biases are a tenth of the images' values.
    limit = np.sqrt(6 / np.prod(shape[:-1])) if len(shape) > 1 else 10.0
    return ((state.random_sample(shape) * 2 - 1) * limit).astype(np.float32)


def rule_weights(shapes: dict[str, dict[str, tuple[int, ...]]]) -> dict:
    """Return every layer's arrays."""
    return {
        layer: {param: rule_array(f"{layer}/{param}", shape) for param, shape in params.items()}
        for layer, params in shapes.items()
    }


def make_images() -> np.ndarray:
    """Return uint8 RGB (2, 32, 32, 3) with a ramp and noise."""
    state = np.random.RandomState(7)
    ramp = np.linspace(0, 200, SIZE_PX)[:, None, None] + np.arange(3) * 20
    noise = state.randint(0, 56, (2, SIZE_PX, SIZE_PX, 3))
    return np.clip(ramp + noise, 0, 255).astype(np.uint8)


def places(name: str, size: int) -> np.ndarray:
    """Return the flat positions of a layer's stored values."""
    return np.random.RandomState(zlib.crc32(name.encode())).randint(0, size, NUM_PLACES)


def summarize(name: str, tap: np.ndarray) -> np.ndarray:
    """Return (34,): the values at `places`, the mean and the largest magnitude."""
    flat = np.asarray(tap, np.float64).ravel()
    ends = [flat.mean(), np.abs(flat).max()]
    return np.concatenate([flat[places(name, flat.size)], ends]).astype(np.float32)


def main() -> None:
    """Compute with Keras on TensorFlow and write the file."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import keras

    stored, images = {}, make_images()
    for mode in ("caffe", "torch"):
        imagenet_utils = keras.src.applications.imagenet_utils
        scaled = imagenet_utils.preprocess_input(images.astype(np.float32), mode=mode)
        stored[f"preprocess/{mode}"] = scaled
    for arch in ARCHS:
        model = {"vgg16": keras.applications.VGG16, "vgg19": keras.applications.VGG19}[arch](
            weights=None, input_shape=(SIZE_PX, SIZE_PX, 3), classifier_activation=None
        )
        for layer in model.layers:
            if layer.weights:
                shapes = {w.name: tuple(w.shape) for w in layer.weights}
                params = rule_weights({layer.name: shapes})[layer.name]
                layer.set_weights([params[w.name] for w in layer.weights])
        layers = model.layers[1:]
        taps = keras.Model(model.input, [layer.output for layer in layers])(
            stored["preprocess/caffe"]
        )
        for layer, tap in zip(layers, taps, strict=True):
            stored[f"{arch}/{layer.name}"] = summarize(layer.name, tap)
    np.savez_compressed(GOLDEN, keras_version=keras.__version__, **stored)
    print(f"{GOLDEN.name}: {GOLDEN.stat().st_size / 1000:.0f} kB, {len(stored)} arrays")


if __name__ == "__main__":
    main()
