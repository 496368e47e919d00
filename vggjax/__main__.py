"""`python -m vggjax`, `vggjax` and `train.py`: signals are answered from the first import on."""

import contextlib
import os
import sys
from collections.abc import Sequence

from vggjax.training.signals import answer_signals, exit_at_once, received_signal, signal_name

MIN_BYTES = 1_500_000_000
"""Address space that jax and its libraries need before anything is computed."""

M_ARENA_MAX = -8
"""mallopt's number for the most heaps, from glibc's malloc.h."""

JAX_COMMANDS = (["train"], ["evaluate"], ["predict"], ["report"])


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
    """Return why a command cannot start: jax aborts the process where it finds too little."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY or limit >= MIN_BYTES or argv[:1] not in JAX_COMMANDS:
        return None
    return (
        f"The memory is limited to {limit / 1e6:,.0f} MB (ulimit -v); the libraries need "
        f"{MIN_BYTES / 1e6:,.0f} MB to start."
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
