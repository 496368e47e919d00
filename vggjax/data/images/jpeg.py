"""Decodes plain JPEG files, straight to RGB, by libjpeg-turbo without Pillow round it.

Most photographs are plain: baseline or progressive, 8 bits, gray or three components, sound. For
these the pixels are Pillow's bit for bit, at a quarter of its cost; for everything else there is
no answer here, and images.py asks Pillow. The decoder stops at its first warning, so that
nothing damaged passes (OpenCV's decoder writes such warnings to stderr and goes on).
"""

from typing import NamedTuple

import numpy as np
import simplejpeg

START, END = b"\xff\xd8\xff", b"\xff\xd9"

MAX_SCANS = 100
"""A progressive JPEG has about ten scans; each costs a pass over the whole image."""

NO_DATA = (
    b"\x00" * 256,
    b"\x5a" * 256,
    b"\xa5" * 256,
    b"".join(bytes([0xFF, 0xD0 + i % 8]) + b"\x5a" * 32 for i in range(16)),  # with restarts
)
"""What a scan may go on with, to see whether it misses anything."""

_FRAMES = {0xC0, 0xC2}  # baseline and progressive frames, Huffman-coded
_SEGMENTS = {0xC4, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE}  # tables, restarts, APPn, comment
_FLAWS = ("Corrupt JPEG data", "Inconsistent progression", "Premature end")  # jerror.h's words


class Plain(NamedTuple):
    """What the segments before the first scan say of a plain JPEG."""

    height: int
    width: int
    is_gray: bool
    has_metadata: bool
    """EXIF or XMP: they may say how the image is to be turned."""


def read_header(jpeg: bytes) -> Plain | None:
    """Reads the segments up to the first scan; None for whatever is not plain."""
    frame, has_metadata, at, size = None, False, 2, len(jpeg)
    while at + 4 <= size and jpeg[at] == 0xFF:
        marker, length = jpeg[at + 1], jpeg[at + 2] << 8 | jpeg[at + 3]
        if marker == 0xDA:
            return frame and frame._replace(has_metadata=has_metadata)
        if length < 2 or at + 2 + length > size:
            return None
        if marker in _FRAMES:
            if frame or length < 11:
                return None
            bits, height, width, components = (
                jpeg[at + 4],
                jpeg[at + 5] << 8 | jpeg[at + 6],
                jpeg[at + 7] << 8 | jpeg[at + 8],
                jpeg[at + 9],
            )
            if bits != 8 or components not in (1, 3) or length != 8 + 3 * components:
                return None
            frame = Plain(height, width, components == 1, False)
        elif marker == 0xE1:
            has_metadata = True
        elif marker not in _SEGMENTS or jpeg.startswith(b"MPF\0", at + 4):  # several images
            return None
        at += 2 + length
    return None


def decode_plain(jpeg: bytes, header: Plain) -> np.ndarray:
    """Decodes to uint8 RGB (H, W, 3) what `read_header` took.

    Raises:
        ValueError: the decoder's first complaint; `is_flaw` tells a warning among them.
    """
    pixels = np.empty((header.height, header.width, 3), np.uint8)
    decoded = simplejpeg.decode_jpeg(jpeg, buffer=pixels, strict=True)
    if decoded.shape != pixels.shape:
        raise ValueError("two headers")
    return pixels


def is_progressive(jpeg: bytes) -> bool:
    """Says whether a JPEG, whole or not, comes in scans that each refine the whole image."""
    return b"\xff\xc2" in jpeg[: jpeg.find(b"\xff\xda")]


def is_flaw(error: ValueError) -> bool:
    """Tells damage that libjpeg passes over, with a warning, from what it cannot decode."""
    return str(error).startswith(_FLAWS)


def count_scans(jpeg: bytes) -> int:
    """Counts the scans of a JPEG by its markers, without decoding; stops at the end marker."""
    most = jpeg.count(b"\xff\xda")  # the true number, and those of thumbnails
    if most <= MAX_SCANS:
        return most
    scans, at = 0, 2
    while (at := jpeg.find(b"\xff", at)) >= 0 and at + 4 <= len(jpeg):
        marker = jpeg[at + 1]
        if marker == 0xD9:
            break
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:  # stuffing, fill, restarts
            at += 1 if marker == 0xFF else 2
            continue
        scans += marker == 0xDA
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")  # the segment's own length
    return scans
