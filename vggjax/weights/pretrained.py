"""The weights that Keras publishes for ImageNet: their names, addresses, checksums and license.

`find_pretrained` looks in `./weights/`, in this package's cache, in Keras' own (`~/.keras/models`),
and then downloads into this package's cache, where a download that was cut off goes on. A file
counts only with the published size and md5; a converted `weights/vgg16.safetensors` counts where
`vggjax convert` noted in it that it came from the published file. Reading the file is not here (see
files.py).
"""

import hashlib
import os
import threading
from dataclasses import dataclass
from pathlib import Path

from vggjax.errors import WeightsError, printable
from vggjax.weights.package_names import read_metadata

ADDRESS = "https://storage.googleapis.com/tensorflow/keras-applications"
LICENSE = (
    "Creative Commons Attribution 4.0 (https://creativecommons.org/licenses/by/4.0/): Karen "
    "Simonyan and Andrew Zisserman, Visual Geometry Group, University of Oxford; converted by Keras"
)
PROBE_S = 5.0
"""With no network the answer comes after this long at most."""


@dataclass(frozen=True)
class Published:
    """One published file."""

    arch: str
    include_top: bool
    size_bytes: int
    md5: str

    @property
    def file_name(self) -> str:
        """The name under which Keras publishes and caches it."""
        top = "" if self.include_top else "_notop"
        return f"{self.arch}_weights_tf_dim_ordering_tf_kernels{top}.h5"

    @property
    def url(self) -> str:
        """Its public address."""
        return f"{ADDRESS}/{self.arch}/{self.file_name}"

    @property
    def converted_name(self) -> str:
        """What it is called in `./weights/` once converted."""
        return f"{self.arch}{'' if self.include_top else '_notop'}.safetensors"


PUBLISHED = (
    Published("vgg16", True, 553_467_096, "64373286793e3c8b2b4e3219cbf3544b"),
    Published("vgg16", False, 58_889_256, "6d6bbae143d832006294945121d1f1fc"),
    Published("vgg19", True, 574_710_816, "cbe5617147190e668d6c5d5026f83318"),
    Published("vgg19", False, 80_134_624, "253f8cb515780f3b799900260a226db6"),
)
"""The four files; all under `LICENSE`."""


def cache_dir() -> Path:
    """The folder of downloads: `$VGGJAX_CACHE`, or where this system keeps caches."""
    import pooch

    return Path(os.environ.get("VGGJAX_CACHE") or pooch.os_cache("vggjax")).expanduser()


def keras_dir() -> Path:
    """The folder where Keras keeps its own copies."""
    home = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")
    return home.expanduser() / "models"


def find_pretrained(arch: str, include_top: bool) -> Path:
    """Gives the path of the published ImageNet weights of `arch`, downloading them if need be.

    Without the top, a complete file that is at hand is as good as the smaller one, because its
    convolutional base is the same.

    Raises:
        WeightsError: none are published for this network, or they are not here and cannot be had.
    """
    table = {entry.include_top: entry for entry in PUBLISHED if entry.arch == arch}
    if not table:
        archs = ", ".join(sorted({entry.arch for entry in PUBLISHED}))
        raise WeightsError(
            f"Keras publishes ImageNet weights for {archs}; got {arch}. Use --weights FILE with "
            f"weights of your own, or --weights none.",
            code="E_FILE",
        )
    wanted = table[include_top]
    passed_over: list[str] = []
    for entry in [wanted] if include_top else [wanted, table[True]]:
        for path, matches in _places(entry):
            if path.is_file():
                problem = matches(path, entry)
                if problem is None:
                    return path
                passed_over.append(f"{printable(path)} ({problem})")
    return _download(wanted, passed_over)


def _places(entry: Published):
    yield Path("weights") / entry.converted_name, _converted_problem
    for folder in (Path("weights"), cache_dir(), keras_dir()):
        yield folder / entry.file_name, _problem


def _problem(path: Path, entry: Published) -> str | None:
    """Says what is wrong with a file of the published name; None is nothing."""
    size = path.stat().st_size
    if size != entry.size_bytes:
        return f"{size:,} bytes instead of {entry.size_bytes:,}"
    md5 = file_md5(path)
    return None if md5 == entry.md5 else f"its md5 is {md5} instead of {entry.md5}"


def _converted_problem(path: Path, entry: Published) -> str | None:
    source = read_metadata(path).get("source_md5")
    if source == entry.md5:
        return None
    return "not converted by `vggjax convert` from the published file"


def file_md5(path: Path) -> str:
    """Computes a file's md5 as 32 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _download(entry: Published, passed_over: list[str]) -> Path:
    import pooch

    folder, unreachable = cache_dir(), _probe(entry)
    if unreachable is None:
        try:
            path = pooch.retrieve(
                entry.url,
                known_hash=f"md5:{entry.md5}",
                fname=entry.file_name,
                path=folder,
                downloader=_fetch,
            )
            return Path(path)
        # requests' errors are OSErrors; pooch raises ValueError for a wrong checksum.
        except (OSError, ValueError) as error:
            unreachable = printable(error)
    over = f" Passed over: {'; '.join(passed_over)}." if passed_over else ""
    raise WeightsError(
        f"The published weights of {entry.arch} are not here and cannot be downloaded "
        f"({unreachable}).{over} Three ways out: put the file by hand at "
        f"{printable(folder / entry.file_name)} (from {entry.url}, {entry.size_bytes:,} bytes, md5 "
        f"{entry.md5}); or --weights FILE with weights of your own; or --weights none.",
        code="E_FILE",
    )


def _fetch(url: str, output: str, _: object) -> None:
    """Downloads to pooch's file, going on where an earlier try of the same file ended."""
    import requests
    from tqdm import tqdm

    part = cache_dir() / f".{url.rpartition('/')[2]}.part"
    at = part.stat().st_size if part.is_file() else 0
    headers = {"Range": f"bytes={at}-"} if at else {}
    with requests.get(url, headers=headers, stream=True, timeout=30) as response:
        if response.status_code == 416:  # there is nothing behind: what is here is no part of it
            part.unlink()
            raise OSError("an earlier download was longer than the file; it was removed")
        response.raise_for_status()
        if not response.headers.get("Content-Range", "").startswith(f"bytes {at}-"):
            at = 0
        length = int(response.headers.get("Content-Length", 0)) + at
        with (
            open(part, "ab" if at else "wb") as file,
            tqdm(total=length, initial=at, unit="B", unit_scale=True, desc=part.name[1:-5]) as bar,
        ):
            for piece in response.iter_content(2**20):
                file.write(piece)
                bar.update(len(piece))
    if part.stat().st_size != length:
        raise OSError("the connection ended early; the same command goes on from there")
    os.replace(part, output)


def _probe(entry: Published) -> str | None:
    """Asks for the file's header; says why it cannot be had, None if it can.

    A thread bounds the whole: name resolution takes no timeout and may hang for minutes.
    """
    import requests

    answer: list[str | None] = [f"no answer within {PROBE_S:g} s"]

    def ask() -> None:
        try:
            # Through requests, as pooch does, so that proxies and certificates are the same.
            response = requests.head(entry.url, timeout=PROBE_S, allow_redirects=True)
            ok = response.status_code == 200
            answer[0] = None if ok else f"the server answers {response.status_code}"
        except requests.RequestException as error:
            answer[0] = f"no connection: {type(error).__name__}"

    thread = threading.Thread(target=ask, daemon=True, name="vggjax-probe")
    thread.start()
    thread.join(PROBE_S)
    return answer[0]
