"""The CSV of `vggjax predict`: rows are written as they come, and a later call continues it.

`path,class1,probability1,class2,...,error`, or `path` and a column per class in the model's order;
of several labels per image there is a column `labels` after `path`, and with a threshold a column
`prediction`, the first class or `unknown`.
Names are printable. The file alone says what is done: an image that has a row is not classified
again. Whether the same model wrote it is known by predicting a few of its images again.
"""

import csv
import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from vggjax.atomic import atomic_write, is_stream, open_stream
from vggjax.csv_text import csv_line, csv_rows
from vggjax.data.images.decode import DecodedImage
from vggjax.data.multilabel import SEPARATOR
from vggjax.data.stream.images import StreamedImage
from vggjax.data.stream.known import NameIndex
from vggjax.errors import ConfigError, join_names, printable
from vggjax.evaluation.predict import MAX_BATCH, Classifier
from vggjax.evaluation.predict_options import UNKNOWN

MAX_DIFFERENCE = 1e-4
"""Of a probability, where the same model predicts an image again."""


_MAX_LOOKED_UP = 1000
"""Rows whose files are looked for."""


class Prediction(NamedTuple):
    """One image and its most probable classes, or the reason why it has none."""

    path: Path
    top: list[tuple[str, float]] = []
    """(class name, probability), best first."""
    labels: tuple[str, ...] | None = None
    """Of several labels per image those from their thresholds on, the most probable first."""
    reason: str = ""
    probs: np.ndarray | None = None
    """float32 (C,)."""
    is_new: bool = True
    """False for a row that an earlier call wrote, which has only its best class."""
    is_unknown: bool = False
    """Whether the best class is below the threshold."""

    @property
    def name(self) -> str:
        """Return the best class, or `unknown`."""
        return UNKNOWN if self.is_unknown else self.top[0][0]


class ResultTable:
    """A CSV of predictions, a row per image; `top` classes each, or with `probabilities` all.

    For a path that ends in .parquet the CSV is beside it, until `finish` joins its rows.
    """

    def __init__(
        self,
        path: Path,
        class_names: Sequence[str],
        *,
        top: int,
        probabilities: bool,
        multilabel: bool = False,
        threshold: float | None = None,
    ):
        self.path = path.with_name(f"{path.name}.csv") if _is_parquet(path) else path
        self._parquet = None if self.path == path else path
        self._threshold = threshold
        self.known = NameIndex()
        """Printable paths of the rows that an earlier call wrote."""
        self._names, self._probabilities = [printable(name) for name in class_names], probabilities
        ranks = range(1, 1 + min(top, len(class_names)))
        ranked = [f"{name}{rank}" for rank in ranks for name in ("class", "probability")]
        self._first = ["path", "labels"] if multilabel else ["path"]
        if threshold is not None:
            self._first.append("prediction")
        self._columns = [*self._first, *(self._names if probabilities else [*ranked, "error"])]
        self._pending = csv_line(self._columns)
        self._stream = open_stream(path) if is_stream(path) else None

    @property
    def is_stdout(self) -> bool:
        """Whether the rows go to the standard output."""
        return self._stream is not None and os.path.samestat(os.fstat(1), os.fstat(self._stream))

    def resume(self, classifier: Classifier, images: Sequence[StreamedImage]) -> None:
        """Read the rows of an earlier call; cut off a last one that a kill left incomplete.

        Args:
            classifier: the model that predicts from now on.
            images: the first ones of this call.

        Raises:
            ConfigError: the file has other columns, or rows that are not this model's.
        """
        if self._stream is not None or not self.path.is_file():
            return
        with open(self.path, "rb") as file:
            header = self._pending.encode()
            start = file.read(len(header))
            if header.startswith(start) and start != header:  # a kill in the first line, or empty
                os.truncate(self.path, 0)
                return
            if start != header:
                raise self._other_columns()
            checked = _Sample(images)
            self.known = NameIndex(self._scan(file, checked))
            end = self._end
        self._check_model(classifier, checked)
        os.truncate(self.path, end)
        self._pending = ""

    def _scan(self, file: BinaryIO, sample: "_Sample") -> Iterator[tuple[str, int]]:
        """Yield the name and the position of each whole row; set `_end` to the end of the last."""
        self._end = position = file.tell()
        for line in file:
            if not line.endswith(b"\n"):
                return
            row = self._parse(line)
            sample.add(row[0], self._shares(row))
            yield row[0], position
            self._end = position = position + len(line)

    def _parse(self, line: bytes) -> list[str]:
        """Return the cells of a row, which is one line, because names are printable."""
        try:
            (row,) = csv_rows([line.decode("utf-8", "replace")])
            if len(row) != len(self._columns):
                raise ValueError("other columns")
            self._shares(row)
        except (ValueError, csv.Error):
            raise self._other_columns() from None
        return row

    def row(self, path: Path) -> Prediction:
        """Return the prediction in the row of an image that is known."""
        position = self.known.find(printable(path))
        assert position is not None
        with open(self.path, "rb") as file:
            file.seek(position)
            row = self._parse(file.readline())
        top = sorted(self._shares(row).items(), key=lambda item: -item[1])[:1]
        reason = "" if top else (row[-1] or "could not be read")
        labels = None
        if "labels" in self._first:
            labels = tuple(row[1].split(SEPARATOR)) if row[1] else ()
        is_unknown = self._is_unknown(row, top)
        return Prediction(path, top, labels, reason, is_new=False, is_unknown=is_unknown)

    def _is_unknown(self, row: list[str], top: list[tuple[str, float]]) -> bool:
        """Return whether a row is of an unknown image; refuse one of another threshold."""
        if self._threshold is None or not top:
            return False
        (name, share), is_unknown = top[0], row[1] == UNKNOWN != top[0][0]
        fits = is_unknown == (share < self._threshold) or row[1] == name == UNKNOWN
        is_close = abs(share - self._threshold) < MAX_DIFFERENCE
        if row[1] not in (UNKNOWN, name) or not (fits or is_close):
            raise self._refused(
                f"it was written with another `threshold` than {self._threshold:g}: "
                f"{printable(row[0])} is {row[1]} there, at {share:.4f}"
            )
        return is_unknown

    def add(self, prediction: Prediction) -> None:
        """Write a row; a new file is made with the first image that has a class.

        An image that has a row gets no second one.
        """
        if not prediction.is_new:
            return
        probs, top = prediction.probs, prediction.top
        if self._probabilities:
            cells = [""] * len(self._names) if probs is None else [f"{p:.6f}" for p in probs]
        else:
            cells = [cell for name, p in top for cell in (printable(name), f"{p:.6f}")]
            missing = len(self._columns) - len(self._first) - 1 - len(cells)
            cells += [""] * missing + [printable(prediction.reason)]
        first = [printable(prediction.path)]
        if "labels" in self._first:
            labels = {printable(name) for name in prediction.labels or ()}
            first.append(SEPARATOR.join(name for name in self._names if name in labels))
        if self._threshold is not None:
            first.append(printable(prediction.name) if top else "")
        self._pending += csv_line([*first, *cells])
        try:
            self._write(is_begun=probs is not None or self.path.exists())
        except OSError as error:
            error.filename = error.filename or str(self.path)
            raise

    def _write(self, *, is_begun: bool) -> None:
        """Write what is pending, to a file once it `is_begun`."""
        if self._stream is not None:  # one that is opened for each row would end after the first
            data = self._pending.encode("utf-8")
            while data:
                data = data[os.write(self._stream, data) :]
            self._pending = ""
        elif is_begun:
            with open(self.path, "a", encoding="utf-8", newline="") as file:
                file.write(self._pending)
            self._pending = ""

    def finish(self) -> None:
        """Join the rows to the Parquet file, if they are for one, and delete their CSV."""
        if self._parquet is not None:
            _write_parquet(self.path, self._parquet)
            self.path.unlink()
            self.path = self._parquet

    def _shares(self, row: list[str]) -> dict[str, float]:
        """Return class name -> probability of a row; empty for an image that was left out."""
        cells = row[len(self._first) :]
        pairs = zip(self._names, cells, strict=False)
        if not self._probabilities:
            pairs = zip(cells[:-1:2], cells[1:-1:2], strict=True)
        return {name: float(share) for name, share in pairs if share}

    def _check_model(self, classifier: Classifier, sample: "_Sample") -> None:
        """Raise `ConfigError` unless `classifier` gives some of the images the same again."""
        if sample.has_predicted and not sample.rows:
            raise self._refused("none of its images is, so its model is unknown")

        def read(row: tuple[StreamedImage, dict[str, float]]) -> DecodedImage:
            return row[0].read(classifier.info.preprocessing.rendering)

        for (image, known), probs in classifier.stream(sample.rows, read):
            is_read = isinstance(probs, np.ndarray)
            now = dict(zip(self._names, np.asarray(probs), strict=True)) if is_read else {}
            for name, share in known.items():
                if not abs(now.get(name, np.inf) - share) <= MAX_DIFFERENCE:
                    again = f"{now[name]:.4f} now" if name in now else "no such class now"
                    raise self._refused(
                        "another model wrote it, or its images have changed: "
                        f"{printable(image.path)} has {name} {share:.4f} there and {again}"
                    )

    def _other_columns(self) -> ConfigError:
        return self._refused(
            f"its columns are not {join_names(self._columns, most=7)}. Give the settings that it "
            "was written with"
        )

    def _refused(self, reason: str) -> ConfigError:
        return ConfigError(
            f"No rows can be added to {printable(self.path)}, which exists: {reason}. Give another "
            "`csv`, or delete that file."
        )


def _is_parquet(path: Path) -> bool:
    """Return whether the rows are joined to a Parquet file at the end.

    Raises:
        ConfigError: they are, and pyarrow is not installed.
    """
    if path.suffix.lower() != ".parquet":
        return False
    if importlib.util.find_spec("pyarrow") is None:
        raise ConfigError(
            f"{printable(path.name)!r} in `csv` needs pyarrow: pip install 'vggjax[parquet]', or "
            "give a name that ends in .csv."
        )
    return True


def _write_parquet(rows: Path, path: Path) -> None:
    """Write the rows of a `ResultTable` as Parquet, some megabytes at a time."""
    from pyarrow import csv as reader
    from pyarrow import float32, parquet, string

    with open(rows, encoding="utf-8", newline="") as file:
        columns = next(csv.reader(file))
    is_ranked = "class1" in columns and columns[-1] == "error"
    kinds = {
        name: float32()
        if name not in ("path", "labels", "prediction")
        and (not is_ranked or name.startswith("probability"))
        else string()
        for name in columns
    }
    options = reader.ConvertOptions(column_types=kinds, strings_can_be_null=True, null_values=[""])
    with atomic_write(path) as temporary, reader.open_csv(rows, convert_options=options) as batches:
        with parquet.ParquetWriter(temporary, batches.schema) as writer:
            for batch in batches:
                writer.write_batch(batch)


class _Sample:
    """Rows whose images are at hand: among the first ones of a call, or files."""

    def __init__(self, images: Sequence[StreamedImage]):
        self._images = {printable(image.path): image for image in images if not image.reason}
        self._num_seen = 0
        self.rows: list[tuple[StreamedImage, dict[str, float]]] = []
        self.has_predicted = False

    def add(self, name: str, shares: dict[str, float]) -> None:
        """Keep a row with probabilities, if its image is at hand and there are not enough yet."""
        if not shares:
            return
        self.has_predicted = True
        self._num_seen += 1
        if len(self.rows) == MAX_BATCH:
            return
        image = self._images.get(name)
        if image is None and self._num_seen <= _MAX_LOOKED_UP and Path(name).is_file():
            image = StreamedImage(Path(name))
        if image is not None:
            self.rows.append((image, shares))
