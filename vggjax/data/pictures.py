"""Reads one picture, from a file or from bytes, without trusting it.

Out: uint8 RGB (H, W, 3). JPEG, PNG, WebP, GIF, BMP and TIFF, told by content and never by the
name's ending; the first frame of an animation; the camera's rotation applied; transparency over
white; 16-bit gray scaled to 8 bits. A regular file only: a pipe or a device would hang. The size
is checked before anything is decoded. Whatever cannot be used is a `DataError` with the reason.
"""

import io
import logging
import os
import re
import stat
import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from vggjax.errors import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""No others: Pillow hands EPS to Ghostscript, and rarely used decoders are rarely checked."""

ENDINGS = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""File names that are taken for pictures when a folder is scanned; in lower case."""

MAX_PIXELS = 64_000_000
"""64 million pixels are 192 MB as RGB; Pillow's own bound lets 537 MB pass with a warning."""

MAX_FILE_BYTES = 512 * 2**20

MAX_SCANS = 100
"""A progressive JPEG has about ten scans; each costs a pass over the whole picture."""

_FOREIGN = (
    (b"%!PS", "EPS"),
    (b"%PDF", "PDF"),
    (b"8BPS", "PSD"),
    (b"<svg", "SVG"),
    (b"\x00\x00\x01\x00", "ICO"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
)
_JPEG, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_OURS = (_JPEG, b"\x89PNG\r\n", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")

_IGNORE = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
"""What `warnings.filterwarnings("ignore", module=...)` puts into the filters."""


class Picture(NamedTuple):
    """One decoded picture, and what had to be done to it that a person may want to know."""

    pixels: np.ndarray
    """uint8 RGB (H, W, 3)."""
    notes: tuple[str, ...] = ()
    """Such as `16-bit gray scaled to 8 bits`; the same words for the same thing, to be counted."""


logging.getLogger("PIL").addHandler(logging.NullHandler())


def load_image(source: str | os.PathLike[str] | bytes) -> np.ndarray:
    """Gives the pixels of `read_picture`: uint8 RGB (H, W, 3)."""
    return read_picture(source).pixels


def read_picture(source: str | os.PathLike[str] | bytes) -> Picture:
    """Decodes a picture file, or its bytes.

    Pillow's warnings about metadata are silenced (for the process: its filters are not by thread).

    Raises:
        DataError: the message is the reason alone (`truncated`, `empty file` ...): the caller
            names the file.
    """
    data = source if isinstance(source, bytes) else _read_file(source)
    if not data:
        raise DataError("empty file")
    _silence_pillow()
    try:
        return Picture(_decode(data))
    except DataError as error:
        if str(error) == "truncated" and data.startswith(_JPEG):
            return Picture(_without_its_end(data))
        raise


def _decode(data: bytes) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(
                    f"too large: {image.width}x{image.height}, at most {MAX_PIXELS:,} pixels"
                )
            if image.format in ("JPEG", "MPO") and count_scans(data) > MAX_SCANS:
                raise DataError(f"too slow to decode: more than {MAX_SCANS} progressive scans")
            return _to_rgb(image)
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise DataError(f"too large: over {MAX_PIXELS:,} pixels") from None
    except UnidentifiedImageError:
        raise DataError(_name_unidentified(data)) from None
    except MemoryError:
        raise DataError("too large for the memory") from None
    except Exception as error:  # damaged files reach every corner of the decoders
        reason = " ".join(str(error).split())
        if "truncated" in reason.lower() or isinstance(error, EOFError):
            raise DataError("truncated") from None
        raise DataError(f"corrupt: {reason or type(error).__name__}") from None


def _without_its_end(jpeg: bytes) -> np.ndarray:
    """Decodes a JPEG that lacks its end marker and nothing else, as some cameras write them.

    If nothing else is missing, then the pixels do not depend on what is put there instead.
    """
    image = _decode(jpeg + _JPEG_END)
    if not np.array_equal(image, _decode(jpeg + b"\x5a" * 256 + _JPEG_END)):
        raise DataError("truncated")
    return image


def count_scans(jpeg: bytes) -> int:
    """Counts the scans of a JPEG by its markers, without decoding; stops at the end marker."""
    if jpeg.count(b"\xff\xda") <= MAX_SCANS:  # no more than the true number plus thumbnails
        return jpeg.count(b"\xff\xda")
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


def _read_file(path: str | os.PathLike[str]) -> bytes:
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise DataError("not a file" if stat.S_ISDIR(status.st_mode) else "not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise DataError(f"too large: {status.st_size:,} bytes of at most {MAX_FILE_BYTES:,}")
        with open(path, "rb") as file:
            return file.read(MAX_FILE_BYTES)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        if isinstance(error, DataError):
            raise
        if isinstance(error, FileNotFoundError):
            raise DataError("no such file") from None
        if isinstance(error, PermissionError):
            raise DataError("no permission to read it") from None
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError(f"cannot be read: {reason}") from None


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16"):
        image.load()
        gray = np.asarray(image).astype(np.uint32)
        image = _rotated(image, Image.fromarray(((gray + 128) // 257).astype(np.uint8)))
        return np.asarray(image.convert("RGB"))
    if image.mode in ("I", "F"):
        kind = "float" if image.mode == "F" else "32-bit"
        raise DataError(
            f"unsupported: {kind} pixels have no known range; save it with 8 or 16 bits"
        )
    image.load()
    image = _rotated(image, image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return np.asarray(image.convert("RGB"))


def _rotated(original: Image.Image, image: Image.Image) -> Image.Image:
    """Turns `image` as the EXIF block of `original` says; a damaged block turns nothing."""
    try:
        orientation = original.getexif().get(0x0112, 1)
    except Exception:  # Pillow's EXIF parser raises what it likes; the picture itself is sound
        return image
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(orientation)
    return image if turn is None else image.transpose(turn)


def _name_unidentified(data: bytes) -> str:
    head = data[:512].lstrip()
    if data[4:8] == b"ftyp":
        return "unsupported format (HEIC or AVIF): save it as JPEG or PNG"
    for start, name in _FOREIGN:
        if data.startswith(start) or (name == "SVG" and b"<svg" in head):
            return f"unsupported format ({name}): save it as JPEG or PNG"
    if data.startswith(_OURS):
        return "corrupt: its header cannot be read"
    return "not an image"


def _silence_pillow() -> None:
    # Not catch_warnings: it saves and restores the filters of all threads, and two threads that
    # leave it in the other order keep the wrong ones. An ignored module is the same from any.
    if _IGNORE not in warnings.filters:
        warnings.filterwarnings("ignore", module=_IGNORE[3].pattern)
