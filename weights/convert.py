"""Convert a weight file: `python weights/convert.py SRC DST`, the same as `vggjax convert`."""

import argparse
import sys
from pathlib import Path

from vggjax.errors import VggjaxError, one_line_message
from vggjax.weights.convert import convert
from vggjax.weights.weight_file import READABLE, WRITABLE


def main() -> int:
    """Run the command line and return its exit code: 2 for input that cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("src", type=Path, metavar="SRC", help=f"readable: {READABLE}")
    parser.add_argument(
        "dst", type=Path, metavar="DST", help=f"its ending decides: {', '.join(WRITABLE)}"
    )
    args = parser.parse_args()
    try:
        convert(args.src, args.dst)
    except VggjaxError as error:
        print(f"convert.py: error: {one_line_message(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
