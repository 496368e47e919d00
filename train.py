"""`python train.py ...`, the same as `vggjax train ...`."""

import sys

from vggjax.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
