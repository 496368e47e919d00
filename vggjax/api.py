"""The whole job in one call: train, evaluate, report; once, or a fold at a time."""

import json
import signal
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from vggjax.atomic import write_text
from vggjax.errors import ConfigError
from vggjax.evaluation.evaluate import evaluate_split, pool_folds
from vggjax.models.network import Network
from vggjax.report.figures import draw_rate_test
from vggjax.report.report import write_report
from vggjax.training.config import Config
from vggjax.training.console import print_run_summary, progress_bar
from vggjax.training.cross_validation import prepare_folds
from vggjax.training.lr_finder import RateTest, check_rate_test, try_rates
from vggjax.training.prepare import prepare_run
from vggjax.training.run_dir.folder import RATE_FILE, RATE_PLOT, lock_workdir, unusable
from vggjax.training.run_dir.log import append_log, read_log
from vggjax.training.run_dir.saved_model import ModelInfo
from vggjax.training.run_dir.tensorboard import FOLDER, EventFile, check_tensorboard
from vggjax.training.signals import Interrupted
from vggjax.training.trainer import train


@dataclass(frozen=True)
class FitResult:
    """What a run leaves: its folder, the best model, and what the evaluation found."""

    workdir: Path
    model: Network | None
    """None of a cross-validation: no one model was judged."""
    info: ModelInfo | None
    evaluation: dict[str, Any]
    report: Path
    unreadable: dict[str, str]
    """Images that were left out of any split: id -> reason."""


def fit(config: Config, *, console: Console | None = None) -> FitResult:
    """Runs the job that the config describes, or what is left of it, in its run folder.

    Raises:
        VggjaxError: settings, data or weights that cannot be used, or a loss that is not finite.
        Interrupted: a Ctrl-C or SIGTERM; the run was saved and can go on.
    """
    if config.lr_find:
        raise ConfigError(
            "--lr-find trains nothing; from Python it is vggjax.api.find_learning_rate."
        )
    if config.tensorboard:
        check_tensorboard()
    if config.cross_validate:
        return _cross_validate(config, console or Console())
    trained = train(config, console=console)
    if config.tensorboard and not (trained.workdir / FOLDER).exists():  # of a finished run
        EventFile(trained.workdir, read_log(trained.workdir)).close()
    try:
        evaluation, predictions = evaluate_split(trained, "test")
        _log_test(trained.workdir, evaluation, tensorboard=config.tensorboard)
        report = write_report(trained, evaluation=evaluation, predictions=predictions)
    except KeyboardInterrupt:
        raise Interrupted(signal.SIGINT, trained.workdir) from None
    unreadable = trained.info.left_out | evaluation["unreadable"]
    return FitResult(trained.workdir, trained.model, trained.info, evaluation, report, unreadable)


def find_learning_rate(config: Config, *, console: Console | None = None) -> tuple[RateTest, Path]:
    """Tries which learning rate to take, and gives what was found and where it is drawn.

    Writes `lr-find.json` and `plots/lr-find.png` in the run folder, and nothing else: no run begins
    there.

    Raises:
        VggjaxError: settings, data or weights that cannot be used.
    """
    console = console or Console()
    check_rate_test(config)
    with progress_bar(console, "comparing images") as progress:
        run = prepare_run(config, progress=progress)
    print_run_summary(console, run)
    test = try_rates(run, console)
    plot = run.workdir / "plots" / RATE_PLOT
    try:
        plot.parent.mkdir(parents=True, exist_ok=True)
        plot.write_bytes(draw_rate_test(test))
        found = asdict(test) | {"suggestion": test.suggestion, "flags": test.flags(config)}
        write_text(run.workdir / RATE_FILE, json.dumps(found) + "\n")
    except OSError as error:
        raise unusable(run.workdir, error) from None
    return test, plot


def _cross_validate(config: Config, console: Console) -> FitResult:
    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    with progress_bar(console, "comparing images") as progress:
        workdir, configs = prepare_folds(config, progress=progress, say=say)
    left_out: dict[str, str] = {}
    with lock_workdir(workdir):
        for number, fold in enumerate(configs, start=1):
            console.print(f"\nFold {number} of {len(configs)}", style="bold", highlight=False)
            try:
                left_out |= fit(fold, console=console).unreadable
            except Interrupted as stopped:
                raise Interrupted(stopped.signum, workdir) from None
        evaluation = pool_folds(workdir, config)
        report = write_report(workdir)
    return FitResult(workdir, None, None, evaluation, report, left_out)


def _log_test(workdir: Path, evaluation: dict[str, Any], *, tensorboard: bool) -> None:
    """Adds the final evaluation to the log once; a rerun finds the same."""
    lines = read_log(workdir)
    if any(line["kind"] == "test" for line in lines):
        return
    names = ("loss", "accuracy", "top5")
    values = {f"test/{name}": evaluation[name] for name in names if name in evaluation}
    step = max((line["step"] for line in lines), default=0)
    line = {"kind": "test", "step": step, **values}
    append_log(workdir, line)
    if tensorboard:
        events = EventFile(workdir)
        events.write(line)
        events.close()


find_rate = find_learning_rate
