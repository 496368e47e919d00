"""Time the whole default command, and the way to a good model, against the usual scripts.

    python -m benchmarks.command --photos FOLDER --weights FILE [--peer-epochs 1] [--only PART ...]

FOLDER has one folder per class, FILE the VGG16 base as Keras publishes it. Every part is a process
of its own, timed from its start to its end, and has a line in `results.jsonl` in `--work`; the same
command goes on after a kill, and prints the table of the parts that are there. The peers read the
photographs of the same three splits, which the first command of vggjax has drawn.

- The default command, `train --unfreeze block5` (two epochs of the head, four of block5, flips),
  against Keras as in its guide to transfer learning: `fit` with the base frozen, then with block5,
  the flip in the model, each epoch validated, the test split evaluated at the end. With
  `--peer-epochs 1` Keras runs one epoch of each stage, and the mean epoch of a stage counts two and
  four times: epochs of a stage cost the same. Its start and its compilation count once.
- A good model, 95 % of validation: `train --recipe linear --augment none`, its report and the test
  split with it, against Keras with its features computed once by `predict`, without flips, and a
  dense head on them until it is good, and against PyTorch with the base frozen under `no_grad`,
  decoding in two workers, counted as if a single epoch were enough. Once more in bfloat16, all
  three; and ours at 160 px, against the peers' 224. `--torch-python` is an interpreter that has
  torch, if this one has not.

Beside the wall's seconds stand those of the processor, which depend less on what else runs.
"""

import argparse
import csv
import datetime
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import Row, describe_machine, print_table, run_process
from benchmarks.tables import append_record, read_records
from benchmarks.usual import SCRIPTS

HEAD_EPOCHS, BLOCK5_EPOCHS = 2, 4
"""Of the default command."""

_LINEAR = ["--recipe", "linear", "--augment", "none"]
COMMANDS = {
    "default": ["--unfreeze", "block5"],
    "linear": _LINEAR,
    "linear-bfloat16": [*_LINEAR, "--dtype", "bfloat16"],
    "linear-160": [*_LINEAR, "--image-size", "160"],
}
PARTS = (*COMMANDS, *SCRIPTS)


class Bench:
    """The parts of the benchmark that were run, in a work folder.

    Args:
        photos: one folder per class.
        weights: the base of VGG16.
        work: where runs and records are kept.
        peer_epochs: of each stage of Keras at most.
        torch_python: the interpreter for PyTorch.
    """

    def __init__(
        self, photos: Path, weights: Path, work: Path, *, peer_epochs: int, torch_python: str
    ):
        self._photos, self._weights, self._work = photos.resolve(), weights.resolve(), work
        self._peer_epochs, self._torch_python = peer_epochs, torch_python

    def records(self) -> dict[str, dict[str, Any]]:
        """Return the latest record of each part."""
        return {each["part"]: each for each in read_records(self._work / "results.jsonl")}

    def run(self, part: str) -> None:
        """Run a part whole, and append its record."""
        self._work.mkdir(parents=True, exist_ok=True)
        load, output = os.getloadavg()[0], self._work / f"{part}.txt"
        if part in COMMANDS:
            shutil.rmtree(self._work / part, ignore_errors=True)
            arguments = [sys.executable, "-m", "vggjax", "train", *COMMANDS[part]]
            arguments += ["--dataset", str(self._photos), "--weights", str(self._weights)]
            arguments += ["--workdir", str(self._work / part)]
        else:
            arguments = self._peer_arguments(part)
        os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", KERAS_BACKEND="tensorflow")
        usage = run_process(arguments, output=output)
        if part in COMMANDS:
            text = (self._work / part / "eval.json").read_text(encoding="utf-8")
            result = {"accuracy": json.loads(text)["accuracy"]}
        else:
            result = json.loads(output.read_text(encoding="utf-8").strip().splitlines()[-1])
        record = {
            "part": part,
            **usage._asdict(),
            "load": [round(load, 1), round(os.getloadavg()[0], 1)],
            "machine": describe_machine(),
            "date": str(datetime.date.today()),
        }
        append_record(self._work / "results.jsonl", record | result)
        print(json.dumps(record | result), file=sys.stderr, flush=True)

    def _peer_arguments(self, part: str) -> list[str]:
        python = self._torch_python if part.startswith("torch") else sys.executable
        stages = {"keras-head": HEAD_EPOCHS, "keras-block5": BLOCK5_EPOCHS}
        epochs = min(self._peer_epochs, stages.get(part, sum(stages.values())))
        tree = self._split_photos()
        arguments = [python, "-m", "benchmarks.usual", part, str(tree), "--epochs", str(epochs)]
        arguments += ["--weights", str(self._weights)]
        return [*arguments, "--state", str(self._work.resolve() / "keras.weights.h5")]

    def _split_photos(self) -> Path:
        """Return a folder with links to the photographs of the splits that vggjax has drawn."""
        runs = [self._work / name for name in COMMANDS]
        drawn = next((run for run in runs if (run / "eval.json").exists()), None)
        if drawn is None:
            raise SystemExit(f"Run {' or '.join(COMMANDS)} first: the peers take its splits.")
        tree = self._work.resolve() / "photos"
        shutil.rmtree(tree, ignore_errors=True)
        with (drawn / "splits.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                name = row["path"].replace("/", "-")
                link = tree / row["split"] / row["label"] / name
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(self._photos / row["path"])
        return tree


def keras_seconds(head: Mapping[str, Any], block5: Mapping[str, Any]) -> np.ndarray:
    """Return the (wall, processor) seconds of all of Keras' epochs, of one start, and of test."""
    stages = (head, HEAD_EPOCHS), (block5, BLOCK5_EPOCHS)
    epochs = sum(count * np.mean(stage["epochs"], axis=0) for stage, count in stages)
    once = [head["start"], head["compiling"], block5["compiling"], block5["test"]]
    return epochs + np.sum(once, axis=0)


def rows(records: Mapping[str, Mapping[str, Any]]) -> Iterator[Row]:
    """Yield the lines of the table for which there are records."""
    whole = {name: np.array([r["wall_s"], r["cpu_s"]]) for name, r in records.items()}
    peers, note = {}, "`train PHOTOS --unfreeze block5`"
    if "default" in records:
        note += f", test {records['default']['accuracy']:.1%}"
    if {"keras-head", "keras-block5"} <= records.keys():
        stages = records["keras-head"], records["keras-block5"]
        peers["Keras-TF"] = keras_seconds(*stages)
        run = tuple(len(stage["epochs"]) for stage in stages)
        if run != (HEAD_EPOCHS, BLOCK5_EPOCHS):
            note += f"; Keras from {run[0]} of {HEAD_EPOCHS} and {run[1]} of {BLOCK5_EPOCHS} epochs"
    works = [("default", note, peers, 0.40)]
    for part, suffix in (("linear", ""), ("linear-bfloat16", "-bfloat16"), ("linear-160", "")):
        work = f"`train PHOTOS {' '.join(COMMANDS[part])}`"
        if part in records:
            work += f", test {records[part]['accuracy']:.1%}"
        good = {"Keras-TF": f"keras-features{suffix}", "PyTorch": f"torch-head{suffix}"}
        if good["Keras-TF"] in records:
            work += f", Keras {records[good['Keras-TF']]['accuracy']:.1%}"
        found = {name: whole[peer] for name, peer in good.items() if peer in whole}
        works.append((part, f"{work}; PyTorch: one epoch", found, 0.45))
    for part, work, theirs, aim in works:
        for i, unit in enumerate(("s", "processor s")):
            if part in whole:
                figures = {name: float(each[i]) for name, each in theirs.items()}
                yield Row(work, unit, float(whole[part][i]), figures, aim)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/command"))
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--peer-epochs", type=int, default=max(HEAD_EPOCHS, BLOCK5_EPOCHS))
    parser.add_argument("--torch-python", default=sys.executable)
    args = parser.parse_args()
    bench = Bench(
        args.photos,
        args.weights,
        args.work,
        peer_epochs=args.peer_epochs,
        torch_python=args.torch_python,
    )
    failed = []
    for part in args.only:
        if part in bench.records():
            continue
        try:
            bench.run(part)
        except SystemExit as error:  # a library is missing, for one
            failed.append(str(error))
    records = bench.records()
    loads = [each for record in records.values() for each in record["load"]]
    print(describe_machine(), f"Load {min(loads, default=0)} to {max(loads, default=0)}.\n")
    print_table(rows(records))
    if failed:
        raise SystemExit("\n".join(failed))


if __name__ == "__main__":
    main()
