"""Splits by slices, in tfds' own words: `train[:70%],train[70%:85%],train[85%:]`.

Two instructions are train and test, and val is cut from train; three are train, val and test. What
they mean is tfds' `ReadInstruction`: percent or absolute, from the end where negative, added by
`+`. They are slices of the order that the dataset has, and stratify nothing. Slices that share
images are refused: what is trained on would be tested.
"""

import re
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from vggjax.data.sources.source import SPLIT_WORDS, Source
from vggjax.errors import ConfigError, DataError, unknown_name

_HINT = "Write slices such as 'train[:70%],train[70%:85%],train[85%:]'."


@dataclass(frozen=True)
class Instructions:
    """What each split is made of, as tfds writes it."""

    parts: tuple[str, ...]
    """For train and test, or for train, val and test."""

    @classmethod
    def parse(cls, text: str) -> "Instructions":
        """Reads two or three instructions, parted by commas.

        Raises:
            ConfigError: other than that, or one that tfds does not understand.
        """
        parts = tuple(part.strip() for part in text.split(","))
        if len(parts) not in (2, 3):
            raise ConfigError(
                f"--split takes two slices, for train and test, or three, for train, val and "
                f"test; got {len(parts)} in {text!r}. {_HINT}"
            )
        for part in parts:
            _read(part)
        return cls(parts)

    @property
    def named(self) -> dict[str, str]:
        """Split -> its instruction."""
        names = ("train", "test") if len(self.parts) == 2 else ("train", "val", "test")
        return dict(zip(names, self.parts, strict=True))


def looks_like_instructions(text: str) -> bool:
    """Tells slices from shares: one of them starts with a name."""
    parts = [part.strip().lower() for part in text.split(",")]
    return any(re.match(r"(?!nan|inf)[a-z_]", part) or "[" in part for part in parts)


def resolve_instructions(source: Source, instructions: Instructions) -> dict[str, np.ndarray]:
    """Gives split -> indices into the source.

    Raises:
        DataError: a split that the dataset does not have, a slice beyond its end, one without a
            image, or two that share images.
    """
    own = source.splits or {"train": np.arange(len(source))}
    splits = {name: _resolve(source, own, part) for name, part in instructions.named.items()}
    for (one, first), (other, second) in combinations(splits.items(), 2):
        shared = len(np.intersect1d(first, second))
        if shared:
            named = instructions.named
            raise DataError(
                f"--split: {named[one]} and {named[other]} share {shared:,} "
                f"image{'s' * (shared > 1)}, so that {one} and {other} would not be apart. "
                f"{_HINT}"
            )
    return splits


def _resolve(source: Source, own: dict[str, np.ndarray], part: str) -> np.ndarray:
    from tensorflow_datasets.core.splits import SplitInfo

    infos = {
        word: SplitInfo(name=word, shard_lengths=[len(own[name])], num_bytes=0)
        for word, name in SPLIT_WORDS.items()
        if name in own
    }
    known = list(dict.fromkeys(SPLIT_WORDS[word] for word in infos))
    for name in _names(part):
        if name not in infos:
            alone = (
                " The dataset has no splits of its own: slice train, or give shares (0.8,0.1,0.1)."
            ) * (len(known) == 1)
            raise DataError(unknown_name("split in --split", name, known, hint=alone))
    try:
        slices = _read(part).to_absolute(infos)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise DataError(f"--split {part!r} cannot be cut from {source.name}: {reason}") from None
    found = np.concatenate(
        [np.asarray(own[SPLIT_WORDS[s.splitname]], np.int64)[s.from_ : s.to] for s in slices]
    )
    if not len(found):
        sizes = ", ".join(f"{name} {len(own[name]):,}" for name in known)
        raise DataError(f"--split {part!r} has no image in it; the dataset has {sizes}. {_HINT}")
    if twice := len(found) - len(np.unique(found)):
        raise DataError(f"--split {part!r} has {twice:,} image{'s' * (twice > 1)} twice. {_HINT}")
    return found


def _read(part: str):
    from tensorflow_datasets.core import ReadInstruction

    if "shard" in part:
        raise ConfigError(f"--split {part!r} counts shards, which are an accident. {_HINT}")
    try:
        return ReadInstruction.from_spec(part)
    except Exception:  # tfds raises what it likes, AssertionError among others
        raise ConfigError(f"--split cannot read {part!r} as a slice. {_HINT}") from None


def _names(part: str) -> list[str]:
    return [piece.strip().partition("[")[0].strip() for piece in part.split("+")]
