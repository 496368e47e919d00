"""The memory that a train step takes of each device, by the compiler's own account.

The step of a run's last stage, in which the most layers train, is compiled for a number of images
and never run: `memory_analysis` says what it needs. That number is nearly linear in the images, so
two compilations show about how many fit, and a third one proves it.
"""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx

from vggjax.errors import ConfigError
from vggjax.models.network import Network
from vggjax.training.config import Config
from vggjax.training.freezing import label_layers, make_optimizer, make_schedules, plan_stages
from vggjax.training.parallel import Placement
from vggjax.training.step import make_state, make_train_step

MOST_IMAGES = 256
"""Images of each device beyond which `batch_size` auto does not go: no faster on any device."""

SHARE = 0.9
"""Of a device's memory, for the step; the rest is for batches that wait and what else is there."""


class StepMemory(NamedTuple):
    """What a compiled step takes of each device, in bytes."""

    state: int
    """Parameters, statistics, moments and the batch, whose memory the new state takes over."""
    workspace: int
    """Activations, gradients and what else the step computes in between."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.state + self.workspace


def compiled_memory(step: Callable[..., Any], *arguments: Any) -> StepMemory:
    """Compile a step for arguments, which may be abstract, and return the memory that it takes."""
    return memory_of(step.lower(*arguments).compile())  # type: ignore[attr-defined]


def memory_of(compiled: Any) -> StepMemory:
    """Return the compiler's own account of the memory that a compiled step takes."""
    analysis = compiled.memory_analysis()
    arrays = analysis.argument_size_in_bytes + analysis.output_size_in_bytes
    return StepMemory(arrays - analysis.alias_size_in_bytes, analysis.temp_size_in_bytes)


def step_memory(
    config: Config, model: Network, placement: Placement, batch_size: int
) -> StepMemory:
    """Return what the train step of a run's last stage takes of each device.

    `model` may be abstract, of `nnx.eval_shape`. Augmentation is left out: it takes little.
    """
    return compiled_memory(*abstract_step(config, model, placement, batch_size))


def abstract_step(
    config: Config, model: Network, placement: Placement, batch_size: int
) -> tuple[Callable[..., Any], Any, Any]:
    """Return the train step of a run's last stage, and an abstract state and batch for it."""
    stage = plan_stages(config)[-1]
    labels = label_layers(model, stage.unfreeze, by_block=config.layer_decay != 1)
    tx = make_optimizer(config, labels, make_schedules(config, stage, 100))
    step = make_train_step(
        model,
        tx,
        labels,
        placement=placement,
        mode=config.preprocessing.mode,
        ema=config.ema,
        remat=config.remat,
    )
    rows = -(-batch_size // placement.row_multiple) * placement.row_multiple
    size = config.image_size
    kinds = {"images": ((rows, size, size, 3), "uint8"), "label": ((rows,), "int32")}
    kinds |= {"mask": ((rows,), "float32"), "index": ((rows,), "int32")}
    batch = {name: jax.ShapeDtypeStruct(*kind) for name, kind in kinds.items()}
    state = jax.eval_shape(lambda: make_state(model, tx, labels, ema=config.ema))
    return step, *placement.abstract(state, batch)


def find_batch_size(
    config: Config, model: Network, placement: Placement, *, most: int
) -> tuple[int, StepMemory]:
    """Return the largest batch of at most `most` images that fits, and the memory it takes.

    It has as many images for each device: a power of two, or up to `most` if all fit.

    Raises:
        ConfigError: the memory of a device is unknown, or a single image of each takes more.
    """
    limit, devices = memory_limit(), len(placement.devices)
    if limit is None:
        raise ConfigError(
            "`batch_size` auto needs the memory of a device, which this one does not tell; give a "
            "number, such as 32."
        )
    allowed = int(SHARE * limit)
    abstract = nnx.eval_shape(lambda: model) if not _is_abstract(model) else model
    small, large = (step_memory(config, abstract, placement, n * devices) for n in (4, 8))
    slope = max(1, (large.total - small.total) / 4)
    fitting = int((allowed - small.total) / slope) + 4
    each = 1 << max(0, min(fitting, MOST_IMAGES).bit_length() - 1)
    while True:
        batch_size = min(each * devices, most)
        memory = step_memory(config, abstract, placement, batch_size)
        if memory.total <= allowed:
            return batch_size, memory
        if each == 1:
            raise ConfigError(
                f"A step of one image on each device takes {memory.total / 1e6:,.0f} MB; a device "
                f"has {limit / 1e6:,.0f} MB. Lower `image_size`, unfreeze less, or set `remat`."
            )
        each //= 2


def _is_abstract(model: Network) -> bool:
    leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
    return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)


def describe_shortage(step: Any, state: Any, batch: dict[str, jax.Array]) -> str:
    """Return what to do where a step has run out of memory: the largest batch that would fit.

    It is halved until the compiled step's own account of its memory fits the device.
    """
    rows = batch["mask"].shape[-1]
    text, limit, size = f"Out of memory in a step of {rows} images.", memory_limit(), rows
    while limit and size % 2 == 0:
        size //= 2
        try:
            needed = compiled_memory(step, _abstract(state), _resized(batch, size)).total
        except Exception:  # a backend without the account, or one that cannot compile it either
            break
        if needed <= SHARE * limit:
            return (
                f"{text} `batch_size` {size} would fit: it needs {needed / 1e6:,.0f} MB of "
                f"{limit / 1e6:,.0f} MB."
            )
    return f"{text} A smaller `batch_size` or `image_size` takes less, and so does `remat`."


def _abstract(state: Any) -> Any:
    """Return the shapes of a state, whose memory the step may have taken over."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )


def _resized(batch: dict[str, jax.Array], rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    axis = batch["mask"].ndim - 1

    def resized(leaf: jax.Array) -> jax.ShapeDtypeStruct:
        shape = (*leaf.shape[:axis], rows, *leaf.shape[axis + 1 :])
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=leaf.sharding)

    return jax.tree.map(resized, batch)


def memory_limit() -> int | None:
    """Return the bytes that a device may use; None if unknown.

    Of a CPU these are the machine's, or what `ulimit -v` leaves to this process if that is less.
    """
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return None
    return min(total, _left_by_ulimit(total)) // jax.local_device_count()


def _left_by_ulimit(total: int) -> int:
    import resource  # not on Windows

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY or not os.path.exists("/proc/self/statm"):
        return total
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    return max(0, limit - used)
