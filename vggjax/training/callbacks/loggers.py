"""The loggers of `log_to`: wandb, mlflow and trackio, each a `Callback` and an optional package.

They log the points that TensorBoard has, under the same names, and the settings of the run. Which
run of theirs belongs to a run folder is kept in its `loggers.json`, so that a resumed training goes
on in the same one; a logger that comes later first logs what `log.jsonl` has. Projects, servers and
offline modes are those of the loggers' own environment variables.
"""

import importlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vggjax.atomic import write_text
from vggjax.errors import ConfigError
from vggjax.training.callbacks.callback import Callback, TrainingEvent
from vggjax.training.config import Config
from vggjax.training.run_dir.log import metric_points, read_log

IDS_FILE = "loggers.json"
"""In a run folder: logger -> its name of the run."""

PROJECT = "vggjax"
"""The project, or experiment, unless the environment names one."""


class Logger(Callback):
    """Logs the numbers of a run with a package; a subclass knows the package."""

    name: str

    def __init__(self) -> None:
        self._package = importlib.import_module(self.name)
        self._workdir: Path | None = None

    def on_step(self, event: TrainingEvent) -> None:
        """Log a step."""
        self._log(event)

    def on_epoch(self, event: TrainingEvent) -> None:
        """Log an epoch."""
        self._log(event)

    def on_end(self, event: TrainingEvent) -> None:
        """Log the test metrics, and close the run."""
        if event.error and self._workdir is None:
            return  # it ended before anything was logged
        self._log(event)
        self._workdir = None
        self.close(failed=bool(event.error))

    def open(self, event: TrainingEvent, known: str | None) -> str:
        """Begin the logger's run, or go on with the `known` one; return its identifier."""
        raise NotImplementedError

    def write(self, points: dict[str, float], step: int) -> None:
        """Log points of a step."""
        raise NotImplementedError

    def close(self, *, failed: bool) -> None:
        """End the logger's run."""
        raise NotImplementedError

    def _log(self, event: TrainingEvent) -> None:
        if self._workdir == event.workdir:
            self._write({"kind": event.kind, "step": event.step, **event.values})
            return
        ids = _read_ids(event.workdir)
        known = ids.get(self.name)
        identifier = self.open(event, known)
        self._workdir = event.workdir
        if known is not None:
            self._write({"kind": event.kind, "step": event.step, **event.values})
            return
        ids[self.name] = identifier
        write_text(event.workdir / IDS_FILE, json.dumps(ids, indent=2) + "\n")
        for log_record in read_log(event.workdir):  # the event's own is the last
            self._write(log_record)

    def _write(self, log_record: Mapping[str, Any]) -> None:
        if points := metric_points(log_record):
            self.write(points, log_record["step"])


class WandbLogger(Logger):
    """Weights & Biases; WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE and so on are its own."""

    name = "wandb"

    def open(self, event: TrainingEvent, known: str | None) -> str:
        """Begin or resume a run."""
        run = self._package.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=event.workdir.name,
            id=known,
            resume="allow",
            config=asdict(event.config),
        )
        # A resumed run repeats steps, which wandb's own step would drop.
        run.define_metric("*", step_metric="step")
        self._run = run
        return str(run.id)

    def write(self, points: dict[str, float], step: int) -> None:
        """Log points beside their step."""
        self._run.log({**points, "step": step})

    def close(self, *, failed: bool) -> None:
        """Finish the run."""
        self._run.finish(exit_code=int(failed))


class MlflowLogger(Logger):
    """MLflow; MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME are its own."""

    name = "mlflow"

    def open(self, event: TrainingEvent, known: str | None) -> str:
        """Begin or resume a run."""
        mlflow = self._package
        if known is None and "MLFLOW_EXPERIMENT_NAME" not in os.environ:
            mlflow.set_experiment(PROJECT)
        run = mlflow.start_run(run_id=known, run_name=event.workdir.name)
        if known is None:
            mlflow.log_params({name: str(v) for name, v in asdict(event.config).items()})
        return str(run.info.run_id)

    def write(self, points: dict[str, float], step: int) -> None:
        """Log points at a step."""
        self._package.log_metrics(points, step=step)

    def close(self, *, failed: bool) -> None:
        """End the run."""
        self._package.end_run("FAILED" if failed else "FINISHED")


class TrackioLogger(Logger):
    """Trackio, which keeps its runs on this machine; `trackio show` shows them."""

    name = "trackio"

    def open(self, event: TrainingEvent, known: str | None) -> str:
        """Begin or resume a run, which is known by its name."""
        name = known or event.workdir.name
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        self._package.init(project=project, name=name, config=asdict(event.config), resume="allow")
        return name

    def write(self, points: dict[str, float], step: int) -> None:
        """Log points at a step."""
        self._package.log(points, step=step)

    def close(self, *, failed: bool) -> None:
        """Finish the run."""
        self._package.finish()


LOGGERS: dict[str, type[Logger]] = {
    logger.name: logger for logger in (WandbLogger, MlflowLogger, TrackioLogger)
}


def make_loggers(config: Config) -> list[Callback]:
    """Return the loggers that `log_to` names, but for TensorBoard's, which the log itself writes.

    Raises:
        ConfigError: the package of one is not installed.
    """
    loggers: list[Callback] = []
    for name in dict.fromkeys(config.log_to):
        if name == "tensorboard":
            continue
        try:
            loggers.append(LOGGERS[name]())
        except ImportError:
            raise ConfigError(
                f"`log_to` {name} needs the package {name}, which is not installed: pip install "
                f"{name}; or leave it out."
            ) from None
    return loggers


def _read_ids(workdir: Path) -> dict[str, str]:
    try:
        ids = json.loads((workdir / IDS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return ids if isinstance(ids, dict) and all(isinstance(v, str) for v in ids.values()) else {}
