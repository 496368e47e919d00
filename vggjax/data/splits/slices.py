"""Splits by tfds slices, such as `train[:70%],train[70%:85%],train[85%:]`.

Two slices are train and test, and val is split off train; three are train, val and test. Their
syntax and rounding are those of tfds' `ReadInstruction`: percent or absolute, negative from the
end, joined by `+`. Slices follow the order of the dataset and are not stratified. Overlapping
slices are refused: training images would be tested.
"""

import re
from itertools import combinations
from typing import Any

import numpy as np

from vggjax.data.sources.source import SPLIT_WORDS, Source
from vggjax.errors import ConfigError, DataError, unknown_name

_HINT = "Write slices such as 'train[:70%],train[70%:85%],train[85%:]'."


def parse_slices(text: str) -> dict[str, str]:
    """Return split -> its slice, in tfds' syntax, of two or three slices separated by commas.

    Raises:
        ConfigError: another number of slices, or one that tfds cannot parse.
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) not in (2, 3):
        raise ConfigError(
            f"`split` takes two slices (train, test) or three (train, val, test); got "
            f"{len(parts)} in {text!r}. {_HINT}"
        )
    for part in parts:
        _parse_slice(part)
    names = ("train", "test") if len(parts) == 2 else ("train", "val", "test")
    return dict(zip(names, parts, strict=True))


def looks_like_slices(text: str) -> bool:
    """Return whether `text` is slices rather than fractions: one part starts with a name."""
    parts = [part.strip().lower() for part in text.split(",")]
    return any(re.match(r"(?!nan|inf)[a-z_]", part) or "[" in part for part in parts)


def resolve_slices(source: Source, slices: dict[str, str]) -> dict[str, np.ndarray]:
    """Return split -> indices into the source, int64.

    Raises:
        DataError: an unknown split, a slice beyond its end, an empty slice, or slices that
            overlap.
    """
    official = source.splits or {"train": np.arange(len(source))}
    splits = {name: _resolve_slice(source.name, official, text) for name, text in slices.items()}
    for (one, first), (other, second) in combinations(splits.items(), 2):
        if num_shared := len(np.intersect1d(first, second)):
            raise DataError(
                f"`split`: {slices[one]} ({one}) and {slices[other]} ({other}) overlap; images in "
                f"both: {num_shared:,}. {_HINT}"
            )
    return splits


def _resolve_slice(dataset: str, official: dict[str, np.ndarray], text: str) -> np.ndarray:
    import tensorflow_datasets as tfds

    infos = {
        word: tfds.core.SplitInfo(name=word, shard_lengths=[len(official[name])], num_bytes=0)
        for word, name in SPLIT_WORDS.items()
        if name in official
    }
    for piece in text.split("+"):
        name = piece.strip().partition("[")[0].strip()
        if name not in infos:
            hint = " The dataset has no official splits: slice train, or give 0.8,0.1,0.1."
            hint = hint if len(official) == 1 else ""
            raise DataError(unknown_name("split in `split`", name, official, hint=hint))
    try:
        ranges = _parse_slice(text).to_absolute(infos)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise DataError(f"`split` {text!r} does not fit {dataset}: {reason}") from None
    indices = np.concatenate(
        [np.asarray(official[SPLIT_WORDS[r.splitname]], np.int64)[r.from_ : r.to] for r in ranges]
    )
    if not len(indices):
        sizes = ", ".join(f"{name} {len(part):,}" for name, part in official.items())
        raise DataError(f"`split` {text!r} is empty; the dataset has {sizes}. {_HINT}")
    if num_repeated := len(indices) - len(np.unique(indices)):
        raise DataError(f"`split` {text!r} selects images twice: {num_repeated:,}. {_HINT}")
    return indices


def _parse_slice(text: str) -> Any:
    import tensorflow_datasets as tfds

    if "shard" in text:
        raise ConfigError(f"`split` {text!r} counts shards, whose sizes are arbitrary. {_HINT}")
    try:
        return tfds.core.ReadInstruction.from_spec(text)
    except Exception:  # tfds raises AssertionError, among others
        raise ConfigError(f"`split` cannot parse {text!r} as a slice. {_HINT}") from None
