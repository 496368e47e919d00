"""Several processes of one training on this machine: `vggjax launch --processes 4 train ...`."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from vggjax.errors import ConfigError

GRACE_S = 60.0
"""How long the other processes may take to notice that one has failed, before they are ended."""


def split_words(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the words of `launch` itself, and those of the training.

    Raises:
        ConfigError: there is no `train` among them.
    """
    if "train" not in argv:
        raise ConfigError(
            "`launch` starts trainings; write vggjax launch --processes 4 train and its flags."
        )
    place = list(argv).index("train")
    return list(argv[:place]), list(argv[place + 1 :])


def run_processes(count: int, words: Sequence[str]) -> int:
    """Run `vggjax train` in so many processes, and return the exit code of the first that failed.

    They find one another on the loopback interface. A signal goes to all of them; if one fails, so
    do the others.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"JAX_PLATFORMS": "cpu"} | os.environ
    own = [f"--coordinator=127.0.0.1:{port}", f"--num-processes={count}"]
    command = [sys.executable, "-m", "vggjax", "train", *words, *own]
    processes: list[subprocess.Popen[bytes]] = []

    def forward(signum: int, _: Any) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(signum)

    earlier = {signum: signal.signal(signum, forward) for signum in (signal.SIGTERM,)}
    earlier[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        for index in range(count):
            processes.append(subprocess.Popen([*command, f"--process-id={index}"], env=environment))
        # A terminal sends Ctrl-C to all of its processes, so these have it already.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return _wait(processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()
        for signum, handler in earlier.items():
            signal.signal(signum, handler)


def _wait(processes: list[subprocess.Popen[bytes]]) -> int:
    """Wait for all processes; after the first failure only `GRACE_S` longer."""
    first_code, deadline_s = 0, float("inf")
    while any(process.poll() is None for process in processes):
        codes = [process.poll() for process in processes]
        failed = [code for code in codes if code]
        if failed and not first_code:
            first_code, deadline_s = failed[0], time.monotonic() + GRACE_S
        if time.monotonic() > deadline_s:
            break
        time.sleep(0.1)
    codes = [process.poll() for process in processes]
    failed = [code for code in codes if code]
    code = first_code or (failed[0] if failed else 0)
    return 128 - code if code < 0 else code
