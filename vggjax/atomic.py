"""Puts a new file in the place of an old one whole, or not at all."""

import contextlib
import glob
import os
import time
from collections.abc import Iterator
from pathlib import Path

from vggjax.errors import WeightsError, printable

_STALE_S = 3600


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Gives the path of a hidden file to write; it takes `path`'s place when all went well.

    What a killed process had begun for `path` is removed an hour after.

    Raises:
        WeightsError: it cannot be written, as on a full disk; what was there is as it was.
    """
    _sweep(path)
    # Of this process alone, so that two runs do not write into each other's.
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise WeightsError(
            f"{printable(path)} cannot be written: {error.strerror or printable(error)}.",
            code="E_WRITE",
        ) from None
    finally:
        part.unlink(missing_ok=True)


def _sweep(path: Path) -> None:
    for rest in path.parent.glob(f".{glob.escape(path.name)}.*.part*"):
        with contextlib.suppress(OSError):
            if time.time() - rest.stat().st_mtime > _STALE_S:
                rest.unlink()
