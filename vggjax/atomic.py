"""Write files whole or not at all, and check where a user wants one."""

import contextlib
import glob
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from vggjax.errors import ConfigError, printable

_STALE_S = 3600


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], *, sync: bool = False) -> Iterator[Path]:
    """Yield a temporary path to write to, which replaces `path` when the block succeeds.

    The temporary file is hidden and lies beside `path`. If the block raises, it is removed and
    `path` stays as it was. What a killed process left for the same `path` is removed after an hour.

    Args:
        path: the file to write.
        sync: flush the contents to the disk first, so that not even a power failure leaves a
            truncated file at `path`.

    Raises:
        OSError: the file cannot be written, for example because the disk is full.
    """
    path = Path(path)
    _remove_stale(path)
    # Unique, so that neither another process nor another thread writes to the same file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{time.monotonic_ns()}.part")
    try:
        yield temporary
        if sync:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file, UTF-8, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


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
    """Write a file that a setting names, whole or not at all.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"Cannot write {printable(path)}: {error.strerror or error}.") from None


def _remove_stale(path: Path) -> None:
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.*.part*"):
        with contextlib.suppress(OSError):
            if time.time() - temporary.stat().st_mtime > _STALE_S:
                temporary.unlink()
