"""Write why images have their class: each one beside its Grad-CAM map.

In: predictions. Out: a PNG for each in one folder, named by the image and the class that the map
speaks for: as the network sees the image on the left, with the map over it on the right.
"""

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image

from vggjax.atomic import is_run_folder, write_output
from vggjax.data.images.preprocess import preprocess, resize_image
from vggjax.data.quality.clean import SafeNames
from vggjax.errors import ConfigError, printable
from vggjax.evaluation.grad_cam import grad_cam, map_layer, overlay
from vggjax.evaluation.predict import Classifier
from vggjax.evaluation.result_table import Prediction

MIN_SIDE_PX = 224
"""Side of the images that are written; smaller ones are enlarged by a whole factor."""

_GAP_PX = 4


class Explainer:
    """Writes an image beside its map for each prediction."""

    def __init__(self, folder: str | os.PathLike[str], classifier: Classifier):
        """Prepare to write into a folder, as `check_explanations` checks it."""
        self.folder = Path(folder).expanduser()
        self.count = 0
        self._classifier = classifier
        self._size = classifier.info.preprocessing.image_size
        self._layer = map_layer(classifier.model, self._size)
        self._class_of = {printable(name): i for i, name in enumerate(classifier.class_names)}
        self._names = SafeNames()

    def add(self, prediction: Prediction) -> None:
        """Write an image and its map; a file that is there is never overwritten.

        An image is read again, and one that cannot be is left out here as well.
        """
        if prediction.reason:
            return
        path, name = prediction.path, printable(prediction.top[0][0])
        info = self._classifier.info
        image = resize_image(self._classifier.read(path).pixels, info.preprocessing)
        inputs = preprocess(image[None], info.preprocessing.mode)
        classes = np.array([self._class_of[name]])
        (heat,) = grad_cam(self._classifier.model, inputs, classes, layer=self._layer)
        data = _png(_side_by_side(image, overlay(image, heat)), f"Grad-CAM of {name}")
        while True:
            target = self.folder.joinpath(*self._names.file((), f"{path.stem}-{name}", ".png"))
            if not os.path.lexists(target):
                break
            if target.is_file() and target.read_bytes() == data:
                return  # by an earlier call
        target.parent.mkdir(parents=True, exist_ok=True)
        write_output(target, data)
        self.count += 1


def check_explanations(folder: str | os.PathLike[str]) -> None:
    """Raise ConfigError if `explain` names a file, or a folder of a run."""
    path = Path(folder).expanduser()
    if path.exists() and not path.is_dir():
        raise ConfigError(f"`explain` must be a folder; got {printable(folder)}.")
    if is_run_folder(path):
        raise ConfigError(
            f"`explain` {printable(folder)} is a run's folder; give a folder of its own."
        )


def _side_by_side(image: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    factor = -(-MIN_SIDE_PX // len(image))
    left, right = (part.repeat(factor, 0).repeat(factor, 1) for part in (image, drawn))
    gap = np.full((len(left), _GAP_PX, 3), 255, np.uint8)
    return np.concatenate([left, gap, right], axis=1)


def _png(pixels: np.ndarray, title: str) -> bytes:
    from PIL.PngImagePlugin import PngInfo

    facts, data = PngInfo(), io.BytesIO()
    facts.add_text("Title", title.encode("ascii", "backslashreplace").decode())
    Image.fromarray(pixels).save(data, "png", pnginfo=facts)
    return data.getvalue()
