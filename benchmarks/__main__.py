"""Measure every row of the table in benchmarks/README.md and print it.

    python -m benchmarks [NAME ...] [--photos FOLDER]

NAME is a key of the table below; without one, all are measured, which takes about half an hour on 2
cores. FOLDER holds class folders of photographs for the lesson; by default they are generated.
"""

import argparse
from functools import partial
from pathlib import Path

from benchmarks import lesson, memory, network, predict, stages, start
from benchmarks.measure import describe_machine, print_table

MEASURES = {
    "forward": network.measure_forward,
    "train_all": network.measure_train,
    "train_block5": stages.measure,
    "train_head": partial(stages.measure, unfreeze="none"),
    "start": start.measure,
    "memory": memory.measure,
    "predict": predict.measure,
    "lesson": lesson.measure,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="*", choices=[*MEASURES, []], default=[])
    parser.add_argument("--photos", type=Path)
    args = parser.parse_args()
    print(describe_machine(), end="\n\n")
    measures = MEASURES | {"lesson": partial(lesson.measure, photos=args.photos)}
    print_table(row for name in args.name or MEASURES for row in measures[name]())


if __name__ == "__main__":
    main()
