"""Classify files from the command line: each result is written as it comes.

In: a stream of images (data/stream/images.py). Out: a table on the screen, rows of a
CSV (result_table.py), lines of JSON, the files sorted into a folder per class, or each image beside
what speaks for its class (explain.py). An image that cannot be read is a row with its reason; the
others are classified all the same.
"""

import json as json_module
import os
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import replace
from filecmp import cmp
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vggjax.atomic import atomic_write, check_output_file
from vggjax.data.images.decode import DecodedImage
from vggjax.data.quality.clean import SafeNames
from vggjax.data.sources.rendering import doubt_of
from vggjax.data.stream.images import (
    StreamedImage,
    nothing_usable,
    open_images,
    peek,
    peek_usable,
)
from vggjax.data.stream.options import DEFAULT_STREAM_OPTIONS, StreamOptions
from vggjax.data.stream.progress import show_progress
from vggjax.errors import ConfigError, flag_of, printable
from vggjax.evaluation.explain import Explainer, check_explanations
from vggjax.evaluation.imagenet import open_published
from vggjax.evaluation.metrics import top_classes
from vggjax.evaluation.predict import MAX_BATCH, Classifier, load_run
from vggjax.evaluation.predict_options import DEFAULT_PREDICT_OPTIONS, UNKNOWN, PredictOptions
from vggjax.evaluation.ray_engine import Outcome, Stream, ray_outputs
from vggjax.evaluation.result_table import Prediction, ResultTable
from vggjax.models.arch import ARCHS
from vggjax.training.run_dir.run_result import ModelInfo
from vggjax.weights.hub.fetch import is_hub_address

MAX_ROWS = 20
"""Images, and classes, on the screen."""

_NO_FOLDERS = (
    "`sort_into` makes a folder per class, and this model predicts several labels per image. Use "
    "`csv`, whose column `labels` has them."
)


def predict_command(
    patterns: Sequence[str],
    options: PredictOptions = DEFAULT_PREDICT_OPTIONS,
    *,
    stream: StreamOptions = DEFAULT_STREAM_OPTIONS,
) -> int:
    """Classify images as `vggjax predict` does.

    Returns:
        The exit code: 0, or 3 if images were left out, each named with its reason on stderr.

    Raises:
        DataError: no image that can be classified.
        ConfigError, WeightsError: settings or weights that cannot be used.
    """
    if patterns and is_hub_address(patterns[0]) and not (options.workdir or options.weights):
        options, patterns = replace(options, workdir=patterns[0]), patterns[1:]
    csv, sort_into, explain = options.csv, options.sort_into, options.explain
    path = None if csv is None else check_output_file(csv, field="csv", stream=True)
    sorter = None if sort_into is None else Sorter(sort_into)
    if explain is not None:
        check_explanations(explain)
    folders = {"sort_into": sort_into, "explain": explain}
    images = open_images(patterns, outside=folders, part=stream.part)
    if any(folders.values()):
        images = _only_files(images)
    images = peek_usable(images)
    if path is not None:
        check_output_file(path, field="csv", inputs=map(Path, patterns), stream=True)
    options = _with_newest_run(options)
    classifier = _open_model(options)
    if sorter is not None and classifier.info.is_multilabel:
        raise ConfigError(_NO_FOLDERS)
    first, images = peek(images, MAX_BATCH)
    table = None if path is None else _open_table(path, classifier, first, options)
    explainer = None if explain is None else Explainer(explain, classifier)
    summary = Summary()
    outcomes = None
    if stream.engine == "ray":
        known = () if table is None else table.known
        outcomes = ray_outputs(patterns, stream, partial(_open_stream, options), known=known)
    predictions = predict_files(classifier, images, top=options.top, table=table, outcomes=outcomes)
    for prediction in predictions:
        for output in (sorter, explainer, table):
            if output is not None:
                output.add(prediction)
        if options.json and prediction.is_new:
            print(_json_line(prediction, classifier.info, options.probabilities), flush=True)
        summary.add(prediction)
        if prediction.reason and len(first) > 1:
            line = f"{printable(prediction.path)}: {printable(prediction.reason)}"
            print(f"vggjax: left out: {line}", file=sys.stderr)
    if not summary.counts:
        raise nothing_usable(summary.num_left_out, *summary.first_left_out)
    if table is not None:
        table.finish()
    if not options.json and not (table and table.is_stdout):
        summary.print(table, sorter, explainer)
    return 3 if summary.num_left_out else 0


def _only_files(images: Iterable[StreamedImage]) -> Iterator[StreamedImage]:
    """Yield the images; raise `ConfigError` if one is in a shard."""
    for image in images:
        if image.content is not None:
            raise ConfigError(
                "`sort_into` and `explain` need a file for each image, and "
                f"{printable(image.path)} is in a shard; unpack it first."
            )
        yield image


def _open_table(
    path: Path, classifier: Classifier, first: Sequence[StreamedImage], options: PredictOptions
) -> ResultTable:
    """Return the CSV, with the rows of an earlier call."""
    table = ResultTable(
        path,
        classifier.class_names,
        top=options.top,
        probabilities=options.probabilities,
        multilabel=classifier.info.is_multilabel,
        threshold=options.threshold,
    )
    table.resume(classifier, first)
    return table


def predict_files(
    classifier: Classifier,
    images: Iterable[StreamedImage],
    *,
    top: int = 5,
    table: ResultTable | None = None,
    outcomes: Iterable[Outcome] | None = None,
) -> Iterator[Prediction]:
    """Yield the prediction of each image, in order; those that `table` has are not computed again.

    Args:
        classifier: the model.
        images: the stream.
        top: number of classes to name.
        table: the CSV with the rows of an earlier call.
        outcomes: what another engine yields for these images; None computes here.
    """
    doubts = Doubts()
    if outcomes is None:
        outcomes = _classify(classifier, images, () if table is None else table.known, doubts)
    for image, probs in show_progress(outcomes, "Predicting"):
        if probs is None:
            assert table is not None
            yield table.row(image.path)
            continue
        yield to_prediction(
            image.path, probs, classifier.info, top=top, threshold=classifier.threshold
        )
    doubts.print()


def _classify(
    classifier: Classifier,
    images: Iterable[StreamedImage],
    known: Container[str],
    doubts: "Doubts | None" = None,
) -> Iterator[Outcome]:
    """Yield the outcome of each image; an image that is known is not read and has None."""
    rendering = classifier.info.preprocessing.rendering

    def read(image: StreamedImage) -> DecodedImage | None:
        if printable(image.path) in known:
            return None
        decoded = image.read(rendering)
        if doubts is not None:
            doubts.add(image.path, doubt_of(decoded, rendering))
        return decoded

    return classifier.stream(images, read)


def _open_stream(options: PredictOptions) -> Stream:
    """Open the model in a worker."""
    return partial(_classify, _open_model(options))


class Doubts:
    """Counts images that may show nothing, from several threads."""

    def __init__(self) -> None:
        self._first: dict[str, Path] = {}
        self._counts: Counter[str] = Counter()
        self._num_images = 0
        self._lock = threading.Lock()

    def add(self, path: Path, doubt: str) -> None:
        """Count an image that was read; `doubt` is empty without one."""
        with self._lock:
            self._num_images += 1
            if doubt:
                self._counts[doubt] += 1
                self._first.setdefault(doubt, path)

    def print(self) -> None:
        """Print a line for each kind of doubt."""
        for doubt, count in self._counts.items():
            first = printable(self._first[doubt])
            line = f"{count:,} of {self._num_images:,} images are {doubt}: {first}"
            print(f"vggjax: warning: {line}", file=sys.stderr)


def to_prediction(
    path: Path,
    outcome: np.ndarray | str,
    info: ModelInfo,
    *,
    top: int,
    threshold: float | None = None,
) -> Prediction:
    """Return an image's `top` classes from its probabilities (C,), or its reason to be left out.

    Below the `threshold` of its most probable class it is unknown.
    """
    if isinstance(outcome, str):
        return Prediction(path, reason=outcome)
    best = top_classes(outcome[None], top)[0]
    classes = [(info.class_names[i], float(outcome[i])) for i in best]
    is_unknown = threshold is not None and classes[0][1] < threshold
    labels = _labels_of(outcome, info)
    return Prediction(path, classes, labels, probs=outcome, is_unknown=is_unknown)


def _labels_of(probs: np.ndarray, info: ModelInfo) -> tuple[str, ...] | None:
    """Return the labels from their thresholds on, best first; None for one label per image."""
    if not info.is_multilabel:
        return None
    order = top_classes(probs[None], len(probs))[0]
    return tuple(info.class_names[i] for i in order if probs[i] >= info.thresholds[i])


class Summary:
    """What the screen shows at the end: the first predictions, and the images of each class.

    Of several labels per image each is counted.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        """Class name -> number of images; "(none)" for those without a label."""
        self._num_images = 0
        self.num_left_out = 0
        self.first_left_out = Path(), ""
        """With its reason."""
        self._first: list[Prediction] = []
        self._num_known = 0

    def add(self, prediction: Prediction) -> None:
        """Count a prediction."""
        self._num_known += not prediction.is_new
        if prediction.reason:
            if not self.num_left_out:
                self.first_left_out = prediction.path, prediction.reason
            self.num_left_out += 1
            return
        self._num_images += 1
        names = [prediction.name] if prediction.labels is None else prediction.labels
        self.counts.update(names or ["(none)"])
        if len(self._first) <= MAX_ROWS:
            self._first.append(prediction)

    def print(
        self, table: ResultTable | None, sorter: "Sorter | None", explainer: Explainer | None = None
    ) -> None:
        """Print the predictions, the counts, and what was written."""
        total = self._num_images
        # A single further row takes no more room than the line about it.
        shown = self._first if total == len(self._first) else self._first[:MAX_ROWS]
        print_table(shown)
        if total > len(shown):
            hint = "" if table else f"; {flag_of('csv')} FILE writes a row for each"
            print(f"... {total - len(shown):,} more{hint}")
        if total > 1:
            counts = Table(box=None, pad_edge=False, header_style="bold")
            counts.add_column("class", overflow="fold")
            counts.add_column("images", justify="right")
            for name, count in self.counts.most_common(MAX_ROWS):
                counts.add_row(escape(printable(name)), f"{count:,}")
            print()
            Console().print(counts)
            if (more := len(self.counts) - MAX_ROWS) > 0:
                print(f"... {more:,} more classes")
        if table is not None:
            num_known = len(table.known)
            known = f", {num_known:,} of them from before" if num_known else ""
            num_rows = total + self.num_left_out - self._num_known + num_known
            rows = f"{num_rows:,} row{'s' * (num_rows > 1)}{known}"
            print(f"\nCSV      {printable(table.path)}: {rows}")
        if sorter is not None:
            print(f"Sorted   {printable(sorter.folder)}: {total:,} images")
        if explainer is not None:
            print(f"Grad-CAM {printable(explainer.folder)}: {explainer.count:,} new images")


class Sorter:
    """Copies images into a folder per class, whose names every operating system accepts."""

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder).expanduser()
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(f"`sort_into` must be a folder; got {printable(folder)}.")
        self._names = SafeNames()

    def add(self, prediction: Prediction) -> None:
        """Copy an image; a file that is there is never overwritten, and not written twice."""
        if prediction.reason:
            return
        path, name = prediction.path, prediction.name
        while True:
            target = self.folder.joinpath(*self._names.file((name,), path.stem, path.suffix))
            if not os.path.lexists(target):
                break
            if target.is_file() and cmp(path, target, shallow=False):
                return  # by an earlier call
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target) as temporary:
            shutil.copy2(path, temporary)


def print_table(predictions: Sequence[Prediction]) -> None:
    """Print a row per image: the predicted class, its probability, and the next classes.

    Of several labels per image it has all labels from their thresholds on.
    """
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 160)  # wrapped names are hard to search in a file
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("image", overflow="fold")
    table.add_column("prediction", style="bold", overflow="fold")
    has_one = all(prediction.labels is None for prediction in predictions)
    if has_one:
        table.add_column("probability", justify="right")
    if any(len(prediction.top) > 1 or prediction.is_unknown for prediction in predictions):
        table.add_column("next", style="dim", overflow="fold")
    for prediction in predictions:
        best, *others = prediction.top
        cells = [printable(prediction.path), printable(best[0]), f"{best[1]:.1%}"]
        if prediction.is_unknown:
            cells, others = [cells[0], UNKNOWN, ""], prediction.top
        if prediction.labels is not None:
            share_of = dict(prediction.top)
            texts = [
                printable(name) + (f" {share_of[name]:.1%}" if name in share_of else "")
                for name in prediction.labels
            ]
            cells = [printable(prediction.path), ", ".join(texts) or "none"]
            others = [item for item in prediction.top if item[0] not in prediction.labels]
        following = ", ".join(f"{printable(name)} {share:.1%}" for name, share in others)
        table.add_row(*map(escape, [*cells, following] if others else cells))
    console.print(table)


def to_record(
    prediction: Prediction, info: ModelInfo, *, probabilities: bool = False
) -> dict[str, Any]:
    """Return an image as JSON: its path, and its class or labels and the next ones, or `error`.

    With `probabilities`, those of all classes.
    """
    record: dict[str, Any] = {"path": os.fspath(prediction.path)}
    if prediction.reason:
        return record | {"error": prediction.reason}
    top = [{"class": name, "probability": round(share, 6)} for name, share in prediction.top]
    if prediction.labels is None:
        record |= top[0] | {"class": prediction.name, "top": top}
    else:
        record |= {"labels": list(prediction.labels), "top": top}
    if probabilities and prediction.probs is not None:
        shares = (round(float(share), 6) for share in prediction.probs)
        record["probabilities"] = dict(zip(info.class_names, shares, strict=True))
    return record


def _json_line(prediction: Prediction, info: ModelInfo, probabilities: bool) -> str:
    return json_module.dumps(to_record(prediction, info, probabilities=probabilities))


def _open_model(options: PredictOptions) -> Classifier:
    workdir, weights, model = options.workdir, options.weights, options.model
    how: Any = {"threshold": options.threshold, "tta": options.tta}
    if weights is None:
        for name in ("expect_sha256", "model"):
            if (value := getattr(options, name)) is not None:
                raise ConfigError(f"`{name}` needs `weights`, a file or imagenet; got {value}.")
        assert workdir is not None
        return load_run(workdir, **how)
    if workdir is not None:
        raise ConfigError("`workdir` and `weights` both name a model; give one of them.")
    if model is None:
        raise ConfigError(f"`weights` needs `model`, one of {', '.join(ARCHS)}.")
    published = open_published(model, weights, expect_sha256=options.expect_sha256)
    return Classifier(*published, **how)


def _with_newest_run(options: PredictOptions) -> PredictOptions:
    """Return the options with a model: without any, that of the newest run."""
    if options.workdir is None and options.weights is None:
        for name in ("expect_sha256", "model"):
            if (value := getattr(options, name)) is not None:
                raise ConfigError(f"`{name}` needs `weights`, a file or imagenet; got {value}.")
        return replace(options, workdir=os.fspath(_newest_run()))
    return options


def _newest_run() -> Path:
    runs = [path.parent for path in Path("runs").glob("*/model.json")]
    runs = [run for run in runs if (run / "model.safetensors").is_file()]
    if not runs:
        raise ConfigError(
            "There is no finished run in runs/. Give `workdir`, or `weights` and `model`, or train "
            "a model: vggjax train."
        )
    newest = max(runs, key=lambda run: (run / "model.json").stat().st_mtime)
    print(f"vggjax: using the newest run, {printable(newest)}", file=sys.stderr)
    return newest
