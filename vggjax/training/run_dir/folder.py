"""The run folder: which run it belongs to, and the lock that keeps a second run out.

`config.json`, `data.json`, `splits.csv` and `contents.json` identify the run, so that a command
with the same settings and data resumes it and any other is refused.
"""

import contextlib
import csv
import dataclasses
import hashlib
import os
import platform
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from vggjax.atomic import is_temporary, write_text
from vggjax.csv_text import csv_rows
from vggjax.data.sources.source import Source
from vggjax.data.splits.splits import SPLITS_FILE, splits_text
from vggjax.errors import ConfigError, DataError, join_names, printable
from vggjax.training.config import Config, read_config
from vggjax.training.run_dir.checked_json import check_form, read_json, write_json
from vggjax.training.run_dir.contents import (
    CONTENTS_FILE,
    FileState,
    find_changed,
    read_contents,
    write_contents,
)

RATE_FILE, RATE_PLOT = "lr-find.json", "lr-find.png"
OWNER_FILE = ".lock-owner"
_EARLY_FILES = ("data.json", SPLITS_FILE, CONTENTS_FILE, ".lock", OWNER_FILE, RATE_FILE, RATE_PLOT)


def find_workdir(config: Config) -> Path:
    """Return the run's folder, new or left by an earlier start of the same run; write nothing.

    Raises:
        ConfigError: the folder has another run, other files or a link, or cannot be read.
    """
    name = re.sub(r"[^\w.-]+", "-", Path(config.dataset).name) or "data"
    default = Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}-{config.model}"
    workdir = Path(config.workdir) if config.workdir else default
    check_no_links(workdir)
    try:
        if (workdir / "config.json").exists():
            _check_settings(workdir, config)
        elif workdir.exists() and not all(map(_is_early, workdir.iterdir())):
            raise ConfigError(
                f"{printable(workdir)} holds files but no run; give a new or an empty folder as "
                "`workdir`."
            )
    except OSError as error:
        raise unusable_workdir(workdir, error) from None
    return workdir


def check_no_links(workdir: Path) -> None:
    """Raise ConfigError if a link is in the folder: a run would write where it leads."""
    for folder, names, files in os.walk(workdir):
        for path in (Path(folder, name) for name in (*names, *files)):
            if path.is_symlink():
                target = printable(os.path.realpath(path))
                raise ConfigError(
                    f"{printable(path)} is a link to {target}, which a run "
                    "would write to. Replace it by what it leads to, or give another `workdir`."
                )


def _check_settings(workdir: Path, config: Config) -> None:
    changed = read_config(workdir).differences(config)
    if (workdir / "data.json").exists():  # the data itself is compared, wherever it lies now
        changed.pop("dataset", None)
    changes = [f"`{name}` was {was!r}, now {now!r}" for name, (was, now) in changed.items()]
    if changes:
        way_out = "Give the same settings to resume it, or another `workdir`."
        if changed.keys() <= {"epochs", "stages"} and (workdir / "model.json").exists():
            way_out = (
                "It is finished. To train its model for more epochs, give another `workdir` and "
                f"`start_from` {printable(workdir)}."
            )
        raise ConfigError(
            f"{printable(workdir)} belongs to a run with other settings: {', '.join(changes)}. "
            f"{way_out}"
        )


def _is_early(path: Path) -> bool:
    """Return whether an interrupted start, or a learning rate test, may have left `path`."""
    if path.name == "plots" or re.fullmatch(r"fold-\d+", path.name):
        return path.is_dir() and all(map(_is_early, path.iterdir()))
    return path.name in _EARLY_FILES or is_temporary(path.name)


@contextlib.contextmanager
def lock_workdir(workdir: Path, purpose: str, *, wait_s: float = 0.0) -> Iterator[None]:
    """Make the folder and lock it for this process, until the `with` block or the process ends.

    Whatever writes into a run folder locks it; what only reads, such as predict, does not.

    Args:
        workdir: the run folder.
        purpose: what it is locked for, such as "a training", for those that are kept out.
        wait_s: how long to wait for another process that has it.

    Raises:
        ConfigError: another process uses it now, a link is in the folder, or it cannot be written.
    """
    lock, owner = FileLock(workdir / ".lock", timeout=wait_s), workdir / OWNER_FILE
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        check_no_links(workdir)
        lock.acquire()
    except Timeout:
        raise ConfigError(
            f"{printable(workdir)} is in use by {_read_owner(owner)}. Wait until that ends, or "
            "give another `workdir`."
        ) from None
    except OSError as error:
        raise unusable_workdir(workdir, error) from None
    try:
        with contextlib.suppress(OSError):  # on a full disk it may be missing
            process = f"process {os.getpid()} on {platform.node()}"
            write_text(owner, f"{purpose} ({process}, since {time.strftime('%H:%M:%S')})\n")
        yield
    finally:
        with contextlib.suppress(OSError):
            owner.unlink(missing_ok=True)
        lock.release()


def _read_owner(path: Path) -> str:
    """Return who has the lock, for a message."""
    try:
        return printable(path.read_text(encoding="utf-8", errors="replace")[:200].strip())
    except OSError:
        return "another process"


def make_workdir(
    workdir: Path,
    config: Config,
    source: Source,
    splits: dict[str, np.ndarray],
    duplicates: dict[str, int] | None = None,
    *,
    contents: dict[str, FileState | None] | None = None,
) -> None:
    """Write the files that identify a run; keep those of the same run, and update its settings.

    The folder is locked, so that a file that was not written to its end is a killed process's: it
    is deleted. `duplicates` and `contents`, the states of its files, are those that its first
    start found.

    Raises:
        ConfigError: the folder belongs to another run by now, or cannot be written.
        DataError: the data differs from the run's.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if (workdir / "config.json").exists():
            _check_settings(workdir, config)
            check_data(workdir, source)
        _sweep(workdir)
        text = splits_text(source, splits)
        if not (workdir / CONTENTS_FILE).exists():  # first: with splits, the files are not read
            write_contents(workdir, contents or {})
        if not (workdir / SPLITS_FILE).exists():
            write_text(workdir / SPLITS_FILE, text)
        if not (workdir / "data.json").exists():
            facts = {
                "fingerprint": source.fingerprint,
                "class_names": list(source.class_names),
                "splits": {name: len(indices) for name, indices in splits.items()},
                "duplicates": duplicates or {},
                "splits_sha256": _sha256(text.encode("utf-8", "surrogateescape")),
            }
            write_json(workdir / "data.json", facts)
        # Also over an older one, so that the settings that may differ on resuming are current.
        write_json(workdir / "config.json", dataclasses.asdict(config))
    except OSError as error:
        raise unusable_workdir(workdir, error) from None


def _sweep(workdir: Path) -> None:
    for folder, _, names in os.walk(workdir):
        for name in filter(is_temporary, names):
            Path(folder, name).unlink(missing_ok=True)


def update_dataset(workdir: Path, config: Config) -> None:
    """Record where the dataset of a finished run lies now, after `check_data`."""
    saved = read_config(workdir)
    if saved.dataset != config.dataset:
        moved = dataclasses.replace(saved, dataset=config.dataset, data_dir=config.data_dir)
        write_json(workdir / "config.json", dataclasses.asdict(moved))


def unusable_workdir(workdir: Path, error: OSError) -> ConfigError:
    """Return the error for a run folder that cannot be read or written."""
    return ConfigError(
        f"Cannot use the run folder {printable(workdir)}: {error.strerror or error}. Give another "
        "`workdir`."
    )


def fold_folders(workdir: Path, config: Config) -> list[Path]:
    """Return the run folders of a cross-validation's folds; none for a single run."""
    return [workdir / f"fold-{i + 1}" for i in range(config.cross_validate)]


def check_data(workdir: Path, source: Source) -> None:
    """Raise VggjaxError unless the dataset and its splits are those of the run's first start."""
    facts, path = read_data_facts(workdir), workdir / SPLITS_FILE
    if facts is None:
        return
    if list(source.class_names) != facts["class_names"]:
        was, now = (", ".join(names) for names in (facts["class_names"], source.class_names))
        change = f"classes {was} before, {now} now"
    elif source.fingerprint != facts["fingerprint"]:
        change = _describe_change(workdir, source)
    elif path.exists() and _sha256(path.read_bytes()) != facts["splits_sha256"]:
        raise ConfigError(
            f"{printable(path)} was changed since the run began, so evaluation might see images "
            "that the model was trained on. Restore it, or start anew in another `workdir`."
        )
    elif changed := find_changed(workdir, source):
        change = f"changed: {join_names(changed, most=3)}"
    else:
        return
    raise DataError(
        f"The dataset {printable(source.name)} is not the one that {printable(workdir)} was "
        f"trained on: {printable(change)}. Restore the files, or train again in another `workdir`."
    )


def read_data_facts(workdir: Path) -> dict[str, Any] | None:
    """Read `data.json`; None before a run's first start. Raise ConfigError if it is damaged."""
    path = workdir / "data.json"
    if not path.exists():
        return None
    try:
        facts = read_json(path)
        check_form(facts, {"fingerprint": str, "class_names": [str], "splits_sha256": str})
        check_form(facts.get("duplicates", {}), {...: int})
    except (OSError, ValueError):
        raise ConfigError(
            f"{printable(path)} is damaged; start anew in another `workdir`."
        ) from None
    return facts


def known_data_facts(workdir: Path) -> dict[str, Any]:
    """Read `data.json`; empty if it is missing or damaged.

    `duplicates`, their number by kind, is empty if the first start did not search for them.
    """
    try:
        return read_data_facts(workdir) or {}
    except ConfigError:
        return {}


def describe_duplicates(counts: dict[str, int]) -> str:
    """Return a phrase about the duplicates among the images; empty if there are none."""
    names = {
        "exact": "exact duplicate",
        "near": "near-duplicate",
        "turned": "mirrored or rotated version",
    }
    kinds = [
        f"{counts[kind]:,} {name}{'s' * (counts[kind] > 1)}"
        for kind, name in names.items()
        if counts.get(kind)
    ]
    if not kinds:
        return ""
    listed = " and ".join(filter(None, (", ".join(kinds[:-1]), kinds[-1])))
    text = f"{listed}, kept in the same split"
    leaked = counts.get("leaked", 0)
    return text + (f", except {leaked:,} that the dataset has in train too" if leaked else "")


def read_image_splits(workdir: Path) -> dict[str, str]:
    """Read `splits.csv` as image id -> split, for any dataset; empty if it cannot be read."""
    path = workdir / SPLITS_FILE
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            header, *rows = csv_rows(file)
        path_column, split_column = header.index("path"), header.index("split")
        return {row[path_column]: row[split_column] for row in rows}
    except (OSError, ValueError, IndexError, csv.Error):
        return {}


def _describe_change(workdir: Path, source: Source) -> str:
    """Return the images that were added, removed or changed, by the files of the run."""
    before = set(read_contents(workdir)) or set(read_image_splits(workdir))
    now = set(source.ids)
    words = {"new": now - before, "gone": before - now} if before else {}
    words["changed"] = set(find_changed(workdir, source))
    changes = [
        f"{word}: {join_names(sorted(names), most=3)}" for word, names in words.items() if names
    ]
    return "; ".join(changes) or "the labels, sizes or splits of its images differ"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
