"""The log's figures as TensorBoard event files, in `<workdir>/tensorboard`, without TensorFlow.

`log.jsonl` is what a run has logged, and this the same in another form: where a run starts, resumes
or goes back, the file is written anew from the log's lines, so that no point is there twice and
none is left of steps that were taken again. (Points before a resume then bear its time.)
"""

from pathlib import Path
from typing import Any

from vggjax.errors import ConfigError

FOLDER = "tensorboard"


def check_tensorboard() -> None:
    """Refuses --tensorboard where it cannot be written.

    Raises:
        ConfigError: tensorboardX is not installed.
    """
    try:
        import tensorboardX  # noqa: F401
    except ImportError:
        raise ConfigError(
            "--tensorboard needs tensorboardX, which is not installed: pip install "
            '"vggjax[tensorboard]", or pip install tensorboardX; or leave --tensorboard out.'
        ) from None


class EventFile:
    """One event file; every number of a line of the log is a point at the line's step."""

    def __init__(self, workdir: Path, lines: list[dict[str, Any]] | None = None):
        """Writes the file anew from the log's lines, or beside what is there where none are given.

        A TensorBoard that looks on drops what it showed, too.
        """
        from tensorboardX import SummaryWriter

        folder = workdir / FOLDER
        files = sorted(folder.glob("events.out.tfevents.*"))
        if lines is not None:
            for path in files:
                path.unlink()
        self._writer = SummaryWriter(
            str(folder),
            purge_step=None if lines is None else 0,
            filename_suffix=f".{len(files)}",  # two within a second would be one
            flush_secs=10,
        )
        for line in lines or []:
            self.write(line)

    def write(self, line: dict[str, Any]) -> None:
        """Adds the points of a line of the log, as `train/loss`, `val/accuracy`, `speed/seconds`.

        An epoch's means of the training are `train/epoch_loss` and the like; the rates are those of
        the steps.
        """
        for name, value in line.items():
            if not isinstance(value, float):
                continue
            group, _, rest = name.rpartition("/")
            if line["kind"] == "epoch":
                if group == "learning_rate":
                    continue
                rest = f"epoch_{rest}" if group == "train" else rest
            self._writer.add_scalar(f"{group or 'speed'}/{rest}", value, line["step"])

    def close(self) -> None:
        """Waits until everything is written."""
        self._writer.close()
