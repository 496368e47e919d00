"""`python -m vggjax`, `vggjax` and `train.py`: signals are answered from the first import on."""

import contextlib
import os
import sys
from collections.abc import Sequence

from vggjax.training.signals import answer_signals, exit_at_once, received_signal, signal_name

_DECODING = (530, 72)
START_MB = {
    "train": (930, 120),
    "evaluate": (660, 120),
    "report": (660, 120),
    **dict.fromkeys(("predict", "embed", "similar", "stylize", "serve", "doctor"), _DECODING),
}
"""Command -> the address space in MB that its libraries take with the smallest network, and that of
their threads for each core: VmPeak on Linux with 2, 8 and 32 cores. With less, they abort or hang.
"""

M_ARENA_MAX = -8
"""mallopt's number for the most heaps, from glibc's malloc.h."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command of `vggjax` and return its exit code; a signal ends the process."""
    answer_signals()
    _use_one_heap()
    if shortage := _memory_shortage(sys.argv[1:] if argv is None else argv):
        print(f"vggjax: error: {shortage}", file=sys.stderr)
        return 2
    try:
        from vggjax.cli.main import main as run_command

        code = run_command(argv)
    except BaseException as error:
        signum = received_signal()
        if signum is None and _is_out_of_memory(error):
            print("vggjax: error: Too little memory to start; see `ulimit -v`.", file=sys.stderr)
            return 2
        if signum is None:
            raise
        # numpy, for one, reports an interrupt of its import as an error of its installation.
        code = 128 + signum
        print(f"vggjax: stopped: by {signal_name(signum)}", file=sys.stderr)
    if code > 128:
        exit_at_once(code)
    return code


def _use_one_heap() -> None:
    """Let all threads allocate from one heap of glibc; `MALLOC_ARENA_MAX` of the user wins.

    glibc opens one for each of up to 8 threads a core, and what compiling and decoding free in one
    is lost to the others: training block5 and a head then peaked at 1.2 GB instead of 0.9.
    """
    if not sys.platform.startswith("linux") or "MALLOC_ARENA_MAX" in os.environ:
        return
    import ctypes

    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def _memory_shortage(argv: Sequence[str]) -> str | None:
    """Return why a command cannot start; see `START_MB`."""
    libraries, each_core = START_MB.get(next(iter(argv), ""), (0, 0))
    if not sys.platform.startswith("linux") or not libraries or argv[-1].startswith("--help"):
        return None
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    needed = libraries + each_core * len(os.sched_getaffinity(0))
    if limit == resource.RLIM_INFINITY or limit >= needed * 1e6:
        return None
    return (
        f"The memory is limited to {limit / 1e6:,.0f} MB (ulimit -v); the libraries need "
        f"{needed:,} MB to start."
    )


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether an error, or one behind it, is that of an import that found no memory."""
    while error is not None:
        text = str(error)
        if isinstance(error, MemoryError) or "failed to map segment" in text:
            return True
        error = error.__cause__ or error.__context__
    return False


if __name__ == "__main__":
    sys.exit(main())
