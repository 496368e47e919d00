"""Where arrays lie: one axis `data` over all devices, batch split along it, parameters on each.

The only file that knows of devices and processes. `jit` works on global arrays over a Mesh; `pmap`
on arrays with a leading device axis, for those who still need it. Every process makes the same
batches and hands over its own rows.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vggjax.errors import ConfigError

AXIS = "data"


class Placement:
    """Puts state and batches onto the devices, and compiles functions of them."""

    def __init__(self, kind: str = "jit", *, devices: list[jax.Device] | None = None):
        self.kind = kind
        self.devices = jax.devices() if devices is None else devices
        self._mesh = Mesh(np.array(self.devices), (AXIS,))

    @property
    def axis_name(self) -> str | None:
        """The axis to reduce over by hand: pmap's; jit reduces by itself."""
        return AXIS if self.kind == "pmap" else None

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
            copy = jax.pmap(lambda leaf: leaf, devices=self.devices)
            count = (len(self.devices),)
            stacked = jax.tree.map(lambda x: np.broadcast_to(x, count + np.shape(x)), tree)
            return copy(stacked)
        # A copy, not an alias: the step donates its state, and the caller may go on using the tree.
        replicated = NamedSharding(self._mesh, PartitionSpec())
        return jax.device_put(tree, replicated, may_alias=False)

    def put_batch(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Splits a global batch over the devices; each process hands over its own rows."""
        processes, process = jax.process_count(), jax.process_index()

        def put(rows: np.ndarray) -> jax.Array:
            share = len(rows) // processes
            rows = rows[process * share : (process + 1) * share]
            if self.kind == "pmap":
                return rows.reshape(len(self.devices) // processes, -1, *rows.shape[1:])
            split = NamedSharding(self._mesh, PartitionSpec(AXIS))
            return jax.make_array_from_process_local_data(split, rows)

        return {name: put(rows) for name, rows in batch.items()}

    def fetch(self, tree: Any) -> Any:
        """Copies a replicated tree back to numpy; waits for the devices."""
        if self.kind == "pmap":
            tree = jax.tree.map(lambda leaf: leaf[0], tree)
        return jax.tree.map(lambda leaf: np.array(leaf, copy=True), tree)

    def compile(self, function: Callable, *, donate_state: bool = False) -> Callable:
        """Compiles `function(state, batch)`; `donate_state` lets it overwrite the state."""
        donated = (0,) if donate_state else ()
        if self.kind == "pmap":
            return jax.pmap(function, axis_name=AXIS, devices=self.devices, donate_argnums=donated)
        return jax.jit(function, donate_argnums=donated)
