"""Download a published file: resumed where an earlier attempt ended, verified, never half there.

What has arrived lies beside the target as `.NAME.part`, the same name in every process, and becomes
the target when its size and checksum are right. A server that does not answer is given up after
seconds. The callers decide what a failure means: `DownloadError` holds nothing but the reason.
"""

import contextlib
import errno
import functools
import hashlib
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from vggjax.errors import printable

PROBE_S = 5.0
"""Seconds to wait for the server's first answer before giving up on the network."""

_READ_TIMEOUT_S = 30.0
_PIECE_BYTES = 2**16
"""Of a cut connection, at most one piece is lost."""
_ALGORITHMS = {32: "md5", 64: "sha256"}
"""Hexadecimal digits of a checksum -> its algorithm."""

Progress = Callable[[int, int], None]
"""Called with the bytes that are done and their total."""


class DownloadError(OSError):
    """A download that failed; the message is the reason, on one line."""


@dataclass(frozen=True)
class RemoteFile:
    """A published file: its address and what identifies its contents."""

    url: str
    name: str
    """The file's name on a disk."""
    size_bytes: int
    checksum: str
    """Hexadecimal digits of the MD5 or the SHA-256."""

    def problem(self, path: Path) -> str | None:
        """Return how a file differs from this one, or None; raise OSError if it is unreadable."""
        size_bytes = path.stat().st_size
        if size_bytes != self.size_bytes:
            return f"{size_bytes:,} bytes instead of {self.size_bytes:,}"
        algorithm = _ALGORITHMS[len(self.checksum)]
        with open(path, "rb") as file:
            new = functools.partial(hashlib.new, algorithm, usedforsecurity=False)
            digest = hashlib.file_digest(file, new).hexdigest()
        same = digest == self.checksum.lower()
        return None if same else f"its {algorithm} is {digest} instead of {self.checksum}"


def download(
    file: RemoteFile, target: Path, *, progress: Progress | None = None, probe_s: float = PROBE_S
) -> None:
    """Download a file to `target`; another process that wants it meanwhile waits and shares it.

    Raises:
        DownloadError: the server, the network or the disk fails, or the contents are not the
            published ones. The next call resumes what has arrived, unless it was wrong.
    """
    if reason := _probe(file.url, probe_s):
        raise DownloadError(reason)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.with_name(f".{target.name}.lock"), f"downloads {target.name}"):
            if target.is_file() and file.problem(target) is None:
                return  # another process was first
            part = target.with_name(f".{target.name}.part")
            _fetch_all(file, part, progress or (lambda done, total: None))
            if problem := file.problem(part):
                part.unlink()
                raise DownloadError(f"the download is damaged and was removed: {problem}")
            os.replace(part, target)
    except DownloadError:
        raise
    except OSError as error:
        raise DownloadError(printable(error.strerror or error)) from error


@contextlib.contextmanager
def byte_bar(title: str) -> Iterator[Progress]:
    """Yield the function that moves a bar in bytes on stderr, shown from its first call on."""
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

    columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
    bar = Progress(*columns, console=Console(stderr=True))
    task = bar.add_task(title, total=None)

    def move(done: int, total: int) -> None:
        if not bar.live.is_started:
            shown.enter_context(bar)
        bar.update(task, completed=done, total=total)

    with contextlib.ExitStack() as shown:
        yield move


@contextlib.contextmanager
def locked(path: Path, activity: str) -> Iterator[None]:
    """Hold the lock file `path`, for work that is done if it turns out to be done already.

    A wait is announced on stderr, with the other process's `activity`, as in "downloads x.tgz".
    """
    lock = FileLock(path)
    try:
        try:
            lock.acquire(timeout=1)
        except Timeout:
            print(f"Waiting for another process that {activity} ...", file=sys.stderr, flush=True)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


def _fetch_all(file: RemoteFile, part: Path, progress: Progress) -> None:
    """Fill `part`, asking again for the rest as long as a cut connection brings something."""
    import requests

    broken = (requests.ConnectionError, requests.exceptions.ChunkedEncodingError)
    while (start := part.stat().st_size if part.is_file() else 0) != file.size_bytes:
        if start > file.size_bytes:
            part.unlink()
            start = 0
        try:
            _fetch(file, part, start, progress)
            return
        except requests.RequestException as error:
            arrived = part.stat().st_size if part.is_file() else 0
            if not isinstance(error, broken) or arrived <= start:
                raise DownloadError(
                    f"the connection broke off after {arrived:,} bytes ({type(error).__name__}); "
                    "the same command resumes the download"
                ) from error


def _fetch(file: RemoteFile, part: Path, start: int, progress: Progress) -> None:
    """Ask for the bytes from `start` on, and append what arrives to `part`."""
    import requests

    headers = {"Range": f"bytes={start}-"} if start else {}
    with requests.get(file.url, headers=headers, stream=True, timeout=_READ_TIMEOUT_S) as response:
        if response.status_code == 416:  # no byte follows, so this is not a part of the file
            part.unlink()
            raise DownloadError("an earlier download was longer than the file and was removed")
        if not response.ok:
            raise DownloadError(f"the server answers {response.status_code}")
        if not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            start = 0  # the server sends the whole file
        length = int(response.headers.get("Content-Length", 0)) + start
        is_encoded = "Content-Encoding" in response.headers  # the length is then another one's
        _check_room(part, file.size_bytes - start)
        done = start
        with open(part, "ab" if start else "wb") as out:
            for piece in response.iter_content(_PIECE_BYTES):
                done += len(piece)
                if done > file.size_bytes:
                    break  # bounded, whatever the server sends
                out.write(piece)
                progress(done, file.size_bytes)
    if done > file.size_bytes:
        part.unlink()
        raise DownloadError(f"the server's file has more than {file.size_bytes:,} bytes")
    if done < length and not is_encoded:
        raise requests.ConnectionError  # as newer versions of its own parts do by themselves


def _check_room(part: Path, size_bytes: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if free < size_bytes:
        needed = f"{size_bytes / 2**20:,.0f} MB are needed, {free / 2**20:,.0f} MB are free"
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({needed})")


def _probe(url: str, timeout_s: float) -> str | None:
    """Ask the server for the file's header; return why it cannot be downloaded, or None."""
    import requests

    answer: list[str | None] = [f"no answer within {timeout_s:g} s"]

    def ask() -> None:
        try:
            status = requests.head(url, timeout=timeout_s, allow_redirects=True).status_code
            # 405 and 501: the server does not answer this kind of request.
            answer[0] = None if status in (200, 405, 501) else f"the server answers {status}"
        except requests.RequestException as error:
            answer[0] = f"no connection: {type(error).__name__}"

    # A thread, because name resolution takes no timeout and may hang for minutes.
    thread = threading.Thread(target=ask, daemon=True, name="vggjax-probe")
    thread.start()
    thread.join(timeout_s)
    return answer[0]
