"""Write a dataset as the CSV that it was understood as: `path,label[,split][,group]`.

The paths are relative to the CSV's folder. Opened as a dataset it has the same images in the same
order, with the same labels, splits and groups, so it trains the same.
"""

import os
from pathlib import Path

import numpy as np

from vggjax.atomic import check_output_file, write_text
from vggjax.csv_text import csv_line
from vggjax.data.multilabel import SEPARATOR
from vggjax.data.sources.source import Source
from vggjax.errors import ConfigError, DataError, printable


def check_table_output(path: str | os.PathLike[str]) -> Path:
    """Return the path of a new CSV.

    Raises:
        ConfigError: it exists, has another ending, or its folder does not exist.
    """
    path = check_output_file(Path(path), field="write_csv", endings=(".csv",))
    if os.path.lexists(path):
        raise ConfigError(f"{printable(path)} exists; give a new file as `write_csv`.")
    return path


def write_table(source: Source | None, path: str | os.PathLike[str]) -> dict[str, str]:
    """Write a dataset as a new CSV, and return the options that it must be opened with.

    Raises:
        ConfigError: for the reasons of `check_table_output`.
        DataError: the dataset has no image files, a name is no text, or writing failed.
    """
    path = check_table_output(path)
    if source is None or source.path(0) is None:
        raise DataError(
            "`write_csv` lists labeled image files, and the dataset has none of its own. Give a "
            "folder of images or a CSV."
        )
    files = [source.path(i) for i in range(len(source))]
    columns = {
        "path": [_relative(file, path.parent) for file in files if file is not None],
        "label": [source.label_text(i) for i in range(len(source))],
    }
    options = {}
    if source.splits:
        columns["split"] = source.split_of.tolist()
    if source.groups is not None:
        columns["group"] = _group_names(source.groups)
        options["group_column"] = "group"
    if source.targets is not None:
        options |= {"task": "multilabel", "label_separator": SEPARATOR}
    lines = [csv_line(columns), *map(csv_line, zip(*columns.values(), strict=True))]
    text = "".join(lines)
    try:
        text.encode()
        write_text(path, text)
    except UnicodeEncodeError:
        raise DataError(
            f"A name in {printable(source.name)} is not valid text; rename it, or leave "
            f"`write_csv` out."
        ) from None
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{printable(path)} cannot be written: {reason}.") from None
    return options


def _relative(file: Path, folder: Path) -> str:
    """Return a file's path relative to a folder; its full path where there is none (Windows)."""
    real = os.path.join(os.path.realpath(file.parent), file.name)
    try:
        path = Path(os.path.relpath(real, os.path.realpath(folder))).as_posix()
    except ValueError:
        return Path(real).as_posix()
    return f"./{path}" if path.startswith("~") else path


def _group_names(groups: np.ndarray) -> list[str]:
    """Return a name for each image's group; empty for an image that is alone."""
    _, numbers, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    return [str(number) if sizes[number] > 1 else "" for number in numbers.tolist()]
