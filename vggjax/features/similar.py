"""Search embeddings by cosine: the most similar images, near-duplicates and outliers.

Plain numpy, a block of rows at a time.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vggjax.data.stream.images import nothing_usable, open_images
from vggjax.errors import ConfigError, DataError, printable
from vggjax.features.embed import reopen_embedder
from vggjax.features.embed_files import embed_images
from vggjax.features.embeddings import Embeddings, read_embeddings

MAX_GROUPS = 50
"""Groups of duplicates on the screen."""

DEFAULT_THRESHOLD = 0.94
"""Of near-duplicates: calibrated on photographs, for block5_pool and gap (docs/features.md)."""

NEIGHBORS = 5
"""Whose mean similarity says how alone an image is."""

_BLOCK_ROWS = 1024


class Match(NamedTuple):
    """An image of an index, and its cosine similarity, -1 to 1."""

    name: str
    similarity: float


def most_similar(index: Embeddings, vector: np.ndarray, top: int = 10) -> list[Match]:
    """Return the `top` images of an index with the highest cosine similarity to a vector (D,)."""
    norm = float(np.linalg.norm(vector)) or 1.0
    similarities = index.unit_vectors() @ (vector / norm)
    order = np.argsort(-similarities, kind="stable")[:top]
    return [Match(index.names[i], float(similarities[i])) for i in order]


def near_duplicates(index: Embeddings, threshold: float) -> list[list[str]]:
    """Return groups of images that are connected by similarities from `threshold` on.

    Largest groups first, then in the order of the index.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    pairs = [np.argwhere(block >= threshold) + (start, 0) for start, block in _blocks(index)]
    rows, columns = np.concatenate(pairs).T
    count = len(index.names)
    graph = coo_matrix((np.ones(len(rows), bool), (rows, columns)), (count, count))
    _, labels = connected_components(graph, directed=False)
    groups: dict[int, list[str]] = {}
    for label, name in zip(labels.tolist(), index.names, strict=True):
        groups.setdefault(label, []).append(name)
    return sorted((group for group in groups.values() if len(group) > 1), key=len, reverse=True)


def outliers(index: Embeddings, top: int = 10) -> list[Match]:
    """Return the `top` images with the lowest mean similarity to their five nearest neighbors.

    The distance to the nearest neighbors as a measure of outliers is that of Ramaswamy et al.
    (SIGMOD 2000), here averaged.
    """
    count = min(NEIGHBORS, len(index.names) - 1)
    if count < 1:
        raise DataError("Outliers need two or more images.")
    means = []
    for start, block in _blocks(index):
        block[np.arange(len(block)), start + np.arange(len(block))] = -np.inf  # itself
        means.append(np.partition(block, -count, axis=1)[:, -count:].mean(1))
    similarities = np.concatenate(means)
    order = np.argsort(similarities, kind="stable")[:top]
    return [Match(index.names[i], float(similarities[i])) for i in order]


def _blocks(index: Embeddings) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the first row of each block, and its similarities to all images, (rows, N)."""
    vectors = index.unit_vectors()
    for start in range(0, len(vectors), _BLOCK_ROWS):
        yield start, vectors[start : start + _BLOCK_ROWS] @ vectors.T


def similar_command(
    names: Sequence[str],
    *,
    top: int = 10,
    duplicates: bool = False,
    outliers: bool = False,
    threshold: float = DEFAULT_THRESHOLD,
) -> int:
    """Search an index; the parameters are the flags of `vggjax similar`.

    Args:
        names: the images to search with, and last the index.
        top: images to print.
        duplicates: print groups of near-duplicates in place of a search.
        outliers: print the images that are least like any others.
        threshold: of duplicates, a cosine similarity.

    Returns:
        The exit code: 0, or 3 if images were left out.

    Raises:
        ConfigError, DataError, WeightsError: settings, files or a model that cannot be used.
    """
    *queries, file = names
    if top < 1:
        raise ConfigError(f"`top` must be above 0; got {top}.")
    if not 0 < threshold <= 1:
        raise ConfigError(f"`threshold` must be above 0 and at most 1; got {threshold:g}.")
    if (duplicates + outliers + bool(queries)) != 1:
        raise ConfigError(
            "Give the images to search with and then the index, or the index and `duplicates` or "
            "`outliers`."
        )
    index = read_embeddings(file)
    if duplicates:
        _print_groups(near_duplicates(index, threshold), len(index.names))
        return 0
    if outliers:
        _print_matches(_OUTLIERS(index, top))
        return 0
    found, left_out = _query_vectors(queries, index)
    for path, vector in found.items():
        if len(found) > 1:
            print(f"\n{printable(path)}")
        itself, matches = index.name_of(path), most_similar(index, vector, top + 1)
        _print_matches([match for match in matches if match.name != itself][:top])
    return 3 if left_out else 0


_OUTLIERS = outliers  # the flag has the same name


def _query_vectors(
    queries: Sequence[str], index: Embeddings
) -> tuple[dict[Path, np.ndarray], dict[Path, str]]:
    """Return the vectors of images, of the index where it has them, and those left out."""
    known = dict(zip(index.names, index.vectors, strict=True))
    images = list(open_images(queries))
    found = {image.path: known[name] for image in images if (name := index.name_of(image.path))}
    new = [image for image in images if image.path not in found]
    left_out = {image.path: image.reason for image in new if image.reason}
    if new and len(left_out) < len(images):
        print("vggjax: loading the model of the index", file=sys.stderr)
        embedded, left_out = embed_images(reopen_embedder(index.metadata, index.folder), new)
        vectors = dict(zip(embedded.names, embedded.vectors, strict=True))
        usable = (image.path for image in new if image.path not in left_out)
        found |= {path: vectors[printable(path)] for path in usable}
    if len(left_out) == len(images):
        raise nothing_usable(len(left_out), *next(iter(left_out.items())))
    return {image.path: found[image.path] for image in images if image.path in found}, left_out


def _print_matches(matches: Sequence[Match]) -> None:
    for match in matches:
        print(f"{match.similarity:7.4f}  {match.name}")


def _print_groups(groups: Sequence[Sequence[str]], count: int) -> None:
    for group in groups[:MAX_GROUPS]:
        print("\n".join(group), end="\n\n")
    if (more := len(groups) - MAX_GROUPS) > 0:
        print(f"... {more:,} more groups\n")
    total = sum(map(len, groups))
    kind = "group" if len(groups) == 1 else "groups"
    print(f"{len(groups):,} {kind} of near-duplicates, {total:,} of {count:,} images")
