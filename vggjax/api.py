"""A whole run in one call: train, evaluate and report, once or for every fold."""

import json
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from vggjax.atomic import write_bytes, write_text
from vggjax.errors import ConfigError, VggjaxError, printable
from vggjax.evaluation.evaluate import SplitPredictions, evaluate_split, pool_folds
from vggjax.evaluation.temperature import calibrate
from vggjax.report.figures import draw_rate_test
from vggjax.report.fit_result import FitResult
from vggjax.report.report import write_pages
from vggjax.training.callbacks.callback import Callback, Callbacks
from vggjax.training.callbacks.loggers import make_loggers
from vggjax.training.config import Config
from vggjax.training.console import print_run_summary, progress_bar
from vggjax.training.cross_validation import prepare_cross_validation, write_folds
from vggjax.training.devices.processes import is_first, join_processes, num_processes, on_first
from vggjax.training.lr_finder import RateTest, try_rates
from vggjax.training.prepare import prepare_run
from vggjax.training.run_dir.folder import RATE_FILE, RATE_PLOT, lock_workdir, unusable_workdir
from vggjax.training.run_dir.log import check_tensorboard, log_test_metrics, test_metrics
from vggjax.training.run_dir.run_result import ModelInfo, RunResult
from vggjax.training.signals import Interrupted, signal_of
from vggjax.training.trainer import train

_BUSY_S = 600
"""How long to wait for another process that finishes the same run."""


def fit(
    config: Config, *, console: Console | None = None, callbacks: Sequence[Callback] = ()
) -> FitResult:
    """Train, evaluate and report a run in its run folder, or whatever of that is left to do.

    With `cross_validate` that is `cross_validate(config)`. A bug in the report does not cost the
    result: it is printed with its traceback, and `report` is None. Nor does an error in a callback.

    Args:
        config: the settings.
        console: where the progress is printed; None is the standard output.
        callbacks: what follows the run, beside the loggers of `log_to`.

    Raises:
        VggjaxError: settings, data or weights that cannot be used, or a collapse that ends the run.
        Interrupted: SIGINT or SIGTERM; the run was saved and can be resumed.
    """
    config = join_processes(config)
    console = console or Console(quiet=not is_first())
    if num_processes() > 1:
        _check_together(config)
    if config.lr_find:
        raise ConfigError("`lr_find` trains nothing; in Python use vggjax.find_learning_rate.")
    if config.writes_events:
        check_tensorboard()
    loggers = make_loggers(config) if is_first() else []
    if config.cross_validate:
        return cross_validate(config, console=console, callbacks=callbacks)

    def finish() -> tuple[ModelInfo | None, dict[str, Any], Path | None]:
        # The same command may run beside it, or an evaluation.
        with lock_workdir(result.workdir, "the evaluation of a training", wait_s=_BUSY_S):
            calibrated = calibrate(result, console)
            evaluation, predictions = evaluate_split(calibrated, "test")
            log_test_metrics(result.workdir, evaluation, tensorboard=config.writes_events)
            report = _write_report(calibrated, evaluation, predictions)
        followers.end(result.workdir, result.config, test_metrics(evaluation))
        return calibrated.info, evaluation, report

    with Callbacks([*loggers, *callbacks], console=console) as followers:
        result = train(config, console, callbacks=followers)
        try:
            info, evaluation, report = on_first(finish)
        except KeyboardInterrupt as interrupt:
            raise Interrupted(signal_of(interrupt), result.workdir) from None
    unreadable = result.left_out | evaluation["unreadable"]
    return FitResult(result.workdir, result.model, info, evaluation, report, unreadable)


def cross_validate(
    config: Config, *, console: Console | None = None, callbacks: Sequence[Callback] = ()
) -> FitResult:
    """Train and evaluate each fold as a run of its own, and pool the test results of all.

    The callbacks follow each fold, whose folder is in their events.

    Raises:
        VggjaxError: settings, data or weights that cannot be used, or a collapse that ends a fold.
        Interrupted: SIGINT or SIGTERM; the fold was saved and can be resumed.
    """
    console = console or Console()
    with progress_bar(console, "comparing images") as progress:
        run = prepare_cross_validation(config, progress=progress)
    for note in run.notes():
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    left_out: dict[str, str] = {}
    with lock_workdir(run.workdir, "a cross-validation"):
        write_folds(run)
        for number, fold in enumerate(run.folds, start=1):
            console.print(f"\nFold {number} of {len(run.folds)}", style="bold", highlight=False)
            try:
                left_out |= fit(fold, console=console, callbacks=callbacks).unreadable
            except Interrupted as interrupt:
                raise Interrupted(interrupt.signum, run.workdir) from None
        evaluation = pool_folds(run.workdir, run.config)
        result = RunResult(
            run.workdir,
            run.config,
            source=run.source,
            duplicates=run.duplicates,
            duplicate_groups=run.duplicate_groups,
        )
        report = _write_report(result, evaluation)
    return FitResult(run.workdir, None, None, evaluation, report, left_out)


def find_learning_rate(config: Config, *, console: Console | None = None) -> tuple[RateTest, Path]:
    """Run a learning rate range test on a run's first stage; return its result and its plot.

    Writes `lr-find.json` and `plots/lr-find.png` in the run folder, which stays free for the run.

    Raises:
        VggjaxError: settings, data or weights that cannot be used.
    """
    console = console or Console()
    if config.cross_validate:
        raise ConfigError(
            f"`lr_find` tests the rates of a single run; leave `cross_validate` "
            f"{config.cross_validate} out, and add it for the training."
        )
    with progress_bar(console, "comparing images") as progress:
        run = prepare_run(config, progress=progress)
    print_run_summary(console, run)
    with lock_workdir(run.workdir, "a learning rate test"):
        rate_test = try_rates(run, console)
        plot = run.workdir / "plots" / RATE_PLOT
        values = {"suggestion": rate_test.suggestion, "flags": rate_test.flags(config)}
        try:
            plot.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(plot, draw_rate_test(rate_test))
            write_text(run.workdir / RATE_FILE, json.dumps(asdict(rate_test) | values) + "\n")
        except OSError as error:
            raise unusable_workdir(run.workdir, error) from None
    return rate_test, plot


def _check_together(config: Config) -> None:
    """Raise ConfigError for what only a process alone can do."""
    values = {"cross_validate": 0, "lr_find": False, "head_solver": "steps", "baselines": False}
    for name, value in values.items():
        if getattr(config, name) != value:
            raise ConfigError(
                f"`{name}` {getattr(config, name)} is for a single process; this run has "
                f"{num_processes()}. Leave it out, or start one process."
            )


find_rate = find_learning_rate
"""The earlier name."""


def _write_report(
    result: RunResult, evaluation: dict[str, Any], predictions: SplitPredictions | None = None
) -> Path | None:
    """Write the report; print the traceback of a bug in it and return None."""
    try:
        return write_pages(result, evaluation=evaluation, predictions=predictions)
    except (VggjaxError, Interrupted):
        raise
    except OSError as error:
        raise VggjaxError(
            f"The report of {printable(result.workdir)} cannot be written: "
            f"{error.strerror or error}. The model and its evaluation are saved; if the disk is "
            "full, make room, and give the same command again."
        ) from None
    except Exception:
        traceback.print_exc()
        print(
            f"The report of {printable(result.workdir)} could not be written, because of this bug "
            "in vggjax. The model and its evaluation are saved.",
            file=sys.stderr,
        )
        return None
