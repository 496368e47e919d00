"""What `vggjax.fit` returns, readable in a terminal and in a notebook."""

import base64
import html
import shlex
import sys
import webbrowser
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vggjax.errors import VggjaxError, printable
from vggjax.models.network import Network
from vggjax.report import figures
from vggjax.report.plot_style import png
from vggjax.report.report import draw_run_curves
from vggjax.report.run_files import RunFiles, read_run
from vggjax.training.run_dir.run_result import ModelInfo

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FRAME_HEIGHT_PX = 800
"""Of the report in a notebook."""

_NUMBERS = ("probability", "truth_probability", "loss")


@dataclass(frozen=True, repr=False)
class FitResult:
    """The result of a run: its folder, the best model, and the evaluation on the test split.

    `print` shows four lines, a notebook the figure, the confusion matrix and the report's place.
    """

    workdir: Path
    model: Network | None
    """None for a cross-validation, which has one model per fold."""
    info: ModelInfo | None
    evaluation: dict[str, Any]
    """What eval.json holds."""
    report: Path | None
    """None if a bug kept the report from being written; its traceback was printed."""
    unreadable: dict[str, str]
    """Images of any split that were left out: id -> reason."""

    @cached_property
    def _files(self) -> RunFiles:
        return read_run(self.workdir, evaluation=self.evaluation)

    @property
    def plots(self) -> "Plots":
        """The figures of the report, as matplotlib's."""
        return Plots(self._files)

    @cached_property
    def predictions(self) -> list[dict[str, Any]]:
        """The test images with their labels and predictions, one dict each: predictions.csv.

        `id`, `truth`, `guess`, `correct` (bool), `probability` and `truth_probability` (0 to 1); of
        several labels per image `loss` in place of the probabilities.
        """
        rows: list[dict[str, Any]] = []
        for row in self._files.predictions:
            numbers = {name: float(row[name]) for name in _NUMBERS if name in row}
            rows.append(row | numbers | {"correct": row["correct"] == "1"})
        return rows

    def show(self) -> None:
        """Show the report: in a notebook below the cell, otherwise in the browser.

        Raises:
            VggjaxError: the report was not written.
        """
        if self.report is None:
            raise VggjaxError(
                f"The run {printable(self.workdir)} has no report. `vggjax report` writes it."
            )
        if "ipykernel" in sys.modules:
            from IPython.display import HTML, display

            page = html.escape(self.report.read_text(encoding="utf-8"))
            frame = f'<iframe srcdoc="{page}" style="width:100%;border:0" '
            display(HTML(f'{frame}height="{FRAME_HEIGHT_PX}"></iframe>'))
        else:
            webbrowser.open(self.report.resolve().as_uri())

    def __repr__(self) -> str:
        folder = shlex.quote(str(self.workdir))
        lines = {
            "Test": self._headline,
            "Weights": self._best,
            "Report": printable(self.report) if self.report else "not written",
            "Predict": f"vggjax predict PHOTO.jpg --workdir {folder}",
        }
        return "\n".join(f"{name:<8} {text}" for name, text in lines.items())

    def _repr_html_(self) -> str:
        lines = [
            f"<b>Test {html.escape(self._headline)}</b>",
            f"Weights: {html.escape(self._best)}",
        ]
        if self.report is not None:
            link = html.escape(self.report.resolve().as_uri())
            lines.append(f'Report: <a href="{link}">{html.escape(printable(self.report))}</a>')
        text = "<br>".join(lines)
        if self._files.is_multilabel or not self.evaluation["confusion"]:
            return f"<p>{text}</p>"
        image = base64.b64encode(png(self.plots.drawing_of_confusion())).decode()
        picture = f'<img alt="Confusion matrix" width="480" src="data:image/png;base64,{image}">'
        return f"<p>{text}</p>{picture}"

    @property
    def _headline(self) -> str:
        name, value, (low, high) = self._files.headline
        interval = f"95% interval {low:.1%} to {high:.1%}"
        count = self.evaluation["num_examples"]
        return f"{name} {value:.1%} ({interval}) of {count:,} images"

    @property
    def _best(self) -> str:
        files = self._files
        if files.best_epoch is None:
            return f"{files.config.cross_validate} folds, a model each"
        metric = files.config.best_metric
        return f"those of epoch {files.best_epoch:g} of {len(files.rows)}, the best by {metric}"


@dataclass(frozen=True)
class Plots:
    """The figures of a run, drawn when they are called for."""

    _files: RunFiles

    def curves(self) -> "list[Figure]":
        """Draw loss, accuracy and learning rates by epoch, a figure each."""
        return [drawing.figure for drawing in draw_run_curves(self._files)]

    def confusion(self) -> "Figure":
        """Draw the confusion matrix.

        Raises:
            VggjaxError: images have several labels each, or there are too many classes.
        """
        return self.drawing_of_confusion().figure

    def drawing_of_confusion(self) -> figures.Drawing:
        """Draw the confusion matrix, with its text alternative."""
        if self._files.is_multilabel:
            raise VggjaxError("A run with several labels per image has no confusion matrix.")
        if not self._files.evaluation["confusion"]:
            count = len(self._files.names)
            raise VggjaxError(f"{count:,} classes are too many for a confusion matrix.")
        return figures.draw_confusion(self._files.evaluation["confusion"], self._files.names)
