"""Write files whole or not at all, and check where a user wants one."""

import contextlib
import errno
import glob
import hashlib
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from vggjax.errors import ConfigError, printable

_STALE_S = 3600
_TEMPORARY = re.compile(r"\..+\.\d+-\d+\.part.*")


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], *, sync: bool = False) -> Iterator[Path]:
    """Yield a temporary path to write to, which replaces `path` when the block succeeds.

    The temporary file is hidden and lies beside `path`. If the block raises, it is removed and
    `path` stays as it was. What a killed process left for the same `path` is removed after an hour.
    A file that is replaced keeps its mode. Only a regular file is: a link, a device or a pipe would
    be lost, and is refused.

    Args:
        path: the file to write.
        sync: flush the contents to the disk first, and its folder's entry after, so that not even a
            power failure leaves a truncated file at `path`.

    Raises:
        OSError: the file cannot be written, for example because the disk is full.
    """
    path = Path(path)
    mode = _mode_of(path)
    if mode is not None and not stat.S_ISREG(mode):
        raise OSError(errno.EEXIST, f"{_kind_of(mode)} is in the way", str(path))
    _remove_stale(path)
    # Unique, so that neither another process nor another thread writes to the same file.
    number = int.from_bytes(os.urandom(8))
    temporary = path.with_name(f".{_short(path.name)}.{os.getpid()}-{number}.part")
    try:
        yield temporary
        if sync:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        if mode is not None:
            os.chmod(temporary, stat.S_IMODE(mode))
        os.replace(temporary, path)
        if sync:
            _sync_folder(path.parent)
    except OSError as error:
        if error.filename is None or error.filename == str(temporary):  # of the write alone
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file, UTF-8, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


def is_temporary(name: str) -> bool:
    """Return whether a file has a name that `atomic_write` gives while it writes."""
    return _TEMPORARY.fullmatch(name) is not None


_RUN_FILES = re.compile(
    r"(config|data|contents|model|lr-find)\.json|(splits|log)\.(csv|jsonl)|model\.safetensors"
    r"|(eval|predictions|probabilities)(-\w+)?\.(json|csv|npz)|report\.html|\.lock(-owner)?"
)
"""Names of the files in a run folder that only the run's own commands write."""
_RUN_FOLDERS = frozenset(("checkpoints", "evaluations", "features", "plots"))
"""Its folders, in which they write everything."""


def is_run_folder(path: Path) -> bool:
    """Return whether a folder is that of a run."""
    return all((path / name).is_file() for name in ("config.json", "data.json"))


def check_output_file(
    path: str | Path,
    *,
    field: str,
    endings: Iterable[str] = (),
    inputs: Iterable[Path] = (),
    stream: bool = False,
) -> Path:
    """Return the path of a file that the setting `field` names, if it can be written.

    Args:
        path: the file.
        field: the setting, for the error.
        endings: those that the name may have; none allows all.
        inputs: files that the same command reads.
        stream: whether a device or a pipe will do, such as /dev/stdout.

    Raises:
        ConfigError: it is a folder or anything but a regular file, its folder does not exist or
            cannot be written to, it has none of the `endings`, it is one of the `inputs`, or it is
            a run's own file.
    """
    path = Path(path).expanduser()
    if str(path) == "-":
        way_out = " The standard output is /dev/stdout." if stream else ""
        raise ConfigError(f"`{field}` is the name of a file; got '-'.{way_out}")
    if path.is_dir() or not path.parent.is_dir():
        raise ConfigError(f"`{field}` must be a file in an existing folder; got {printable(path)}.")
    if stream and is_stream(path):
        return path
    if endings and path.suffix.lower() not in endings:
        choices = ", ".join(endings)
        raise ConfigError(f"`{field}` must end in {choices}; got {printable(path.name)!r}.")
    mode = _mode_of(path)
    if mode is not None and not stat.S_ISREG(mode):
        target = f" to {printable(os.path.realpath(path))}; give that" if path.is_symlink() else ""
        raise ConfigError(f"`{field}` {printable(path)} is {_kind_of(mode)}{target}.")
    if mode is not None and any(path.samefile(other) for other in inputs if other.exists()):
        raise ConfigError(f"`{field}` {printable(path)} is also read; give another file.")
    if _is_of_run(path):
        raise ConfigError(f"`{field}` {printable(path)} is a file of a run; give another file.")
    if not os.access(path.parent, os.W_OK) or (mode is not None and not os.access(path, os.W_OK)):
        raise ConfigError(f"`{field}` {printable(path)} cannot be written: permission denied.")
    return path


def is_stream(path: Path) -> bool:
    """Return whether what is written to `path` replaces nothing: a terminal, a pipe, /dev/stdout.

    /dev/stdout is a link, to a file where the standard output goes to one.
    """
    folder = os.path.realpath(path.parent)
    is_own = folder == "/dev" and path.name in ("stdout", "stderr")
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    is_open = is_own or folder == f"/proc/{os.getpid()}/fd"  # what /dev/fd leads to
    return is_open or stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)


def open_stream(path: Path) -> int:
    """Return a descriptor to write to a stream; of the standard output its own.

    A second opening of the file that it goes to would have a position of its own.
    """
    with contextlib.suppress(OSError):  # closed
        if os.path.samestat(os.fstat(1), path.stat()):
            return os.dup(1)
    return os.open(path, os.O_WRONLY | os.O_APPEND)


def _is_of_run(path: Path) -> bool:
    """Return whether a run's own commands write the file."""
    folder, name = Path(os.path.realpath(path.parent)), path.name
    if _RUN_FILES.fullmatch(name) and (folder / "config.json").is_file():
        return True
    return any(
        inner.name in _RUN_FOLDERS
        and all((inner.parent / name).is_file() for name in ("config.json", "splits.csv"))
        for inner in (folder, *folder.parents)
    )


def write_output(path: Path, data: bytes) -> None:
    """Write a file that a setting names, whole or not at all.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        with atomic_write(path, sync=True) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"Cannot write {printable(path)}: {error.strerror or error}.") from None


def _mode_of(path: Path) -> int | None:
    """Return the mode of a file, or of a link itself; None if there is none."""
    try:
        return path.lstat().st_mode
    except FileNotFoundError:
        return None


def _short(name: str) -> str:
    """Return a name with room for what is added to it: a file system allows 255 bytes."""
    return name if len(os.fsencode(name)) < 200 else hashlib.sha256(os.fsencode(name)).hexdigest()


def _kind_of(mode: int) -> str:
    kinds = {stat.S_IFLNK: "a link", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe"}
    return kinds.get(stat.S_IFMT(mode), "a device or socket")


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # a system that cannot, as Windows
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove_stale(path: Path) -> None:
    for temporary in path.parent.glob(f".{glob.escape(_short(path.name))}.*.part*"):
        with contextlib.suppress(OSError):
            if time.time() - temporary.stat().st_mtime > _STALE_S:
                temporary.unlink()
