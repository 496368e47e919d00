"""Classify images in Python: a run's model, loaded once, and images in any form.

    classifier = vggjax.load_run("runs/roses")
    classifier.predict(["photo.jpg", pixels, pil_image]).names

A model is used with the preprocessing that was saved with it. A `Classifier` can be called from any
thread and as often as needed: it keeps nothing of a call. Classifying files from the command line
is in predict_files.py.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypeVar, Union

import numpy as np
from PIL.Image import Image

from vggjax.data.images.decode import DecodedImage, convert_image, read_image
from vggjax.data.images.preprocess import Preprocessing
from vggjax.data.loader import prefetch
from vggjax.data.multilabel import join_labels
from vggjax.data.stream.batches import stream_batches
from vggjax.errors import ConfigError, DataError, printable
from vggjax.evaluation.predict_options import UNKNOWN, PredictOptions, Tta
from vggjax.models.network import Network
from vggjax.training.run_dir.run_result import ModelInfo, load_model
from vggjax.training.step import make_predict_step

if TYPE_CHECKING:
    import jax

T = TypeVar("T")

MAX_BATCH = 32

ImageLike: TypeAlias = Union[str, "os.PathLike[str]", np.ndarray, Image]
"""A file, an array (H, W, 3), or an image that Pillow opened."""


@dataclass(frozen=True)
class Predictions:
    """The predictions for a sequence of images, in its order."""

    probs: np.ndarray
    """float32 (N, C), each row summing to 1, or of several labels per image each a sigmoid."""
    class_names: tuple[str, ...]
    """(C,), the names of the columns."""
    thresholds: tuple[float, ...] = ()
    """(C,), the probability from which on a label is predicted; empty for one label per image."""
    threshold: float | None = None
    """The probability below which the most probable class does not count, and the image is
    `unknown`; None lets it count always."""

    @property
    def labels(self) -> np.ndarray:
        """Return the most probable class of each image, int64 (N,), or its labels, bool (N, C)."""
        return self.probs >= np.array(self.thresholds) if self.thresholds else self.probs.argmax(1)

    @property
    def names(self) -> list[str]:
        """Return the name of the most probable class of each image, or its labels: `cat|dog`.

        An image whose most probable class is below the `threshold` is `unknown`.
        """
        if self.thresholds:
            return [join_labels(self.class_names, row) for row in self.labels]
        names = [self.class_names[label] for label in self.labels]
        least = self.threshold or 0.0
        return [
            UNKNOWN if share < least else name
            for name, share in zip(names, self.probs.max(1, initial=0), strict=True)
        ]


class Classifier:
    """A model that is ready to predict, as `load_run` loads it."""

    def __init__(
        self,
        model: Network,
        info: ModelInfo,
        *,
        threshold: float | None = None,
        tta: Tta = "none",
    ):
        """Prepare to predict.

        Args:
            model: the network, put into evaluation mode.
            info: what it needs beside its weights.
            threshold: the probability below which the most probable class is `unknown`.
            tta: `flip` predicts the mean over each image and its mirror image.

        Raises:
            ConfigError: a threshold that is no probability, or of several labels per image, which
                have thresholds of their own; or an unknown `tta`.
        """
        options = PredictOptions(threshold=threshold, tta=tta)  # which checks them
        if threshold is not None and info.is_multilabel:
            raise ConfigError(
                f"`threshold` {threshold:g} is for one label per image; each of this model's "
                "labels has a threshold of its own, and an image without any label is none."
            )
        self.model = model
        """The network."""
        self.info = info
        """Its architecture, class names and preprocessing."""
        self.threshold = options.threshold
        """The probability below which the most probable class is `unknown`; None is no bound."""
        step = make_predict_step(
            model,
            info.preprocessing.mode,
            multilabel=info.is_multilabel,
            temperature=info.temperature,
        )
        self._predict_step = mean_over_mirror(step) if options.tta == "flip" else step

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the names of the classes, in the order of the model's outputs."""
        return self.info.class_names

    def predict(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        value_range: tuple[float, float] | None = None,
    ) -> Predictions:
        """Classify images.

        Args:
            images: files, images of Pillow, or RGB arrays (H, W, 3), or one of these; or an array
                (N, H, W, 3). Sizes may differ.
            value_range: the values of black and white in arrays. None is 0 and 255 of uint8; any
                other type needs it, because 0.5 is gray in (0, 1) and black in (0, 255).

        Raises:
            DataError: an image that cannot be used; the message names it.
            ConfigError: an empty value range.
        """
        if value_range is not None and not value_range[0] < value_range[1]:
            raise ConfigError(f"`value_range` must be (lowest, highest); got {value_range}.")
        items = _as_list(images)

        def read(image: ImageLike) -> DecodedImage:
            if isinstance(image, str | os.PathLike | Image):
                return self.read(image)
            array = np.asarray(image)
            if array.dtype.kind not in "biuf":
                raise DataError(
                    f"it is {type(image).__name__}; give a path, an RGB array or an image of "
                    f"Pillow (of bytes, Image.open(io.BytesIO(data)))"
                )
            return DecodedImage(_to_uint8(array, value_range))

        rows: list[np.ndarray] = []
        for item, outcome in self.stream(items, read):
            if isinstance(outcome, str):
                name = printable(item) if isinstance(item, str | os.PathLike) else "an image"
                raise DataError(f"Image {len(rows)}, {name}, cannot be used: {outcome}.")
            assert outcome is not None
            rows.append(outcome)
        num_classes = len(self.class_names)
        probs = np.asarray(rows, np.float32).reshape(len(rows), num_classes)
        return Predictions(probs, self.class_names, self.info.thresholds, self.threshold)

    def classify_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Return the probabilities, float32 (N, C), of images that are resized already.

        It is compiled once for each N.

        Args:
            pixels: uint8 RGB (N, S, S, 3), from `resize_image` with `info.preprocessing`.

        Raises:
            DataError: the model's outputs are not finite.
        """
        return _finite(np.asarray(self._predict_step(pixels)))

    def read(self, image: "str | os.PathLike[str] | Image") -> DecodedImage:
        """Decode a file, or what Pillow opened; raise `DataError` with nothing but the reason."""
        rendering = self.info.preprocessing.rendering
        if isinstance(image, Image):
            return convert_image(image, rendering)
        return read_image(image, rendering)

    def stream(
        self, items: Iterable[T], read: Callable[[T], DecodedImage | None]
    ) -> Iterator[tuple[T, np.ndarray | str | None]]:
        """Yield each item with its probabilities (C,); see `stream_outputs`."""
        return stream_outputs(self._predict_step, self.info.preprocessing, items, read)


def mean_over_mirror(
    step: Callable[[np.ndarray], "jax.Array"],
) -> Callable[[np.ndarray], "jax.Array"]:
    """Return a step that returns the mean of `step` over images (N, S, S, 3) and their mirrors."""
    return lambda images: (step(images) + step(images[:, :, ::-1])) / 2


def stream_outputs(
    step: Callable[[np.ndarray], "jax.Array"],
    preprocessing: Preprocessing,
    items: Iterable[T],
    read: Callable[[T], DecodedImage | None],
) -> Iterator[tuple[T, np.ndarray | str | None]]:
    """Yield each item with its output (D,), why it cannot be read, or None if none is wanted.

    Threads decode ahead. The memory needed does not depend on the number of items.

    Args:
        step: maps images uint8 (N, S, S, 3) to outputs (N, D).
        preprocessing: what happens to an image before it.
        items: the stream, in the order of what is yielded.
        read: returns an item's image, or None; raises `DataError` with the reason.

    Raises:
        DataError: the model's outputs are not finite.
    """
    batches = stream_batches(items, read, preprocessing, batch_size=MAX_BATCH)
    with closing(prefetch(batches, lambda batch: batch)) as ahead:
        for batch in ahead:
            rows = [outcome for _, outcome in batch.items if isinstance(outcome, int)]
            outputs = np.asarray(step(batch.images)) if rows else batch.images
            _finite(outputs[: len(rows)])
            for item, outcome in batch.items:
                yield item, outputs[outcome] if isinstance(outcome, int) else outcome


def _finite(outputs: np.ndarray) -> np.ndarray:
    if not np.isfinite(outputs).all():
        raise DataError(
            "The model's outputs are not finite (NaN): its training diverged. Train again with a "
            "lower `learning_rate`."
        )
    return outputs


def load_run(
    run: str | os.PathLike[str], *, threshold: float | None = None, tta: Tta = "none"
) -> Classifier:
    """Load the model of a finished run, to predict any number of times.

    Args:
        run: the run's folder, or `hf://user/name` on a model hub.
        threshold: the probability below which the most probable class is `unknown`.
        tta: `flip` predicts the mean over each image and its mirror image.

    Raises:
        WeightsError: there is no finished model, or it is damaged.
        ConfigError: a threshold or `tta` that does not fit.
    """
    return Classifier(*load_model(os.fspath(run)), threshold=threshold, tta=tta)


def predict(
    run: "str | os.PathLike[str] | Classifier",
    images: ImageLike | Iterable[ImageLike],
    *,
    value_range: tuple[float, float] | None = None,
) -> Predictions:
    """Classify images with a run's model: `load_run(run).predict(images)`.

    Args:
        run: a run's folder, or the result of `load_run`, which spares loading it again.
        images: files, images of Pillow, or RGB arrays, as in `Classifier.predict`.
        value_range: the values of black and white in arrays that are not uint8.

    Raises:
        WeightsError: there is no finished model, or it is damaged.
        DataError: an image that cannot be used; the message names it.
    """
    classifier = run if isinstance(run, Classifier) else load_run(run)
    return classifier.predict(images, value_range=value_range)


def _as_list(images: ImageLike | Iterable[ImageLike]) -> list[ImageLike]:
    if isinstance(images, str | bytes | os.PathLike | Image):
        return [images]  # a lone bytes object is one image, which `predict` refuses
    if getattr(images, "ndim", None) == 3:  # one image, of NumPy or of JAX
        return [np.asarray(images)]
    return list(images)


def _to_uint8(array: np.ndarray, value_range: tuple[float, float] | None) -> np.ndarray:
    """Return an RGB array (H, W, 3) as uint8; raise `DataError` where its values are unclear."""
    if array.ndim != 3 or array.shape[-1] != 3 or not array.size:
        raise DataError(f"an array must be RGB, (H, W, 3) or (N, H, W, 3); got {array.shape}")
    if value_range is None:
        if array.dtype != np.uint8:
            raise DataError(
                f"{array.dtype} arrays need `value_range`, the values of black and white: (0, 1) "
                "or (0, 255)"
            )
        return array
    low, high = value_range
    if not low < high:
        raise DataError(
            f"`value_range` must be (black, white), the lower one first; got {low, high}"
        )
    values = array.astype(np.float64)
    if not (values.min() >= low and values.max() <= high):  # NaN is neither
        raise DataError(
            f"its values, {values.min():g} to {values.max():g}, exceed the `value_range` {low:g} "
            f"to {high:g}"
        )
    return np.rint((values - low) * (255 / (high - low))).astype(np.uint8)
