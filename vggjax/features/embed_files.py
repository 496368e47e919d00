"""Embed images from the command line: in memory that does not grow, resumed where a kill ended it.

In: a stream of images, as in `vggjax predict`. Out: a file of embeddings. An image that cannot be
read is named on stderr; the others are embedded all the same.
"""

import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from vggjax.atomic import check_output_file
from vggjax.data.stream.images import (
    StreamedImage,
    nothing_usable,
    open_images,
    peek,
    peek_usable,
)
from vggjax.data.stream.options import DEFAULT_STREAM_OPTIONS, StreamOptions
from vggjax.data.stream.progress import show_progress
from vggjax.errors import printable
from vggjax.evaluation.ray_engine import Stream, ray_outputs
from vggjax.features.embed import Embedder, open_embedder
from vggjax.features.embed_options import DEFAULT_EMBED_OPTIONS, EmbedOptions
from vggjax.features.embedding_store import EmbeddingStore
from vggjax.features.embeddings import ENDINGS, Embeddings, relative_path


def embed_command(
    patterns: Sequence[str],
    out: str,
    options: EmbedOptions = DEFAULT_EMBED_OPTIONS,
    *,
    stream: StreamOptions = DEFAULT_STREAM_OPTIONS,
) -> int:
    """Write the embeddings of images as `vggjax embed` does.

    Returns:
        The exit code: 0, or 3 if images were left out, each named with its reason on stderr.

    Raises:
        DataError: no image that can be used.
        ConfigError, WeightsError: settings or weights that cannot be used.
    """
    inputs = map(Path, [*patterns, options.weights or ""])
    path = check_output_file(out, field="out", endings=ENDINGS, inputs=inputs)
    first, images = peek(peek_usable(open_images(patterns, part=stream.part)), 2)
    embedder = open_embedder(options)
    folder = relative_path(Path.cwd(), path.parent.resolve())
    metadata = {**embedder.metadata, "folder": printable(folder)}
    store = EmbeddingStore(path, metadata, embedder.width)
    if store.known:
        print(f"vggjax: {len(store.known):,} images are there from before", file=sys.stderr)
    if stream.engine == "ray":
        outcomes = ray_outputs(patterns, stream, partial(_open_stream, options), known=store.known)
    else:
        outcomes = embedder.stream(images, store.known)
    for image, outcome in show_progress(outcomes, "Embedding"):
        if isinstance(outcome, str):
            store.leave_out(image.path, outcome)
            if len(first) > 1:
                _print_left_out(image.path, outcome)
        elif outcome is not None:
            store.add(image.path, outcome)
    if not store.count:
        raise nothing_usable(store.num_left_out, *store.first_left_out)
    store.finish()
    print(
        f"{printable(path)}: {store.count:,} vectors of {embedder.width:,} numbers, "
        f"{options.layer} of {embedder.metadata['model']}"
    )
    return 3 if store.num_left_out else 0


def _open_stream(options: EmbedOptions) -> Stream:
    """Open the model in a worker."""
    return open_embedder(options).stream


def embed_images(
    embedder: Embedder, images: Iterable[StreamedImage]
) -> tuple[Embeddings, dict[Path, str]]:
    """Return the embeddings of a few images, and those left out with their reasons."""
    names: list[str] = []
    rows: list[np.ndarray] = []
    left_out: dict[Path, str] = {}
    for image, outcome in embedder.stream(images):
        if isinstance(outcome, str):
            left_out[image.path] = outcome
            _print_left_out(image.path, outcome)
        elif outcome is not None:
            names.append(printable(image.path))
            rows.append(outcome)
    vectors = np.array(rows, np.float32).reshape(len(rows), embedder.width)
    return Embeddings(tuple(names), vectors, embedder.metadata), left_out


def _print_left_out(path: Path, reason: str) -> None:
    print(f"vggjax: left out: {printable(path)}: {printable(reason)}", file=sys.stderr)
