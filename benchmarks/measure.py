"""Take a figure and print it: calls timed in turn, their medians, and rows of a table."""

import argparse
import datetime
import importlib.metadata
import inspect
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

Call = Callable[[], object]


class Row(NamedTuple):
    """One line of the table: our figure beside the peers' in one unit; less is better."""

    work: str
    unit: str
    vggjax: float
    peers: dict[str, float]
    """Peer with its settings -> figure, without those that are not installed: `Keras-TF`,
    `Keras-TF bfloat16`, `Keras-JAX`, `PyTorch`, `PyTorch compiled` ..., and `vggjax bfloat16`."""
    aim: float | None
    """The largest share of the best peer's figure that was aimed at, if any."""

    def cells(self) -> list[str]:
        """Return the cells of the line as text."""
        cells = [self.work, self.unit]
        for in_bfloat16, own in ((False, self.vggjax), (True, self.peers.get("vggjax bfloat16"))):
            peers = {
                name: value
                for name, value in self.peers.items()
                if ("bfloat16" in name) is in_bfloat16 and not name.startswith("vggjax")
            }
            cells.append("-" if own is None else _format(own))
            cells += [_best_of(library, peers) for library in ("Keras", "PyTorch")]
            best = min(peers.values(), default=None)
            cells.append("-" if best is None or own is None else f"{own / best:.2g}")
        return [*cells, "-" if self.aim is None else f"{self.aim:g}"]


def _best_of(library: str, peers: Mapping[str, float]) -> str:
    """Return the least figure of a library, and the settings that it has it with."""
    own = {name: value for name, value in peers.items() if name.startswith(library)}
    if not own:
        return "-"
    name = min(own, key=own.__getitem__)
    settings = name.removeprefix(library).replace("bfloat16", "").strip("-, ")
    return _format(own[name]) + (f" ({settings})" if settings else "")


def _format(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


HEADINGS = (
    "work", "unit", "vggjax", "Keras", "PyTorch", "share of the best", "vggjax bfloat16",
    "Keras bfloat16", "PyTorch bfloat16", "share of the best", "aim",
)  # fmt: skip


def print_table(rows: Iterable[Row]) -> None:
    """Print the rows as a Markdown table, each one when it is ready."""
    print("| " + " | ".join(HEADINGS) + " |\n|" + "---|" * len(HEADINGS), flush=True)
    for row in rows:
        print("| " + " | ".join(row.cells()) + " |", flush=True)


def print_measure(doc: str, measure: Callable[..., Iterable[Row]]) -> None:
    """Print the rows of `measure`; each of its keyword arguments is a flag."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    for name, parameter in inspect.signature(measure).parameters.items():
        default = parameter.default
        many = isinstance(default, tuple)
        kind = Path if default is None else type(default[0] if many else default)
        nargs = "+" if many else None
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, nargs=nargs, default=default)
    print_table(measure(**vars(parser.parse_args())))


def describe_processor() -> str:
    """Return the number of usable cores and the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(": ")[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor() or platform.machine()
    count = len(os.sched_getaffinity(0))
    return f"{count} core{'s' * (count != 1)} of {processor}"


def describe_instructions() -> str:
    """Return the vector and matrix instructions that speed depends on, as Linux names them."""
    try:
        flags = set(re.findall(r"\w+", Path("/proc/cpuinfo").read_text().partition("\nflags")[2]))
    except OSError:
        flags = set()
    names = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "asimd")
    return " ".join(name for name in names if name in flags) or "instruction set unknown"


def describe_machine() -> str:
    """Return the cores, the processor, its instructions, versions and the date on one line."""
    versions = [f"Python {platform.python_version()}"]
    for name in ("jax", "flax", "tensorflow-cpu", "keras", "torch"):
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    machine = f"{describe_processor()}; {describe_instructions()}"
    load = f"load {os.getloadavg()[0]:.0f}"
    return f"{machine}; {', '.join(versions)}; {datetime.date.today()}, {load}."


class Usage(NamedTuple):
    """What a process took."""

    wall_s: float
    cpu_s: float
    """Of all its threads."""
    peak_mb: float
    """Its largest resident set, libraries included."""


def run_process(arguments: list[str], *, output: Path | None = None) -> Usage:
    """Run a process to its end, with what it prints in a file, or nowhere.

    Raises:
        SystemExit: it failed.
    """
    # Another interpreter has packages of its own.
    own = [str(Path(__file__).parents[1])]
    paths = filter(None, sys.path) if arguments[0] == sys.executable else own
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    begin_s = time.perf_counter()
    with open(output or os.devnull, "w") as file:
        stderr = None if output is None else subprocess.STDOUT
        process = subprocess.Popen(arguments, stdout=file, stderr=stderr, env=environment)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
    process.returncode = os.waitstatus_to_exitcode(status)
    wall_s = time.perf_counter() - begin_s
    if process.returncode not in (0, 3):  # 3: done, without a few images
        raise SystemExit(f"{' '.join(arguments)} ended with {process.returncode}; see {output}")
    peak_mb = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return Usage(wall_s, usage.ru_utime + usage.ru_stime, peak_mb)


def time_in_turn(calls: Mapping[str, Call | None], *, rounds: int) -> dict[str, float]:
    """Return each call's median seconds over rounds in which all take turns; skip None."""
    return time_by_both_clocks(calls, rounds=rounds)[""]


def time_by_both_clocks(
    calls: Mapping[str, Call | None], *, rounds: int
) -> dict[str, dict[str, float]]:
    """Return the medians of `time_in_turn` by the wall's clock, "", and of the processor's seconds.

    "processor " counts all threads of this process; a call that another one computes is left out.
    """
    present = {name: call for name, call in calls.items() if call is not None}
    for call in present.values():
        call()  # compiles
    seconds: dict[str, dict[str, list[float]]] = {"": {}, "processor ": {}}
    for _ in range(rounds):
        for name, call in present.items():
            begin_s, processor_begin_s = time.perf_counter(), _processor_s()
            call()
            processor_s, wall_s = _processor_s() - processor_begin_s, time.perf_counter() - begin_s
            seconds[""].setdefault(name, []).append(wall_s)
            if not hasattr(call, "in_other_process"):
                seconds["processor "].setdefault(name, []).append(processor_s)
    return {
        clock: {name: statistics.median(values) for name, values in by_name.items()}
        for clock, by_name in seconds.items()
    }


def _processor_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def make_row(
    work: str, unit: str, seconds: Mapping[str, float], *, factor: float, aim: float | None
) -> Row:
    """Return the row of the seconds of `vggjax` and its peers, each times `factor`."""
    scaled = {name: value * factor for name, value in seconds.items()}
    return Row(work, unit, scaled.pop("vggjax"), scaled, aim)
