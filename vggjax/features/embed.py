"""Compute a vector for each image: the output of a layer, pooled.

`Embedder` is the model with its preprocessing. The command is in embed_files.py.
"""

import dataclasses
import os
from collections.abc import Container, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vggjax.data.images.decode import DecodedImage
from vggjax.data.images.preprocess import Preprocessing, preprocess
from vggjax.data.stream.images import StreamedImage
from vggjax.errors import ConfigError, DataError, WeightsError, printable
from vggjax.evaluation.imagenet import PUBLISHED_PREPROCESSING, TORCH_PREPROCESSING
from vggjax.evaluation.predict import stream_outputs
from vggjax.features.embed_options import DEFAULT_EMBED_OPTIONS, EmbedOptions, Pool
from vggjax.models.network import Network
from vggjax.training.run_dir.run_result import load_model
from vggjax.training.step import map_microbatches
from vggjax.weights.hub.fetch import is_hub_address
from vggjax.weights.load import load_pretrained, open_weights


class Embedder:
    """A network cut at a layer, with its preprocessing.

    Args:
        model: the network, in evaluation mode.
        preprocessing: what happens to an image before it.
        layer: whose output is taken, under any of its names.
        pool: `gap` is the mean over the map, `max` its largest value, `none` all of it; an output
            without a map, as of fc1, is taken whole.
        facts: what else `metadata` says of the model.

    Raises:
        ConfigError: an unknown layer or pooling.
    """

    def __init__(
        self,
        model: Network,
        preprocessing: Preprocessing,
        *,
        layer: str = "block5_pool",
        pool: Pool = "gap",
        facts: Mapping[str, Any] | None = None,
    ):
        if pool not in get_args(Pool):
            raise ConfigError(f"`pool` is gap, max or none; got {pool!r}.")
        self.preprocessing = preprocessing
        self.metadata = {**(facts or {}), "model": model.arch.name, "layer": layer, "pool": pool}
        self.metadata["preprocessing"] = preprocessing.to_json()
        graphdef, state = nnx.split(model)
        self._step = partial(_embed, graphdef, preprocessing.mode, layer, pool, state)
        size = preprocessing.image_size
        pixels = jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8)
        self.width: int = jax.eval_shape(self._step, pixels).shape[1]  # also checks the layer
        """D of the vectors."""

    def stream(
        self, images: Iterable[StreamedImage], known: Container[str] = ()
    ) -> Iterator[tuple[StreamedImage, np.ndarray | str | None]]:
        """Yield each image with its vector, float32 (D,), or why it has none.

        An image whose printable path is `known` is not read and has None.
        """

        def read(image: StreamedImage) -> DecodedImage | None:
            if printable(image.path) in known:
                return None
            return image.read(self.preprocessing.rendering)

        return stream_outputs(self._step, self.preprocessing, images, read)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _embed(
    graphdef: Any, mode: str, layer: str, pool: str, state: nnx.State, images: jax.Array
) -> jax.Array:
    network = nnx.merge(graphdef, state)

    def forward(images: jax.Array) -> jax.Array:
        outputs = network(preprocess(images, mode), until=layer).astype(jnp.float32)
        if outputs.ndim == 4 and pool != "none":
            return outputs.mean((1, 2)) if pool == "gap" else outputs.max((1, 2))
        return outputs.reshape(len(outputs), -1)

    return map_microbatches(forward, images)


def open_embedder(options: EmbedOptions = DEFAULT_EMBED_OPTIONS) -> Embedder:
    """Open a run's model, or pretrained weights without their top (vgg16 and imagenet if None).

    Raises:
        ConfigError: settings that exclude each other, or weights of unknown preprocessing.
        WeightsError: weights that cannot be found or read.
    """
    workdir, weights, model = options.workdir, options.weights, options.model
    cut: Any = {"layer": options.layer, "pool": options.pool}
    if workdir is not None:
        for name in ("weights", "model", "image_size"):
            if (value := getattr(options, name)) is not None:
                raise ConfigError(f"`workdir` has its own `{name}`; leave out {value}.")
        network, info = load_model(workdir)
        facts = {"workdir": printable(workdir), "weights_sha256": info.weights_sha256}
        return Embedder(network, info.preprocessing, facts=facts, **cut)
    weights, model = weights or "imagenet", model or "vgg16"
    if weights == "none":
        raise ConfigError("`weights` must be a file or imagenet; random features say little.")
    with open_weights(weights, model, include_top=False) as file:
        network = load_pretrained(model, weights=file, include_top=False, base_only=True)
        facts = {"weights": printable(weights), "weights_sha256": file.digests.sha256}
        doubt = file.info.preprocess_doubt
    if network.preprocess_mode is None:
        raise ConfigError(
            f"The preprocessing of `weights` {printable(weights)} is uncertain: {doubt}. Convert "
            "weights whose file states it."
        )
    mode = network.preprocess_mode
    preprocessing = TORCH_PREPROCESSING if mode == "torch" else PUBLISHED_PREPROCESSING
    size = options.image_size or preprocessing.image_size
    network.arch.check_size(size)
    preprocessing = dataclasses.replace(preprocessing, mode=mode, image_size=size)
    return Embedder(network, preprocessing, facts=facts, **cut)


def reopen_embedder(metadata: Mapping[str, Any], folder: Path) -> Embedder:
    """Open the model that made an index, from its metadata and the folder where it was made.

    Raises:
        DataError: it is another model now, or the metadata do not name one.
        ConfigError, WeightsError: it cannot be opened.
    """
    try:
        options: dict[str, Any] = {name: metadata[name] for name in ("layer", "pool")}
        if "workdir" in metadata:
            options["workdir"] = _find(metadata["workdir"], folder)
        else:
            size = metadata["preprocessing"]["image_size"]
            weights = _find(metadata["weights"], folder)
            options |= {"weights": weights, "model": metadata["model"]}
            options["image_size"] = size
        sha256 = metadata["weights_sha256"]
    except (KeyError, TypeError) as error:
        raise DataError(f"The index does not say which model made it: no {error}.") from None
    embedder = open_embedder(EmbedOptions(**options))
    if embedder.metadata["weights_sha256"] != sha256:
        raise DataError(
            "The index was made by other weights than are there now. Make it again with `vggjax "
            "embed`."
        )
    return embedder


def _find(name: str, folder: Path) -> str:
    """Return a weight file or run of `folder` under its whole path; other names as they are.

    Raises:
        WeightsError: it is neither there nor in the current folder.
    """
    path = folder / name
    if path.exists() and name != "imagenet":
        return str(path)
    is_path = len(Path(name).parts) > 1 or bool(Path(name).suffix)
    if is_path and not is_hub_address(name) and not Path(name).expanduser().exists():
        raise WeightsError(
            f"A new image needs the model of the index, {printable(name)}, which is not in "
            f"{printable(os.path.normpath(folder))} any more. Put it back, or make the index again "
            "with `vggjax embed`.",
            code="E_FILE",
        )
    return name
