"""Find the ImageNet weights that Keras publishes, or download them.

`find_pretrained` looks in `./weights/`, in this package's cache, in Keras' own (`~/.keras/models`),
and then downloads into this package's cache; an interrupted download resumes. A file counts only
with the published size and md5, a converted `weights/vgg16.safetensors` only if its metadata says
that it was converted from the published file.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from vggjax.errors import WeightsError, printable
from vggjax.weights.digests import PUBLISHED, Published
from vggjax.weights.weight_file import WeightFile

PROBE_S = 5.0
"""Seconds to wait for the server's first answer before giving up on the network."""

_READ_TIMEOUT_S = 30.0


def cache_dir() -> Path:
    """Return the folder of downloads: `$VGGJAX_CACHE`, or a folder in the system's cache."""
    if folder := os.environ.get("VGGJAX_CACHE"):
        return Path(folder).expanduser()
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
        return Path(local, "vggjax", "vggjax", "Cache")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "vggjax"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "vggjax"


def keras_dir() -> Path:
    """Return the folder where Keras keeps its own copies."""
    home = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")
    return home.expanduser() / "models"


def find_pretrained(
    arch: str,
    include_top: bool,
    *,
    published: Sequence[Published] = PUBLISHED,
    probe_s: float = PROBE_S,
) -> WeightFile:
    """Return the published ImageNet weights of `arch`, downloaded if they are not on this machine.

    Without the top, a complete file serves as well as the smaller one, because its convolutional
    base is the same.

    Raises:
        WeightsError: none are published for this network, or they cannot be downloaded.
    """
    entries = {entry.include_top: entry for entry in published if entry.arch == arch}
    if not entries:
        archs = ", ".join(sorted({entry.arch for entry in published}))
        raise WeightsError(
            f"Keras publishes ImageNet weights for {archs}; got {arch}. Set `weights` to a weight "
            f"file of your own, or to none.",
            code="E_FILE",
        )
    wanted = entries[include_top]
    skipped: list[str] = []
    for entry in [wanted] if include_top else [wanted, entries[True]]:
        converted = Path("weights") / entry.converted_name
        folders = (Path("weights"), cache_dir(), keras_dir())
        for path in (converted, *(folder / entry.file_name for folder in folders)):
            if not path.is_file():
                continue
            file = WeightFile(path)
            problem = (_problem_of_converted if path == converted else _problem)(file, entry)
            if problem is None:
                return file
            skipped.append(f"{printable(path)} ({problem})")
    return _download(wanted, skipped, probe_s)


def _problem(file: WeightFile, entry: Published) -> str | None:
    """Return how a file differs from the published one, or None."""
    size_bytes = file.path.stat().st_size
    if size_bytes != entry.size_bytes:
        return f"{size_bytes:,} bytes instead of {entry.size_bytes:,}"
    md5 = file.digests.md5
    return None if md5 == entry.md5 else f"its md5 is {md5} instead of {entry.md5}"


def _problem_of_converted(file: WeightFile, entry: Published) -> str | None:
    with contextlib.suppress(WeightsError):
        if file.info.metadata.get("source_md5") == entry.md5:
            return None
    return "not converted by `vggjax convert` from the published file"


def _download(entry: Published, skipped: list[str], probe_s: float) -> WeightFile:
    target = cache_dir() / entry.file_name
    reason = _probe(entry.url, probe_s)
    if reason is None:
        # The same name in every process, so that the next one resumes an interrupted download.
        part = target.with_name(f".{target.name}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _fetch(entry, part)
            if problem := _problem(WeightFile(part), entry):
                part.unlink()
                raise OSError(f"the download is damaged and was removed: {problem}")
            os.replace(part, target)
            return WeightFile(target)
        except OSError as error:  # requests' errors are OSErrors as well
            reason = printable(error)
    listed = f" Skipped: {'; '.join(skipped)}." if skipped else ""
    raise WeightsError(
        f"The published weights of {entry.arch} are not on this machine and cannot be downloaded "
        f"({reason}).{listed} Three ways out: put the file at {printable(target)} by hand (from "
        f"{entry.url}, {entry.size_bytes:,} bytes, md5 {entry.md5}); set `weights` to a weight "
        f"file of your own; or set `weights` to none.",
        code="E_FILE",
    )


def _fetch(entry: Published, part: Path) -> None:
    """Download to `part`, resuming an earlier attempt; an `OSError` keeps it for the next one."""
    import requests
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

    start = part.stat().st_size if part.is_file() else 0
    headers = {"Range": f"bytes={start}-"} if start else {}
    with requests.get(entry.url, headers=headers, stream=True, timeout=_READ_TIMEOUT_S) as response:
        if response.status_code == 416:  # no byte follows, so this is not a part of the file
            part.unlink()
            raise OSError("an earlier download was longer than the file and was removed")
        response.raise_for_status()
        if not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            start = 0
        length = int(response.headers.get("Content-Length", 0)) + start
        columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
        with (
            open(part, "ab" if start else "wb") as file,
            Progress(*columns, console=Console(stderr=True)) as progress,
        ):
            task = progress.add_task(entry.file_name, total=length, completed=start)
            for piece in response.iter_content(2**20):
                file.write(piece)
                progress.advance(task, len(piece))
    if part.stat().st_size != length:
        raise OSError("the connection ended early; the same command resumes the download")


def _probe(url: str, timeout_s: float) -> str | None:
    """Ask the server for the file's header; return why it cannot be downloaded, or None."""
    import requests

    answer: list[str | None] = [f"no answer within {timeout_s:g} s"]

    def ask() -> None:
        try:
            response = requests.head(url, timeout=timeout_s, allow_redirects=True)
            ok = response.status_code == 200
            answer[0] = None if ok else f"the server answers {response.status_code}"
        except requests.RequestException as error:
            answer[0] = f"no connection: {type(error).__name__}"

    # A thread, because name resolution takes no timeout and may hang for minutes.
    thread = threading.Thread(target=ask, daemon=True, name="vggjax-probe")
    thread.start()
    thread.join(timeout_s)
    return answer[0]
