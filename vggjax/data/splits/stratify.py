"""Cuts examples into parts by their classes: stratified, by seed, same images together.

Labels, shares, seed and groups decide, and nothing of the machine. Each class is shared out by the
largest remainder, at least one to a part. What has too few different images for that goes to
train first, then to test, then to val.
"""

from collections import Counter

import numpy as np

_NEED = ("train", "test", "val")
"""Which part is served first where there is not enough for all."""


def cut(
    labels: np.ndarray,
    indices: np.ndarray,
    shares: dict[str, float],
    seed: int,
    groups: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Gives part -> its share of `indices`, of each class.

    `labels` and `groups` are of the whole dataset. Examples with the same group number come into
    the same part, whatever their classes; where no two have, the groups change nothing.
    """
    parts: dict[str, list[np.ndarray]] = {name: [np.empty(0, np.int64)] for name in shares}
    members = {
        int(label): indices[labels[indices] == label] for label in np.unique(labels[indices])
    }
    for label in members:
        members[label] = np.random.default_rng((seed, label)).permutation(members[label])
    counts = _count_all(members, shares)
    units = _find_units(labels, indices, groups, seed)
    filler = _Assigner(shares, counts, members, units, labels)
    for unit in units:
        parts[filler.place(unit)].append(unit)
    grouped = np.concatenate([np.empty(0, np.int64), *units])
    for label, images in members.items():
        if filler.is_untouched(label) and len(images) >= len(shares):
            ends = np.cumsum([counts[label][name] for name in shares])
            for name, part in zip(shares, np.split(images, ends[:-1]), strict=True):
                parts[name].append(part)
        else:
            for image in images[~np.isin(images, grouped)]:
                parts[filler.place(image[None])].append(image[None])
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def count_different(
    labels: np.ndarray, indices: np.ndarray, groups: np.ndarray | None, num_classes: int
) -> np.ndarray:
    """Counts the different images of each class, int64 (C,): a group counts once."""
    if groups is None:
        return np.bincount(labels[indices], minlength=num_classes)
    pairs = np.unique(np.stack([labels[indices], groups[indices]]), axis=1)
    return np.bincount(pairs[0], minlength=num_classes)


class _Assigner:
    """Places one unit after the other: images that must stay together, or one alone."""

    def __init__(
        self,
        shares: dict[str, float],
        counts: dict[int, dict[str, int]],
        members: dict[int, np.ndarray],
        units: list[np.ndarray],
        labels: np.ndarray,
    ) -> None:
        self._labels = labels
        self._names = list(shares)
        self._left = {label: dict(target) for label, target in counts.items()}
        need = sorted(shares, key=lambda name: _NEED.index(name) if name in _NEED else 0)
        self._empty = {label: list(need) for label in members}
        self._waiting = {label: len(images) for label, images in members.items()}
        for unit in units:
            for label, count in self._count(unit).items():
                self._waiting[label] -= count - 1
        self._touched: set[int] = set()

    def is_untouched(self, label: int) -> bool:
        """Tells whether no image of a class was placed."""
        return label not in self._touched

    def place(self, unit: np.ndarray) -> str:
        """Chooses the part of a unit: the one that has the most still to come."""
        counts = self._count(unit)
        part = self._choose(counts)
        for label, count in counts.items():
            self._touched.add(label)
            self._left[label][part] -= count
            self._waiting[label] -= 1
            if part in self._empty[label]:
                self._empty[label].remove(part)
        return part

    def _choose(self, counts: dict[int, int]) -> str:
        for label in counts:  # each that is left must show its class in another part
            if self._waiting[label] <= len(self._empty[label]):
                return self._empty[label][0]
        return max(self._names, key=lambda name: sum(self._left[label][name] for label in counts))

    def _count(self, unit: np.ndarray) -> dict[int, int]:
        return Counter(sorted(self._labels[unit].tolist()))


def _find_units(
    labels: np.ndarray, indices: np.ndarray, groups: np.ndarray | None, seed: int
) -> list[np.ndarray]:
    """Gives the examples of each group that has two or more here, the largest first."""
    if groups is None or not len(indices):
        return []
    order = np.sort(indices)
    order = order[np.argsort(groups[order], kind="stable")]
    starts = np.flatnonzero(np.diff(groups[order])) + 1
    units = [unit for unit in np.split(order, starts) if len(unit) > 1]
    units.sort(key=lambda unit: unit[0])  # whatever the groups are numbered
    # No label is as high as this, so that no class has the same random numbers.
    shuffled = np.random.default_rng((seed, len(labels))).permutation(len(units))
    units = [units[i] for i in shuffled]
    return sorted(units, key=lambda unit: -len(unit))


def _count_all(
    members: dict[int, np.ndarray], shares: dict[str, float]
) -> dict[int, dict[str, int]]:
    """Gives label -> part -> how many examples it is to have; zeros where there are too few."""
    counts = {}
    owed = dict.fromkeys(shares, 0.0)
    for label, images in members.items():
        total = len(images)
        if total < len(shares):
            counts[label] = dict.fromkeys(shares, 0)
            continue
        counts[label] = _counts(total, shares, owed)
        for name, count in counts[label].items():
            owed[name] += total * shares[name] - count
    return counts


def _counts(total: int, shares: dict[str, float], owed: dict[str, float]) -> dict[str, int]:
    """Shares `total` out by the largest remainder, at least one to each.

    Ties go to the split that the classes before have given the least of its due: without that,
    fifteen examples in each of many classes would make val twice as large as test.
    """
    exact = {name: total * share for name, share in shares.items()}
    counts = {name: max(1, int(value + 1e-9)) for name, value in exact.items()}

    def due(name: str) -> tuple[float, float]:
        return round(exact[name] - counts[name], 6), round(owed[name], 6)

    while sum(counts.values()) < total:
        counts[max(counts, key=due)] += 1
    while sum(counts.values()) > total:
        counts[min((name for name in counts if counts[name] > 1), key=due)] -= 1
    return counts
