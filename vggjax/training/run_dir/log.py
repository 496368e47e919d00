"""A run's log: `log.jsonl`, one JSON object a line, `kind` step, epoch, resume, collapse or test.

Each has the `step` that it is of. With --tensorboard its figures are kept as event files, too.
"""

import json
from pathlib import Path
from typing import Any

from vggjax.atomic import write_text
from vggjax.training.run_dir.tensorboard import EventFile


class Log:
    """Appends to `log.jsonl`; a resumed run drops what was written behind its checkpoint.

    Args:
        workdir: the run's folder.
        step: where the run stands; later lines are of steps that will be taken again.
        recoveries: how often the run went back so far (see recovery.py).
        tensorboard: whether TensorBoard's event file is kept beside it.
    """

    def __init__(self, workdir: Path, *, step: int, recoveries: int = 0, tensorboard: bool = False):
        self._workdir, self._tensorboard = workdir, tensorboard
        self._events: EventFile | None = None
        resumed = [{"kind": "resume", "step": step}] if read_log(workdir) else []
        self._rewrite(step, recoveries, resumed)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        if self._events is not None:
            self._events.close()

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Adds a line; it is written when this returns."""
        line = {"kind": kind, "step": step, **values}
        append_log(self._workdir, line)
        if self._events is not None:
            self._events.write(line)

    def go_back(self, step: int, recoveries: int, **values: Any) -> None:
        """Drops the lines of the steps that are taken again, and adds one that says why."""
        line = {"kind": "collapse", "step": step, **values, "recoveries": recoveries}
        self._rewrite(step, recoveries - 1, [line])

    def _rewrite(self, step: int, recoveries: int, added: list[dict[str, Any]]) -> None:
        lines = read_log(self._workdir)
        kept = [
            line
            for line in lines
            if line["step"] <= step and line.get("recoveries", 0) <= recoveries
        ] + added
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_text(self._workdir / "log.jsonl", text)
        if self._tensorboard:
            if self._events is not None:
                self._events.close()
            self._events = EventFile(self._workdir, kept)


def append_log(workdir: Path, line: dict[str, Any]) -> None:
    """Adds a line to `log.jsonl`."""
    with (workdir / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read_log(workdir: str | Path) -> list[dict[str, Any]]:
    """Reads `log.jsonl`; a last line that a kill cut short is left out."""
    path = Path(workdir) / "log.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found
