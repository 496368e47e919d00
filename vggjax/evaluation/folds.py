"""One result out of a cross-validation's folds: each image was judged once, all of them count.

In: a run folder whose folds were evaluated. Out: its eval.json, with the keys of a single run's and
`folds`, and its predictions.csv, the folds' lines with the fold's name for the split.
"""

import csv
import io
import json
from pathlib import Path
from typing import Any

from vggjax.atomic import write_text
from vggjax.evaluation.evaluate import print_summary
from vggjax.evaluation.metrics import pool
from vggjax.training.config import Config
from vggjax.training.run_dir.folder import fold_folders

_SAME = ("class_names", "evaluated_at", "device", "versions")


def pool_folds(workdir: Path, config: Config) -> dict[str, Any]:
    """Writes and prints the figures over all folds; gives what eval.json holds."""
    folders = fold_folders(workdir, config)
    results = [json.loads((path / "eval.json").read_text(encoding="utf-8")) for path in folders]
    keys = ("num_examples", "loss", "accuracy", "accuracy_interval")
    result = {
        "split": "test",
        **pool(results, results[0]["class_names"]),
        "folds": [
            {"name": path.name} | {key: found[key] for key in keys}
            for path, found in zip(folders, results, strict=True)
        ],
        "unreadable": {id: why for found in results for id, why in found["unreadable"].items()},
        "seconds": round(sum(found["seconds"] for found in results), 3),
        **{key: results[-1][key] for key in _SAME},
    }
    write_text(workdir / "predictions.csv", _join_predictions(folders))
    write_text(workdir / "eval.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
    print_summary(result)
    return result


def _join_predictions(folders: list[Path]) -> str:
    file = io.StringIO()
    writer: csv.DictWriter | None = None
    for folder in folders:
        with open(folder / "predictions.csv", encoding="utf-8", newline="") as lines:
            rows = csv.DictReader(lines)
            if writer is None:
                writer = csv.DictWriter(file, list(rows.fieldnames or ()), lineterminator="\n")
                writer.writeheader()
            for row in rows:
                writer.writerow(row | {"split": folder.name})
    return file.getvalue()
