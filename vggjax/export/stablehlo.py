"""Write a classifier as a serialized StableHLO program, by `jax.export`.

    program = jax.export.deserialize(bytearray(Path("roses.stablehlo").read_bytes()))
    probabilities = program.call(images)  # uint8 (N, S, S, 3) -> float32 (N, C)

It takes any batch size, on CPU, CUDA and TPU, and contains no compiled code. The metadata beside it
say which versions wrote it and which can read it.
"""

from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
from jax import export

from vggjax.data.images.preprocess import preprocess
from vggjax.export.description import write_beside
from vggjax.models.network import Network
from vggjax.training.run_dir.run_result import ModelInfo
from vggjax.training.step import to_probabilities

PLATFORMS = ("cpu", "cuda", "tpu")

WINDOW = "from 3 weeks before to 6 months after the release that wrote it"
"""The releases of JAX that read a program, as JAX guarantees it in
https://docs.jax.dev/en/latest/export/export.html#compatibility-guarantees."""


def write(path: Path, model: Network, info: ModelInfo, metadata: dict[str, str]) -> None:
    """Write the program to `path`, and its metadata to `<name>.json` beside it."""
    size, scale = info.preprocessing.image_size, np.float32(1 / (info.temperature or 1))

    def classify(images: jax.Array) -> jax.Array:
        logits = model(preprocess(images, info.preprocessing.mode))
        return to_probabilities(scale * logits, multilabel=info.is_multilabel)

    (batch,) = export.symbolic_shape("batch")
    shape = jax.ShapeDtypeStruct((batch, size, size, 3), np.uint8)
    program = export.export(jax.jit(classify), platforms=PLATFORMS)(shape)
    path.write_bytes(program.serialize())
    versions = {
        "jax": version("jax"),
        "jaxlib": version("jaxlib"),
        "calling_convention": str(program.calling_convention_version),
        "read_by_jax": WINDOW,
        "platforms": ", ".join(PLATFORMS),
    }
    write_beside(path, metadata | versions)
