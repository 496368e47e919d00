"""Cross-validation: the runs of k folds, which train on different images and test each one once.

The run folder has `splits.csv`, with the fold that tests each image, and a run folder per fold,
`fold-1` ... `fold-k`. Its own `splits.csv` is written before a fold starts, so that a fold is a run
like any other, also when it is resumed or evaluated.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vggjax.atomic import write_text
from vggjax.data.quality.duplicates import Duplicates
from vggjax.data.sources.source import Source
from vggjax.data.splits.splits import SPLITS_FILE, make_folds, splits_text
from vggjax.errors import join_names, printable
from vggjax.training.config import Config
from vggjax.training.prepare import (
    Progress,
    check_outside,
    group_duplicates,
    open_rendered,
    resolve,
)
from vggjax.training.run_dir.contents import Contents, FileState, write_contents
from vggjax.training.run_dir.folder import (
    check_data,
    describe_duplicates,
    find_workdir,
    fold_folders,
    known_data_facts,
    make_workdir,
    unusable_workdir,
    update_dataset,
)


@dataclass(frozen=True)
class CrossValidation:
    """A cross-validation that is ready to be written and run."""

    config: Config
    workdir: Path
    source: Source
    splits: list[dict[str, np.ndarray]] | None
    """The splits of each fold; None if an earlier start wrote them."""
    duplicates: dict[str, int]
    duplicate_groups: Duplicates | None = None
    contents: dict[str, FileState | None] = dataclasses.field(default_factory=dict)
    """The files, by image id; empty if an earlier start read them."""

    @property
    def folds(self) -> list[Config]:
        """The settings of each fold's run."""
        return [
            dataclasses.replace(self.config, cross_validate=0, workdir=str(folder))
            for folder in fold_folders(self.workdir, self.config)
        ]

    def notes(self) -> list[str]:
        """Return what to know about the folds: pooled splits and duplicates."""
        notes = []
        if self.source.splits:
            names = join_names(self.source.splits)
            notes.append(f"The splits of {printable(self.source.name)} ({names}) are pooled.")
        if counts := describe_duplicates(self.duplicates):
            notes.append(f"Duplicates: {counts.replace('split', 'fold')}.")
        return notes


def prepare_cross_validation(
    config: Config, *, progress: Progress | None = None
) -> CrossValidation:
    """Open the data, find the run folder and make the folds; write nothing."""
    config = resolve(config)
    config, source = open_rendered(config)
    workdir = find_workdir(config)
    check_outside(workdir, source)
    check_data(workdir, source)
    written = [workdir / "config.json"]
    written += [folder / SPLITS_FILE for folder in fold_folders(workdir, config)]
    if all(path.exists() for path in written):
        counts = known_data_facts(workdir).get("duplicates", {})
        return CrossValidation(config, workdir, source, None, counts)
    contents = Contents(source)
    duplicates = group_duplicates(config, source, contents, progress=progress)
    groups, counts = (duplicates.groups, duplicates.counts) if duplicates else (None, {})
    splits = make_folds(source, config.cross_validate, config.seed, groups)
    return CrossValidation(config, workdir, source, splits, counts, duplicates, contents.states())


def write_folds(run: CrossValidation) -> None:
    """Write the splits of all folds, unless an earlier start did; the folder must be locked."""
    if run.splits is None:
        update_dataset(run.workdir, run.config)
        return
    folders = fold_folders(run.workdir, run.config)
    try:
        for folder, splits in zip(folders, run.splits, strict=True):
            folder.mkdir(parents=True, exist_ok=True)
            write_contents(folder, run.contents)
            write_text(folder / SPLITS_FILE, splits_text(run.source, splits))
    except OSError as error:
        raise unusable_workdir(run.workdir, error) from None
    tested = {path.name: fold["test"] for path, fold in zip(folders, run.splits, strict=True)}
    make_workdir(run.workdir, run.config, run.source, tested, run.duplicates, contents=run.contents)
