"""The run folder: which run it is and what it saw.

`config.json`, `data.json` and `splits.csv` say what the run is, so that a rerun resumes this very
run or is refused. Its log is log.py's.
"""

import csv
import hashlib
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vggjax.atomic import write_text
from vggjax.data.sources.source import Source
from vggjax.data.splits.splits import SPLITS_FILE, splits_text
from vggjax.errors import ConfigError, printable
from vggjax.training.config import Config, read_config
from vggjax.training.run_dir.log import read_log as read_log

RATE_FILE, RATE_PLOT = "lr-find.json", "lr-find.png"
_EARLY = ("data.json", SPLITS_FILE, ".lock", RATE_FILE)


def default_workdir(config: Config) -> Path:
    """Names a new run: runs/<time>-<dataset>-<model>."""
    name = re.sub(r"[^\w.-]+", "-", Path(config.dataset).name) or "data"
    return Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}-{config.model}"


def find_workdir(config: Config) -> Path:
    """Names the run's folder, new or the one of this very run; nothing is written.

    Raises:
        ConfigError: the folder belongs to a run with other settings, which are listed, or holds
            other things, or cannot be read.
    """
    workdir = Path(config.workdir) if config.workdir else default_workdir(config)
    try:
        if (workdir / "config.json").exists():
            changed = read_config(workdir).differences(config)
            if changed:
                listed = ", ".join(f"{name} was {was!r}, now {now!r}" for name, (was, now) in
                                   changed.items())  # fmt: skip
                raise ConfigError(
                    f"{workdir} belongs to a run with other settings: {listed}. Give the same "
                    "settings to resume it, or another --workdir."
                )
        elif workdir.exists() and not all(_is_early(path) for path in workdir.iterdir()):
            raise ConfigError(
                f"{workdir} holds files but no run; give --workdir a new or an empty folder."
            )
    except OSError as error:
        raise unusable(workdir, error) from None
    return workdir


def _is_early(path: Path) -> bool:
    """Says whether a start that was killed at once, or --lr-find, may have left it."""
    if path.name == "plots":
        return [plot.name for plot in path.iterdir()] == [RATE_PLOT]
    return path.name in _EARLY


def make_workdir(
    workdir: Path,
    config: Config,
    source: Source,
    splits: dict[str, Any],
    duplicates: dict[str, int] | None = None,
) -> None:
    """Makes the folder and notes what run it is; a folder of this run is left as it is.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        text = splits_text(source, splits)
        if not (workdir / SPLITS_FILE).exists():
            write_text(workdir / SPLITS_FILE, text)
        if not (workdir / "data.json").exists():
            told = _describe(source, splits) | {
                "duplicates": duplicates or {},
                "splits_sha256": _sha256(text.encode("utf-8", "surrogateescape")),
            }
            write_text(workdir / "data.json", _json(told))
        # Also over an older one: what may differ in a resumed run is to be true as well.
        write_text(workdir / "config.json", config.to_json())
    except OSError as error:
        raise unusable(workdir, error) from None


def fold_folders(workdir: Path, config: Config) -> list[Path]:
    """Names the run folders of a cross-validation's folds; none where there is one run only."""
    return [workdir / f"fold-{i + 1}" for i in range(config.cross_validate)]


@contextmanager
def lock_workdir(workdir: Path) -> Iterator[None]:
    """Keeps a second run out of the folder while this one trains; ends with the process.

    Raises:
        ConfigError: another run trains there now.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no such lock
        yield
        return
    with (workdir / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"Another run trains in {printable(workdir)} now. Wait for it, or give another "
                "--workdir."
            ) from None
        yield


def unusable(workdir: Path, error: OSError) -> ConfigError:
    """Words why a run folder cannot be read or written."""
    return ConfigError(
        f"Cannot use the run folder {workdir}: {error.strerror or error}. Give another --workdir."
    )


def check_data(workdir: Path, source: Source) -> None:
    """Refuses other data or other splits than the run saw at its first start.

    Raises:
        ConfigError: classes, files or splits differ from the run's first start.
    """
    path, seen = workdir / "data.json", _describe(source, {})
    if not path.exists():
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        keys = ("class_names", "fingerprint")
        differing = [key for key in keys if before[key] != seen[key]]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"{path} is damaged; start anew in another --workdir.") from None
    if differing:
        told = _describe_change(workdir, source)
        if "class_names" in differing:
            was, now = (", ".join(data["class_names"]) for data in (before, seen))
            told = f"classes {was} before, {now} now"
        raise ConfigError(
            f"The dataset {printable(source.name)} is not what {printable(workdir)} was trained on: "
            f"{printable(told)}. Put the files back, or start anew in another --workdir."
        )
    check_splits(workdir)


def check_splits(workdir: Path) -> None:
    """Refuses a `splits.csv` that is not the one of the run's first start, if it is there.

    Raises:
        ConfigError: it was changed: images that were learned would be judged.
    """
    try:
        told = json.loads((workdir / "data.json").read_text(encoding="utf-8"))
        expected, found = told["splits_sha256"], _sha256((workdir / SPLITS_FILE).read_bytes())
    except FileNotFoundError:  # a first start, or one that will cut the same splits again
        return
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(
            f"{printable(workdir / 'data.json')} is damaged; start anew in another --workdir."
        ) from None
    if found != expected:
        raise ConfigError(
            f"{printable(workdir / SPLITS_FILE)} was changed since the run began, so that images "
            "which were learned might be judged. Put it back, or start anew in another --workdir."
        )


def _describe_change(workdir: Path, source: Source) -> str:
    """Names the images that came or went, by the run's `splits.csv`."""
    try:
        with (workdir / SPLITS_FILE).open(
            encoding="utf-8", errors="surrogateescape", newline=""
        ) as file:
            before = {row["path"] for row in csv.DictReader(file)}
    except (OSError, KeyError, TypeError, csv.Error):
        before = set(source.ids)
    now, told = set(source.ids), []
    for word, names in (("new", now - before), ("gone", before - now)):
        if names:
            more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
            told.append(f"{word}: {', '.join(sorted(names)[:3])}{more}")
    return "; ".join(told) or "its images' sizes or splits are others"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def read_duplicates(workdir: Path) -> dict[str, int]:
    """Reads how many duplicates the run's first start found; none where it did not look."""
    try:
        told = json.loads((workdir / "data.json").read_text(encoding="utf-8"))
        return told.get("duplicates", {})
    except (OSError, ValueError, AttributeError):
        return {}


def describe_duplicates(counts: dict[str, int]) -> str:
    """Says how many images are there more than once; nothing where none is."""
    kinds = [f"{counts[kind]:,} {kind}" for kind in ("exact", "near") if counts.get(kind)]
    if not kinds:
        return ""
    told = f"{' and '.join(kinds)}, each in one split with its like"
    leaked = counts.get("leaked", 0)
    return told + (f", but for {leaked:,} that the dataset has in train too" if leaked else "")


def _describe(source: Source, splits: dict[str, Any]) -> dict[str, Any]:
    return {
        "fingerprint": source.fingerprint,
        "class_names": list(source.class_names),
        "splits": {name: len(indices) for name, indices in splits.items()},
    }


def _json(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"
