"""Prepares a tfds dataset, once: the only file of the package that imports TensorFlow.

In: a tfds builder.  Out: the dataset on the disk as array_record, which can be read at random and
without TensorFlow. What can be known to be missing (TensorFlow, the network) is found out within
seconds: tfds itself would try a server that is out of reach for minutes. Known addresses are asked
before TensorFlow is imported, and every one again before tfds fetches from it, since some datasets
name theirs only then. The error says what to do by hand.
"""

import importlib.util
import inspect
import os
import re
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vggjax.errors import DataError, printable

FILE_FORMAT = "array_record"
"""tfds' own default, tfrecord, cannot be read without TensorFlow."""

PROBE_S = 5.0
"""Seconds until a server that says nothing counts as out of reach."""

_GATEWAY = (407, 502, 503, 504)
"""What a proxy answers in place of a server that it does not reach."""

MAX_FILES = 8
"""Archives that a message lists; some datasets have hundreds."""


def prepare(builder: Any) -> None:
    """Downloads and prepares the builder's dataset unless that has been done.

    Raises:
        DataError: TensorFlow, the network or the archive is missing, or tfds failed.
    """
    folder = Path(builder.data_path)
    if (folder / "dataset_info.json").exists():
        formats = {form.value for form in builder.info.available_file_formats()}
        if FILE_FORMAT not in formats:
            raise DataError(
                f"{printable(folder)} was prepared as {', '.join(sorted(formats))}, which cannot be "
                f"read at random. Give another --data-dir, or delete that folder."
            )
        return
    if importlib.util.find_spec("tensorflow") is None:
        raise DataError(
            f"Preparing {builder.name} for the first time takes TensorFlow (reading it later does "
            f'not): pip install "tensorflow-cpu>=2.21"'
        )
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        _check_manual(builder)
    else:
        _check_reachable(builder)
    try:
        _prepare(builder)
    except DataError:
        raise
    except Exception as error:  # whatever the builder, the network or the disk may raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"tfds cannot prepare {builder.name}: {reason[:500]}") from error


def _prepare(builder: Any) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tensorflow as tf
        import tensorflow_datasets as tfds

        for kind in ("GPU", "TPU"):  # the accelerator's memory is for jax
            tf.config.set_visible_devices([], kind)
        # Google's bucket has prepared sets too, but as tfrecord.
        config = tfds.download.DownloadConfig(try_download_gcs=False)
        with _asking_first(builder):
            builder.download_and_prepare(download_config=config, file_format=FILE_FORMAT)


@contextmanager
def _asking_first(builder: Any) -> Iterator[None]:
    """Makes tfds ask whether a server answers before it fetches from it, within the block."""
    from tensorflow_datasets.core.download import downloader

    kind, name = downloader._Downloader, "download"
    fetch = getattr(kind, name)
    known: dict[str, bool] = {}
    refused: list[str] = []

    def ask_and_fetch(self: Any, url: str, *args: Any, **keywords: Any) -> Any:
        server = _server(url)
        if server not in known:
            known[server] = server in _answering([url])
        if not known[server]:
            refused.append(url)
            raise ConnectionError(f"{url} cannot be reached.")
        return fetch(self, url, *args, **keywords)

    setattr(kind, name, ask_and_fetch)
    try:
        yield
    except Exception as error:
        if refused:  # tfds may have wrapped it into whatever else
            raise DataError(_describe_unreachable(builder, refused[0], refused)) from error
        raise
    finally:
        setattr(kind, name, fetch)


def _check_manual(builder: Any) -> None:
    folder = Path(builder.data_dir_root) / "downloads" / "manual"
    if not folder.is_dir() or not any(folder.iterdir()):
        instructions = " ".join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
        raise DataError(
            f"{builder.name} cannot be fetched by a program. Put its files into {printable(folder)} "
            f"yourself, as tfds says: {instructions[:600]}"
        )


def _check_reachable(builder: Any) -> None:
    known = builder.url_infos or {}
    if not known:  # some of what its source names may be no more than a paper; all say enough
        named = re.findall(r"\b(?:https?|ftp|gs)://[^\s\"'<>{}()]+", _source_text(builder))
        if named and not _answering(named):
            raise DataError(_describe_unreachable(builder, "no server that it names", named))
        return
    missing = [url for url, info in known.items() if not _is_here(builder, url, info)]
    # A builder lists the archives of all its configurations: one that lies here may be enough.
    if builder.BUILDER_CONFIGS and len(missing) < len(known):
        return
    answering = _answering(missing)
    url = next((url for url in missing if _server(url) not in answering), None)
    if url is not None:
        raise DataError(_describe_unreachable(builder, url, missing))


def _source_text(builder: Any) -> str:
    try:
        return inspect.getsource(inspect.getmodule(type(builder)))
    except (OSError, TypeError):
        return ""


def _describe_unreachable(builder: Any, server: str, missing: list[str]) -> str:
    known = builder.url_infos or {}
    names = [known[url].filename if url in known else None for url in missing]
    can = "can" if server.startswith("no ") else "cannot"
    lost = f"{builder.name} is not prepared yet, and {server} {can} be reached."
    if None in names:  # tfds takes by hand only what it knows the name and the checksum of
        return (
            f"{lost} Prepare it where there is a network and give --data-dir that place, or give "
            f"--dataset a folder of images."
        )
    files = ", ".join(list(dict.fromkeys(names))[:MAX_FILES])
    files += f" and {len(names) - MAX_FILES} more" if len(names) > MAX_FILES else ""
    some = " (what its configuration needs)" if len(builder.BUILDER_CONFIGS) > 1 else ""
    folder = Path(builder.data_dir_root) / "downloads" / "manual"
    return (
        f"{lost} Fetch {files}{some} elsewhere and put what you fetched into {printable(folder)}, or "
        f"give --dataset a folder of images, or --data-dir a place where it has been prepared."
    )


def _is_here(builder: Any, url: str, info: Any) -> bool:
    """Tells whether tfds will find the archive, fetched by itself or by hand."""
    from tensorflow_datasets.core.download import resource

    downloads = Path(builder.data_dir_root) / "downloads"
    if info.filename and (downloads / "manual" / info.filename).exists():
        return True
    names = {resource.get_dl_fname(url, info.checksum), resource.get_dl_fname(url)}
    return any(
        (folder / f"{name}.INFO").exists() and (folder / name).exists()
        for folder in (downloads / builder.name, downloads)
        for name in names
    )


def _answering(urls: Iterable[str]) -> set[str]:
    """Gives the servers among these addresses' that answer; it takes no longer than `PROBE_S`."""
    answering: set[str] = set()
    # In threads, since no timeout ends the look-up of a name.
    threads = [
        threading.Thread(target=_probe, args=(url, answering), name="vggjax-probe", daemon=True)
        for url in {_server(url): url for url in urls}.values()
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + PROBE_S
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return set(answering)


def _server(url: str) -> str:
    """Gives `https://host`, or nothing for a path."""
    return "/".join(url.split("/")[:3]) if "://" in url else ""


def _probe(url: str, answering: set[str]) -> None:
    """Tries a server, through the proxy that the environment names; notes it if it answers."""
    scheme, _, rest = url.partition("://")
    try:
        if scheme in ("gs", "http", "https"):
            url_there = f"https://storage.googleapis.com/{rest}" if scheme == "gs" else url
            request = urllib.request.Request(url_there, method="HEAD")
            # urlopen would keep the proxies that it found at its first call.
            urllib.request.build_opener().open(request, timeout=PROBE_S).close()
        elif scheme == "ftp":
            host = urllib.parse.urlsplit(url).hostname or ""
            socket.create_connection((host, 21), timeout=PROBE_S).close()
    except urllib.error.HTTPError as error:  # it answers, though not to HEAD
        error.close()
        if error.code in _GATEWAY:
            return
    except (OSError, ValueError):
        return
    answering.add(_server(url))
