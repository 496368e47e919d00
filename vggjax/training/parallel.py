"""Where arrays lie: one axis `data` over all devices, batch split along it, parameters on each.

The only file that knows of devices and processes. `jit` works on global arrays over a Mesh; `pmap`
on arrays with a leading device axis, for those who still need it. Of several processes each makes
its own rows of every batch (`process`) and hands them over; together they are one array.
"""

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vggjax.errors import ConfigError

AXIS = "data"


class Placement:
    """Puts state and batches onto the devices, and compiles functions of them."""

    def __init__(self, kind: str = "jit", *, devices: list[jax.Device] | None = None):
        self.kind = kind
        devices = jax.devices() if devices is None else devices
        # By process, so that a process' rows are neighbors, in the order of the processes.
        self.devices = sorted(devices, key=lambda device: device.process_index)
        self._mesh = Mesh(np.array(self.devices), (AXIS,))

    @property
    def axis_name(self) -> str | None:
        """The axis to reduce over by hand: pmap's; jit reduces by itself."""
        return AXIS if self.kind == "pmap" else None

    @property
    def process(self) -> tuple[int, int]:
        """Which process this is, of how many: what `SplitLoader.batches` takes."""
        return jax.process_index(), jax.process_count()

    @property
    def _devices_here(self) -> int:
        return len(self.devices) // self.process[1]

    def check_batch_size(self, batch_size: int) -> None:
        """Refuses a batch that does not divide over the devices.

        Raises:
            ConfigError: with the nearest sizes that do.
        """
        count = len(self.devices)
        if batch_size % count:
            low, high = batch_size // count * count, (batch_size // count + 1) * count
            fits = " or ".join(str(size) for size in (low, high) if size)
            raise ConfigError(
                f"--batch-size {batch_size} does not divide over {count} devices; use {fits}."
            )

    def put_state(self, tree: Any) -> Any:
        """Copies a tree of arrays to every device."""
        if self.kind == "pmap":
            # Laid as pmap lays its outputs: it would trace a step anew for state of another mesh.
            split = NamedSharding(self._mesh, PartitionSpec(AXIS))
            stacked = jax.tree.map(lambda x: np.stack([x] * self._devices_here), tree)
            put = partial(jax.make_array_from_process_local_data, split)
            return jax.tree.map(put, stacked)
        # A copy, not an alias: the step donates its state, and the caller may go on using the tree.
        replicated = NamedSharding(self._mesh, PartitionSpec())
        return jax.device_put(tree, replicated, may_alias=False)

    def put_batch(
        self, batch: dict[str, np.ndarray], *, stack_batches: bool = False
    ) -> dict[str, jax.Array]:
        """Splits a batch over the devices: all its rows, or of several processes each its own.

        Of a chunk, (size, B, ...), each of its batches.
        """
        first = PartitionSpec(None, AXIS) if stack_batches else PartitionSpec(AXIS)

        def put(rows: np.ndarray) -> jax.Array:
            if self.kind == "pmap":  # the devices' axis first
                size = rows.shape[:1] if stack_batches else ()
                rows = rows.reshape(*size, self._devices_here, -1, *rows.shape[1 + stack_batches :])
                rows = np.moveaxis(rows, int(stack_batches), 0)
            split = PartitionSpec(AXIS) if self.kind == "pmap" else first
            return jax.make_array_from_process_local_data(NamedSharding(self._mesh, split), rows)

        return {name: put(rows) for name, rows in batch.items()}

    def fetch(self, tree: Any) -> Any:
        """Copies a replicated tree back to numpy; waits for the devices."""

        def get(leaf: Any) -> np.ndarray:
            if self.kind == "pmap":
                return np.array(jax.device_get(leaf.addressable_shards[0].data)[0])
            return np.array(jax.device_get(leaf), copy=True)

        return jax.tree.map(get, tree)

    def compile(
        self, function: Callable, *, donate_state: bool = False, gather: bool = False
    ) -> Callable:
        """Compiles `function(state, batch)`; `donate_state` lets it overwrite the state.

        `gather` copies the rows of the outputs, one device's behind the other's, to every device.
        """
        donated = (0,) if donate_state else ()
        if self.kind == "pmap":

            def gathered(state: Any, batch: Any) -> Any:
                outputs = function(state, batch)
                return jax.tree.map(lambda x: lax.all_gather(x, AXIS, tiled=True), outputs)

            return jax.pmap(
                gathered if gather else function,
                axis_name=AXIS,
                devices=self.devices,
                donate_argnums=donated,
            )
        replicated = NamedSharding(self._mesh, PartitionSpec())
        outputs = {"out_shardings": replicated} if gather else {}
        return jax.jit(function, donate_argnums=donated, **outputs)


def leave(code: int) -> None:
    """Ends this process at once if it is one of several; else does nothing.

    For one that gave up: an orderly end would wait for the others, which wait for its rows. Then
    jax.distributed ends them too, within its heartbeat's 100 seconds, with code 134.
    """
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
