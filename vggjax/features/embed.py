"""Compute a vector for each image: the output of a layer, pooled.

`Embedder` is the model with its preprocessing; `embed_command` is `vggjax embed`. Images are named,
read ahead and left out as in `vggjax predict`.
"""

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console
from rich.progress import track

from vggjax.atomic import check_output_file
from vggjax.data.images.decode import DecodedImage, read_image
from vggjax.data.images.preprocess import Preprocessing, preprocess
from vggjax.errors import ConfigError, DataError, printable
from vggjax.evaluation.imagenet import PUBLISHED_PREPROCESSING, TORCH_PREPROCESSING
from vggjax.evaluation.predict import MAX_BATCH, stream_outputs
from vggjax.evaluation.predict_files import find_images, nothing_usable
from vggjax.features.embeddings import ENDINGS, Embeddings
from vggjax.models.network import Network
from vggjax.training.run_dir.run_result import load_model
from vggjax.training.step import map_microbatches
from vggjax.weights.load import load_pretrained, open_weights

Pool = Literal["gap", "max", "none"]


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

    def stream(self, files: Mapping[Path, str]) -> Iterator[np.ndarray | str]:
        """Yield each image's vector, float32 (D,), or why it has none.

        Args:
            files: path -> why it cannot be read, or "", as `find_images` returns them.
        """
        paths = list(files)

        def read(index: int) -> DecodedImage:
            if reason := files[paths[index]]:
                raise DataError(reason)
            return read_image(paths[index], self.preprocessing.rendering)

        return stream_outputs(self._step, self.preprocessing, read, len(paths))


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


def open_embedder(
    *,
    workdir: str | None = None,
    weights: str | None = None,
    model: str | None = None,
    image_size: int | None = None,
    layer: str = "block5_pool",
    pool: Pool = "gap",
) -> Embedder:
    """Open a run's model, or pretrained weights without their top (vgg16 and imagenet if None).

    Raises:
        ConfigError: settings that exclude each other, or weights of unknown preprocessing.
        WeightsError: weights that cannot be found or read.
    """
    if workdir is not None:
        for name, value in (("weights", weights), ("model", model), ("image_size", image_size)):
            if value is not None:
                raise ConfigError(f"`workdir` has its own `{name}`; leave out {value}.")
        network, info = load_model(workdir)
        facts = {"workdir": printable(workdir), "weights_sha256": info.weights_sha256}
        return Embedder(network, info.preprocessing, layer=layer, pool=pool, facts=facts)
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
    size = preprocessing.image_size if image_size is None else image_size
    network.arch.check_size(size)
    preprocessing = dataclasses.replace(preprocessing, mode=mode, image_size=size)
    return Embedder(network, preprocessing, layer=layer, pool=pool, facts=facts)


def reopen_embedder(metadata: Mapping[str, Any]) -> Embedder:
    """Open the model that made an index, from its metadata.

    Raises:
        DataError: it is another model now, or the metadata do not name one.
        ConfigError, WeightsError: it cannot be opened.
    """
    try:
        options = {name: metadata[name] for name in ("layer", "pool")}
        if "workdir" in metadata:
            options["workdir"] = metadata["workdir"]
        else:
            size = metadata["preprocessing"]["image_size"]
            options |= {"weights": metadata["weights"], "model": metadata["model"]}
            options["image_size"] = size
        sha256 = metadata["weights_sha256"]
    except (KeyError, TypeError) as error:
        raise DataError(f"The index does not say which model made it: no {error}.") from None
    embedder = open_embedder(**options)
    if embedder.metadata["weights_sha256"] != sha256:
        raise DataError(
            "The index was made by other weights than are there now. Make it again with `vggjax "
            "embed`."
        )
    return embedder


def embed_command(
    patterns: Sequence[str],
    *,
    out: str,
    workdir: str | None = None,
    weights: str | None = None,
    model: str | None = None,
    image_size: int | None = None,
    layer: str = "block5_pool",
    pool: Pool = "gap",
) -> int:
    """Write the embeddings of images; the parameters are the flags of `vggjax embed`.

    Returns:
        The exit code: 0, or 3 if images were left out, each named with its reason on stderr.

    Raises:
        DataError: no image that can be used.
        ConfigError, WeightsError: settings or weights that cannot be used.
    """
    path = check_output_file(out, field="out", endings=ENDINGS)
    files = find_images(patterns)
    if all(files.values()):
        raise nothing_usable(files)
    inputs = [*files, Path(weights or "")]
    check_output_file(path, field="out", endings=ENDINGS, inputs=inputs)
    options: dict[str, Any] = {"workdir": workdir, "weights": weights, "model": model}
    options |= {"image_size": image_size, "layer": layer, "pool": pool}
    embedder = open_embedder(**options)
    embeddings, left_out = embed_files(embedder, files)
    if not embeddings.names:
        raise nothing_usable(left_out)
    embeddings.write(path)
    count, width = embeddings.vectors.shape
    print(
        f"{printable(path)}: {count:,} vectors of {width:,} numbers, {layer} of "
        f"{embedder.metadata['model']}"
    )
    return 3 if left_out else 0


def embed_files(
    embedder: Embedder, files: Mapping[Path, str]
) -> tuple[Embeddings, dict[Path, str]]:
    """Return the embeddings of files, and those left out with their reasons (also on stderr)."""
    console = Console(stderr=True)
    quiet = not console.is_terminal or len(files) <= MAX_BATCH
    names: list[str] = []
    rows: list[np.ndarray] = []
    left_out: dict[Path, str] = {}
    shown = track(files, "Embedding", console=console, transient=True, disable=quiet)
    for path, outcome in zip(shown, embedder.stream(files), strict=True):
        if isinstance(outcome, str):
            left_out[path] = outcome
            if len(files) > 1:
                line = f"{printable(path)}: {printable(outcome)}"
                print(f"vggjax: left out: {line}", file=sys.stderr)
        else:
            names.append(printable(path))
            rows.append(outcome)
    vectors = np.array(rows, np.float32).reshape(len(rows), embedder.width)
    return Embeddings(tuple(names), vectors, embedder.metadata), left_out
