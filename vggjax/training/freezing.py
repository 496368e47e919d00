"""Which layers train, in which stage, and at which learning rate.

One labeling, layer name -> `frozen`, `backbone` or `head`, is used twice: `trainable` filters what
is differentiated (`nnx.DiffState` in step.py) and given to the optimizer, so that the backward pass
of frozen blocks is not computed and frozen parameters have no moments; `optax.multi_transform`
updates each label at its own rate. With `layer_decay` each block has its own label (`block5`)
instead of `backbone`. A run is a list of stages, each with one labeling.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from flax import nnx

from vggjax.models.arch import match_layers
from vggjax.models.network import Network
from vggjax.training.config import Config
from vggjax.training.optimizers import scale_by_optimizer, scale_by_rate
from vggjax.training.settings.stages import Stage, name_stage

Labels = Mapping[str, str]
"""Layer name -> `frozen`, `head`, `backbone` or a block, for every layer with parameters."""


def plan_stages(config: Config) -> tuple[Stage, ...]:
    """Return the stages of a run; where pretrained layers are unfrozen, the head trains first.

    The large gradients of a new head would destroy pretrained features. A run that starts from
    another run's head needs no such stage.
    """
    if config.stages:
        return config.planned_stages
    epochs, head_epochs = config.num_epochs, config.head_epochs
    if config.unfreeze == ("none",):
        return (Stage("head", config.unfreeze, 0, epochs),)
    if head_epochs is None:
        is_new = config.pretrained and config.start_from is None
        third = 1 if config.head_solver == "lbfgs" else max(1, epochs // 3)
        head_epochs = third if is_new and epochs > 1 else 0
    name = name_stage(config.unfreeze)
    last = Stage(name, config.unfreeze, head_epochs, epochs - head_epochs)
    return (Stage("head", ("none",), 0, head_epochs), last) if head_epochs else (last,)


def solves_head(config: Config, stage: Stage) -> bool:
    """Return whether a stage's head is solved, in one epoch, and not trained by steps."""
    return config.head_solver == "lbfgs" and stage.unfreeze == ("none",)


def label_layers(
    model: Network, unfreeze: tuple[str, ...], *, by_block: bool = False
) -> dict[str, str]:
    """Label every layer that has parameters; the head always trains.

    `by_block` labels an unfrozen layer with its block's name instead of `backbone`.
    """
    labels = dict.fromkeys(model.arch.weighted_layers(), "frozen")
    for name in match_layers(unfreeze, labels):
        labels[name] = block_of(name) if by_block else "backbone"
    head = model.head.layers() if model.head else ()
    return labels | {name: "head" for name in head if hasattr(model, name)}


def block_of(layer: str) -> str:
    """Return the block of a layer of the backbone: `block5` for `block5_conv3`."""
    return layer.split("_")[0]


def trainable(labels: Labels) -> Callable[[tuple, Any], bool]:
    """Return a filter of the parameters that train, for `nnx.DiffState` and `filter_state`."""
    return lambda path, value: isinstance(value, nnx.Param) and labels[path[0]] != "frozen"


def set_training_mode(model: Network, labels: Labels, *, axis_name: str | None = None) -> None:
    """Let unfrozen batch normalizations use the batch, frozen ones their running statistics."""
    for name, label in labels.items():
        if "_bn" in name:
            layer = getattr(model, name)
            layer.use_running_average = label == "frozen"
            layer.axis_name = axis_name


def peak_rates(config: Config) -> dict[str, float]:
    """Return the peak learning rate of each label: `head`, and `backbone` or every block.

    With `layer_decay` d the last block has the backbone's rate, the block before it d times that,
    and so on, whether unfrozen or not.
    """
    backbone = config.backbone_learning_rate
    if backbone is None:
        # Pretrained features are to be adjusted, not relearned.
        backbone = config.learning_rate * (0.01 if config.pretrained else 1.0)
    rates = {"head": config.learning_rate}
    if config.layer_decay == 1:
        return rates | {"backbone": backbone}
    blocks = dict.fromkeys(map(block_of, reversed(config.base_layers)))
    return rates | {block: backbone * config.layer_decay**i for i, block in enumerate(blocks)}


def describe_rates(config: Config, labels: Labels, *, factor: float = 1.0) -> str:
    """Return the peak rates of the labels that train, times `factor`: `head 0.001`."""
    used = labels.values()
    rates = peak_rates(config).items()
    return ", ".join(f"{label} {rate * factor:.2g}" for label, rate in rates if label in used)


def make_schedules(config: Config, stage: Stage, steps_per_epoch: int) -> dict[str, optax.Schedule]:
    """Return the learning rate of each label as a function of the stage's step, from 0."""
    steps = stage.epochs * steps_per_epoch
    warmup_steps = min(round(config.warmup_epochs * steps_per_epoch), steps // 2)

    def schedule(peak: float) -> optax.Schedule:
        first = peak / (warmup_steps + 1)  # not 0: the first step should learn, too
        if config.schedule != "cosine":  # a plateau lowers TrainProgress.plateau_factor instead
            return optax.warmup_constant_schedule(first, peak, warmup_steps)
        return optax.warmup_cosine_decay_schedule(first, peak, warmup_steps, steps)

    return {label: schedule(peak) for label, peak in peak_rates(config).items()}


def make_optimizer(
    config: Config, labels: Labels, schedules: Mapping[str, optax.Schedule]
) -> optax.GradientTransformationExtraArgs:
    """Return the optimizer that updates each label at its own rate.

    Its `update` takes the gradients of the trainable parameters only, so that clipping uses their
    norm, and `factor` (), which multiplies every rate.
    """
    decay = optax.add_decayed_weights(
        config.weight_decay,
        # Only kernels decay: biases and normalizations have one axis.
        mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
    )

    def tx(schedule: optax.Schedule) -> optax.GradientTransformation:
        rule = scale_by_optimizer(config.optimizer, beta1=config.beta1, beta2=config.beta2)
        decayed = [decay] if config.weight_decay else []
        return optax.chain(rule, *decayed, scale_by_rate(schedule))

    transforms = {label: tx(schedule) for label, schedule in schedules.items()}
    routed = optax.multi_transform(
        transforms | {"frozen": optax.set_to_zero()},
        lambda params: jax.tree_util.tree_map_with_path(
            lambda path, _: labels[path[0].key], params
        ),
    )
    clip = optax.clip_by_global_norm(config.clip_norm)
    return optax.chain(clip, routed) if config.clip_norm else routed
