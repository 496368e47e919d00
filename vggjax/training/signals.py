"""SIGINT (Ctrl-C) and SIGTERM: training saves before it ends, any other command ends at once."""

import contextlib
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)

_received: list[int] = []
"""The signals that `answer_signals` has answered."""


def answer_signals() -> None:
    """Let the first SIGINT or SIGTERM raise KeyboardInterrupt(signum), and a second end at once.

    A library that is being imported may turn the exception into an error of its own, which
    `received_signal` tells. Where Python would print and ignore it, as in the callbacks of the
    garbage collection that jax has, the process ends.
    """
    _received.clear()
    print_unraisable = sys.unraisablehook

    def answer(signum: int, _: object) -> None:
        if _received:
            exit_at_once(128 + signum)
        _received.append(signum)
        raise KeyboardInterrupt(signum)

    def end(unraisable: Any) -> None:
        if not (_received and issubclass(unraisable.exc_type, KeyboardInterrupt)):
            print_unraisable(unraisable)
            return
        print(f"vggjax: stopped: by {signal_name(_received[0])}", file=sys.stderr)
        exit_at_once(128 + _received[0])

    sys.unraisablehook = end
    for signum in SIGNALS:
        signal.signal(signum, answer)


def signal_name(signum: int) -> str:
    """Return what the user did: `Ctrl-C`, or the signal's name."""
    return "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name


def signal_of(interrupt: KeyboardInterrupt) -> int:
    """Return the signal that raised it; Python's own handler, for Ctrl-C, does not say."""
    return interrupt.args[0] if interrupt.args else signal.SIGINT


def received_signal() -> int | None:
    """Return the signal that `answer_signals` answered, if one came."""
    return _received[0] if _received else None


def exit_at_once(code: int) -> NoReturn:
    """End the process without what libraries do at an exit, where their threads are still busy."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if os.isatty(2):
        os.write(2, b"\x1b[?25h")  # a progress bar hides the cursor
    os._exit(code)


class Interrupted(Exception):
    """SIGINT or SIGTERM ended a run after it was saved."""

    def __init__(self, signum: int, workdir: Path):
        folder = shlex.quote(str(workdir))
        super().__init__(f"saved; the same command with `workdir` {folder} resumes it")
        self.signum, self.workdir = signum, workdir


class Stop:
    """The signal that asks for the end of the run, if one came."""

    signum: int | None = None

    def check(self, workdir: Path) -> None:
        """Raise Interrupted if a signal came; call this when the run has just been saved."""
        if self.signum:
            raise Interrupted(self.signum, workdir)


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Note SIGINT and SIGTERM instead of dying; a second one raises KeyboardInterrupt."""
    stop = Stop()
    stop.signum = received_signal()  # one that a library swallowed
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Python sets handlers in the main thread only
        return

    def note(signum: int, _: object) -> None:
        if stop.signum:
            raise KeyboardInterrupt(signum)
        stop.signum = signum
        os.write(2, b"\nvggjax: saving after this step, then stopping; again to stop at once\n")

    handlers = {signum: signal.signal(signum, note) for signum in SIGNALS}
    try:
        yield stop
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
