"""Commands that are hit by a fault at a chosen place, and the table of what came out.

Each command is a process of its own, forked from one that has imported everything and has not
touched a device: 1 s instead of 5. A fault is a signal that the process sends itself, at a call of
a function and a few milliseconds into it.
"""

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

IS_FULL = os.environ.get("VGGJAX_CHAOS") == "full"
"""Whether to repeat each fault as often as docs/reliability.md states."""

LIMIT_S = 900
"""A command that takes longer hangs."""

SERVER = """
import functools, importlib, json, os, resource, signal, sys, threading, time
import numpy, scipy, jax, orbax.checkpoint, matplotlib, PIL.Image
import vggjax.cli.main, vggjax.report.report, vggjax.training.signals
from vggjax.__main__ import main

def become(request):
    output = os.open(request["output"], os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(output, stream)
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # the server's goes to a file, perhaps
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.alarm(request["limit_s"])
    jax.config.update("jax_num_cpu_devices", request["devices"])
    if request["file_bytes"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_bytes"],) * 2)
    if request["fault"]:
        hit(**request["fault"])

def hit(place, call, delay_s, signum, times=1):
    name, _, attribute = place.rpartition(".")
    try:
        owner = importlib.import_module(name)
    except ModuleNotFoundError:
        module, _, owner = name.rpartition(".")
        owner = getattr(importlib.import_module(module), owner)
    function, calls = getattr(owner, attribute), 0

    def send():
        for _ in range(times):
            os.kill(os.getpid(), signum)
            time.sleep(0.05)

    @functools.wraps(function)
    def counted(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == call and delay_s:
            threading.Timer(delay_s, send).start()
        elif calls == call:
            send()
        return function(*args, **kwargs)

    setattr(owner, attribute, counted)

for line in sys.stdin:
    request = json.loads(line)
    if "wait" in request:
        status = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        print(json.dumps(status), flush=True)
        continue
    sys.stdout.flush()
    if (process := os.fork()) == 0:
        become(request)
        sys.exit(main(request["argv"]))
    print(json.dumps(process), flush=True)
"""


@dataclass(frozen=True)
class Fault:
    """A signal to the command, at a call of the function `place` and `delay_s` into it.

    Without a delay it is sent by the call itself, wherever the scheduler is.
    """

    place: str
    call: int = 1
    delay_s: float = 0.0
    signum: int = 9
    times: int = 1


class Output:
    """What a command prints: through a pipe, which no limit on the size of files applies to."""

    def __init__(self, path: Path):
        self.path = path
        os.mkfifo(path)
        self._text = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        self._text = self.path.read_text(encoding="utf-8", errors="replace")

    def text(self) -> str:
        """Return the whole text, once the command has ended."""
        self._reader.join()
        return self._text


@dataclass
class Command:
    """A started command."""

    process: int
    output: Output

    def wait_until_stopped(self) -> None:
        """Wait until a SIGSTOP has stopped it."""
        state = Path(f"/proc/{self.process}/stat")
        while state.read_text().rpartition(")")[2].split()[0] not in "TZ":
            time.sleep(0.02)


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit code, negative for a signal, and what it printed."""

    code: int
    output: str

    @property
    def last_line(self) -> str:
        return (self.output.strip().splitlines() or [""])[-1]

    @property
    def is_orderly(self) -> bool:
        """Whether it ended by itself, without a traceback."""
        return self.code >= 0 and self.code != 1 and "Traceback" not in self.output


@dataclass
class Table:
    """What was done and what came out."""

    rows: list[tuple[str, str]] = field(default_factory=list)

    def add(self, done: str, outcome: str) -> None:
        self.rows.append((done, outcome))

    def __str__(self) -> str:
        width = max(len(done) for done, _ in self.rows)
        return "\n".join(f"{done:<{width}}  {outcome}" for done, outcome in self.rows)


class CommandServer:
    """A process that forks for each command; use it as a context manager."""

    def __init__(self, folder: Path):
        self._folder, self._number = folder, 0

    def __enter__(self) -> "CommandServer":
        cache = self._folder / "compiled"
        environment = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "JAX_REMOVE_CUSTOM_PARTITIONING_PTR_FROM_CACHE_KEY": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONWARNINGS": "ignore",  # of a fork with threads; no thread holds a lock there
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def start(
        self,
        argv: list[str],
        *,
        fault: Fault | None = None,
        file_bytes: int = 0,
        devices: int = 1,
        limit_s: int = LIMIT_S,
    ) -> Command:
        """Start `vggjax ARGV`, which can write no file beyond `file_bytes` if they are given."""
        self._number += 1
        output = Output(self._folder / f"output-{self._number}")
        request = {
            "argv": argv,
            "fault": fault and vars(fault),
            "file_bytes": file_bytes,
            "devices": devices,
            "output": str(output.path),
            "limit_s": limit_s,
        }
        return Command(self._ask(request), output)

    def wait(self, command: Command) -> Outcome:
        code = self._ask({"wait": command.process})
        return Outcome(code, command.output.text())

    def run(self, argv: list[str], **options: Any) -> Outcome:
        return self.wait(self.start(argv, **options))

    def _ask(self, request: dict[str, Any]) -> int:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())
