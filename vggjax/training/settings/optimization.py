"""`OptimizationSettings`: how the weights are learned, and which of them are kept."""

from dataclasses import dataclass
from typing import Literal

from vggjax.data.augment.settings import setting


@dataclass(frozen=True)
class OptimizationSettings:
    """Batches, optimizer, learning rates, loss, and which weights are kept."""

    batch_size: int | Literal["auto"] = setting(32, above=0)
    """Images per step, over all devices; `auto` is what fits in their memory, at most 256 each."""
    head_solver: Literal["steps", "lbfgs"] = "steps"
    """`steps` of --optimizer, or `lbfgs`: solve the head's own stage in seconds, penalty by val."""
    baselines: bool = False
    """Fit k nearest neighbors and a linear head to the features of the head's stage, and print
    their accuracy beside the model's."""
    optimizer: Literal["adam", "nadam", "rmsprop", "sgd"] = "adam"
    """adam, nadam and rmsprop as in Keras; sgd with momentum 0.9."""
    beta1: float = setting(0.9, at_least=0, below=1)
    """Decay of the first moment in adam and nadam."""
    beta2: float = setting(0.999, at_least=0, below=1)
    """Decay of the second moment in adam and nadam."""
    learning_rate: float = setting(1e-3, above=0)
    """Peak learning rate of the head."""
    backbone_learning_rate: float | None = setting(None, above=0)
    """Peak learning rate of the unfrozen layers; None is a hundredth of the head's with pretrained
    weights, and the head's without."""
    layer_decay: float = setting(1.0, above=0, at_most=1)
    """Learning rate of each block relative to the next block, the last one at
    --backbone-learning-rate; 1 is one rate for all."""
    schedule: Literal["cosine", "constant", "plateau"] = "cosine"
    """Learning rates after the warmup, in each stage: fall to 0, stay, or fall by --plateau-factor
    when val/loss stops falling (Keras' ReduceLROnPlateau)."""
    plateau_factor: float = setting(0.1, above=0, below=1)
    """With --schedule plateau: multiply the learning rates by this."""
    plateau_patience: int = setting(10, above=0)
    """With --schedule plateau: wait this many epochs for a val/loss that is lower by at least
    1e-4."""
    warmup_epochs: float = setting(1.0, at_least=0)
    """Epochs over which the learning rates rise, at most half of a stage."""
    weight_decay: float = setting(0.0, at_least=0)
    """Decoupled weight decay of the trained kernels."""
    clip_norm: float = setting(0.0, at_least=0)
    """Clip the gradients of the trained layers to this global norm; 0 turns it off."""
    label_smoothing: float = setting(0.0, at_least=0, below=1)
    """Share of each label spread over all classes, in the training loss only; with --task
    multilabel over its presence and absence."""
    ema: float = setting(0.0, at_least=0, below=1)
    """Evaluate and keep an exponential moving average of the weights with this decay per step, as
    in 0.999 (lower in the first steps); 0 keeps the weights themselves."""
    class_weights: Literal["none", "balanced"] = "none"
    """`balanced` gives each class the same weight in the training loss, however many images it
    has; with --task multilabel, the presence and the absence of each label."""
    patience: int = setting(0, at_least=0)
    """Stop early after this many epochs without a better --monitor; 0 never does."""
    monitor: Literal["val/accuracy", "val/loss", "val/mAP"] | None = None
    """The metric that selects the best weights, which are kept; None is val/accuracy, and val/mAP
    (mean average precision) with --task multilabel."""
    on_collapse: Literal["warn", "stop", "recover"] = "warn"
    """When the network stops learning (loss or accuracy at chance, or not finite): warn, stop, or
    go back to the last good checkpoint with a tenth of the learning rates. A stage after the first
    goes back unless it is to stop, also if its first epochs are far worse than the one before."""
