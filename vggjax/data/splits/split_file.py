"""splits.csv in a run folder: which image lies in which split, fixed at the run's first start.

A line an image, `path,label,split`, in the order of the source. Whoever resumes or judges a run
reads it: nothing has to be cut, and no images compared, a second time. Names may hold any bytes;
those that are no UTF-8 come back as they were.
"""

import csv
import io
import os
from pathlib import Path

import numpy as np

from vggjax.data.sources.source import Source
from vggjax.data.splits.splits import SPLITS
from vggjax.errors import DataError, printable

NAME = "splits.csv"

_COLUMNS = ["path", "label", "split"]


def splits_text(source: Source, splits: dict[str, np.ndarray]) -> str:
    """Gives the file's text, in the order of the source."""
    of = {int(i): split for split, indices in splits.items() for i in indices}
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for i in sorted(of):
        writer.writerow([source.ids[i], source.class_names[source.labels[i]], of[i]])
    return file.getvalue()


def read_splits(folder: str | os.PathLike[str], source: Source) -> dict[str, np.ndarray] | None:
    """Reads the splits of a run, as `make_splits` gave them; None where there is no such file.

    Raises:
        DataError: the file is damaged, or names images that the source does not have.
    """
    path = Path(folder) / NAME
    if not path.exists():
        return None
    number = {name: i for i, name in enumerate(source.ids)}
    splits: dict[str, list[int]] = {name: [] for name in SPLITS}
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = csv.reader(file)
            if next(rows, None) != _COLUMNS:
                raise ValueError("its first line is another")
            for row_path, label, split in rows:
                i = number[row_path]
                if source.class_names[source.labels[i]] != label:
                    raise ValueError(f"{row_path} was {label}")
                splits[split].append(i)
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise DataError(
            f"{printable(path)} does not fit the dataset {printable(source.name)} ({printable(str(error))}). "
            "Put the files back, or start anew in another --workdir."
        ) from None
    return {name: np.sort(np.asarray(indices, np.int64)) for name, indices in splits.items()}
