"""The settings of how a step runs on the devices; none of them changes what is learned."""

from dataclasses import dataclass
from typing import Literal

from vggjax.data.augment.settings import setting


@dataclass(frozen=True)
class DeviceSettings:
    """How a step runs on the devices."""

    parallel: Literal["jit", "pmap"] = "jit"
    """How to run a step on several devices."""
    devices: int | None = setting(None, above=0)
    """Number of devices to use; None is all of them."""
    accumulate: int = setting(1, above=0)
    """Compute a step in this many parts, one after the other, in less memory: the sum of their
    gradients is the whole batch's. Only batch normalization sees each part by itself."""
    remat: bool = False
    """Keep only the outputs of the blocks for the backward pass, which computes the rest again, in
    less memory and more time."""
