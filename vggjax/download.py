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
import time
from collections.abc import Callable, Iterable, Iterator
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

MoveBar = Callable[[int, int], None]
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
    file: RemoteFile, target: Path, *, progress: MoveBar | None = None, probe_s: float = PROBE_S
) -> None:
    """Download a file to `target`; another process that wants it meanwhile waits and shares it.

    Raises:
        DownloadError: the server, the network or the disk fails, or the contents are not the
            published ones. The next call resumes what has arrived, unless it was wrong.
    """
    answer = ask_servers([file.url], probe_s)[file.url]
    if answer not in (200, 405, 501):  # the last two: it does not answer this kind of request
        raise DownloadError(answer if isinstance(answer, str) else f"the server answers {answer}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.with_name(f".{target.name}.lock"), f"downloads {target.name}"):
            if target.is_file() and file.problem(target) is None:
                return  # another process was first
            part = target.with_name(f".{target.name}.part")
            _fetch_all(file, part, progress or (lambda done, total: None))
            if problem := file.problem(part):
                part.unlink()
                raise DownloadError(
                    f"what arrived is not the published file and was removed: {problem}"
                )
            os.replace(part, target)
    except DownloadError:
        raise
    except OSError as error:
        raise DownloadError(printable(error.strerror or error)) from error


def ask_servers(urls: Iterable[str], timeout_s: float = PROBE_S) -> dict[str, int | str]:
    """Ask for the headers of all URLs at once; return each one's status, or why it has none."""
    import requests

    answers: dict[str, int | str] = dict.fromkeys(urls, f"no answer within {timeout_s:g} s")

    def ask(url: str) -> None:
        try:
            response = requests.head(url, timeout=timeout_s, allow_redirects=True)
            answers[url] = response.status_code
        except requests.RequestException as error:
            answers[url] = f"no connection: {type(error).__name__}"

    # Threads, because name resolution takes no timeout and may hang for minutes.
    threads = [
        threading.Thread(target=ask, args=(url,), daemon=True, name="vggjax-probe")
        for url in answers
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + timeout_s
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return dict(answers)  # a copy: threads may still run


@contextlib.contextmanager
def byte_bar(title: str) -> Iterator[MoveBar]:
    """Yield the function that moves a bar in bytes on stderr, shown from its first call on."""
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

    columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
    bar = Progress(*columns, console=Console(stderr=True))
    task = bar.add_task(title, total=None)

    def move(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)
        if not bar.live.is_started:
            shown.enter_context(bar)

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


def _fetch_all(file: RemoteFile, part: Path, progress: MoveBar) -> None:
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


def _fetch(file: RemoteFile, part: Path, start: int, progress: MoveBar) -> None:
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
