"""What the steps of an epoch add up to: sums and speed, without waiting for the devices.

Metrics stay on the devices until somebody asks for them, and are then fetched together: between two
lines of the log the host hands work over and does nothing else.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from vggjax.training.parallel import Placement


class MetricAccumulator:
    """The sums of an epoch's metrics, over examples; `sums` is what was fetched of them so far."""

    def __init__(self, placement: Placement, sums: dict[str, float] | None = None):
        self.sums = dict(sums or {})
        self._placement = placement
        self._pending: list[tuple[int, dict[str, jax.Array]]] = []

    def add(self, steps: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of one step, (), or of the first `steps` of a chunk, (size,)."""
        self._pending.append((steps, metrics))

    def fetch(self) -> dict[str, float]:
        """Adds up what came, and gives the last step's metrics; waits for the devices."""
        counts = [steps for steps, _ in self._pending]
        fetched = self._placement.fetch([metrics for _, metrics in self._pending])
        self._pending.clear()
        last: dict[str, float] = {}
        for steps, metrics in zip(counts, fetched, strict=True):
            for name, values in metrics.items():
                # One by one: the sum is the same however the steps were handed over.
                for value in np.atleast_1d(values)[:steps].tolist():
                    self.sums[name] = self.sums.get(name, 0.0) + value
                    last[name] = value
        return last


class Program:
    """A step's compiled function: the first call compiles, and `say` is told how long it took.

    Nothing but its arguments may reach the devices, which would make the host wait.
    """

    def __init__(self, step: Callable[..., Any], say: Callable[[str], None] | None = None):
        self._step, self._say = step, say
        self.compile_s: float | None = None

    def __call__(self, state: Any, batch: dict[str, jax.Array]) -> Any:
        """Runs the step."""
        begin_s = time.monotonic()
        with jax.transfer_guard("disallow"):
            outputs = self._step(state, batch)
        if self.compile_s is None:  # what it computes goes on behind the call
            self.compile_s = time.monotonic() - begin_s
            if self._say is not None:
                self._say(f"compiled in {self.compile_s:.1f} s")
        return outputs


class Clock:
    """An epoch's seconds, and its images per second without those that compile."""

    def __init__(self, program: Program):
        self._program, self._compiled_before = program, program.compile_s is not None
        self._begin_s, self._images = time.monotonic(), 0

    def tick(self, images: int) -> None:
        """Counts images that were handed over."""
        self._images += images

    def seconds(self) -> float:
        """Gives the seconds since the epoch began."""
        return round(time.monotonic() - self._begin_s, 2)

    def images_per_s(self) -> float:
        """Gives the speed so far, where the devices have just been waited for."""
        seconds = time.monotonic() - self._begin_s
        if not self._compiled_before:
            seconds -= self._program.compile_s or 0.0
        return round(self._images / max(seconds, 1e-6), 1)
