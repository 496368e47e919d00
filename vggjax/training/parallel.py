"""The placement of arrays: a mesh of devices with the axes `data` and `model`.

The rows of a batch are split over all devices. Parameters are on every device, but for those of the
fully connected layers, which `shard_fc` splits over `model`: Krizhevsky, "One weird trick for
parallelizing convolutional neural networks" (arXiv:1404.5997), with the pairs of layers of
Megatron-LM (arXiv:1909.08053).

This file and devices/ alone know of devices and processes. `jit` works on global arrays over a
Mesh; `pmap` on arrays with a leading device axis. With several processes each loads its own rows of
every batch (`Placement.process`), and together they form one global array.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Literal

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vggjax.data.loader import Process
from vggjax.errors import ConfigError
from vggjax.training.cache.exchange import receive
from vggjax.training.settings.devices import DeviceSettings

AXIS, MODEL_AXIS = "data", "model"


class Placement:
    """Puts state and batches onto the devices, and compiles functions of them.

    Args:
        kind: `jit` or `pmap`.
        num_devices: use this many devices, the same number of each process; None uses all.
        parts: compute each device's rows in so many parts of equal size.
        shard_fc: the size of the axis `model`, whose devices are neighbors in one process.

    Raises:
        ConfigError: there are fewer devices, or the number does not divide over the processes, or
            the devices of a process not over `shard_fc`.
    """

    def __init__(
        self,
        kind: str = "jit",
        *,
        num_devices: int | None = None,
        parts: int = 1,
        shard_fc: int = 1,
    ):
        self.kind, self.parts, self.shard_fc = kind, parts, shard_fc
        self.devices = _choose_devices(num_devices)
        if self._local_device_count % shard_fc:
            of = " of each process" if jax.process_count() > 1 else ""
            raise ConfigError(
                f"`shard_fc` must divide the number of devices{of}, {self._local_device_count}; "
                f"got {shard_fc}."
            )
        # pmap's own mesh has one axis; with another one it would trace the step again.
        sizes = {AXIS: len(self.devices)}
        if kind == "jit":
            sizes = {AXIS: len(self.devices) // shard_fc, MODEL_AXIS: shard_fc}
        self._mesh = Mesh(np.array(self.devices).reshape(*sizes.values()), tuple(sizes))
        self._axes: Any = tuple(sizes) if kind == "jit" else AXIS
        """What the rows of a batch are split over."""
        self._by_row = NamedSharding(self._mesh, PartitionSpec(self._axes))
        self._replicated = NamedSharding(self._mesh, PartitionSpec())

    @classmethod
    def of(cls, settings: DeviceSettings) -> "Placement":
        """Return the placement of a run."""
        return cls(
            settings.parallel,
            num_devices=settings.devices,
            parts=settings.accumulate,
            shard_fc=settings.shard_fc,
        )

    def __str__(self) -> str:
        """Return the kind and number of the devices, for people: `4 x NVIDIA H100 (gpu)`."""
        device, count = self.devices[0], len(self.devices)
        kind, platform = device.device_kind, device.platform
        name = kind if kind == platform else f"{kind} ({platform})"
        name = f"{count} x {name}" if count > 1 else name
        if self.shard_fc == 1:
            return name
        return (
            f"{name}, mesh of {count // self.shard_fc} data x {self.shard_fc} model: fc layers "
            f"split over {self.shard_fc}"
        )

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
        """Copy a tree of arrays to every device, or its parts where the mesh splits it."""
        if self.kind == "pmap":
            # Sharded as pmap's outputs are: with another sharding it would trace the step again.
            stacked = jax.tree.map(lambda x: np.stack([x] * self._local_device_count), tree)
            put = partial(jax.make_array_from_process_local_data, self._by_row)
            return jax.tree.map(put, stacked)
        # A copy, not an alias: the step donates its state, and the caller may keep using the tree.
        return jax.device_put(tree, self._shardings(tree), may_alias=False)

    def _shardings(self, tree: Any) -> Any:
        """Return the sharding of each array of a state: parameters, moments, averages."""
        place = partial(NamedSharding, self._mesh)
        return jax.tree.map_with_path(lambda path, _: place(_split_of(path)), tree)

    def split_rows(self, x: jax.Array, *, after: str, before: str) -> jax.Array:
        """Split the rows (N, ...) that go from one layer to the next, inside a compiled function.

        Each device computes its own rows, but for the fully connected layers: a pair of them has
        the rows of all devices along `model`, which are gathered before it and summed after it.
        """
        if self.kind == "pmap":
            return x
        place = partial(NamedSharding, self._mesh)
        if _fc_number(after) % 2:  # each device has some of the units
            x = lax.with_sharding_constraint(x, place(PartitionSpec(AXIS, MODEL_AXIS)))
        if _fc_number(before) % 2:
            return lax.with_sharding_constraint(x, place(PartitionSpec(AXIS)))
        return x if _fc_number(before) else lax.with_sharding_constraint(x, self._by_row)

    def put_batch(
        self, batch: dict[str, np.ndarray], *, stack_batches: bool = False
    ) -> dict[str, jax.Array]:
        """Split this process' rows of a batch (B, ...), or stacked batches (size, B, ...)."""
        axis = int(stack_batches)  # of the rows
        by_row = NamedSharding(self._mesh, PartitionSpec(*[None] * axis, self._axes))
        sharding = self._by_row if self.kind == "pmap" else by_row

        def put(rows: np.ndarray) -> jax.Array:
            if self.kind == "pmap":  # the device axis comes first
                shape = (*rows.shape[:axis], self._local_device_count, -1, *rows.shape[axis + 1 :])
                rows = np.moveaxis(rows.reshape(shape), axis, 0)
            return jax.make_array_from_process_local_data(sharding, rows)

        return {name: put(rows) for name, rows in batch.items()}

    def abstract(self, state: Any, batch: Any) -> tuple[Any, Any]:
        """Return shapes and dtypes as those of `put_state` and `put_batch`, to compile for them."""
        count = len(self.devices)

        def place(leaf: Any, shape: tuple[int, ...], sharding: NamedSharding) -> Any:
            if self.kind == "pmap":
                shape, sharding = (count, *shape), self._by_row
            return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=sharding)

        def place_rows(leaf: Any) -> Any:
            rows = leaf.shape[0] // (count if self.kind == "pmap" else 1)
            return place(leaf, (rows, *leaf.shape[1:]), self._by_row)

        shardings = self._shardings(state)
        states = jax.tree.map(lambda leaf, where: place(leaf, leaf.shape, where), state, shardings)
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
        """Copy a state or metrics to numpy; waits for the devices."""

        def get(leaf: Any) -> np.ndarray:
            if self.kind == "pmap":
                return np.array(jax.device_get(leaf.addressable_shards[0].data)[0])
            if leaf.is_fully_replicated or leaf.is_fully_addressable:
                return np.array(jax.device_get(leaf), copy=True)
            whole = np.empty(leaf.shape, leaf.dtype)  # every process has all of its parts
            for shard in leaf.addressable_shards:
                whole[shard.index] = shard.data
            return whole

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

        `donate_state` is for a function that returns the next state and metrics, and lets it reuse
        the state's memory. Where the outputs have the batch's rows, each device keeps its own
        (`rows`), or gets those of all in their order (`all rows`).
        """
        donated = (0,) if donate_state else ()

        def run(state: Any, batch: Any) -> Any:
            return function(state, self._received(batch) if "sent" in batch else batch)

        def run_in_place(state: Any, batch: Any) -> Any:
            state, metrics = run(state, batch)
            return lax.with_sharding_constraint(state, self._shardings(state)), metrics

        if self.kind == "jit":
            jit = partial(jax.jit, run_in_place if donate_state else run, donate_argnums=donated)
            shardings = {"rows": self._by_row, "all rows": self._replicated}
            return jit(out_shardings=shardings[outputs]) if outputs in shardings else jit()

        def gathered(state: Any, batch: Any) -> Any:
            return lax.all_gather(run(state, batch), AXIS, tiled=True)

        mapped = gathered if outputs == "all rows" else run
        return jax.pmap(mapped, axis_name=AXIS, devices=self.devices, donate_argnums=donated)

    def _received(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Return a batch with the `features` that the processes send one another."""
        get = partial(receive, axis_name=self._axes, count=jax.process_count())
        if self.kind == "jit":
            rows = PartitionSpec(self._axes)
            get = jax.shard_map(
                get, mesh=self._mesh, in_specs=(rows, rows), out_specs=rows, check_vma=False
            )
        others = {name: rows for name, rows in batch.items() if name not in ("sent", "take")}
        return others | {"features": get(batch["sent"], batch["take"])}


def _fc_number(layer: str) -> int:
    """Return the number of a fully connected layer, 1 for `fc1`; 0 for any other layer."""
    return int(layer[2:]) if re.fullmatch(r"fc\d+", layer) else 0


def _split_of(path: tuple[Any, ...]) -> PartitionSpec:
    """Return how `shard_fc` splits an array of the state, by its path.

    fc1, fc3 ... by the columns of their kernels, so that each device has some of the units; fc2,
    fc4 ... by the rows, so that it goes on with these units, and their products are summed.
    """
    match = re.search(r"\['(fc\d+)'\]\['(kernel|bias)'\]", jax.tree_util.keystr(path))
    if match is None:
        return PartitionSpec()
    is_kernel = match[2] == "kernel"
    if _fc_number(match[1]) % 2:
        return PartitionSpec(None, MODEL_AXIS) if is_kernel else PartitionSpec(MODEL_AXIS)
    return PartitionSpec(MODEL_AXIS, None) if is_kernel else PartitionSpec()


def simulate_devices(count: int) -> None:
    """Let the CPU stand for so many devices; call it before any other use of jax."""
    with suppress(RuntimeError):  # too late: those that are there stay
        jax.config.update("jax_num_cpu_devices", count)


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
