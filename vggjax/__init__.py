"""Transfer learning with VGG in JAX, exact to the published Keras weights.

result = vggjax.fit(vggjax.Config(dataset="photos", unfreeze=("block5",)))
model = vggjax.load_pretrained("vgg16", weights="imagenet", include_top=True)
logits = model(vggjax.preprocess(images, mode="caffe"))
names = vggjax.load_run("runs/roses").predict(["photo.jpg", pixels]).names

The public names are loaded on first use (PEP 562): `import vggjax` imports neither jax nor flax.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vggjax.api import find_learning_rate as find_learning_rate
    from vggjax.api import fit as fit
    from vggjax.data.images.preprocess import Preprocessing as Preprocessing
    from vggjax.data.images.preprocess import preprocess as preprocess
    from vggjax.errors import ConfigError as ConfigError
    from vggjax.errors import DataError as DataError
    from vggjax.errors import VggjaxError as VggjaxError
    from vggjax.errors import WeightsError as WeightsError
    from vggjax.evaluation.evaluate import evaluate as evaluate
    from vggjax.evaluation.imagenet import decode_predictions as decode_predictions
    from vggjax.evaluation.predict import load_run as load_run
    from vggjax.evaluation.predict import predict as predict
    from vggjax.models.head import Head as Head
    from vggjax.models.network import VGG as VGG
    from vggjax.models.params import assign as assign
    from vggjax.models.params import extract as extract
    from vggjax.report.fit_result import FitResult as FitResult
    from vggjax.training.callbacks.callback import Callback as Callback
    from vggjax.training.callbacks.callback import TrainingEvent as TrainingEvent
    from vggjax.training.config import Config as Config
    from vggjax.training.recipes import make_config as make_config
    from vggjax.training.run_dir.run_result import load_model as load_model
    from vggjax.weights.load import load_pretrained as load_pretrained
    from vggjax.weights.weight_file import read_weights as read_weights
    from vggjax.weights.weight_file import write_weights as write_weights

    __version__: str

_MODULES = {
    "vggjax.api": ("find_learning_rate", "fit"),
    "vggjax.data.images.preprocess": ("Preprocessing", "preprocess"),
    "vggjax.errors": ("ConfigError", "DataError", "VggjaxError", "WeightsError"),
    "vggjax.evaluation.evaluate": ("evaluate",),
    "vggjax.evaluation.imagenet": ("decode_predictions",),
    "vggjax.evaluation.predict": ("load_run", "predict"),
    "vggjax.models.head": ("Head",),
    "vggjax.models.params": ("assign", "extract"),
    "vggjax.models.network": ("VGG",),
    "vggjax.report.fit_result": ("FitResult",),
    "vggjax.training.callbacks.callback": ("Callback", "TrainingEvent"),
    "vggjax.training.config": ("Config",),
    "vggjax.training.recipes": ("make_config",),
    "vggjax.training.run_dir.run_result": ("load_model",),
    "vggjax.weights.load": ("load_pretrained",),
    "vggjax.weights.weight_file": ("read_weights", "write_weights"),
}
"""Where each public name is defined; a test holds it equal to the imports above."""

_PLACES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [*_PLACES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("vggjax")
    if name not in _PLACES:
        raise AttributeError(f"module 'vggjax' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES, "__version__"])
