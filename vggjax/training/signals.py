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
from types import FrameType
from typing import Any, NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)

_received: list[int] = []
"""The signals that `answer_signals` has answered."""


def answer_signals() -> None:
    """Let the first SIGINT or SIGTERM raise KeyboardInterrupt(signum), and a second end at once.

    While a library is being imported the first ends the process, too: numpy turns the exception
    into an error of its own, and jaxlib's extension modules crash on it. So it does where Python
    would print and ignore the exception, as in the callbacks of the garbage collection of jax.
    """
    _received.clear()
    print_unraisable = sys.unraisablehook

    def answer(signum: int, frame: FrameType | None) -> None:
        if _received:
            exit_at_once(128 + signum)
        _received.append(signum)
        if _is_importing(frame):
            end()
        raise KeyboardInterrupt(signum)

    def answer_unraisable(unraisable: Any) -> None:
        if _received and issubclass(unraisable.exc_type, KeyboardInterrupt):
            end()
        print_unraisable(unraisable)

    def end() -> NoReturn:
        print(f"vggjax: stopped: by {signal_name(_received[0])}", file=sys.stderr)
        exit_at_once(128 + _received[0])

    sys.unraisablehook = answer_unraisable
    for signum in SIGNALS:
        signal.signal(signum, answer)


def _is_importing(frame: FrameType | None) -> bool:
    """Return whether an import is under way in a frame or in those that called it."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


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
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # within another flush
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

    received: int | None = None
    """The signal of this process."""
    _agreed: int | None = None

    @property
    def signum(self) -> int | None:
        """The signal, once all processes of the run know it: all of them end after one step."""
        from vggjax.training.devices.processes import num_processes

        return self.received if num_processes() == 1 else self._agreed

    def agree(self) -> None:
        """Let several processes ask one another for a signal."""
        from vggjax.training.devices.processes import max_over_processes

        self._agreed = max_over_processes(self.received or 0) or None

    def check(self, workdir: Path) -> None:
        """Raise Interrupted if a signal came; call this when the run has just been saved."""
        if self.signum:
            raise Interrupted(self.signum, workdir)


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Note SIGINT and SIGTERM instead of dying; a second one raises KeyboardInterrupt."""
    stop = Stop()
    stop.received = received_signal()  # one that a library swallowed
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Python sets handlers in the main thread only
        return

    def note(signum: int, _: object) -> None:
        if stop.received:
            raise KeyboardInterrupt(signum)
        stop.received = signum
        os.write(2, b"\nvggjax: saving after this step, then stopping; again to stop at once\n")

    handlers = {signum: signal.signal(signum, note) for signum in SIGNALS}
    try:
        yield stop
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
