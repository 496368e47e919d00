"""The placement of arrays: one axis `data` over the devices splits batches, not the rest.

This file and devices/ alone know of devices and processes. `jit` works on global arrays over a
Mesh; `pmap` on arrays with a leading device axis. With several processes each loads its own rows of
every batch (`Placement.process`), and together they form one global array.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vggjax.data.loader import Process
from vggjax.errors import ConfigError
from vggjax.training.cache.exchange import receive

AXIS = "data"


class Placement:
    """Puts state and batches onto the devices, and compiles functions of them.

    Args:
        kind: `jit` or `pmap`.
        num_devices: use this many devices, the same number of each process; None uses all.
        parts: compute each device's rows in so many parts of equal size.

    Raises:
        ConfigError: there are fewer devices, or the number does not divide over the processes.
    """

    def __init__(self, kind: str = "jit", *, num_devices: int | None = None, parts: int = 1):
        self.kind, self.parts = kind, parts
        self.devices = _choose_devices(num_devices)
        self._mesh = Mesh(np.array(self.devices), (AXIS,))
        self._replicated = NamedSharding(self._mesh, PartitionSpec())

    def __str__(self) -> str:
        """Return the kind and number of the devices, for people: `4 x NVIDIA H100 (gpu)`."""
        device, count = self.devices[0], len(self.devices)
        kind, platform = device.device_kind, device.platform
        name = kind if kind == platform else f"{kind} ({platform})"
        return f"{count} x {name}" if count > 1 else name

    @property
    def axis_name(self) -> str | None:
        """The axis to reduce over explicitly: pmap's; jit reduces by itself."""
        return AXIS if self.kind == "pmap" else None

    @property
    def process(self) -> Process:
        """This process, as `SplitLoader.batches` takes it."""
        devices = self._local_device_count
        return Process(jax.process_index(), jax.process_count(), devices * self.parts, devices)

    @property
    def row_multiple(self) -> int:
        """What the number of rows of a batch, with its padding, is a multiple of."""
        return len(self.devices) * self.parts

    @property
    def _local_device_count(self) -> int:
        return len(self.devices) // jax.process_count()

    def sum(self, tree: Any) -> Any:
        """Sum a tree over the devices, inside a compiled function; jit's sums are whole already."""
        return lax.psum(tree, AXIS) if self.kind == "pmap" else tree

    def put_state(self, tree: Any) -> Any:
        """Copy a tree of arrays to every device."""
        if self.kind == "pmap":
            # Sharded as pmap's outputs are: with another sharding it would trace the step again.
            sharding = NamedSharding(self._mesh, PartitionSpec(AXIS))
            stacked = jax.tree.map(lambda x: np.stack([x] * self._local_device_count), tree)
            put = partial(jax.make_array_from_process_local_data, sharding)
            return jax.tree.map(put, stacked)
        # A copy, not an alias: the step donates its state, and the caller may keep using the tree.
        return jax.device_put(tree, self._replicated, may_alias=False)

    def put_batch(
        self, batch: dict[str, np.ndarray], *, stack_batches: bool = False
    ) -> dict[str, jax.Array]:
        """Split this process' rows of a batch (B, ...), or stacked batches (size, B, ...)."""
        axis = int(stack_batches)  # of the rows
        by_row = PartitionSpec(*[None] * axis, AXIS)
        sharding = NamedSharding(self._mesh, PartitionSpec(AXIS) if self.kind == "pmap" else by_row)

        def put(rows: np.ndarray) -> jax.Array:
            if self.kind == "pmap":  # the device axis comes first
                shape = (*rows.shape[:axis], self._local_device_count, -1, *rows.shape[axis + 1 :])
                rows = np.moveaxis(rows.reshape(shape), axis, 0)
            return jax.make_array_from_process_local_data(sharding, rows)

        return {name: put(rows) for name, rows in batch.items()}

    def abstract(self, state: Any, batch: Any) -> tuple[Any, Any]:
        """Return shapes and dtypes as those of `put_state` and `put_batch`, to compile for them."""
        count = len(self.devices)
        by_device = NamedSharding(self._mesh, PartitionSpec(AXIS))

        def place(leaf: Any, shape: tuple[int, ...], sharding: NamedSharding) -> Any:
            if self.kind == "pmap":
                shape, sharding = (count, *shape), by_device
            return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=sharding)

        def place_rows(leaf: Any) -> Any:
            rows = leaf.shape[0] // (count if self.kind == "pmap" else 1)
            return place(leaf, (rows, *leaf.shape[1:]), by_device)

        states = jax.tree.map(lambda leaf: place(leaf, leaf.shape, self._replicated), state)
        return states, jax.tree.map(place_rows, batch)

    def precision(self, dtype: str) -> str:
        """Return the compute dtype, and what else the devices do to products, for people."""
        device = self.devices[0]
        chosen = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
        if dtype == "bfloat16":
            return "bfloat16; parameters, loss, statistics and softmax in float32"
        if chosen is None and device.platform == "gpu" and _has_tf32(device):
            return "float32, products in TF32 (JAX_DEFAULT_MATMUL_PRECISION=highest: in float32)"
        if chosen is None and device.platform == "tpu":
            return (
                "float32, products in bfloat16 (JAX_DEFAULT_MATMUL_PRECISION=highest: in float32)"
            )
        return dtype

    def fetch(self, tree: Any) -> Any:
        """Copy a replicated tree to numpy; waits for the devices."""

        def get(leaf: Any) -> np.ndarray:
            if self.kind == "pmap":
                return np.array(jax.device_get(leaf.addressable_shards[0].data)[0])
            return np.array(jax.device_get(leaf), copy=True)

        return jax.tree.map(get, tree)

    def fetch_rows(self, tree: Any) -> Any:
        """Copy the rows (R, ...) of this process' devices to numpy; waits for the devices."""

        def get(leaf: jax.Array) -> np.ndarray:
            shards = sorted(leaf.addressable_shards, key=lambda shard: shard.index[0].start or 0)
            rows = [np.asarray(shard.data) for shard in shards]
            return np.concatenate([row[0] for row in rows] if self.kind == "pmap" else rows)

        return jax.tree.map(get, tree)

    def compile(
        self,
        function: Callable[..., Any],
        *,
        donate_state: bool = False,
        outputs: Literal["any", "rows", "all rows"] = "any",
    ) -> Callable[..., Any]:
        """Compile `function(state, batch)`.

        `donate_state` lets it reuse the state's memory. Where the outputs have the batch's rows,
        each device keeps its own (`rows`), or gets those of all in their order (`all rows`).
        """
        donated = (0,) if donate_state else ()

        def run(state: Any, batch: Any) -> Any:
            return function(state, self._received(batch) if "sent" in batch else batch)

        if self.kind == "jit":
            jit = partial(jax.jit, run, donate_argnums=donated)
            by_row = NamedSharding(self._mesh, PartitionSpec(AXIS))
            shardings = {"rows": by_row, "all rows": self._replicated}
            return jit(out_shardings=shardings[outputs]) if outputs in shardings else jit()

        def gathered(state: Any, batch: Any) -> Any:
            return lax.all_gather(run(state, batch), AXIS, tiled=True)

        mapped = gathered if outputs == "all rows" else run
        return jax.pmap(mapped, axis_name=AXIS, devices=self.devices, donate_argnums=donated)

    def _received(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Return a batch with the `features` that the processes send one another."""
        get = partial(receive, axis_name=AXIS, count=jax.process_count())
        if self.kind == "jit":
            rows = PartitionSpec(AXIS)
            get = jax.shard_map(
                get, mesh=self._mesh, in_specs=(rows, rows), out_specs=rows, check_vma=False
            )
        others = {name: rows for name, rows in batch.items() if name not in ("sent", "take")}
        return others | {"features": get(batch["sent"], batch["take"])}


def default_dtype() -> str:
    """Return the compute dtype of the devices' matrix units: float32 on CPUs, else bfloat16."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def _has_tf32(device: jax.Device) -> bool:
    """Return whether a GPU rounds the factors of float32 products, as NVIDIA's since Ampere do."""
    capability = getattr(device, "compute_capability", "")
    major = str(capability).partition(".")[0]
    return major.isdecimal() and int(major) >= 8 and "NVIDIA" in device.device_kind


def _choose_devices(num_devices: int | None) -> list[jax.Device]:
    """Return the devices, ordered by process, so that the rows of a process are neighbors."""
    devices = sorted(jax.devices(), key=lambda device: device.process_index)
    if num_devices is None:
        return devices
    if not 1 <= num_devices <= len(devices):
        raise ConfigError(
            f"`devices` must be from 1 to {len(devices)}, as many as there are; got {num_devices}."
        )
    processes = jax.process_count()
    if num_devices % processes:
        raise ConfigError(
            f"`devices` must be a multiple of the {processes} processes; got {num_devices}."
        )
    each, chosen = num_devices // processes, []
    for process in range(processes):
        chosen += [device for device in devices if device.process_index == process][:each]
    return chosen
