"""Let SIGINT (Ctrl-C) and SIGTERM end a training after saving it."""

import os
import shlex
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Python sets handlers in the main thread only
        return

    def note(signum: int, _: object) -> None:
        if stop.signum:
            raise KeyboardInterrupt
        stop.signum = signum
        os.write(2, b"\nvggjax: saving after this step, then stopping; again to stop at once\n")

    handlers = {signum: signal.signal(signum, note) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
