"""Measures every row of benchmarks/README.md's table and prints it anew.

    python -m benchmarks [NAME ...] [--photos FOLDER]

NAME is one of the modules below; without one all are measured, which takes about half an hour on 2
cores. FOLDER holds class folders of photographs for the lesson; without it they are made.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks import (
    forward,
    lesson,
    memory,
    start,
    train_all,
    train_block5,
    train_head,
)
from benchmarks.measure import Row, describe_machine, print_table

MEASURES: dict[str, Callable[..., Iterator[Row]]] = {
    "forward": forward.measure,
    "train_all": train_all.measure,
    "train_block5": train_block5.measure,
    "train_head": train_head.measure,
    "start": start.measure,
    "memory": memory.measure,
    "lesson": lesson.measure,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="*", choices=[*MEASURES, []], default=[])
    parser.add_argument("--photos", type=Path)
    args = parser.parse_args()
    print(describe_machine(), end="\n\n")
    measures = MEASURES | {"lesson": partial(lesson.measure, args.photos)}
    print_table(row for name in args.name or MEASURES for row in measures[name]())


if __name__ == "__main__":
    main()
