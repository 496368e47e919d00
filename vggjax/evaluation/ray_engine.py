"""Run a model over a stream with Ray Data: an actor for each device of a cluster.

The driver resolves what the user names and sends files by name, 64 at a time, and a shard as a
whole; the actors read, decode and compute as the local engine does, and the driver receives what
it would yield, in the same order. An actor that is lost is started again and its work repeated;
Ray keeps what the others did.
"""

import itertools
import os
import pickle
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from vggjax.data.stream.images import StreamedImage, open_images, open_shards
from vggjax.data.stream.options import StreamOptions
from vggjax.errors import ConfigError

Outcome: TypeAlias = tuple[StreamedImage, np.ndarray | str | None]
"""An image without its bytes, and its output, why it has none, or None if it is known already."""

Stream: TypeAlias = Callable[[Iterable[StreamedImage], Container[str]], Iterator[Outcome]]
"""A model: (images, names of those that are known) -> outcomes."""

UNIT_FILES = 64
"""Files that an actor takes at a time."""

_ROWS = 256
"""Outcomes that an actor sends at a time."""


def ray_outputs(
    patterns: Sequence[str],
    options: StreamOptions,
    open_stream: Callable[[], Stream],
    *,
    known: Container[str] = (),
) -> Iterator[Outcome]:
    """Yield the outcome of each image, in the order of `open_images`.

    Args:
        patterns: what the user named.
        options: which part of it, and the number of workers.
        open_stream: opens the model in a worker; it and what it holds are pickled.
        known: printable paths of images that are not computed.

    Raises:
        ConfigError: Ray is not installed, or names come from the standard input.
    """
    try:
        import ray
    except ImportError:
        raise ConfigError("`engine` ray needs Ray: pip install 'vggjax[ray]'.") from None
    if "-" in patterns:
        raise ConfigError(
            "`engine` ray reads no names from the standard input; give a list (.txt)."
        )
    if not ray.is_initialized():
        ray.init(logging_level="WARNING", log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    num_gpus = int(ray.cluster_resources().get("GPU", 0))
    num_nodes = sum(node["Alive"] for node in ray.nodes())
    units = [{"unit": pickle.dumps(unit)} for unit in _units(patterns)]
    results = ray.data.from_items(units, override_num_blocks=len(units)).map_batches(
        _Worker,
        fn_constructor_args=(open_stream, os.getcwd(), options, known),
        batch_size=1,
        concurrency=min(options.workers or num_gpus or num_nodes, len(units)),
        num_gpus=1 if num_gpus else None,
        max_restarts=-1,
        max_task_retries=-1,
    )
    for row in results.iter_rows():
        yield from pickle.loads(row["rows"])


def _units(patterns: Sequence[str]) -> Iterator[list[StreamedImage]]:
    """Yield what an actor takes at a time: some files, or a shard."""
    files: list[StreamedImage] = []
    for image in open_images(patterns, with_shards_open=False):
        if files and (image.is_shard or len(files) == UNIT_FILES):
            yield files
            files = []
        if image.is_shard:
            yield [image]
        else:
            files.append(image)
    if files:
        yield files


class _Worker:
    """The model of an actor."""

    def __init__(
        self,
        open_stream: Callable[[], Stream],
        folder: str,
        options: StreamOptions,
        known: Container[str],
    ):
        if os.path.isdir(folder):
            os.chdir(folder)  # which relative names are of
        self._stream, self._part, self._known = open_stream(), options.part, known

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
        units = (pickle.loads(unit) for unit in batch["unit"])
        images = open_shards(itertools.chain.from_iterable(units))
        if self._part is not None:
            images = filter(self._part.has, images)
        outcomes = self._stream(images, self._known)
        for rows in iter(lambda: list(itertools.islice(outcomes, _ROWS)), []):
            sent = [(image._replace(content=None), outcome) for image, outcome in rows]
            yield {"rows": np.array([pickle.dumps(sent)], object)}
