"""The exchange of cached features between processes.

Each process keeps the features that it computed: of every batch in the split's order its own rows
(`own_positions`). A training batch takes rows in another order, so each process sends the others
what they need of its own, in the compiled step: `Exchange.parts` makes what is sent and where the
received rows go, `receive` puts them in their places.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import jax
import numpy as np
from jax import lax

from vggjax.data.loader import Process


def own_positions(length: int, batch_size: int, process: Process) -> np.ndarray:
    """Return the positions, ascending, that a process computes of a split of this length."""
    parts = (process.part(first, batch_size) for first in range(0, length, batch_size))
    ranges = [np.arange(*part.indices(length)) for part in parts]
    return np.concatenate(ranges) if ranges else np.arange(0)


@dataclass(frozen=True)
class Parts:
    """What one process sends of a batch, and where its own rows are in what it receives."""

    send: np.ndarray
    """int64 (D, P, M): positions to send from local device d to device d of process p; -1 is
    padding."""
    take: np.ndarray
    """int32 (R,): for each row of this process, its place in the (P, M) that its device gets."""


class Exchange:
    """Says which process has which position, and what a batch takes from which.

    Args:
        length: of the split.
        batch_size: of the batches, in the computation of the features and in the training.
        process: this process, one of several.
    """

    def __init__(self, length: int, batch_size: int, process: Process):
        self._batch_size, self._process = batch_size, process
        self._owners = np.empty(length, np.int64)
        for index in range(process.count):
            other = Process(index, process.count, process.multiple, process.devices)
            self._owners[own_positions(length, batch_size, other)] = index

    def parts(self, order: np.ndarray) -> Iterator[Parts]:
        """Yield the parts of each batch of positions in this order, all of one shape."""
        starts = range(0, len(order), self._batch_size)
        tables = [self._places(order[first : first + self._batch_size]) for first in starts]
        longest = max((int(places.max(initial=0)) for _, _, places in tables), default=0) + 1
        # Compiled for each length, so there are few: the powers of two.
        width = min(1 << (longest - 1).bit_length(), self._rows_per_device)
        for sources, targets, places in tables:
            yield self._parts(order, sources, targets, places, width)
            order = order[self._batch_size :]

    @property
    def _rows(self) -> int:
        return len(self._process.rows(self._batch_size))

    @property
    def _rows_per_device(self) -> int:
        return self._rows // self._process.devices

    def _places(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return each row's source process, target device, and place in what that source sends."""
        sources = self._owners[positions]
        targets = np.arange(len(positions)) // self._rows_per_device
        pairs = targets * self._process.count + sources
        places = np.empty(len(positions), np.int64)
        by_pair = np.argsort(pairs, kind="stable")
        ordered = pairs[by_pair]
        firsts = np.flatnonzero(np.diff(ordered, prepend=-1))
        counts = np.diff(firsts, append=len(ordered))
        places[by_pair] = np.arange(len(ordered)) - np.repeat(firsts, counts)
        return sources, targets, places

    def _parts(
        self,
        positions: np.ndarray,
        sources: np.ndarray,
        targets: np.ndarray,
        places: np.ndarray,
        width: int,
    ) -> Parts:
        process = self._process
        send = np.full((process.devices, process.count, width), -1, np.int64)
        mine = np.flatnonzero(sources == process.index)
        processes, devices = np.divmod(targets[mine], process.devices)
        send[devices, processes, places[mine]] = positions[mine]
        take = np.zeros(self._rows, np.int32)
        first = process.index * self._rows
        own = slice(first, min(first + self._rows, len(sources)))
        received = sources[own] * width + places[own]
        take[: len(received)] = received
        return Parts(send, take)


def receive(sent: jax.Array, take: jax.Array, *, axis_name: str, count: int) -> jax.Array:
    """Return this device's rows (R, ...) of a batch, inside of a function mapped over the devices.

    Args:
        sent: (1, P, M, ...), what this device sends to the same device of each process.
        take: (R,), the places of its rows in what it receives.
        axis_name: of the devices, ordered by process.
        count: the number of processes, P.
    """
    devices = lax.axis_size(axis_name) // count
    groups = [[p * devices + d for p in range(count)] for d in range(devices)]
    received = lax.all_to_all(sent[0], axis_name, 0, 0, axis_index_groups=groups)
    return received.reshape(-1, *received.shape[2:])[take]
