"""The settings of how a step runs on the devices; none of them changes what is learned."""

from dataclasses import dataclass
from typing import Literal

from vggjax.data.augment.settings import setting


@dataclass(frozen=True)
class ProcessSettings:
    """Which processes make up a run; `join_processes` sets them to None, and none is saved."""

    coordinator: str | None = setting(None, non_empty=True)
    """With several hosts: HOST:PORT of the first process; None asks the launcher (Slurm, Open MPI,
    TPU), auto lets JAX find it."""
    num_processes: int | None = setting(None, above=0)
    """With --coordinator: the number of processes; None asks the launcher, and 1 alone is a run of
    its own, whatever the launcher started."""
    process_id: int | None = setting(None, at_least=0)
    """With --coordinator: the number of this process, from 0; None asks the launcher."""


@dataclass(frozen=True)
class DeviceSettings(ProcessSettings):
    """How a step runs on the devices."""

    parallel: Literal["jit", "pmap"] = "jit"
    """How to run a step on several devices."""
    devices: int | None = setting(None, above=0)
    """Number of devices to use; None is all of them."""
    shard_fc: int = setting(1, above=0)
    """Split fc1, fc2 ... and their moments over this many devices of each process, fc1 by its
    columns and fc2 by its rows; every device still computes the convolutions of its own images."""
    accumulate: int = setting(1, above=0)
    """Compute a step in this many parts, one after the other, in less memory: the sum of their
    gradients is the whole batch's. Only batch normalization sees each part by itself."""
    remat: bool = False
    """Keep only the outputs of the blocks for the backward pass, which computes the rest again, in
    less memory and more time."""
