"""`Callback`: what follows a training; loggers are callbacks, and users write their own.

    class Bell(vggjax.Callback):
        def on_end(self, event):
            print("\\a", event.values["test/accuracy"])

    vggjax.fit(config, callbacks=[Bell()])

A callback watches and changes nothing. An error in one never costs the run: it is named once, and
the training goes on without that callback.
"""

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from vggjax.errors import printable
from vggjax.training.config import Config


@dataclass(frozen=True)
class TrainingEvent:
    """Where a training stands, and what it measured there."""

    kind: Literal["step", "epoch", "end"]
    workdir: Path
    config: Config
    step: int
    """Steps taken."""
    values: Mapping[str, Any]
    """As in `log.jsonl`: `train/loss`, `val/accuracy`, `learning_rate/head`, `epoch` and so on; at
    the end `test/loss`, `test/accuracy` and so on."""
    error: str = ""
    """At the end: why the run did not finish."""


class Callback:
    """Follows a training; override what is needed."""

    def on_step(self, event: TrainingEvent) -> None:
        """Follow a logged step, one in `log_every_steps`."""

    def on_epoch(self, event: TrainingEvent) -> None:
        """Follow the evaluation at the end of an epoch."""

    def on_end(self, event: TrainingEvent) -> None:
        """Follow the end: the run was evaluated on test, or ended early (`event.error`).

        A cross-validation has an end for each fold.
        """


class Callbacks:
    """The callbacks of one run; one that fails is named, and not called again.

    As a context it tells of the end if the run ends early.
    """

    def __init__(self, callbacks: Sequence[Callback] = (), *, console: Console | None = None):
        self._active = list(callbacks)
        self._console = console or Console()
        self._last: TrainingEvent | None = None

    def __enter__(self) -> "Callbacks":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None and self._last is not None and self._last.kind != "end":
            last, reason = self._last, printable(error) or type(error).__name__
            self._call("on_end", replace(last, kind="end", values={}, error=reason))

    def record(self, workdir: Path, config: Config, log_record: Mapping[str, Any]) -> None:
        """Tell of a record of the log, if it is of a step or an epoch."""
        values = dict(log_record)
        kind, step = values.pop("kind"), values.pop("step")
        if kind in ("step", "epoch"):
            self._call(f"on_{kind}", TrainingEvent(kind, workdir, config, step, values))

    def end(self, workdir: Path, config: Config, values: Mapping[str, Any]) -> None:
        """Tell of the end of a run that was evaluated."""
        step = self._last.step if self._last else 0
        self._call("on_end", TrainingEvent("end", workdir, config, step, dict(values)))

    def _call(self, method: str, event: TrainingEvent) -> None:
        self._last = event
        for callback in [*self._active]:
            try:
                getattr(callback, method)(event)
            except Exception as error:
                self._active.remove(callback)
                self._console.print(_describe(callback, method, error), **_PLAIN)


_PLAIN: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}


def _describe(callback: Callback, method: str, error: Exception) -> str:
    (*_, place) = traceback.extract_tb(error.__traceback__)
    reason = f"{type(error).__name__}: {printable(error)}"
    return (
        f"The callback {type(callback).__name__} failed in {method} and is not called again; the "
        f"run goes on. {reason} ({Path(place.filename).name}, line {place.lineno})"
    )
