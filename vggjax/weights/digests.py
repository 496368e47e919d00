"""Checksums of weight files: what a file is known as, and whether it is the one that was meant.

Many damages fit every shape: a changed value, two layers exchanged, a kernel turned. Only the
digest shows them. So each import tells its SHA-256, a known file is recognized by it, and another
one than was asked for is refused before it is parsed.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from vggjax.errors import WeightsError, printable
from vggjax.weights.pretrained import PUBLISHED
from vggjax.weights.tensor_spans import open_regular

TORCHVISION = {
    "8a719046": "vgg11", "6002323d": "vgg11_bn", "19584684": "vgg13", "abd245e5": "vgg13_bn",
    "397923af": "vgg16", "6c64b313": "vgg16_bn", "dcbb9e9d": "vgg19", "c79401a0": "vgg19_bn",
}  # fmt: skip
"""First 8 digits of the SHA-256 of torchvision's files, which it gives in their names."""

_PIECE_BYTES = 2**20


@dataclass(frozen=True)
class Digests:
    """A file's checksums, as hexadecimal digits."""

    sha256: str
    md5: str

    @property
    def known_as(self) -> str | None:
        """What published file this is; None is none that is known."""
        for entry in PUBLISHED:
            if self.md5 == entry.md5:
                return f"Keras' published {entry.file_name}"
        if name := TORCHVISION.get(self.sha256[:8]):
            return f"torchvision's published {name}-{self.sha256[:8]}.pth"
        return None


def file_digests(path: Path) -> Digests:
    """Reads a file once for both of its checksums.

    Raises:
        WeightsError: no such file, or no regular one.
    """
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with open_regular(path) as file:
        while piece := file.read(_PIECE_BYTES):
            sha256.update(piece)
            md5.update(piece)
    return Digests(sha256.hexdigest(), md5.hexdigest())


def expected_sha256(text: str) -> str:
    """Gives the 64 digits that somebody typed, in lower case.

    Raises:
        WeightsError: it is no SHA-256.
    """
    digits = text.strip().lower().removeprefix("sha256:")
    if not re.fullmatch(r"[0-9a-f]{64}", digits):
        raise WeightsError(
            f"--expect-sha256 takes 64 hexadecimal digits, as sha256sum prints them; got "
            f"{printable(text)[:80]!r}.",
            code="E_DIGEST",
        )
    return digits


def check_sha256(path: Path, sha256: str, expected: str) -> None:
    """Refuses a file whose SHA-256 is another one than was asked for.

    Raises:
        WeightsError: it is, or `expected` is no SHA-256.
    """
    if sha256 != (wanted := expected_sha256(expected)):
        raise WeightsError(
            f"{printable(path)} has the SHA-256 {sha256}; expected is {wanted}. It is another file, or "
            f"was changed; fetch it again, or leave --expect-sha256 out if you trust it.",
            code="E_DIGEST",
        )
