"""Ctrl-C and SIGTERM ask a running training to save and end, instead of killing it."""

import os
import shlex
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Interrupted(Exception):
    """A Ctrl-C or SIGTERM came; where the run stands was saved."""

    def __init__(self, signum: int, workdir: Path):
        super().__init__(
            f"saved; the same command with --workdir {shlex.quote(str(workdir))} goes on from here"
        )
        self.signum, self.workdir = signum, workdir


class Stop:
    """Which signal asks for the end of the run, if one does."""

    signum: int | None = None

    def check(self, workdir: Path) -> None:
        """Raises Interrupted if a signal came; to be called where the run has just been saved."""
        if self.signum:
            raise Interrupted(self.signum, workdir)


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Notes Ctrl-C and SIGTERM instead of dying of them; a second Ctrl-C does end at once."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Python sets handlers in the main thread only
        return

    def note(signum: int, _: object) -> None:
        if stop.signum:
            raise KeyboardInterrupt
        stop.signum = signum
        os.write(2, b"\nvggjax: saving after this step, then stopping; again to stop at once\n")

    before = {signum: signal.signal(signum, note) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
