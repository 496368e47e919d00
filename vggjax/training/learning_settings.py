"""The settings of the network and of its learning: stages, optimizer, rates, what is kept.

Base classes of Config, which checks them.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ModelSettings:
    """The network and where its weights come from."""

    model: str = "vgg16"
    """vgg11, vgg13, vgg16 or vgg19; with batch normalization vgg11_bn ...; a small convnet, as
    cifar10-cnn, or one spelled out, as cnn-32-pool-64-pool-64."""
    weights: str = "imagenet"
    """`imagenet` (Keras' published files), `none` (from scratch), or a weight file."""
    expect_sha256: str | None = None
    """Refuse the weights' file unless this is its checksum, as sha256sum prints it."""
    start_from: str | None = None
    """A finished run's folder, to go on from its base and its head in place of --weights: the same
    classes, model and head; its preprocessing is taken over."""
    head: str = "gap-256-0.5-classes"
    """POOLING[-WIDTH ...][-DROPOUT]-OUTPUTS: pooling flatten, avg2 or gap; outputs `classes`
    or a number, 1 for one sigmoid unit."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the arithmetic; parameters, logits and loss are float32."""
    convolution: Literal["auto", "winograd", "direct"] = "auto"
    """Of 3x3 kernels on CPUs: `winograd` has a quarter of the products and differs in the sixth
    digit, `direct` has them all, `auto` takes the faster."""


@dataclass(frozen=True)
class LearningSettings:
    """What trains, for how long, at what rate, and which weights are kept."""

    unfreeze: tuple[str, ...] = ("none",)
    """What trains beside the head: none, all, blocks (block5), layers (block5_conv3)."""
    stages: tuple[str, ...] = ()
    """In place of --unfreeze, --head-epochs and --epochs: what is unfrozen one after the other, and
    the epochs of each, as in head:5 block5:20 block4:10. What is unfrozen stays so."""
    epochs: int | None = None
    """Passes over the training split in all (or over --epoch-images of it); None is 6, a first
    classifier (more give a better one), or what --stages add up to."""
    head_epochs: int | None = None
    """How many of the epochs train the head alone first; None is a third of them where pretrained
    layers are unfrozen below a new head."""
    epoch_images: int = 0
    """Images in an epoch, rounded to whole batches: the epochs walk on through the training
    split, and judge more often or less; 0 is all of it."""
    batch_size: int = 32
    """Images in a step, over all devices."""
    optimizer: Literal["adam", "nadam", "rmsprop", "sgd"] = "adam"
    """adam, nadam and rmsprop step as Keras' own do; sgd has momentum 0.9."""
    beta1: float = 0.9
    """Of adam and nadam: how slowly the mean of the gradients moves."""
    beta2: float = 0.999
    """Of adam and nadam: how slowly the mean of their squares moves."""
    learning_rate: float = 1e-3
    """Of the head, at its highest."""
    backbone_learning_rate: float | None = None
    """Of the unfrozen layers; None is a hundredth of the head's with pretrained weights, and the
    head's without."""
    layer_decay: float = 1.0
    """Each block learns at this times the rate of the block after it, the last block at
    --backbone-learning-rate; 1 is one rate for all."""
    schedule: Literal["cosine", "constant", "plateau"] = "cosine"
    """What the rates do behind the warm-up, in each stage: fall to 0, stay, or fall by
    --plateau-factor where val/loss no longer does (Keras' ReduceLROnPlateau)."""
    plateau_factor: float = 0.1
    """Of --schedule plateau: what the rates are multiplied by."""
    plateau_patience: int = 10
    """Of --schedule plateau: after so many epochs without a val/loss lower by 1e-4 or more."""
    warmup_epochs: float = 1.0
    """The rates rise over this long, at most half of a stage."""
    weight_decay: float = 0.0
    """Decoupled, on the kernels of what trains."""
    clip_norm: float = 0.0
    """Scale the gradients of what trains down to this norm, all of them together, where it is
    larger; 0 never does."""
    label_smoothing: float = 0.0
    """Share of each label that is spread over all classes in the training loss; what is judged has
    none."""
    ema: float = 0.0
    """Judge and keep a moving average of the weights, which keeps this share of itself at each
    step, as in 0.999 (a smaller one in the first steps); 0 keeps the weights themselves."""
    class_weights: Literal["none", "balanced"] = "none"
    """`balanced` lets each class count alike in the training loss, however many images it has."""
    patience: int = 0
    """Stop after this many epochs without a better `monitor`; 0 never stops early."""
    monitor: Literal["val/accuracy", "val/loss"] = "val/accuracy"
    """What chooses the best weights, which are the ones kept."""
    on_collapse: Literal["warn", "stop", "recover"] = "warn"
    """Where the network learns nothing (loss or accuracy at chance, or not finite): say it, stop,
    or go back to the last good checkpoint at a tenth of the rates."""


@dataclass(frozen=True)
class RunSettings:
    """How a run goes: kept features, devices, log, checkpoints."""

    cache_features: Literal["auto", "off"] = "auto"
    """`auto` computes the frozen layers once for each image and keeps what they give, where
    nothing random comes before and the stage has more than one epoch."""
    cached_views: int = 0
    """With augmentation: draw this many versions of each image once and keep their features, in
    place of new draws at every step; 0 draws anew and keeps nothing."""
    feature_cache_mb: int = 4096
    """Keep the features in memory where they take no more than this, else in a file in the run
    folder while the stage lasts."""
    feature_dtype: Literal["float32", "bfloat16"] | None = None
    """Of the features as they are kept; None is --dtype's, which loses nothing."""

    parallel: Literal["jit", "pmap"] = "jit"
    """How the step is spread over several devices."""
    log_every_steps: int = 20
    """How often the loss is fetched and written down; at least four times an epoch."""
    checkpoint_minutes: float = 10.0
    """Save this often inside a long epoch as well; every epoch's end is saved."""
    tensorboard: bool = False
    """Write the log's figures for TensorBoard as well."""
    lr_find: bool = False
    """Train nothing: try rising rates, and print and draw which one to take."""
