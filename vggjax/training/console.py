"""What a person sees while a run goes on: the first screen, the progress, a line per epoch."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import jax
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from vggjax.data.augment.settings import describe
from vggjax.data.splits.slices import looks_like_instructions
from vggjax.data.splits.splits import remarks_on_splits
from vggjax.errors import printable
from vggjax.models.kernels import winograd
from vggjax.models.params import shapes
from vggjax.training.config import Config
from vggjax.training.freezing import label_layers, peak_rates
from vggjax.training.prepare import Progress as Told
from vggjax.training.prepare import RunContext
from vggjax.training.recipes import lesson_of
from vggjax.training.run_dir.folder import describe_duplicates
from vggjax.training.stages import Stage


def print_run_summary(console: Console, run: RunContext) -> None:
    """Says what was found: device, data, preprocessing, model, what trains and what is frozen."""
    config, source = run.config, run.source
    devices = jax.devices()
    kind = f"{len(devices)} x {devices[0].device_kind}" if len(devices) > 1 else ""
    names = ", ".join(printable(name) for name in source.class_names[:12])
    more = f" ... {len(source.class_names)} in all" if len(source.class_names) > 12 else ""
    preprocessing, lesson = config.preprocessing, lesson_of(config)
    rows = [
        ("Run", printable(run.workdir)),
        ("Recipe", f"{config.recipe}: {lesson.title}" if lesson else ""),
        ("Teaches", lesson.teaches if lesson else ""),
        ("Device", f"{kind or devices[0].device_kind} ({devices[0].platform}), {config.dtype}"),
        ("Data", f"{printable(source.name)}: {len(source.labels):,} images"),
        ("Classes", f"{len(source.class_names)}: {names}{more}"),
        ("Splits", ", ".join(f"{name} {len(rows):,}" for name, rows in run.splits.items())
                   + _describe_cut(run)),
        ("Duplicates", describe_duplicates(run.duplicates)),
        ("Balance", _describe_balance(run)),
        ("Images", f"{preprocessing.image_size} px, {preprocessing.resize}, "
                     f"{preprocessing.interpolation}, '{preprocessing.mode}' pixels; "
                     f"augmentation {describe(config.augmentation)}"),
        ("Model", f"{config.model} + {run.model.head}, {_describe_weights(config)}"),
        ("SHA-256", _describe_origin(run.info.provenance)),
        ("Learning", _describe_learning(config)),
    ]  # fmt: skip
    for stage in run.stages:
        rows.append(("Stage", _describe(run, stage)))
        rows.append(("Features", str(run.feature_plans.get(stage.name, ""))))
    notes = [*source.notes, *remarks_on_splits(source, run.splits)]
    if source.splits and len(source.splits) == 3 and config.split != Config.split:
        if not looks_like_instructions(config.split):
            notes.append(f"--split {config.split} is not used: the dataset has its own splits.")
    rows += [("Beware", printable(note)) for note in notes]
    rows.append(("Beware", _describe_pixels(run)))
    rows.append(("Beware", _describe_convolution(config, devices[0].platform)))
    if not config.pretrained and config.unfrozen != ("all",):
        rows.append(("Beware", "the frozen layers are random (--weights none): a trained base, or "
                               "--unfreeze all, will do better"))  # fmt: skip
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in filter(all, rows):
        table.add_row(name, escape(text))
    console.print(table)


def _describe_origin(provenance: dict[str, str]) -> str:
    if "weights_sha256" not in provenance:
        return ""
    known = provenance.get("weights_known_as") or provenance["weights_format"]
    return f"{provenance['weights_sha256']}: {known}"


def _describe_convolution(config: Config, platform: str) -> str:
    if platform != "cpu" or config.convolution == "direct" or winograd.native():
        return ""
    return (
        "the compiled convolution is not here, and a step takes two to three times as long: "
        "pip install -e . where there is a C++ compiler"
    )


def _describe_cut(run: RunContext) -> str:
    cut = [name for name in run.splits if run.source.splits and name not in run.source.splits]
    return f"; {' and '.join(cut)} cut from train" if cut else ""


def _describe_balance(run: RunContext) -> str:
    if run.class_weights is None:
        return ""
    named = [
        f"{run.class_weights[i]:.2f} ({printable(run.source.class_names[i])})"
        for i in (run.class_weights.argmin(), run.class_weights.argmax())
    ]
    return f"an image counts from {named[0]} to {named[1]} in the loss, each class alike"


def _describe_weights(config: Config) -> str:
    if config.start_from:
        return f"both from {printable(config.start_from)}"
    return f"weights {printable(config.weights)}"


def _describe_learning(config: Config) -> str:
    """Says how the rates go, and what else is on."""
    plateau = f"plateau (x {config.plateau_factor:g} after {config.plateau_patience} epochs)"
    said = [f"schedule {plateau if config.schedule == 'plateau' else config.schedule}"]
    if config.warmup_epochs:
        said.append(f"warm-up {config.warmup_epochs:g} epoch{'s' * (config.warmup_epochs != 1)}")
    names = {
        "weight_decay": "weight decay",
        "clip_norm": "gradients clipped at norm",
        "label_smoothing": "label smoothing",
        "ema": "weights averaged, decay",
    }
    said += [
        f"{text} {value:g}" for name, text in names.items() if (value := getattr(config, name))
    ]
    return ", ".join(said)


_PIXELS = {
    "caffe": "'caffe' pixels (BGR, ImageNet's mean taken off)",
    "torch": "'torch' pixels (ImageNet's mean and deviation)",
    "unit": "x/255",
}


def _describe_pixels(run: RunContext) -> str:
    """Says where the weights have learned from other pixels than they will get."""
    if run.weight_file is None:
        return ""
    mode, known = run.config.preprocessing.mode, None
    if run.config.weights != "imagenet":
        known = run.weight_file.info.metadata.get("preprocess")
    if known not in _PIXELS:  # a file that does not say it: Keras', or some other that is not x/255
        known = "caffe" if mode == "unit" else mode
    if known == mode:
        return ""
    return (
        f"the weights were trained on {_PIXELS[known]}, not on {_PIXELS[mode]} (--preprocess "
        f"{mode}): frozen layers give worse features. Leave --preprocess out to do better."
    )


def _describe(run: RunContext, stage: Stage) -> str:
    config = run.config
    labels = label_layers(run.model, stage.unfreeze, by_block=config.layer_decay != 1)
    sizes = {
        layer: sum(math.prod(shape) for name, shape in parts.items() if name not in ("mean", "var"))
        for layer, parts in shapes(run.model).items()
    }
    trained = sum(sizes[layer] for layer in sizes if labels[layer] != "frozen")
    rates = peak_rates(config)
    rate = ", ".join(f"{label} {rates[label]:.2g}" for label in rates if label in labels.values())
    frozen = [layer for layer in sizes if labels[layer] == "frozen"]
    blocks = {layer.split("_")[0]: [] for layer in frozen}
    for layer in frozen:
        blocks[layer.split("_")[0]].append(layer)
    parts = [
        block if all(labels[name] == "frozen" for name in labels if name.startswith(f"{block}_"))
        else " ".join(layers)
        for block, layers in blocks.items()
    ]  # fmt: skip
    still = f"frozen {' '.join(parts)}" if parts else "nothing frozen"
    first, last = stage.first_epoch + 1, stage.first_epoch + stage.epochs
    return (
        f"epochs {first}-{last}: {stage.name}, {trained:,} of {sum(sizes.values()):,} parameters "
        f"train, {still}; {config.optimizer}, rate {rate}; {run.steps_per_epoch} steps an epoch"
    )


@contextmanager
def progress_bar(console: Console, title: str) -> Iterator[Told]:
    """Shows a bar on a terminal while something is looked through; gives what moves it."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(
        *columns, console=console, disable=not console.is_terminal, transient=True
    ) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


class ProgressConsole:
    """Progress within an epoch on a terminal; elsewhere only the line that ends each epoch."""

    def __init__(self, console: Console, epochs: int):
        self._console, self._epochs = console, epochs
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(
            *columns, console=console, disable=not console.is_terminal, transient=True
        )
        self._task = None

    def __enter__(self) -> "ProgressConsole":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begin(self, title: str, total: int, *, done: int = 0) -> None:
        """Starts a bar: an epoch's steps, or the images being read."""
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(title, total=total, completed=done, figures="")

    def advance(self, done: int) -> None:
        """Moves the bar."""
        self._progress.update(self._task, completed=done)

    def figures(self, values: dict[str, float], images_per_s: float) -> None:
        """Shows the newest figures beside the bar."""
        text = "loss {train/loss:.4f}  accuracy {train/accuracy:.3f}".format(**values)
        self._progress.update(self._task, figures=f"{text}  {images_per_s:.0f} images/s")

    def epoch(self, epoch: int, stage: str, values: dict[str, float], *, is_best: bool) -> None:
        """Prints the line that ends an epoch."""
        parts = [f"epoch {epoch:>{len(str(self._epochs))}}/{self._epochs} {stage}"]
        for split in ("train", "val"):
            parts.append(
                f"{split} loss {values[f'{split}/loss']:.4f} "
                f"accuracy {values[f'{split}/accuracy']:.4f}"
            )
        parts.append(f"{values['images_per_s']:.0f} images/s, {values['seconds']:.0f} s")
        self.say("  ".join(parts) + ("  best" if is_best else ""))

    def plateau(self, config: Config, factor: float) -> None:
        """Says that the rates have fallen."""
        self.say(
            f"No lower val/loss for {config.plateau_patience} epochs: rates times "
            f"{config.plateau_factor:g}, in all {factor:.3g} of the stage's."
        )

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
