"""Photographs of a folder, their features, and heads trained on features: what proofs share."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vggjax.data.images.preprocess import Preprocessing, preprocess, resize_image
from vggjax.data.sources.open import open_source
from vggjax.data.sources.options import DatasetOptions
from vggjax.models.head import Head
from vggjax.models.network import Network
from vggjax.training.config import Config
from vggjax.training.freezing import label_layers, make_optimizer, make_schedules, plan_stages
from vggjax.training.parallel import Placement
from vggjax.training.step import make_state, make_train_step, map_microbatches
from vggjax.weights.load import load_pretrained

CUT = "block5_pool"
BATCH = 32

OPTIONS = {"breeds": DatasetOptions(label_from="name", label_pattern="^(cats|dogs)/")}
"""How to read a folder that has no class folders at its top."""


class Photographs:
    """A seeded choice of a folder's photographs, the same number of each class.

    Args:
        folder: one folder per class, or one that is named in `OPTIONS`.
        count: photographs of all classes together, at most.
        classes: of each photograph in the end, int (N,).
    """

    def __init__(self, folder: Path, count: int):
        self.name = folder.name
        self.source = open_source(str(folder), options=OPTIONS.get(folder.name, DatasetOptions()))
        labels, rng = np.asarray(self.source.labels), np.random.default_rng(0)
        self.class_names = self.source.class_names
        each = count // len(self.class_names)
        chosen = [rng.permutation(np.flatnonzero(labels == c))[:each] for c in np.unique(labels)]
        self.rows = np.sort(np.concatenate(chosen))
        self.labels = labels[self.rows].astype(np.int32)

    def __len__(self) -> int:
        return len(self.rows)

    def pixels(self, preprocessing: Preprocessing) -> np.ndarray:
        """Return the decoded and resized photographs, uint8 RGB (N, S, S, 3)."""
        read = self.source.read
        return np.stack([resize_image(read(row).pixels, preprocessing) for row in self.rows])

    def split(self, seed: int, test_share: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
        """Return the positions of train and test, stratified by class."""
        rng, train, test = np.random.default_rng(seed), [], []
        for label in np.unique(self.labels):
            order = rng.permutation(np.flatnonzero(self.labels == label))
            cut = round(len(order) * test_share)
            test.append(order[:cut])
            train.append(order[cut:])
        return np.concatenate(train), np.concatenate(test)


@functools.cache
def _base(weights: str) -> Callable[[jax.Array], jax.Array]:
    model = load_pretrained("vgg16", weights=weights, include_top=False)
    return jax.jit(lambda x: map_microbatches(lambda part: model(part, until=CUT), x))


def features_of(
    images: np.ndarray,
    weights: Path,
    *,
    pixels: Callable[[np.ndarray], Any] = preprocess,
    kept: Path | None = None,
) -> np.ndarray:
    """Return the outputs of `CUT` for uint8 images, float32; kept in a file if one is named."""
    if kept is not None and kept.exists():
        return np.load(kept)
    base, parts = _base(str(weights)), []
    for first in range(0, len(images), BATCH):
        batch = images[first : first + BATCH]
        padded = np.concatenate([batch, np.zeros((BATCH - len(batch), *batch.shape[1:]), np.uint8)])
        parts.append(np.asarray(base(jnp.asarray(pixels(padded))))[: len(batch)])
    features = np.concatenate(parts)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.save(kept, features)
    return features


class HeadTrainer:
    """Trains heads of one kind on features, by the package's own steps; compiled once.

    Args:
        map_size: the side of the feature map, whose channels are VGG16's 512.
        classes: the number of classes.
        settings: fields of Config: `head`, `epochs`, `optimizer`, `learning_rate` ...
    """

    def __init__(self, map_size: int, classes: int, **settings: Any):
        self.config = Config(model="vgg16", image_size=32 * map_size, **settings)
        self._head = Head.parse(self.config.head).for_classes(classes)
        self._placement = Placement("jit", num_devices=1)
        self._steps: dict[int, Any] = {}

    def train(
        self, features: np.ndarray, labels: np.ndarray, *, seed: int
    ) -> Callable[[np.ndarray], np.ndarray]:
        """Train a head; return the function of features that returns its predicted classes."""
        config, placement = self.config, self._placement
        model = Network("vgg16", head=self._head, image_size=config.image_size, rngs=nnx.Rngs(seed))
        names, stage = label_layers(model, ("none",)), plan_stages(config)[0]
        steps = -(-len(labels) // config.batch_size)
        tx = make_optimizer(config, names, make_schedules(config, stage, steps))
        if steps not in self._steps:
            self._steps[steps] = make_train_step(
                model, tx, names, placement=placement, mode="caffe", after=CUT, stack_batches=True
            )
            graphdef = nnx.graphdef(model)

            def predict(params: tuple, x: jax.Array) -> jax.Array:
                return nnx.merge(graphdef, *params)(x, after=CUT)

            self._predict = jax.jit(predict)
        state = placement.put_state(make_state(model, tx, names))
        rng = np.random.default_rng(seed)
        for _ in range(config.num_epochs):
            batches = _epoch(features, labels, rng.permutation(len(labels)), config.batch_size)
            state, _ = self._steps[steps](state, batches)
        params = state.eval_params

        def classify(x: np.ndarray) -> np.ndarray:
            logits = np.asarray(self._predict(params, jnp.asarray(x)))
            return logits.argmax(1) if logits.shape[1] > 1 else (logits[:, 0] > 0).astype(int)

        return classify


def _epoch(
    features: np.ndarray, labels: np.ndarray, order: np.ndarray, batch_size: int
) -> Mapping[str, np.ndarray]:
    """Return the stacked batches (steps, B, ...) of an epoch; the last one is padded."""
    steps = -(-len(order) // batch_size)
    mask = (np.arange(steps * batch_size) < len(order)).astype(np.float32)
    index = np.resize(order, steps * batch_size)
    arrays = {"features": features[index], "label": labels[index], "mask": mask, "index": index}
    return {k: a.reshape(steps, batch_size, *a.shape[1:]) for k, a in arrays.items()}
