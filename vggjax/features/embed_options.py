"""`EmbedOptions`: the flags of `vggjax embed`, beside the images and the file."""

from dataclasses import dataclass
from typing import Literal

from vggjax.data.augment.settings import check_settings, setting

Pool = Literal["gap", "max", "none"]


@dataclass(frozen=True)
class EmbedOptions:
    """Which layer of which model is computed."""

    layer: str = "block5_pool"
    """Whose output, such as block4_pool or relu5_3."""
    pool: Pool = "gap"
    """gap is the mean over the map, max its largest value, none the whole map."""
    workdir: str | None = None
    """A finished run's folder, whose model is taken in place of pretrained weights."""
    weights: str | None = None
    """`imagenet` (without workdir the default) or a weight file."""
    model: str | None = None
    """The network of the weights; without workdir vgg16."""
    image_size: int | None = setting(None, above=0)
    """Side in px for pretrained weights, 224 if it is not given."""

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            ConfigError: with the option, what it accepts and the value received.
        """
        check_settings(self)


DEFAULT_EMBED_OPTIONS = EmbedOptions()
