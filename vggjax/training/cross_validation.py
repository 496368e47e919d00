"""Cross-validation's k runs: which images each of them trains on, and which it is judged on.

The run folder holds `splits.csv`, a line an image with the fold that judges it, and a run folder
for each fold, `fold-1` ... `fold-k`, whose own `splits.csv` is written before it starts: a fold is
a run as any other, resumed and judged like any other.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from vggjax.atomic import write_text
from vggjax.data.sources.open import open_source
from vggjax.data.splits.splits import SPLITS_FILE, make_folds, splits_text
from vggjax.errors import printable
from vggjax.training.config import Config
from vggjax.training.prepare import Progress, check_outside, compare, resolve
from vggjax.training.run_dir.folder import (
    check_data,
    describe_duplicates,
    find_workdir,
    fold_folders,
    make_workdir,
    read_duplicates,
)


def prepare_folds(
    config: Config, *, progress: Progress | None = None, say: Callable[[str], None] = print
) -> tuple[Path, list[Config]]:
    """Makes the run folder of a cross-validation, or finds it again; gives a config for each fold.

    `say` is told where the dataset's own splits do not count.

    Raises:
        VggjaxError: settings or data that cannot be used, or other data than at the first start.
    """
    config = resolve(config)
    source = open_source(config.dataset, data_dir=config.data_dir)
    workdir = find_workdir(config)
    check_outside(workdir, source)
    check_data(workdir, source)
    if source.splits:
        say(f"The own splits of {printable(source.name)} ({', '.join(source.splits)}) are pooled.")
    folders = fold_folders(workdir, config)
    configs = [
        dataclasses.replace(config, cross_validate=0, workdir=str(folder)) for folder in folders
    ]
    if not (workdir / "config.json").exists() or not all(
        (folder / SPLITS_FILE).exists() for folder in folders
    ):
        groups, duplicates = compare(config, source, progress=progress)
        folds = make_folds(source, config.cross_validate, config.seed, groups)
        judged = {path.name: fold["test"] for path, fold in zip(folders, folds, strict=True)}
        for folder, fold in zip(folders, folds, strict=True):
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / SPLITS_FILE, splits_text(source, fold))
        make_workdir(workdir, config, source, judged, duplicates)
    if counts := describe_duplicates(read_duplicates(workdir)):
        say(f"Duplicates: {counts.replace('split', 'fold')}.")
    return workdir, configs
