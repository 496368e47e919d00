"""Several processes of one training, of the network "tiny", on simulated CPU devices."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]

PROGRAM = """
import sys
import conftest  # registers the networks
import jax
jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
from vggjax.cli.main import main
sys.exit(main(sys.argv[2:]))
"""


def start(
    count: int, words: Sequence[str], *, devices: int = 1, last: Sequence[str] = ()
) -> list[subprocess.Popen]:
    """Start `vggjax train` in so many processes, each with some devices.

    `last` are further words of the last one.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    command = [sys.executable, "-c", PROGRAM, str(devices), "train", *words]
    if count > 1:
        command += [f"--coordinator=127.0.0.1:{port}", f"--num-processes={count}"]
    return [
        subprocess.Popen(
            command
            + [f"--process-id={index}"] * (count > 1)
            + list(last) * (index == count - 1),
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for index in range(count)
    ]  # fmt: skip


def finish(processes: Sequence[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """Return (exit code, stdout, stderr) of each process."""
    try:
        outputs = [process.communicate(timeout=280) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, *output) for p, output in zip(processes, outputs, strict=True)]


def wait_for_epochs(workdir: Path, count: int, processes: Sequence[subprocess.Popen]) -> None:
    """Wait until a run has logged so many epochs."""
    while all(process.poll() is None for process in processes):
        log = workdir / "log.jsonl"
        if log.exists() and log.read_text().count('"kind": "epoch"') >= count:
            return
        time.sleep(0.05)
    raise AssertionError(f"ended before {count} epochs: {finish(processes)}")
