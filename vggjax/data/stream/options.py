"""`StreamOptions`: which part of a stream of images is taken, and what computes it."""

from dataclasses import dataclass
from typing import Literal

from vggjax.data.augment.settings import check_settings, setting
from vggjax.data.stream.images import Part
from vggjax.errors import ConfigError


@dataclass(frozen=True)
class StreamOptions:
    """Which part of the images is taken, and what computes it."""

    shard: str | None = None
    """The part of the images to take, as in 3/16: one of sixteen jobs, each with a file of its
    own."""
    engine: Literal["local", "ray"] = "local"
    """`local` computes in this process, `ray` on a Ray cluster, or the one that it starts here."""
    workers: int | None = setting(None, above=0)
    """Actors of the Ray engine; None is one for each GPU of the cluster, or without any for each
    machine."""

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            ConfigError: with the option, what it accepts and the value received.
        """
        check_settings(self)
        if self.workers is not None and self.engine != "ray":
            raise ConfigError(f"`workers` needs `engine` ray; got {self.workers}.")
        if self.shard is not None:
            Part.parse(self.shard)

    @property
    def part(self) -> Part | None:
        """The part of the images; None is all of them."""
        return None if self.shard is None else Part.parse(self.shard)


DEFAULT_STREAM_OPTIONS = StreamOptions()
