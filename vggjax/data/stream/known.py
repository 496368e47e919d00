"""Remember names and a number for each in 16 bytes a name, for those that are done already."""

from array import array
from collections.abc import Iterable

import numpy as np

from vggjax.data.stream.images import name_hash


class NameIndex:
    """Names, each with a number; of a name that comes twice the first number counts.

    Names are told apart by 64 bits of their hash: among a million two are alike with a probability
    of 1 in 37 million.
    """

    def __init__(self, names: Iterable[tuple[str, int]] = ()):
        hashes, numbers = array("Q"), array("q")
        for name, number in names:
            hashes.append(name_hash(name))
            numbers.append(number)
        order = np.argsort(np.frombuffer(hashes, np.uint64), kind="stable")
        self._hashes = np.frombuffer(hashes, np.uint64)[order]
        self._numbers = np.frombuffer(numbers, np.int64)[order]

    def __len__(self) -> int:
        return len(self._hashes)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.find(name) is not None

    def find(self, name: str) -> int | None:
        """Return a name's number; None if it is not here."""
        key = np.uint64(name_hash(name))
        position = int(np.searchsorted(self._hashes, key))
        is_here = position < len(self._hashes) and self._hashes[position] == key
        return int(self._numbers[position]) if is_here else None
