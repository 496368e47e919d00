"""Random damage to small weight files, and what a reader may do with them.

A damaged file may be refused, or read. If it is read, its layers and shapes are the expected ones,
and its values are those that were written, as far as the format can show it: HDF5 and safetensors
have no checksum over plain numbers, and HDF5 has none over an array's address and type.
"""

import random
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from vggjax.errors import CODES, WeightsError
from vggjax.models.arch import Arch

COUNT = 2000
THREE = Arch("three", (1, 1, 1), (1, 1, 2))
EIGHT = Arch("vgg11", (1, 1, 2, 2, 2), (1, 1, 2, 2, 2))  # torchvision's names want VGG11's layers


def damaged(content, rng):
    """Return the damaged contents, and the positions of the bytes that changed."""
    if rng.random() < 0.1:
        cut = rng.randrange(len(content))
        return content[:cut], range(cut, len(content))
    bad = bytearray(content)
    if rng.random() < 0.05:  # a run of zeros, as of a disk that lost a block
        start = rng.randrange(len(bad))
        stop = min(len(bad), start + rng.choice((4, 16, 64, 512)))
        bad[start:stop] = bytes(stop - start)
    for _ in range(rng.choice((1, 1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(bad))
        bad[at] = rng.choice((rng.randrange(256), 0, 255, bad[at] ^ 1 << rng.randrange(8)))
    changed = [i for i, (a, b) in enumerate(zip(content, bad, strict=True)) if a != b]
    return bytes(bad), changed


def places(content, weights):
    """Return where in the good file each array's numbers lie, `{(layer, parameter): range}`."""
    ranges = {}
    for layer, params in weights.items():
        for name, array in params.items():
            numbers = array.tobytes()
            start = content.find(numbers)
            assert content.count(numbers) == 1, "the numbers must lie in the file once"
            ranges[layer, name] = range(start, start + len(numbers))
    return ranges


@dataclass
class Outcome:
    """How the damaged files were read."""

    counts: Counter = field(default_factory=Counter)
    changed: list = field(default_factory=list)
    """Files that were read with other values: (contents, changed bytes, changed arrays)."""


def fuzz(path, read, weights, *, seed, count=COUNT):
    """Read `count` damaged copies of the file at `path`.

    Args:
        path: the good file; the damaged ones are written beside it.
        read: returns the weights for a path and a check of shapes.
        weights: the contents of the good file.
        seed: of the damage.
        count: how many copies.
    """
    content, bad = path.read_bytes(), path.with_name(f"bad-{path.name}")
    shapes = {k: {n: a.shape for n, a in v.items()} for k, v in weights.items()}

    def check(received):
        if received != shapes:
            raise WeightsError("not the expected layers", code="E_SHAPE")

    outcome = Outcome()
    for i in range(count):
        rng = random.Random(f"{seed}:{i}")
        contents, where = damaged(content, rng)
        bad.write_bytes(contents)
        try:
            got = read(bad, check)
        except WeightsError as error:  # anything else is a bug
            assert error.code in CODES and "\n" not in str(error) and str(bad) in str(error)
            outcome.counts[error.code] += 1
            continue
        assert {k: {n: a.shape for n, a in v.items()} for k, v in got.items()} == shapes
        arrays = [(k, n) for k, v in weights.items() for n in v if other(got[k][n], v[n])]
        assert all(np.isfinite(got[k][n]).all() for k, n in arrays)
        outcome.counts["changed" if arrays else "unchanged"] += 1
        if arrays:
            outcome.changed.append((contents, where, arrays))
    assert sum(outcome.counts.values()) == count
    return outcome


def other(got, want):
    return got.dtype != np.float32 or not np.array_equal(got, want)
