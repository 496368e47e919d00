"""The processes of one run: joining them, and what the first of them does for all.

A run on several hosts is the same command in each process. Each reads its own rows of every batch;
the first alone uses the run folder and prints. What it reads or decides, the others get from it
(`on_first`), so that they need the dataset and the weights, but not the run folder. Every process
must make the same calls of this module, in the same order: they wait for one another.
"""

import dataclasses
import os
import pickle
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from vggjax.errors import ConfigError, VggjaxError
from vggjax.training.settings.devices import ProcessSettings

S = TypeVar("S", bound=ProcessSettings)
T = TypeVar("T")

HEARTBEAT_S = 30
"""Seconds without a sign of life after which a process counts as dead, and the others end."""

_COUNTS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
_INDICES = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID", "JOB_COMPLETION_INDEX")
"""Environment variables of launchers (Open MPI, MPICH, Slurm; Kubernetes' indexed Job)."""


def join_processes(settings: S, *, environ: Mapping[str, str] = os.environ) -> S:
    """Join the processes of the run, as the settings or the launcher's environment say.

    Return the settings without these. Call it before any other use of jax. It does nothing for a
    process alone, and for processes that have joined already.

    Raises:
        ConfigError: settings that do not fit one another, or the others cannot be reached.
    """
    others = dataclasses.replace(settings, coordinator=None, num_processes=None, process_id=None)
    arguments = find_processes(settings, environ)
    if arguments is None or jax.distributed.is_initialized():
        return others
    # Signals are ours: the first one saves and ends the run (see signals.py).
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=HEARTBEAT_S)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"The other processes of the run cannot be reached: {str(error).splitlines()[0]} "
            "Give `coordinator` HOST:PORT of the first process, `num_processes` and `process_id`."
        ) from None
    sys.stdout.flush()
    printing = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    on_first(lambda: None)  # the libraries under jax print their connections
    if is_first():  # which prints for all
        os.dup2(printing, 1)
    _check_same(others)
    return others


def _check_same(settings: ProcessSettings) -> None:
    """Raise ConfigError in a process whose settings are not the first one's."""
    first = on_first(lambda: dataclasses.asdict(settings))
    own = dataclasses.asdict(settings)
    for name in [name for name in first if own[name] != first[name]]:
        raise ConfigError(
            f"The processes of a run need the same settings; `{name}` is {first[name]!r} in the "
            f"first one and {own[name]!r} in number {jax.process_index()}. For a run of its own in "
            "each process of a launcher, set `num_processes` 1."
        )


def find_processes(settings: ProcessSettings, environ: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the arguments of `jax.distributed.initialize`; None for a process alone.

    Raises:
        ConfigError: settings that do not fit one another.
    """
    address, count, index = settings.coordinator, settings.num_processes, settings.process_id
    if address is None and count == 1 and not index:
        return None
    if address is None:
        for name, value in (("num_processes", count), ("process_id", index)):
            if value is not None:
                raise ConfigError(
                    f"`{name}` {value} needs `coordinator`, HOST:PORT of the first process."
                )
        hosts = environ.get("TPU_WORKER_HOSTNAMES", "")
        started = [int(environ[name]) for name in _COUNTS if environ.get(name, "").isdecimal()]
        return {} if "," in hosts or any(number > 1 for number in started) else None
    if address == "auto":  # a TPU pod, or whatever else jax knows
        return {}
    if not address.rpartition(":")[0] or not address.rpartition(":")[2].isdecimal():
        raise ConfigError(
            f"`coordinator` must be HOST:PORT of the first process, or auto; got {address!r}."
        )
    count = _from_launcher(environ, _COUNTS) if count is None else count
    index = _from_launcher(environ, _INDICES) if index is None else index
    if count is None or index is None:
        name = "num_processes" if count is None else "process_id"
        raise ConfigError(f"`coordinator` {address} needs `{name}`, which no launcher states.")
    if index >= count:
        raise ConfigError(
            f"`process_id` must be below `num_processes`, {count}; got {index}. They count from 0."
        )
    return {"coordinator_address": address, "num_processes": count, "process_id": index}


def _from_launcher(environ: Mapping[str, str], names: tuple[str, ...]) -> int | None:
    values = [environ[name] for name in names if environ.get(name, "").isdecimal()]
    return int(values[0]) if values else None


def num_processes() -> int:
    """Return the number of processes of the run."""
    return jax.process_count()


def is_first() -> bool:
    """Return whether this process is the one that uses the run folder and prints."""
    return jax.process_index() == 0


def on_first(call: Callable[[], T]) -> T:
    """Return what `call()` returns in the first process, in every process.

    Raises:
        VggjaxError: `call` raised it; of all processes only the first one prints it.
    """
    if num_processes() == 1:
        return call()
    if not is_first():
        value, error = pickle.loads(_broadcast(b""))
        if error is not None:
            error.is_printed_elsewhere = True
            raise error
        return value
    try:
        value = call()
    except VggjaxError as error:
        _broadcast(pickle.dumps((None, error)))
        raise
    except Exception:
        _broadcast(pickle.dumps((None, VggjaxError("The first process of the run has failed."))))
        raise
    _broadcast(pickle.dumps((value, None), protocol=pickle.HIGHEST_PROTOCOL))
    return value


@contextmanager
def held_by_first(make: Callable[[], AbstractContextManager[T]]) -> Iterator[T | None]:
    """Enter a context in the first process alone, which yields its value there and None elsewhere.

    Raises:
        VggjaxError: as `on_first`.
    """
    entered: list[T] = []
    with ExitStack() as stack:
        on_first(lambda: entered.append(stack.enter_context(make())))
        yield entered[0] if entered else None


def max_over_processes(value: int) -> int:
    """Return the largest value of all processes."""
    if num_processes() == 1:
        return value
    return int(np.max(multihost_utils.process_allgather(np.int64(value))))


def union_over_processes(values: dict[Any, T]) -> dict[Any, T]:
    """Return the entries of all processes; of equal keys, the last process' entry."""
    if num_processes() == 1:
        return values
    merged: dict[Any, T] = {}
    for index in range(num_processes()):
        own = pickle.dumps(values) if index == jax.process_index() else b""
        merged |= pickle.loads(_broadcast(own, source=index))
    return merged


def _broadcast(payload: bytes, *, source: int = 0) -> bytes:
    """Return the bytes of the process `source` in every process."""
    is_source = jax.process_index() == source
    send = multihost_utils.broadcast_one_to_all
    size = int(send(np.int64(len(payload)), is_source=is_source))
    rows = np.frombuffer(payload, np.uint8) if is_source else np.zeros(size, np.uint8)
    return bytes(send(rows, is_source=is_source).tobytes())


def is_lost_process(error: Exception) -> bool:
    """Return whether an error of jax says that another process of the run has ended."""
    return (
        jax.distributed.is_initialized()
        and num_processes() > 1
        and re.search("gloo|nccl|coordination|peer", str(error), re.IGNORECASE) is not None
    )


def exit_process(code: int) -> None:
    """End this process at once if it is one of several; otherwise do nothing.

    An orderly exit would wait for the others, which wait for its rows. They notice within
    `HEARTBEAT_S`, and end as well.
    """
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
