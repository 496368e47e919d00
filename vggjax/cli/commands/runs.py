"""Runs: train, evaluate, report, and the recipes."""

import dataclasses
import functools
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from vggjax.cli.parsing import parse, value_of
from vggjax.data.sources.options import DEFAULT_OPTIONS, DatasetOptions
from vggjax.errors import ConfigError, printable
from vggjax.training.config import Config
from vggjax.training.recipes import check_needs, default_fields, set_names
from vggjax.training.settings.best import choose_recipe
from vggjax.training.settings.config_file import describe, read_settings, unchecked


def train(config: Config) -> int:
    """Train on a dataset, evaluate, and write the report."""
    from vggjax.api import find_learning_rate, fit

    if config.lr_find:
        rate_test, plot = find_learning_rate(config)
        flags = rate_test.flags(config) or "none of these rates"
        print(f"\n{rate_test}\nPlot     {printable(plot)}\nUse      {flags}")
        return 0
    result = fit(config)
    if result.report is not None:
        print(f"\nReport   {printable(result.report)}")
    if result.model is not None:  # a cross-validation has one model for each fold
        print(f"Predict  vggjax predict PHOTO.jpg --workdir {shlex.quote(str(result.workdir))}")
    exit_code = _report_left_out(result.unreadable)
    return 1 if result.report is None else exit_code


def launch(
    words: Annotated[Positional[tuple[str, ...]], arg(metavar="train ...")],
    /,
    *,
    processes: int = 2,
) -> int:
    """Start a training in several processes of this machine, as a cluster does on several.

    Without JAX_PLATFORMS in the environment they use the CPU, each one device.

    Args:
        words: The training: train and its flags, after the options of launch.
        processes: Number of processes.
    """
    from vggjax.cli.launch import run_processes

    if processes < 1:
        raise ConfigError(f"`processes` must be above 0; got {processes}.")
    return run_processes(processes, words)


def parse_launch(argv: Sequence[str]) -> int:
    """Run `launch`: what follows `train` are the flags of the training."""
    from vggjax.cli.launch import split_words

    own, words = split_words(argv)
    parse_train(words)  # a mistake is printed once, before anything starts
    return parse(functools.partial(launch, tuple(words)), own, "launch")


def parse_train(argv: Sequence[str]) -> Config:
    """Return the Config of `train`'s flags: its recipe and file set the defaults, a flag wins.

    A first word that is no flag is the dataset.

    Raises:
        ConfigError: flags that do not fit, or a recipe without the flag that it needs.
    """
    if argv and not argv[0].startswith("-"):
        if (dataset := value_of(argv, "dataset")) is not None:
            raise ConfigError(f"`dataset` is given twice, {argv[0]!r} and {dataset!r}.")
        argv = ["--dataset", *argv]
    file, default = _file_settings(argv), default_config(argv)
    check_needs(default.recipe, set_names(file, _given(argv)))
    config = parse(Config, argv, "train", default=default)
    if default.recipe == "best":
        config = _choose(config, argv, file)
    if config.config is not None:
        print(describe(config.config, file, config))
    return config


def _choose(config: Config, argv: Sequence[str], file: dict[str, Any]) -> Config:
    """Return the settings of the recipe that `best` stands for, and print which and why."""
    choice, given = choose_recipe(config), _given(argv)
    fields = default_fields(
        choice.recipe, file, given, dataset=config.dataset, chosen=choice.settings
    )
    chosen = parse(Config, argv, "train", default=unchecked(fields))
    print(f"Recipe best is {choice.recipe} at {chosen.image_size} px: {choice.reason}.")
    return dataclasses.replace(chosen, recipe=choice.recipe)


def default_config(argv: Sequence[str], *, dataset: str = Config.dataset) -> Config:
    """Return the settings of a training before its flags: the defaults, its recipe's, its file's.

    `dataset` is what is trained on if nothing names it.
    """
    recipe, file = value_of(argv, "recipe"), _file_settings(argv)
    return unchecked(default_fields(recipe, file, _given(argv), dataset=dataset))


def _file_settings(argv: Sequence[str]) -> dict[str, Any]:
    path = value_of(argv, "config")
    return {} if path is None else read_settings(path)


def _given(argv: Sequence[str]) -> dict[str, str]:
    """Return the values of the flags that change what a recipe sets."""
    names = ("dataset", "start-from", "start_from", "stages", "unfreeze")
    values = {name: value_of(argv, name) for name in names}
    return {name.replace("-", "_"): value for name, value in values.items() if value is not None}


def evaluate(
    *,
    workdir: str,
    split: str = "test",
    dataset: str | None = None,
    options: Annotated[DatasetOptions, arg(name="")] = DEFAULT_OPTIONS,
    batch_size: int | None = None,
    tta: Literal["none", "flip"] = "none",
) -> int:
    """Evaluate a finished run on a split; write eval.json and predictions.csv.

    Args:
        workdir: The run's folder.
        split: test, val or train; of another dataset also all.
        dataset: Where the run's dataset lies now, or another labeled dataset, whose results get a
            folder of their own in the run's.
        options: How to read that dataset; by default as the run's own.
        batch_size: Images per step; None is the run's own.
        tta: Test-time augmentation: `flip` evaluates the mean over each image and its mirror image,
            and writes eval-flip.json.
    """
    from vggjax.evaluation.evaluate import evaluate
    from vggjax.evaluation.other_data import open_evaluation
    from vggjax.report.report import write_report

    run: Any = workdir
    if dataset is None and options != DEFAULT_OPTIONS:
        raise ConfigError(
            "The options of a dataset need `dataset`; the run's own data has its own."
        )
    if dataset is not None:
        run, split = open_evaluation(workdir, dataset, split, options=options)
    result = evaluate(run, split=split, batch_size=batch_size, tta=tta)
    is_own = tta == "none" and (dataset is None or run.workdir == Path(workdir))
    if split == "test" and is_own:  # the report shows this split: it must not show older figures
        print(f"\nReport   {printable(write_report(run))}")
    return _report_left_out(result["unreadable"])


def report(
    runs: Annotated[Positional[tuple[str, ...]], arg(metavar="RUN [RUN ...]")],
    /,
    *,
    out: Path | None = None,
    doctor: bool = False,
    dataset: str | None = None,
) -> int:
    """Write a run's report again, or one page that compares several runs.

    Args:
        runs: Folders of finished runs: one, or several to compare.
        out: The comparison's file; None is report-comparison.html in this folder.
        doctor: Check every image of the dataset for the report, however many there are.
        dataset: Where the dataset of the run lies now.
    """
    from vggjax.report.compare import write_comparison
    from vggjax.report.report import write_report
    from vggjax.training.run_dir.run_result import load_run_result

    if not runs:
        raise ConfigError("Missing: RUN. Give the folder of a finished run, or several to compare.")
    if len(runs) == 1 and out is None:
        run = load_run_result(runs[0], dataset=dataset) if dataset else runs[0]
        path = write_report(run, doctor=doctor)
    elif len(runs) == 1 or doctor or dataset:
        field, scope = "out", "several runs"
        if len(runs) > 1:
            field, scope = "doctor" if doctor else "dataset", "one run"
        raise ConfigError(
            f"`{field}` applies to the report of {scope}; got {', '.join(map(printable, runs))}."
        )
    else:
        path = write_comparison(runs, out or "report-comparison.html")
    print(f"Report   {printable(path)}")
    return 0


def recipes(name: Positional[str | None] = None, /) -> int:
    """List the recipes of --recipe, or describe one.

    Args:
        name: The recipe to describe; None is a list of all.
    """
    from rich.console import Console

    from vggjax.cli.tables import print_recipe, print_recipes

    if name is None:
        print_recipes(Console())
    else:
        print_recipe(Console(), name)
    return 0


def _report_left_out(unreadable: dict[str, str]) -> int:
    """Print the images that were left out, with the reasons; return the exit code."""
    for name, reason in unreadable.items():
        print(f"vggjax: left out: {printable(name)}: {printable(reason)}", file=sys.stderr)
    return 3 if unreadable else 0
