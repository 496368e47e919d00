"""Run the lessons of `vggjax recipes` over several seeds, and write their tables.

    python -m benchmarks.lessons [NAME ...] --data FOLDER --weights FILE [--seeds 3] [--work FOLDER]

FOLDER has one folder per dataset, of which any may be missing: `cats_vs_dogs`, `tf_flowers`,
`cifar10`, `mnist` and `fruits-360` are the lessons' own, `breeds` (cats/train, dogs/train),
`flowers` and the package's digits take their places. FILE is the base of VGG16 as Keras publishes
it. Every seed is a process of its own, the command that a user would type, and one line in
`results.jsonl` in the work folder when it has finished; the same command goes on after a kill. A
lesson that takes longer than `--longest` minutes of the processor's time gets one seed. The tables
in docs/results.md and docs/lessons.md are rewritten after every lesson; `--tables` does that alone.

A lesson on other data than its own is run whole, and its accuracy is left out: it would look like
the lesson's.
"""

import argparse
import csv
import datetime
import importlib.metadata
import json
import os
import platform
import re
import shlex
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.measure import describe_processor, run_process
from benchmarks.tables import (
    append_record,
    duration,
    markdown_table,
    part_of,
    percent,
    read_records,
    replace_part,
)
from vggjax.training.recipes import RECIPES

ROOT = Path(__file__).parents[1]


class Data(NamedTuple):
    """A dataset that a lesson can be run on."""

    folder: str
    """Below `--data`, or `digits`, which come with the package."""
    remark: str = ""
    flags: str = ""
    stands_in: bool = False
    """Whether it only shows that the lesson runs."""


_BREEDS_FLAGS = "--label-from name --label-pattern ^(cats|dogs)/ --split 0.5,0.25,0.25"
_CATS = (
    Data("cats_vs_dogs", flags="--split 0.5,0.25,0.25"),
    Data("breeds", "1,000 cats and 1,000 dogs, which ImageNet has seen", _BREEDS_FLAGS),
)
_FLOWERS = (Data("tf_flowers"), Data("flowers", "photographs of 128 px"))
_CIFAR = (Data("cifar10", "JPEG files"),)


class Lesson(NamedTuple):
    """How a recipe is run here."""

    data: tuple[Data, ...]
    """The first that exists is used."""
    minutes: float
    """About how long a seed takes on 2 cores: the cheapest lessons run first."""
    flags: str = ""
    remark: str = ""
    starts_from: str = ""
    """The lesson whose run this one continues."""
    stand_in: str = ""
    """What takes the place of a model that is not at hand; such a lesson has no accuracy."""


LESSONS = {
    "classify": Lesson(
        (_FLOWERS[1],), 0.5, stand_in="VGG16's base under a random classifier, one photograph"
    ),
    "mnist-cnn": Lesson(
        (Data("mnist"), Data("digits", "8x8 px", stands_in=True)), 0.1
    ),
    "cifar10-cnn": Lesson(_CIFAR, 0.8),
    "cifar10-cnn-dropout": Lesson(_CIFAR, 1),
    "cifar10-frozen": Lesson(_CIFAR, 1),
    "cifar10-cnn-wide": Lesson(_CIFAR, 2),
    "cnn-pool-bn": Lesson(_CIFAR, 2),
    "fruits": Lesson((Data("fruits-360"), _FLOWERS[1]._replace(stands_in=True)), 2.5),
    "cats-vs-dogs-vgg19": Lesson(
        _CATS, 2.6, "--model vgg16", stand_in="VGG16 in place of VGG19"
    ),
    "cats-vs-dogs": Lesson(_CATS, 3.5),
    "cnn-early-stopping": Lesson(_CIFAR, 3.7),
    "cifar10-cnn-deep-bn": Lesson(_CIFAR, 3.8),
    "flowers": Lesson(_FLOWERS, 3.9),
    "cifar10-collapse": Lesson(_CIFAR, 5),
    "cnn-dropout": Lesson(_CIFAR, 9),
    "cnn-conv": Lesson(_CIFAR, 12),
    "flowers-augmented": Lesson(_FLOWERS, 18, "--epochs 25", "25 of 250 epochs"),
    "flowers-finetune": Lesson(
        _FLOWERS, 19, "--epochs 10", "10 of 250 epochs", starts_from="flowers-augmented"
    ),
    "cifar10-finetune": Lesson(_CIFAR, 20),
    "cifar10-scratch": Lesson(_CIFAR, 21, "--epochs 6", "6 of 200 epochs"),
}  # fmt: skip


class Planned(NamedTuple):
    """A lesson with the data that is at hand."""

    name: str
    data: Data
    data_folder: Path
    weights: Path | None
    work: Path

    @property
    def stand_in(self) -> str:
        """What is not the lesson's own, so that its accuracy means nothing; "" if nothing is."""
        data = f"{self.data.folder}, {self.data.remark}" if self.data.stands_in else ""
        return LESSONS[self.name].stand_in or data

    def workdir(self, seed: int, *, name: str = "") -> Path:
        """Return the run folder of a seed, of this lesson or of another one."""
        return self.work / f"{name or self.name}-{seed}"

    def arguments(self, seed: int, *, shown: bool = False) -> list[str]:
        """Return the words after `vggjax`; `shown` leaves out the folders of this machine."""
        if self.name == "classify":
            return classify_arguments(self, shown=shown)
        lesson, settings = LESSONS[self.name], RECIPES[self.name].settings
        dataset = self.data.folder
        if dataset != "digits" and not shown:
            dataset = str(self.data_folder / dataset)
        words = ["train", "--recipe", self.name, "--dataset", dataset, "--seed", str(seed)]
        words += shlex.split(self.data.flags) + lesson.flags.split()
        if lesson.starts_from:
            start = self.workdir(seed, name=lesson.starts_from)
            words += ["--start-from", start.name if shown else str(start)]
        elif settings.get("weights") != "none" and self.weights:
            words += ["--weights", self.weights.name if shown else str(self.weights)]
        return words if shown else [*words, "--workdir", str(self.workdir(seed))]


def plan(
    names: Sequence[str], data: Path, weights: Path | None, work: Path
) -> tuple[list[Planned], dict[str, str]]:
    """Return the lessons that can be run, the cheapest first, and why the others cannot."""
    planned, missing = [], {}
    for name in sorted(names, key=lambda name: LESSONS[name].minutes):
        lesson = LESSONS[name]
        given = [d for d in lesson.data if d.folder == "digits" or (data / d.folder).is_dir()]
        if not given:
            missing[name] = f"none of {', '.join(d.folder for d in lesson.data)} is in {data}"
        elif weights is None and RECIPES[name].settings.get("weights") != "none":
            missing[name] = "it needs `--weights`"
        else:
            planned.append(Planned(name, given[0], data.resolve(), weights, work))
    return planned, missing


def classify_arguments(planned: Planned, *, shown: bool) -> list[str]:
    """Return the words that classify the first photograph, with weights that have a top."""
    photograph = next((planned.data_folder / planned.data.folder).rglob("*.jpg"))
    weights = planned.work / "vgg16-random-top.safetensors"
    if shown:
        return ["predict", photograph.name, "--weights", weights.name, "--model", "vgg16"]
    if not weights.exists():
        add_random_top(planned.weights or Path(), weights)
    return ["predict", str(photograph), "--weights", str(weights), "--model", "vgg16"]


def add_random_top(base: Path, path: Path) -> None:
    """Write a base with random dense layers, 1,000 classes: what a whole file looks like."""
    from vggjax.weights.weight_file import read_weights, write_weights

    rng, weights = np.random.default_rng(0), read_weights(base)
    for name, shape in (
        ("fc1", (25088, 4096)),
        ("fc2", (4096, 4096)),
        ("predictions", (4096, 1000)),
    ):
        kernel = rng.standard_normal(shape, np.float32) * np.float32((2 / shape[0]) ** 0.5)
        weights[name] = {"kernel": kernel, "bias": np.zeros(shape[1], np.float32)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_weights(path, weights)


def run_seed(planned: Planned, seed: int) -> dict[str, Any]:
    """Run one seed from its start to its end; return its record."""
    workdir, arguments = planned.workdir(seed), planned.arguments(seed)
    shutil.rmtree(workdir, ignore_errors=True)  # of a run that was killed
    planned.work.mkdir(parents=True, exist_ok=True)
    load_before = os.getloadavg()[0]
    usage = run_process(
        [sys.executable, "-m", "vggjax", *arguments], output=planned.work / f"{workdir.name}.txt"
    )
    shown = shlex.join(planned.arguments(seed, shown=True))
    shown = re.sub(r"(--seed |--start-from [\w-]+-)\d+", r"\g<1>0", shown)
    record = {
        "name": planned.name,
        "seed": seed,
        "command": f"vggjax {shown}",
        "stand_in": planned.stand_in,
        "data": planned.data.folder,
        "remark": ", ".join(filter(None, (planned.data.remark, LESSONS[planned.name].remark))),
        **usage._asdict(),
        "load": [round(load_before, 2), round(os.getloadavg()[0], 2)],
        "processor": describe_processor(),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in ("vggjax", "jax", "flax", "numpy")},
        "date": str(datetime.date.today()),
    }
    if planned.name == "classify":
        return record
    shutil.rmtree(workdir / "checkpoints", ignore_errors=True)
    return record | outcome(workdir)


def outcome(workdir: Path) -> dict[str, Any]:
    """Return the accuracy, the splits and the epochs of a finished run."""
    evaluation = json.loads((workdir / "eval.json").read_text(encoding="utf-8"))
    with (workdir / "splits.csv").open(encoding="utf-8", newline="") as file:
        splits = Counter(row["split"] for row in csv.DictReader(file))
    epochs = [line for line in read_records(workdir / "log.jsonl") if line["kind"] == "epoch"]
    return {
        "accuracy": evaluation["accuracy"],
        "interval": evaluation["accuracy_interval"],
        "splits": [splits[name] for name in ("train", "val", "test")],
        "epochs": len(epochs),
        "val": [round(line["val/accuracy"], 4) for line in epochs],
    }


def run_all(
    planned: Sequence[Planned], *, seeds: int, longest: float = 4, root: Path = ROOT
) -> list[str]:
    """Run what has no record yet, the first seed of every lesson first; return what failed."""
    cores, failed = len(os.sched_getaffinity(0)), []
    for seed in range(seeds):
        for lesson in planned:
            path = lesson.work / "results.jsonl"
            records = records_of(read_records(path), lesson.name)
            alone_s = max((record["cpu_s"] / cores for record in records), default=0)
            is_long = alone_s > 60 * longest or lesson.stand_in
            if any(record["seed"] == seed for record in records) or (seed and is_long):
                continue
            print(f"{lesson.name}, seed {seed} ...", end=" ", flush=True)
            try:
                record = run_seed(lesson, seed)
            except SystemExit as error:
                failed.append(str(error))
                print(error)
                continue
            append_record(path, record)
            print(f"{record.get('accuracy', '')} in {record['wall_s']:.0f} s", flush=True)
            write_tables(read_records(path), root=root)
    return failed


def records_of(records: Iterable[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Return the records of a lesson's latest command, the latest of each seed."""
    own = [record for record in records if record["name"] == name]
    latest = {r["seed"]: r for r in own if r["command"] == own[-1]["command"]}
    return [latest[seed] for seed in sorted(latest)]


def accuracy_cell(records: Sequence[dict[str, Any]]) -> str:
    """Return the accuracy with its interval: over the seeds, or of one over the test images."""
    if records[0]["stand_in"]:
        return ""
    if len(records) > 1:
        return percent([record["accuracy"] for record in records])
    low, high = records[0]["interval"]
    return f"{percent([records[0]['accuracy']])} ({100 * low:.1f}-{100 * high:.1f}, of its images)"


def result_row(name: str, records: Sequence[dict[str, Any]]) -> list[str]:
    """Return the line of docs/results.md."""
    last = records[-1]
    mean = {key: float(np.mean([r[key] for r in records])) for key in ("wall_s", "cpu_s")}
    data = f"{last['data']}, {last['remark']}" if last["remark"] else last["data"]
    return [
        f"`{name}`",
        f"runs whole on a stand-in: {last['stand_in']}" if last["stand_in"] else data,
        " / ".join(f"{n:,}" for n in last.get("splits", ())),
        str(len(records)),
        accuracy_cell(records),
        RECIPES[name].figure,
        str(last.get("epochs", "")),
        duration(mean["wall_s"]),
        duration(mean["cpu_s"]),
        f"{max(r['peak_mb'] for r in records):,.0f} MB",
        f"{min(min(r['load']) for r in records):.1f}-{max(max(r['load']) for r in records):.1f}",
    ]


HEADINGS = (
    "recipe", "data", "train / val / test", "seeds", "test accuracy", "author's figure", "epochs",
    "wall time", "processor time", "peak memory", "load",
)  # fmt: skip


def overview_cell(records: Sequence[dict[str, Any]]) -> str:
    """Return the last cell of a lesson's line in docs/lessons.md."""
    last = records[-1]
    if last["stand_in"]:
        return f"runs whole on a stand-in: {last['stand_in']}"
    count = "one seed" if len(records) == 1 else f"{len(records)} seeds"
    seconds = float(np.mean([r["wall_s"] for r in records]))
    parts = [accuracy_cell(records), count, f"{last['splits'][0]:,} training images"]
    return ", ".join(filter(None, [*parts, duration(seconds), last["remark"]]))


def write_tables(records: Sequence[dict[str, Any]], *, root: Path = ROOT) -> None:
    """Write the lessons' lines into docs/results.md and docs/lessons.md; keep the others."""
    measured = {name: own for name in RECIPES if (own := records_of(records, name))}
    if not measured:
        return
    page = root / "docs" / "results.md"
    rows = old_rows(part_of(page, "lessons"))
    rows |= {name: result_row(name, own) for name, own in measured.items()}
    in_order = [rows[name] for name in RECIPES if name in rows]
    replace_part(page, "lessons", markdown_table(HEADINGS, in_order))

    commands = dict(
        line.split("    # ")[::-1]
        for line in part_of(page, "commands").splitlines()
        if "# " in line
    )
    commands |= {name: own[-1]["command"] for name, own in measured.items()}
    lines = [f"{commands[name]}    # {name}" for name in RECIPES if name in commands]
    replace_part(page, "commands", "```\n" + "\n".join(lines) + "\n```")
    last = max(records, key=lambda record: record["date"])
    versions = ", ".join(f"{name} {text}" for name, text in last["versions"].items())
    replace_part(page, "machine", f"{processors_of(measured)}; {versions}; {last['date']}.")

    overview = root / "docs" / "lessons.md"
    text = part_of(overview, "lessons")
    lines = []
    for line in text.splitlines():
        cells = line.split(" | ")
        own = measured.get(cells[0].strip("|` "))
        lines.append(" | ".join([*cells[:-1], f"{overview_cell(own)} |"]) if own else line)
    replace_part(overview, "lessons", "\n".join(lines))


def processors_of(measured: Mapping[str, Sequence[dict[str, Any]]]) -> str:
    """Return the processor of most lessons, and the lessons that ran on other ones."""
    names: dict[str, list[str]] = {}
    for name, own in measured.items():
        names.setdefault(own[-1]["processor"], []).append(f"`{name}`")
    first, *others = sorted(names, key=lambda processor: -len(names[processor]))
    return "; ".join([first, *(f"{', '.join(names[each])} on {each}" for each in others)])


def old_rows(table: str) -> dict[str, list[str]]:
    """Return the cells of each lesson's line in a table: name -> cells."""
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| `")]
    return {cells[0].strip("`"): cells for cells in rows}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="*", help=f"of {', '.join(LESSONS)}; all by default")
    parser.add_argument("--data", type=Path, default=Path("data"), help="a folder per dataset")
    parser.add_argument("--weights", type=Path, help="the base of VGG16 as Keras publishes it")
    parser.add_argument("--work", type=Path, default=Path("runs/lessons"), help="of the runs")
    parser.add_argument("--seeds", type=int, default=3, help="of a lesson that is not long")
    parser.add_argument("--longest", type=float, default=4, help="minutes; more get one seed")
    parser.add_argument("--tables", action="store_true", help="only write the tables")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.name if name not in LESSONS]:
        parser.error(f"unknown lesson {unknown[0]!r}; choose of {', '.join(LESSONS)}")
    if not args.tables and not args.data.is_dir():
        parser.error(f"there is no folder {args.data}; give the one of the datasets by --data")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the seed's process as well
    failed = []
    if not args.tables:
        names = args.name or list(LESSONS)
        planned, missing = plan(names, args.data, args.weights, args.work)
        for name, reason in missing.items():
            print(f"{name} is left out: {reason}")
        failed = run_all(planned, seeds=args.seeds, longest=args.longest)
    write_tables(read_records(args.work / "results.jsonl"))
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
