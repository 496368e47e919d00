"""Opens a tfds data set (being built)."""

from vggjax.data.source import Source
from vggjax.errors import DataError


def open_tfds(name: str, *, data_dir: str | None = None) -> Source:
    """Opens a tfds data set by name."""
    raise DataError(f"No such folder or data set: {name!r}.")
