"""The log of a run: `log.jsonl`, and with `tensorboard` the same values as event files.

`log.jsonl` has one JSON object per line with its `kind` (step, epoch, resume, collapse or test) and
its `step`. It has no checksum, so that any tool may append to it: a line that is no record is left
out, and no figure but those of the curves and the times is read from it.

Whenever a run starts, resumes or goes back, the event file in `<workdir>/tensorboard` is rewritten
from these lines, so that it has no point twice and none of steps that are repeated.
(Points before a resume then have the time of the resume.)
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vggjax.atomic import write_text
from vggjax.errors import ConfigError, VggjaxError, printable
from vggjax.training.devices.processes import is_first

EVENTS_FOLDER = "tensorboard"


_KEYS: dict[str, tuple[type, ...]] = {
    "kind": (str,),
    "step": (int,),
    "epoch": (int, float),
    "stage": (str,),
    "seconds": (int, float),
    "images_per_s": (int, float),
    "is_best": (bool,),
    "recoveries": (int,),
    "reason": (str,),
    "advice": (str,),
    "action": (str,),
    "val/thresholds": (list,),  # of several labels per image
}
"""The types of a record's values."""
_TIMES = {"epoch", "seconds", "images_per_s"}
"""Keys whose numbers are finite; a metric may be NaN."""
_METRIC = (int, float)
"""The types of a value whose key has a slash, such as `val/loss`."""
_REQUIRED = {
    "step": (),
    "epoch": ("epoch", "stage", "seconds"),
    "resume": (),
    "collapse": ("epoch", "reason", "advice", "action"),
    "test": (),
}
"""Kind -> the keys that its records have beside `kind` and `step`."""


class Log:
    """Append to a run's log; a resumed run first drops the lines after its checkpoint.

    Args:
        workdir: the run's folder.
        step: the step that the run resumes from; lines of later steps will be written again.
        recoveries: how many times the run went back so far (see collapse/recovery.py).
        tensorboard: whether to write TensorBoard's event file too.
        on_record: called with each record after it was appended.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        step: int,
        recoveries: int = 0,
        tensorboard: bool = False,
        on_record: Callable[[dict[str, Any]], None] | None = None,
    ):
        self._workdir, self._tensorboard, self._on_record = workdir, tensorboard, on_record
        self._is_writer = is_first()  # of several processes
        self._events: EventFile | None = None
        resumed = [{"kind": "resume", "step": step}] if read_log(workdir) else []
        self._rewrite(step, recoveries, resumed)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        if self._events is not None:
            self._events.close()

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Append a line; it is on disk when this returns."""
        if not self._is_writer:
            return
        log_record = {"kind": kind, "step": step, **values}
        append_log(self._workdir, log_record)
        if self._events is not None:
            self._events.write(log_record)
        if self._on_record is not None:
            self._on_record(log_record)

    def go_back(self, step: int, recoveries: int, **values: Any) -> None:
        """Drop the lines of the steps that are repeated, and append one that says why."""
        log_record = {"kind": "collapse", "step": step, **values, "recoveries": recoveries}
        self._rewrite(step, recoveries - 1, [log_record])

    def _rewrite(self, step: int, recoveries: int, added: list[dict[str, Any]]) -> None:
        if not self._is_writer:
            return
        log_records = [
            log_record
            for log_record in read_log(self._workdir)
            if log_record["step"] <= step and log_record.get("recoveries", 0) <= recoveries
        ] + added
        text = "".join(json.dumps(log_record) + "\n" for log_record in log_records)
        with _writing(self._workdir):
            write_text(self._workdir / "log.jsonl", text)
        if self._tensorboard:
            if self._events is not None:
                self._events.close()
            self._events = EventFile(self._workdir, log_records)


def append_log(workdir: Path, log_record: dict[str, Any]) -> None:
    """Append a line to `log.jsonl`; raise VggjaxError if it cannot be written."""
    with _writing(workdir), (workdir / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(log_record) + "\n")


@contextmanager
def _writing(workdir: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise VggjaxError(
            f"The run folder {printable(workdir)} was deleted while this run used it."
        ) from None
    except OSError as error:
        raise VggjaxError(
            f"The log of {printable(workdir)} cannot be written: {error.strerror or error}. If the "
            "disk is full, make room; the same command resumes from the last checkpoint."
        ) from None


def read_log(workdir: str | Path) -> list[dict[str, Any]]:
    """Read `log.jsonl`, without lines that are damaged or cut short; empty if there is no log."""
    path = Path(workdir) / "log.jsonl"
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    log_records = []
    for line in lines:
        try:
            log_record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if _is_record(log_record):
            log_records.append(log_record)
    return log_records


def _is_record(value: Any) -> bool:
    """Return whether a JSON value is a record whose keys have the right types."""
    if not isinstance(value, dict) or not {"kind", "step"} <= value.keys():
        return False
    types = {name: _METRIC for name in value if "/" in name} | _KEYS
    if any(type(entry) not in types.get(name, (type(entry),)) for name, entry in value.items()):
        return False
    if not all(math.isfinite(value[name]) for name in _TIMES & value.keys()):
        return False
    required = _REQUIRED.get(value["kind"])
    return required is not None and {*required} <= value.keys()


def log_test_metrics(workdir: Path, evaluation: dict[str, Any], *, tensorboard: bool) -> None:
    """Log the metrics of the test split, unless an earlier command did."""
    log_records = read_log(workdir)
    if tensorboard and not (workdir / EVENTS_FOLDER).exists():  # the run finished without it
        EventFile(workdir, log_records).close()
    if any(log_record["kind"] == "test" for log_record in log_records):
        return
    step = max((log_record["step"] for log_record in log_records), default=0)
    log_record = {"kind": "test", "step": step, **test_metrics(evaluation)}
    append_log(workdir, log_record)
    if tensorboard:
        events = EventFile(workdir)
        events.write(log_record)
        events.close()


def test_metrics(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of the test split that are logged, as `test/accuracy`."""
    names = ("loss", "accuracy", "top5", "mAP")
    return {f"test/{name}": evaluation[name] for name in names if name in evaluation}


def metric_points(log_record: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a record as a logger names them: `train/loss`, `speed/seconds`.

    The training means of an epoch are `train/epoch_loss` and the like; the learning rates are those
    of the steps.
    """
    points = {}
    for name, value in log_record.items():
        if not isinstance(value, float):
            continue
        group, _, metric = name.rpartition("/")
        if log_record["kind"] == "epoch":
            if group == "learning_rate":
                continue
            metric = f"epoch_{metric}" if group == "train" else metric
        points[f"{group or 'speed'}/{metric}"] = value
    return points


def check_tensorboard() -> None:
    """Raise ConfigError if tensorboardX is not installed."""
    try:
        import tensorboardX  # noqa: F401
    except ImportError:
        raise ConfigError(
            "`tensorboard` needs tensorboardX, which is not installed: pip install "
            '"vggjax[tensorboard]", or pip install tensorboardX; or leave `tensorboard` out.'
        ) from None


class EventFile:
    """One event file, written without TensorFlow; each float of a log line is a point."""

    def __init__(self, workdir: Path, log_records: list[dict[str, Any]] | None = None):
        """Replace the event files by one with these log lines; None adds an empty one beside them.

        A TensorBoard that watches the folder drops what it showed, too.
        """
        from tensorboardX import SummaryWriter

        folder = workdir / EVENTS_FOLDER
        files = sorted(folder.glob("events.out.tfevents.*"))
        if log_records is not None:
            for path in files:
                path.unlink()
        self._writer = SummaryWriter(
            str(folder),
            purge_step=None if log_records is None else 0,
            filename_suffix=f".{len(files)}",  # the name's time has a resolution of a second
            flush_secs=10,
        )
        for log_record in log_records or []:
            self.write(log_record)

    def write(self, log_record: dict[str, Any]) -> None:
        """Add the points of a log line, as `metric_points` names them."""
        for name, value in metric_points(log_record).items():
            self._writer.add_scalar(name, value, log_record["step"])

    def close(self) -> None:
        """Write what is pending and close the file."""
        self._writer.close()
