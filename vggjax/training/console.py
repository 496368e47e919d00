"""The terminal output of a run: its summary, a progress bar, and a line per epoch."""

import dataclasses
import importlib.util
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from vggjax.data.augment.settings import describe
from vggjax.data.quality.duplicates import dark_notes
from vggjax.data.splits.slices import looks_like_slices
from vggjax.data.splits.splits import group_notes, small_val_notes, split_notes
from vggjax.errors import join_names, printable, with_flags
from vggjax.models.kernels import winograd
from vggjax.models.params import shapes
from vggjax.training.cache.plan import uncached_note
from vggjax.training.config import Config
from vggjax.training.freezing import block_of, describe_rates, label_layers, solves_head
from vggjax.training.prepare import Progress as ProgressCallback
from vggjax.training.prepare import RunContext, count_trained_names
from vggjax.training.recipes import lesson_of
from vggjax.training.run_dir.folder import describe_duplicates
from vggjax.training.settings.stages import Stage
from vggjax.weights.verify import MISTAKES_PAGE

LINE_EVERY_S = 10.0
"""Seconds between two lines of progress on an output that is no terminal."""

_PIXEL_MODES = {
    "caffe": "'caffe' pixels (BGR minus ImageNet's mean)",
    "torch": "'torch' pixels (RGB scaled by ImageNet's mean and standard deviation)",
    "unit": "pixels divided by 255",
}


def print_run_summary(console: Console, run: RunContext) -> None:
    """Print the device, data, preprocessing, model, stages and warnings of a run."""
    config, lesson, preprocessing = run.config, lesson_of(run.config), run.config.preprocessing
    class_names, start = run.source.class_names, config.start_from
    weights = f"both from {start}" if start else f"weights {config.weights}"
    fields = [field.name for field in dataclasses.fields(Config)]
    rows = [
        ("Run folder", printable(run.workdir)),
        ("Recipe", f"{config.recipe}: {lesson.title}" if lesson else _describe_defaults(run)),
        ("Lesson", with_flags(lesson.teaches, fields) if lesson else ""),
        ("Device", f"{run.placement}, {run.placement.precision(str(config.dtype))}"),
        ("Dataset", f"{printable(run.source.name)}: {len(run.source.labels):,} images"),
        ("Classes", f"{len(class_names)}: {join_names(class_names, most=12)}"),
        ("Splits", _describe_splits(run)),
        ("Duplicates", describe_duplicates(run.duplicates)),
        ("Task", _describe_task(run)),
        ("Class weights", _describe_class_weights(run)),
        ("Images", f"{preprocessing.image_size} px, {preprocessing.resize}, "
                   f"{preprocessing.interpolation}, {_PIXEL_MODES[preprocessing.mode]}"
                   f"{preprocessing.rendering.remark}"),
        ("Augmentation", describe(config.augmentation)),
        ("Model", f"{config.model} + {run.model.head}, {printable(weights)}"),
        ("SHA-256", _describe_origin(run.info.provenance)),
        ("Batch", _describe_batch(run)),
        ("Optimizer", _describe_optimizer(config)),
    ]  # fmt: skip
    for stage in run.stages:
        rows.append(("Stage", _describe_stage(run, stage)))
        features = str(run.feature_plans.get(stage.name, ""))
        rows.append(("Features", with_flags(features, fields)))
    rows.append(("Features", with_flags(uncached_note(config, run.model, run.stages), fields)))
    notes = run.weight_file.notes if run.weight_file else []
    rows += [("Weights", with_flags(printable(note), fields)) for note in notes]
    rows += [("Warning", with_flags(printable(text), fields)) for text in _warnings(run)]
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in filter(all, rows):
        table.add_row(name, escape(text), style="yellow" if name == "Warning" else None)
    console.print(table)


def _describe_defaults(run: RunContext) -> str:
    """Return in one line what a run without a recipe does, and why."""
    config, first = run.config, run.stages[0]
    if config.stages:
        return "none: the stages as given"
    if not config.pretrained:
        return "none: without pretrained weights, what trains starts from random ones, all at once"
    if first.unfreeze == ("none",) and len(run.stages) == 1:
        return (
            "none: the head learns alone, on frozen pretrained layers, which suits few images; "
            "unfreezing block5 as well takes longer and often gives more"
        )
    if len(run.stages) == 2:
        return (
            "none: the head learns first, because the gradients of a new head would spoil "
            f"pretrained layers; then {' '.join(config.unfreeze)} at a rate of its own"
        )
    return f"none: the head and {' '.join(config.unfreeze)} learn together from the start"


def _describe_splits(run: RunContext) -> str:
    sizes = ", ".join(f"{name} {len(rows):,}" for name, rows in run.splits.items())
    if not run.source.splits:
        return sizes
    taken = [name for name in run.splits if name not in run.source.splits]
    return f"{sizes}; {' and '.join(taken)} taken from train" if taken else sizes


def _describe_task(run: RunContext) -> str:
    """Return how images with several labels are learned; "" of one label each."""
    targets = run.source.targets
    if targets is None:
        return ""
    counts = targets.sum(1)
    without = f", {(counts == 0).sum():,} images without any" if not counts.all() else ""
    return (
        f"multilabel: {counts.mean():.2f} labels per image{without}; a sigmoid unit for each "
        f"class, binary cross-entropy, best weights by {run.config.best_metric}"
    )


def _describe_class_weights(run: RunContext) -> str:
    weights = run.class_weights
    if weights is None:
        return ""
    if run.is_multilabel:
        ratios = weights[:, 1] / np.maximum(weights[:, 0], 1e-9)
        low, high = (
            f"{ratios[i]:.2f} ({printable(run.source.class_names[i])})"
            for i in (ratios.argmin(), ratios.argmax())
        )
        return f"balanced: the presence of a label counts {low} to {high} times its absence"
    if weights.min() == weights.max():
        return "balanced: all classes have the same number of images"
    low, high = (
        f"{weights[i]:.2f} ({printable(run.source.class_names[i])})"
        for i in (weights.argmin(), weights.argmax())
    )
    return f"balanced: an image counts from {low} to {high} in the loss"


def _describe_origin(provenance: dict[str, str]) -> str:
    if "weights_sha256" not in provenance:
        return ""
    name = provenance.get("weights_known_as") or provenance["weights_format"]
    return f"{provenance['weights_sha256']}: {name}"


def _describe_batch(run: RunContext) -> str:
    """Return how many images a step has, where not all on one device at once; "" if they are."""
    devices, parts = len(run.placement.devices), run.placement.parts
    if devices == parts == 1 and run.batch_size == Config.batch_size:
        return ""
    each = -(-run.batch_size // (devices * parts))
    over = f", {each} on each of {devices} devices" if devices > 1 else ""
    return f"{run.batch_size} images{over}" + (f", {each} at a time" if parts > 1 else "")


def _describe_optimizer(config: Config) -> str:
    if config.takes_no_steps:
        return f"L-BFGS, label smoothing {config.label_smoothing:g}"
    parts = [f"{config.optimizer}, {config.schedule} schedule"]
    if config.schedule == "plateau":
        parts[0] += f" (x {config.plateau_factor:g} after {config.plateau_patience} epochs)"
    names = {
        "warmup_epochs": "warmup epochs",
        "weight_decay": "weight decay",
        "clip_norm": "gradient norm clipped at",
        "label_smoothing": "label smoothing",
        "ema": "moving average of the weights, decay",
    }
    parts += [
        f"{text} {value:g}" for name, text in names.items() if (value := getattr(config, name))
    ]
    return ", ".join(parts)


def _describe_stage(run: RunContext, stage: Stage) -> str:
    config = run.config
    labels = label_layers(run.model, stage.unfreeze, by_block=config.layer_decay != 1)
    sizes = {
        layer: sum(math.prod(shape) for name, shape in parts.items() if name not in ("mean", "var"))
        for layer, parts in shapes(run.model).items()
    }
    trained = sum(size for layer, size in sizes.items() if labels[layer] != "frozen")
    last = stage.first_epoch + stage.epochs
    how = f"learning rate {describe_rates(config, labels)}"
    if solves_head(config, stage):
        how = "the head is solved by L-BFGS, its penalty chosen on val"
    return (
        f"{stage.name}, epochs {stage.first_epoch + 1}-{last}, {run.steps_per_epoch} steps each: "
        f"{trained:,} of {sum(sizes.values()):,} parameters train, {_describe_frozen(labels)}; "
        f"{how}"
    )


def _describe_frozen(labels: dict[str, str]) -> str:
    """Return the frozen blocks, and the frozen layers of the blocks that are frozen in part."""
    blocks: dict[str, list[str]] = {}
    for layer in labels:
        blocks.setdefault(block_of(layer), []).append(layer)
    parts = []
    for block, layers in blocks.items():
        frozen = [layer for layer in layers if labels[layer] == "frozen"]
        parts += [block] if frozen == layers else frozen
    return f"{' '.join(parts)} frozen" if parts else "nothing frozen"


def _warnings(run: RunContext) -> list[str]:
    config, source = run.config, run.source
    warnings = [*source.notes, *split_notes(source, run.splits)]
    warnings += small_val_notes(source, run.splits)
    warnings += group_notes(source, run.splits)
    warnings += dark_notes(run.duplicate_groups) if run.duplicate_groups else []
    if source.splits and len(source.splits) == 3 and config.split != Config.split:
        if not looks_like_slices(config.split):
            warnings.append(f"`split` {config.split} is not used: the dataset has its own splits.")
    warnings.append(_pixel_warning(run))
    start = Path(config.start_from) if config.start_from else None
    if start and (trained := count_trained_names(start, source, run.splits)):
        warnings.append(
            f"{trained:,} val and test images have the names of images that {start} was trained "
            "on. If they are the same images, this run's metrics on them are too good."
        )
    is_cpu = run.placement.devices[0].platform == "cpu"
    if is_cpu and config.convolution != "direct" and not winograd.is_compiled():
        warnings.append(
            "The compiled convolution is not installed, or older than this code, so a step takes "
            "two to three times as long. Run `pip install -e .` where a C++ compiler is available."
        )
    if not config.pretrained and config.unfrozen != ("all",):
        warnings.append(
            "The frozen layers have random weights. Use pretrained `weights`, or set `unfreeze` "
            "to all."
        )
    return [warning for warning in warnings if warning]


def _pixel_warning(run: RunContext) -> str:
    """Return a warning if the weights were trained on other pixels than they will get."""
    if run.weight_file is None:
        return ""
    mode, info = run.config.preprocessing.mode, run.weight_file.info
    expected = "caffe" if mode == "unit" and not info.preprocess_doubt else mode
    if run.config.weights != "imagenet" and info.states_preprocess:
        expected = info.preprocess
    if expected == mode:  # or the file does not state it; no published one is `unit`
        return ""
    return (
        f"The weights were trained on {_PIXEL_MODES[expected]}, not on {_PIXEL_MODES[mode]}, so "
        f"the frozen layers give worse features. Set `preprocess` to auto. What that costs: "
        f"{MISTAKES_PAGE}"
    )


def draws_bars(console: Console) -> bool:
    """Return whether an output can draw a bar: a terminal, or a notebook with ipywidgets."""
    has_widgets = console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None
    return console.is_terminal or has_widgets


class ProgressLines:
    """A line for each tenth of a work that takes long, where no bar can be drawn."""

    def __init__(self, console: Console, *, every_s: float = LINE_EVERY_S):
        self._console, self._every_s = console, every_s
        self.begin("", 0)

    def begin(self, title: str, total: int, *, done: int = 0) -> None:
        """Begin a work of `total` images, of which `done` are done; 0 shows nothing."""
        self._title, self._total, self._first = title, total, done
        self._tenth = 10 * done // max(total, 1)
        self._begin_s = self._printed_s = time.monotonic()

    def advance(self, done: int) -> None:
        """Print a line if another tenth is done, and the last line is some seconds old."""
        now_s = time.monotonic()
        tenth = 10 * done // max(self._total, 1)
        is_due = self._tenth < tenth < 10 and now_s - self._printed_s >= self._every_s
        if not is_due or draws_bars(self._console):
            return
        self._tenth, self._printed_s = tenth, now_s
        left_s = (now_s - self._begin_s) * (self._total - done) / max(done - self._first, 1)
        text = f"{self._title}: {10 * tenth} %, {done:,} of {self._total:,}"
        line = f"{text}, about {_rounded(left_s)} left"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _rounded(seconds: float) -> str:
    """Format an estimate of a duration: `47 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


@contextmanager
def progress_bar(console: Console, title: str) -> Iterator[ProgressCallback]:
    """Yield the function (done, total) that moves a bar, which appears with its first call.

    What runs before that call, such as a download, may show a bar of its own. Where there is no
    terminal, long work prints lines.
    """
    progress, lines = _make_progress(console), ProgressLines(console)
    task = progress.add_task(title, total=None, metrics="")
    is_begun = False

    def move(done: int, total: int) -> None:
        nonlocal is_begun
        if not is_begun:
            lines.begin(title, total)
            is_begun = True
        lines.advance(done)
        progress.start()
        progress.update(task, completed=done, total=total)

    try:
        yield move
    finally:
        progress.stop()


def _make_progress(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[metrics]}"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, disable=not draws_bars(console), transient=True)


def _scores(values: dict[str, float], split: str, *, digits: int = 4) -> str:
    """Return the accuracy of a split as text, or of several labels per image mAP and F1."""
    names = {"mAP": "mAP", "f1": "F1"} if f"{split}/f1" in values else {"accuracy": "accuracy"}
    shown = [(text, values.get(f"{split}/{name}")) for name, text in names.items()]
    return ", ".join(f"{text} {value:.{digits}f}" for text, value in shown if value is not None)


class ProgressConsole:
    """A progress bar on a terminal, and lines of text on any output; a context manager."""

    def __init__(self, console: Console, epochs: int):
        self._console, self._epochs = console, epochs
        self._progress = _make_progress(console)
        self._task = self._progress.add_task("", visible=False, metrics="")
        self._lines = ProgressLines(console)

    def __enter__(self) -> "ProgressConsole":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begin(self, title: str, total: int, *, done: int = 0, lines: bool = False) -> None:
        """Start a bar of `total` steps or images, in place of the last one.

        With `lines`, work that takes long prints its progress where there is no terminal.
        """
        self._lines.begin(title, total if lines else 0, done=done)
        self._progress.reset(
            self._task, description=title, total=total, completed=done, visible=True, metrics=""
        )

    def advance(self, done: int) -> None:
        """Move the bar to `done`."""
        self._lines.advance(done)
        self._progress.update(self._task, completed=done)

    def show_metrics(self, values: dict[str, float], images_per_s: float) -> None:
        """Show the latest training loss and accuracy, or F1, beside the bar."""
        text = f"loss {values['train/loss']:.4f}, {_scores(values, 'train', digits=3)}"
        self._progress.update(self._task, metrics=f"{text}, {images_per_s:.0f} images/s")

    def print_estimate(self, run: RunContext, stage: Stage, seconds: float) -> None:
        """Print how long what is left of a stage takes, and which stages follow."""
        following = [later.name for later in run.stages if later.first_epoch > stage.first_epoch]
        if seconds < LINE_EVERY_S and not following:
            return
        most = "at most " if run.config.patience and not following else "about "
        then = f"; then {' and '.join(following)}" if following else ""
        until = f"until epoch {stage.first_epoch + stage.epochs}"
        self.print(f"{stage.name}: {most}{_rounded(seconds)} {until}{then}")

    def print_epoch(
        self, epoch: int, stage: str, values: dict[str, float], *, is_best: bool
    ) -> None:
        """Print the results of an epoch on one line."""
        parts = [f"epoch {epoch:>{len(str(self._epochs))}}/{self._epochs} {stage}"]
        for split in ("train", "val"):
            loss = values[f"{split}/loss"]
            digits = f"{loss:.4f}" if abs(loss) < 1e4 else f"{loss:.3e}"
            parts.append(f"{split} loss {digits}, {_scores(values, split)}")
        parts.append(f"{values['images_per_s']:.0f} images/s, {values['seconds']:.0f} s")
        self.print(" | ".join(parts) + (" | best" if is_best else ""))

    def print_plateau(self, config: Config, factor: float) -> None:
        """Print that the learning rates were lowered, to `factor` of the stage's in total."""
        self.print(
            f"val/loss has not improved for {config.plateau_patience} epochs: learning rates "
            f"multiplied by {config.plateau_factor:g}, now {factor:.3g} of the stage's."
        )

    def print(self, text: str) -> None:
        """Print a line of text above the bar."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
