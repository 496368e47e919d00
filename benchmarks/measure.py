"""How a figure is taken and told: calls in turn, medians, and a row of the table."""

import datetime
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

Call = Callable[[], None]


class Row(NamedTuple):
    """A line of the table: our figure beside the peers', in one unit; less is better."""

    work: str
    unit: str
    ours: float
    peers: dict[str, float]
    """Keras-TF's and PyTorch's; a library that is not installed is left out."""
    aim: float | None
    """The share of the best peer's figure that we may need at most; None where none was set."""

    def cells(self) -> list[str]:
        """Gives the line's cells as text."""
        names = ("Keras-TF", "PyTorch")
        told = [f"{_plain(self.peers[name])}" if name in self.peers else "-" for name in names]
        best = min(self.peers.values(), default=None)
        share = "-" if best is None else f"{self.ours / best:.2g}"
        aim = "-" if self.aim is None else f"{self.aim:g}"
        return [self.work, self.unit, _plain(self.ours), *told, share, aim]


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


HEADINGS = ("work", "unit", "vggjax", "Keras-TF", "PyTorch", "share of the best peer", "aim")


def print_table(rows: Iterable[Row]) -> None:
    """Prints the rows as a Markdown table, each as soon as it is there."""
    print("| " + " | ".join(HEADINGS) + " |\n|" + "---|" * len(HEADINGS), flush=True)
    for row in rows:
        print("| " + " | ".join(row.cells()) + " |", flush=True)


def describe_machine() -> str:
    """Says on what, with what and when, in one line."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        named = next(line.split(": ")[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        named = platform.processor() or platform.machine()
    versions = [f"Python {platform.python_version()}"]
    for name in ("jax", "flax", "tensorflow-cpu", "keras", "torch"):
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores of {named}; {', '.join(versions)}; {datetime.date.today()}."


def in_turn(calls: dict[str, Call | None], *, rounds: int) -> dict[str, float]:
    """Gives each call's median seconds over the rounds, in each of which all take their turn."""
    present = {name: call for name, call in calls.items() if call is not None}
    for call in present.values():
        call()  # compiles
    seconds: dict[str, list[float]] = {name: [] for name in present}
    for _ in range(rounds):
        for name, call in present.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def make_row(
    work: str, unit: str, found: dict[str, float], *, times: float, aim: float | None
) -> Row:
    """Makes a row of `found` seconds by name, `ours` and the peers', each times a factor."""
    scaled = {name: value * times for name, value in found.items()}
    return Row(work, unit, scaled.pop("ours"), scaled, aim)
