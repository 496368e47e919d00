"""Ctrl-C and SIGTERM before and beside a training: one line and the exit code wherever they hit."""

import os
import signal
import subprocess
import sys

import pytest

from vggjax.__main__ import _memory_shortage as shortage

SIGNALS = [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")]

RUN = """
import atexit, os, sys, time
import vggjax.cli.main
from vggjax.__main__ import main

def receive():
    os.kill(os.getpid(), {signum})
    time.sleep(5)

def run_command(argv):
    {body}

atexit.register(print, "what libraries do at an exit", file=sys.stderr)
vggjax.cli.main.main = run_command
sys.exit(main(["summary"]))
"""

BODIES = {
    "an import that becomes an error of the library": """
    try:
        receive()
    except KeyboardInterrupt:
        raise ImportError("Error importing numpy: reinstall it") from None
""",
    "an import of an extension that crashes on an exception": """
    from importlib.machinery import ModuleSpec

    class Crashing:
        def find_spec(name, *_):
            return ModuleSpec(name, Crashing) if name == "crashing" else None

        def create_module(spec):
            return None

        def exec_module(module):
            try:
                receive()
            except KeyboardInterrupt:
                os.abort()

    sys.meta_path.insert(0, Crashing)
    import crashing
""",
    "a callback that may not raise": """
    class Callback:
        def __del__(self):
            receive()
    Callback()
    print("goes on", file=sys.stderr)
""",
    "anywhere else": "receive()",
}


def run(body, signum):
    code = RUN.format(body=body.strip(), signum=int(signum))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize(("signum", "name"), SIGNALS)
def test_a_signal_is_one_line_and_its_exit_code(body, signum, name):
    process = run(body, signum)
    assert process.stderr == f"vggjax: stopped: by {name}\n"
    assert process.returncode == 128 + signum


def test_a_second_signal_ends_what_the_first_one_left():
    body = """
    try:
        receive()
    finally:
        receive()
        print("tidied", file=sys.stderr)
"""
    process = run(body, signal.SIGINT)
    assert (process.returncode, process.stderr) == (130, "")


@pytest.mark.parametrize(("signum", "name"), SIGNALS)
def test_a_command_that_is_interrupted_says_so(signum, name):
    code = """
import os
from vggjax.cli import main as cli
from vggjax.__main__ import main

def summary(**_):
    os.kill(os.getpid(), {signum})

cli.COMMANDS["summary"] = summary
main(["summary"])
"""
    process = subprocess.run(
        [sys.executable, "-c", code.format(signum=int(signum))], capture_output=True, text=True
    )
    assert process.stderr == f"vggjax: stopped: by {name}\n"
    assert process.returncode == 128 + signum


def test_other_errors_pass_through():
    process = run('raise ImportError("no numpy")', signal.SIGINT)
    assert process.returncode == 1
    assert "ImportError: no numpy" in process.stderr


@pytest.mark.skipif(os.name != "posix", reason="this system does not limit the memory")
@pytest.mark.parametrize("limit_kb", [60_000, 250_000])
def test_too_little_memory_to_start_is_one_line(limit_kb):
    command = f"ulimit -v {limit_kb}; exec {sys.executable} -m vggjax evaluate --workdir run"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "the libraries need" in done.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measured on Linux")
def test_the_memory_to_start_is_that_of_the_command_and_of_the_cores(monkeypatch):
    monkeypatch.setattr("resource.getrlimit", lambda kind: (10**9, -1))
    monkeypatch.setattr("os.sched_getaffinity", lambda process: range(2))
    assert "limited to 1,000 MB (ulimit -v); the libraries need 1,170 MB" in shortage(["train"])
    for command in ("evaluate", "predict", "doctor", "recipes"):
        assert shortage([command]) is None
    assert shortage(["train", "--help"]) is None and shortage([]) is None
    monkeypatch.setattr("os.sched_getaffinity", lambda process: range(32))
    assert all(map(shortage, (["evaluate"], ["predict"], ["doctor"])))
