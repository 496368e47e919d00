"""Check the destination of a page or an image, and write it whole or not at all."""

from collections.abc import Iterable
from pathlib import Path

from vggjax.atomic import atomic_write
from vggjax.errors import ConfigError, printable


def check_output_file(path: str | Path, *, field: str, endings: Iterable[str] = ()) -> Path:
    """Return the path of a file that the setting `field` names.

    Raises:
        ConfigError: it is a folder, its folder does not exist, or it has none of the `endings`.
    """
    path = Path(path).expanduser()
    if path.is_dir() or not path.parent.is_dir():
        raise ConfigError(f"`{field}` must be a file in an existing folder; got {printable(path)}.")
    if endings and path.suffix.lower() not in endings:
        choices = ", ".join(endings)
        raise ConfigError(f"`{field}` must end in {choices}; got {printable(path.name)!r}.")
    return path


def write_output(path: Path, data: bytes) -> None:
    """Write a file.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"Cannot write {printable(path)}: {error.strerror or error}.") from None
