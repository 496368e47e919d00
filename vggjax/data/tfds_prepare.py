"""Prepares a tfds data set, once: the only file of the package that imports TensorFlow.

In: a tfds builder.  Out: the data set on the disk as array_record, which can be read at random and
without TensorFlow. What can be known to be missing (TensorFlow, the network) is found out within
seconds, before tfds retries for minutes, and the error says what to do by hand.
"""

import importlib.util
import os
import threading
import urllib.error
import urllib.request
import warnings
from pathlib import Path
from typing import Any

from vggjax.errors import DataError, shown

FILE_FORMAT = "array_record"
"""tfds' own default, tfrecord, cannot be read without TensorFlow."""

PROBE_S = 6.0
"""Seconds until a server that says nothing counts as out of reach."""


def prepare(builder: Any) -> None:
    """Downloads and prepares the builder's data set unless that has been done.

    Raises:
        DataError: TensorFlow, the network or the archive is missing, or tfds failed.
    """
    folder = Path(builder.data_path)
    if (folder / "dataset_info.json").exists():
        formats = {form.value for form in builder.info.available_file_formats()}
        if FILE_FORMAT not in formats:
            raise DataError(
                f"{shown(folder)} was prepared as {', '.join(sorted(formats))}, which cannot be "
                f"read at random. Give another --data-dir, or delete that folder."
            )
        return
    if importlib.util.find_spec("tensorflow") is None:
        raise DataError(
            f"Preparing {builder.name} for the first time takes TensorFlow (reading it later does "
            f'not): pip install "vggjax[tfds]"'
        )
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        _check_manual(builder)
    else:
        _check_reachable(builder)
    try:
        _prepare(builder)
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
        builder.download_and_prepare(download_config=config, file_format=FILE_FORMAT)


def _check_manual(builder: Any) -> None:
    folder = Path(builder.data_dir_root) / "downloads" / "manual"
    if not folder.is_dir() or not any(folder.iterdir()):
        instructions = " ".join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
        raise DataError(
            f"{builder.name} cannot be fetched by a program. Put its files into {shown(folder)} "
            f"yourself, as tfds says: {instructions[:600]}"
        )


def _check_reachable(builder: Any) -> None:
    downloads = Path(builder.data_dir_root) / "downloads"
    missing = {
        url: info for url, info in builder.url_infos.items() if not _is_here(builder, url, info)
    }
    if not missing:
        return
    # A builder lists the archives of all its configurations: one that lies here may be enough.
    if builder.BUILDER_CONFIGS and len(missing) < len(builder.url_infos):
        return
    url = next(iter(missing))
    if _answers(url):
        return
    files = ", ".join(str(info.filename or url) for url, info in missing.items())
    raise DataError(
        f"{builder.name} is not prepared yet, and {url} cannot be reached. Fetch {files} elsewhere "
        f"and put what you fetched into {shown(downloads / 'manual')}, or give --dataset a folder "
        f"of pictures, or --data-dir a place where it has been prepared."
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


def _answers(url: str) -> bool:
    """Tries a server, through the proxy that the environment names, for `PROBE_S` at most."""
    if not url.startswith(("http://", "https://")):
        return True
    reached = threading.Event()

    def probe() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            urllib.request.urlopen(request, timeout=PROBE_S).close()
        except urllib.error.HTTPError as error:  # it answers, though not to HEAD
            error.close()
            reached.set()
        except (OSError, ValueError):
            pass
        else:
            reached.set()

    # In a thread, since no timeout ends the look-up of a name.
    thread = threading.Thread(target=probe, name="vggjax-probe", daemon=True)
    thread.start()
    thread.join(PROBE_S)
    return reached.is_set()
