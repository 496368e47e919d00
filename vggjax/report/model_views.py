"""Shows what a network sees: training images as they are drawn, and where it looks (Grad-CAM).

In: a run's model, its images and what was said of them. Out: plain images, uint8 RGB, and the
names beside them; a page lays them out.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from vggjax.data.augment.settings import is_on
from vggjax.data.images.preprocess import preprocess, resize_image
from vggjax.data.sources.source import Source
from vggjax.errors import DataError, printable
from vggjax.evaluation.grad_cam import grad_cam, map_layer, overlay
from vggjax.evaluation.probabilities import SplitPredictions
from vggjax.report.augment_preview import choose_images, draw_views
from vggjax.report.image_grid import Cell
from vggjax.report.thumbnails import jpeg_uri, small
from vggjax.training.config import Config
from vggjax.training.run_dir.saved_model import ModelInfo

NUM_RIGHT, NUM_WRONG = 4, 4
AUGMENTED_ROWS = 3


@dataclass(frozen=True)
class GradCamExample:
    """One image, and what in it spoke for a class."""

    id: str
    truth: str
    guess: str
    probability: float
    right: bool
    image: np.ndarray
    for_guess: np.ndarray
    for_truth: np.ndarray | None
    """None where the guess is the truth."""

    def on_page(self) -> dict[str, Any]:
        """Gives the same with its images as data URIs."""
        names = ("image", "for_guess", "for_truth")
        return vars(self) | {name: jpeg_uri(getattr(self, name)) for name in names}

    def cells(self) -> list[Cell]:
        """Gives its images as a row of a sheet."""
        said = (f"{'right' if self.right else 'wrong'}, {self.probability:.1%}", "muted")
        row = [
            Cell(self.image, ((f"is {self.truth}", "plain"), said)),
            Cell(self.for_guess, ((f"for {self.guess}", "plain" if self.right else "wrong"),)),
        ]
        if self.for_truth is not None:
            row.append(Cell(self.for_truth, ((f"for {self.truth}", "plain"),)))
        return row


def draw_grad_cam_examples(
    model: Any, info: ModelInfo, source: Source, judged: SplitPredictions
) -> tuple[list[GradCamExample], str, int]:
    """Draws Grad-CAM over a few right and a few wrong guesses, the surest of different kinds.

    Returns:
        The images, the layer that was looked at, and the side of its map in places.
    """
    rows = [*_surest(judged, True)[:NUM_RIGHT], *_surest(judged, False)[:NUM_WRONG]]
    preprocessing, names = info.preprocessing, [printable(name) for name in info.class_names]
    shown_images, model_inputs, kept = [], [], []
    for row in rows:
        try:
            pixels = source.read(int(judged.index[row])).pixels
        except DataError:
            continue
        image = resize_image(pixels, preprocessing)
        # What is squashed is all there: the map then lies on the whole image as it was.
        shown_images.append(small(pixels if preprocessing.resize == "squash" else image))
        model_inputs.append(image)
        kept.append(row)
    layer = map_layer(model, preprocessing.image_size)
    if not kept:
        return [], layer, 0
    labels, guesses = judged.labels[kept], judged.probs[kept].argmax(1)
    wrong = np.flatnonzero(labels != guesses)
    images = np.stack(model_inputs)
    # One call for both, for each shape is compiled anew; as many rows, whatever was read.
    both = np.concatenate([images, images[wrong]])
    classes = np.concatenate([guesses, labels[wrong]])
    padding = NUM_RIGHT + 2 * NUM_WRONG - len(both)
    both = np.concatenate([both, np.zeros((padding, *both.shape[1:]), np.uint8)])
    classes = np.concatenate([classes, np.zeros(padding, classes.dtype)])
    maps = grad_cam(model, preprocess(both, preprocessing.mode), classes, layer=layer)
    of_truth = dict(zip(wrong.tolist(), maps[len(images) :], strict=False))
    looks = [
        GradCamExample(
            id=printable(source.ids[judged.index[row]]),
            truth=names[labels[i]],
            guess=names[guesses[i]],
            probability=float(judged.probs[row].max()),
            right=bool(labels[i] == guesses[i]),
            image=images[i],
            for_guess=overlay(images[i], maps[i]),
            for_truth=overlay(images[i], of_truth[i]) if i in of_truth else None,
        )
        for i, row in enumerate(kept)
    ]
    return looks, layer, maps.shape[1]


def _surest(judged: SplitPredictions, right: bool) -> list[int]:
    """Lists the surest guesses, right or wrong, one of each (truth, guess) before a second."""
    guesses = judged.probs.argmax(1)
    rows = np.flatnonzero((guesses == judged.labels) == right)
    rows = rows[np.argsort(-judged.probs[rows].max(1), kind="stable")]
    seen: dict[tuple[int, int], int] = {}
    turns = []
    for row in rows:
        kind = int(judged.labels[row]), int(guesses[row])
        turns.append(seen.get(kind, 0))
        seen[kind] = turns[-1] + 1
    return rows[np.argsort(turns, kind="stable")].tolist()


def draw_augmented(
    info: ModelInfo, source: Source, config: Config, train: np.ndarray
) -> list[tuple[str, list[np.ndarray]]]:
    """Draws a few training images as the training may see them; none where nothing is drawn.

    Gives rows of a class' name and images, the first as it is, the others by the very functions
    of the training step.
    """
    if not is_on(config.augmentation):
        return []
    try:
        chosen, images = choose_images(
            source, info.preprocessing, rows=AUGMENTED_ROWS, seed=config.seed, among=train
        )
    except DataError:
        return []
    labels = source.labels[chosen].astype(np.int32)
    drawn = draw_views(images, labels, config.augmentation, seed=config.seed)
    return [
        (
            printable(info.class_names[labels[row]]),
            [small(view[row], side_px=128) for view in (images, *(v["images"] for v in drawn))],
        )
        for row in range(len(chosen))
    ]
