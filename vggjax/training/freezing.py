"""Which layers train, when, and at what rate.

One labelling, layer name -> `frozen`, `backbone` or `head`, is used twice: it filters what is
differentiated (`nnx.DiffState`), so that the backward pass of frozen blocks is not computed, and it
routes the update (`optax.multi_transform`), so that they hold no moments. A run is a list of
stages; within one the labelling does not change.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from flax import nnx

from vggjax.models.arch import match_layers
from vggjax.models.vgg import VGG
from vggjax.training.config import Config
from vggjax.training.stages import Stage, name_stage

Labels = Mapping[str, str]
"""Layer name -> `frozen`, `backbone` or `head`, for every layer that has parameters."""

_SCALERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "adam": optax.scale_by_adam,
    "nadam": lambda: optax.scale_by_adam(nesterov=True),
    "rmsprop": lambda: optax.scale_by_rms(decay=0.9, eps=1e-7),  # Keras' defaults
    "sgd": lambda: optax.trace(decay=0.9),
}


def plan_stages(config: Config) -> tuple[Stage, ...]:
    """Divides the epochs: the head alone first, where pretrained layers would be wrecked by it.

    A run that goes on from another's head needs no such stage.
    """
    if config.stages:
        return config.planned_stages
    epochs, head_epochs = config.num_epochs, config.head_epochs
    if config.unfreeze == ("none",):
        return (Stage("head", config.unfreeze, 0, epochs),)
    if head_epochs is None:
        is_new = config.pretrained and config.start_from is None
        head_epochs = max(1, epochs // 3) if is_new and epochs > 1 else 0
    name = name_stage(config.unfreeze)
    last = Stage(name, config.unfreeze, head_epochs, epochs - head_epochs)
    return (Stage("head", ("none",), 0, head_epochs), last) if head_epochs else (last,)


def label_layers(model: VGG, unfreeze: tuple[str, ...]) -> dict[str, str]:
    """Labels every layer that has parameters; the head always trains."""
    base = [name for name in model.arch.layers() if not name.endswith("_pool")]
    unfrozen = match_layers(unfreeze, base)
    labels = {name: "backbone" if name in unfrozen else "frozen" for name in base}
    head = model.head.layers() if model.head else ()
    return labels | {name: "head" for name in head if hasattr(model, name)}


def trainable(labels: Labels) -> Callable[[tuple, Any], bool]:
    """Makes the filter of the parameters that train, for `nnx.DiffState` and `nnx.split`."""
    return lambda path, value: isinstance(value, nnx.Param) and labels[path[0]] != "frozen"


def set_training_mode(model: VGG, labels: Labels, *, axis_name: str | None = None) -> None:
    """Lets the batch normalisations that train use the batch; frozen ones keep their statistics."""
    for name, label in labels.items():
        if "_bn" in name:
            layer = getattr(model, name)
            layer.use_running_average = label == "frozen"
            layer.axis_name = axis_name


def peak_rates(config: Config) -> dict[str, float]:
    """Gives the highest learning rate of `head` and of `backbone`."""
    backbone = config.backbone_learning_rate
    if backbone is None:
        # A hundredth: pretrained features are to be adjusted, not relearned.
        backbone = config.learning_rate * (0.01 if config.pretrained else 1.0)
    return {"head": config.learning_rate, "backbone": backbone}


def make_schedules(config: Config, stage: Stage, steps_per_epoch: int) -> dict[str, optax.Schedule]:
    """Makes the learning rates of `head` and `backbone` over the steps of a stage, from its 0."""
    steps = stage.epochs * steps_per_epoch
    warmup_steps = min(round(config.warmup_epochs * steps_per_epoch), steps // 2)

    def schedule(peak: float) -> optax.Schedule:
        if config.schedule == "constant":
            return optax.warmup_constant_schedule(peak / (warmup_steps + 1), peak, warmup_steps)
        first = peak / (warmup_steps + 1)  # not 0: the first step is to learn as well
        return optax.warmup_cosine_decay_schedule(first, peak, warmup_steps, steps)

    return {label: schedule(peak) for label, peak in peak_rates(config).items()}


def make_optimizer(
    config: Config, labels: Labels, schedules: Mapping[str, optax.Schedule]
) -> optax.GradientTransformation:
    """Makes the update: each label at its own rate, frozen parameters not at all.

    `optax.multi_transform` is the older name of `optax.partition`.
    """

    def tx(schedule: optax.Schedule) -> optax.GradientTransformation:
        decay = optax.add_decayed_weights(
            config.weight_decay, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
        )
        scaled = [_SCALERS[config.optimizer](), *([decay] if config.weight_decay else [])]
        return optax.chain(*scaled, optax.scale_by_learning_rate(schedule))

    transforms = {label: tx(schedule) for label, schedule in schedules.items()}
    return optax.multi_transform(
        transforms | {"frozen": optax.set_to_zero()},
        lambda params: jax.tree_util.tree_map_with_path(
            lambda path, _: labels[path[0].key], params
        ),
    )
