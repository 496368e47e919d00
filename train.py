"""`python train.py ...`, the same as `vggjax train ...`."""

import signal
import sys

if __name__ == "__main__":
    # A Ctrl-C while the libraries are imported is to end quietly, not as one of their errors.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from vggjax.cli.main import main

    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main(["train", *sys.argv[1:]]))
