"""Stratified splits: distribute examples over parts by class, seeded, groups kept together.

The result depends on labels, shares, seed and groups alone. Each class is distributed by the
largest remainder, at least one example per part. A class with fewer distinct images than parts
fills train first, then test, then val.
"""

from collections import Counter, defaultdict

import numpy as np

_PRIORITY = ("train", "test", "val")
"""The order in which parts are filled if there is not enough for all."""


def stratified_split(
    labels: np.ndarray,
    indices: np.ndarray,
    shares: dict[str, float],
    seed: int,
    groups: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Return part -> its share of `indices`, stratified by class.

    `labels` and `groups`, int (N,), are those of the whole dataset. Examples with the same group
    number get the same part, whatever their classes; groups of one example change nothing.
    """
    parts: dict[str, list[np.ndarray]] = {name: [np.empty(0, np.int64)] for name in shares}
    members = {
        label: np.random.default_rng((seed, label)).permutation(indices[labels[indices] == label])
        for label in np.unique(labels[indices]).tolist()
    }
    targets = _target_counts(members, shares)
    units = _find_units(labels, indices, groups, seed)
    assigner = _Assigner(shares, targets, members, units, labels)
    for unit in units:
        parts[assigner.assign(unit)].append(unit)
    grouped = np.concatenate([np.empty(0, np.int64), *units])
    for label, images in members.items():
        if label not in assigner.assigned and len(images) >= len(shares):
            ends = np.cumsum([targets[label][name] for name in shares])
            for name, part in zip(shares, np.split(images, ends[:-1]), strict=True):
                parts[name].append(part)
        else:
            for image in images[~np.isin(images, grouped)]:
                parts[assigner.assign(image[None])].append(image[None])
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def count_distinct(labels: np.ndarray, groups: np.ndarray | None, num_classes: int) -> np.ndarray:
    """Count the distinct images of each class, int64 (C,): a group counts once."""
    if groups is not None:
        labels = np.unique(np.stack([labels, groups]), axis=1)[0]
    return np.bincount(labels, minlength=num_classes)


def connect(count: int, pairs: np.ndarray) -> np.ndarray:
    """Return each example's group, the smallest index that pairs, int (K, 2), connect it with."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    one, other = pairs.T
    graph = coo_array((np.ones(len(one), bool), (one, other)), (count, count))
    _, labels = connected_components(graph, directed=False)
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return first[inverse]


def merge_groups(one: np.ndarray | None, other: np.ndarray | None) -> np.ndarray | None:
    """Return the groups, int (N,), of the examples that either grouping keeps together."""
    if one is None or other is None:
        return other if one is None else one
    pairs = []
    for groups in (one, other):
        _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
        pairs.append(np.stack([np.arange(len(groups)), first[inverse]], 1))
    return connect(len(one), np.concatenate(pairs))


class _Assigner:
    """Assigns units to parts, one by one: a unit is a group, or a single image."""

    def __init__(
        self,
        shares: dict[str, float],
        targets: dict[int, dict[str, int]],
        members: dict[int, np.ndarray],
        units: list[np.ndarray],
        labels: np.ndarray,
    ) -> None:
        self._labels = labels
        self._names = list(shares)
        self._remaining = {label: dict(target) for label, target in targets.items()}
        order = sorted(shares, key=lambda name: _PRIORITY.index(name) if name in _PRIORITY else 0)
        self._empty_parts = {label: list(order) for label in members}
        self._num_pending = {label: len(images) for label, images in members.items()}  # units
        for unit in units:
            for label, count in self._count(unit).items():
                self._num_pending[label] -= count - 1
        self.assigned: set[int] = set()  # labels with an image that was assigned already

    def assign(self, unit: np.ndarray) -> str:
        """Return the part of a unit: the one that is furthest below its target."""
        counts = self._count(unit)
        part = self._choose(counts)
        for label, count in counts.items():
            self.assigned.add(label)
            self._remaining[label][part] -= count
            self._num_pending[label] -= 1
            if part in self._empty_parts[label]:
                self._empty_parts[label].remove(part)
        return part

    def _choose(self, counts: dict[int, int]) -> str:
        for label in counts:  # every pending unit is needed to reach the parts without this class
            if self._num_pending[label] <= len(self._empty_parts[label]):
                return self._empty_parts[label][0]
        return max(self._names, key=lambda name: sum(self._remaining[x][name] for x in counts))

    def _count(self, unit: np.ndarray) -> dict[int, int]:
        return Counter(sorted(self._labels[unit].tolist()))


def _find_units(
    labels: np.ndarray, indices: np.ndarray, groups: np.ndarray | None, seed: int
) -> list[np.ndarray]:
    """Return the examples of each group that has two or more in `indices`, largest first."""
    if groups is None:
        return []
    members = defaultdict(list)  # ordered by the first example, however the groups are numbered
    for i in np.sort(indices).tolist():
        members[int(groups[i])].append(i)
    units = [np.array(images) for images in members.values() if len(images) > 1]
    # Labels are below len(labels), so no class uses the same random numbers.
    shuffled = np.random.default_rng((seed, len(labels))).permutation(len(units))
    return sorted((units[i] for i in shuffled), key=len, reverse=True)


def _target_counts(
    members: dict[int, np.ndarray], shares: dict[str, float]
) -> dict[int, dict[str, int]]:
    """Return label -> part -> number of examples; zeros for a class with too few."""
    counts = {label: dict.fromkeys(shares, 0) for label in members}
    owed = dict.fromkeys(shares, 0.0)
    for label, images in members.items():
        if (total := len(images)) >= len(shares):
            counts[label] = _apportion(total, shares, owed)
            for name, count in counts[label].items():
                owed[name] += total * shares[name] - count
    return counts


def _apportion(total: int, shares: dict[str, float], owed: dict[str, float]) -> dict[str, int]:
    """Distribute `total` by the largest remainder, at least one to each part."""
    exact = {name: total * share for name, share in shares.items()}
    counts = {name: max(1, int(value + 1e-9)) for name, value in exact.items()}

    # Ties go to the part that earlier classes shortchanged the most: otherwise, with many classes
    # of fifteen examples each, val would be twice as large as test.
    def remainder(name: str) -> tuple[float, float]:
        return round(exact[name] - counts[name], 6), round(owed[name], 6)

    while sum(counts.values()) < total:
        counts[max(counts, key=remainder)] += 1
    while sum(counts.values()) > total:
        counts[min((name for name in counts if counts[name] > 1), key=remainder)] -= 1
    return counts
