"""`python -m vggjax`, `vggjax` and `train.py`: signals are answered from the first import on."""

import sys
from collections.abc import Sequence

from vggjax.training.signals import answer_signals, exit_at_once, received_signal, signal_name


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command of `vggjax` and return its exit code; a signal ends the process."""
    answer_signals()
    try:
        from vggjax.cli.main import main as run_command

        code = run_command(argv)
    except BaseException:
        signum = received_signal()
        if signum is None:
            raise
        # numpy, for one, reports an interrupt of its import as an error of its installation.
        code = 128 + signum
        print(f"vggjax: stopped: by {signal_name(signum)}", file=sys.stderr)
    if code > 128:
        exit_at_once(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
