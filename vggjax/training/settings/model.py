"""`ModelSettings`: the network, its head, and the weights that it starts from."""

from dataclasses import dataclass
from typing import Literal

from vggjax.data.augment.settings import setting


@dataclass(frozen=True)
class ModelSettings:
    """The network, its head, and the weights that it starts from."""

    model: str = "vgg16"
    """vgg11, vgg13, vgg16 or vgg19; with batch normalization vgg11_bn ...; a small convnet such as
    cifar10-cnn, or one spelled out, such as cnn-32-pool-64-pool-64."""
    weights: str = setting("imagenet", non_empty=True)
    """`imagenet` (Keras' published weights), `none` (random), a weight file, or hf://user/name, a
    repository of a model hub."""
    expect_sha256: str | None = None
    """Refuse a weight file with another SHA-256 checksum, written as sha256sum prints it."""
    start_from: str | None = setting(None, non_empty=True)
    """Folder of a finished run whose backbone and head to start from, in place of --weights, with
    the same classes, model and head; its preprocessing is taken over."""
    head: str = "gap-256-0.5-classes"
    """POOLING[-WIDTH ...][-DROPOUT]-OUTPUTS: pooling flatten, avg2 or gap; outputs `classes` or a
    number, 1 for a single sigmoid unit."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Compute dtype; parameters, statistics, logits and loss are float32. None is bfloat16 on GPUs
    and TPUs, and float32 on CPUs."""
    convolution: Literal["auto", "winograd", "direct"] = "auto"
    """Algorithm of 3x3 convolutions on CPUs: `winograd` has a quarter of the products and differs
    in the sixth digit, `direct` has all, `auto` uses the faster one."""
