"""Show how many items of a stream are done, whose number nobody knows."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

T = TypeVar("T")

QUIET_ITEMS = 32
"""A stream of no more shows nothing."""

FIRST_LINE_S, LINE_S = 10.0, 60.0
"""Without a terminal, a line is printed after the first time, then after twice as long each time,
up to the second."""


def show_progress(items: Iterable[T], verb: str) -> Iterator[T]:
    """Yield the items; show their number and rate on stderr, in place or as lines."""
    console = Console(stderr=True)
    columns = TextColumn(f"{verb}: {{task.completed:,}} images"), TimeElapsedColumn()
    is_shown = console.is_terminal
    progress = Progress(SpinnerColumn(), *columns, console=console, transient=True)
    task = progress.add_task(verb, total=None)
    start_s = line_s = time.monotonic()
    wait_s = FIRST_LINE_S
    try:
        for count, item in enumerate(items, start=1):
            yield item
            if count <= QUIET_ITEMS:
                continue
            if is_shown:
                progress.start()
                progress.update(task, completed=count)
            elif time.monotonic() - line_s >= wait_s:
                line_s, wait_s = time.monotonic(), min(2 * wait_s, LINE_S)
                rate = count / (line_s - start_s)
                print(f"vggjax: {count:,} images, {rate:.1f} a second", file=sys.stderr, flush=True)
    finally:
        if is_shown:
            progress.stop()
