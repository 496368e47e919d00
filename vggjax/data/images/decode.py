"""Reads one image, from a file or from bytes, without trusting it.

Out: uint8 RGB (H, W, 3). JPEG, PNG, WebP, GIF, BMP and TIFF, told by content and never by the
name's ending; the first frame of an animation; the camera's rotation applied; transparency over
white; 16 bits scaled to 8. A regular file only: a pipe or a device would hang. The size is checked
before anything is decoded. Whatever cannot be used is a `DataError` with the reason; what had to be
done to use it is a note. Plain JPEG files take a shorter way (jpeg.py) to the same pixels.
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

from vggjax.data.images.foreign import name_unidentified
from vggjax.data.images.jpeg import (
    END,
    MAX_SCANS,
    NO_DATA,
    START,
    Plain,
    count_scans,
    decode_plain,
    is_flaw,
    is_progressive,
    read_header,
)
from vggjax.errors import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""No others: Pillow hands EPS to Ghostscript, and rarely used decoders are rarely checked."""

ENDINGS = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""File names that are taken for images when a folder is scanned; in lower case."""

MAX_PIXELS = 64_000_000
"""64 million pixels are 192 MB as RGB; Pillow's own bound lets 537 MB pass with a warning."""

MAX_FILE_BYTES = 512 * 2**20

GRAY = "gray made RGB"
TRANSPARENT = "transparency laid over white"
GRAY_16, COLOR_16 = "16-bit gray scaled to 8 bits", "16-bit color scaled to 8 bits"
FLOAT = "float pixels scaled to 8 bits"
FIRST = "first of several frames used"
TURNED, NO_EXIF = "turned as its EXIF says", "damaged EXIF ignored"
NO_END, FLAW = "end marker missing", "flaw in the JPEG data passed over"

_GRAY_MODES = ("1", "L", "LA", "La")
_RGB_MODES = ("RGB", "RGBA", "RGBa", "RGBX", "P", "PA")

_SIXTEEN = re.compile(
    r"(I|LA?|RGB[AX]*|CMYK);16"
)  # in Pillow's raw modes; BGR;16 is a pixel's bits
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_EMPTY_EXIF_BYTES = 20  # "Exif\0\0", a TIFF header, and a directory of no tags

_IGNORE = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
"""What `warnings.filterwarnings("ignore", module=...)` puts into the filters."""


class DecodedImage(NamedTuple):
    """One decoded image, and what had to be done to it that a person may want to know."""

    pixels: np.ndarray
    """uint8 RGB (H, W, 3)."""
    notes: tuple[str, ...] = ()
    """Such as `16-bit gray scaled to 8 bits`; the same words for the same thing, to be counted."""


logging.getLogger("PIL").addHandler(logging.NullHandler())


def load_image(source: str | os.PathLike[str] | bytes) -> np.ndarray:
    """Gives the pixels of `read_image`: uint8 RGB (H, W, 3)."""
    return read_image(source).pixels


def read_image(source: str | os.PathLike[str] | bytes) -> DecodedImage:
    """Decodes an image file, or its bytes.

    Pillow's warnings about metadata are silenced (for the process: its filters are not by thread).

    Raises:
        DataError: the message is the reason alone (`truncated`, `empty file` ...): the caller
            names the file.
    """
    data = source if isinstance(source, bytes) else _read_file(source)
    if not data:
        raise DataError("empty file")
    _silence_pillow()
    if not data.startswith(START):
        return _decode(data)
    header, flaws = read_header(data), ()
    if header is not None:
        _check_size(header.width, header.height)
        _check_scans(data)
        try:
            return _decode_plain(data, header)
        except MemoryError:
            raise DataError("too large for the memory") from None
        except ValueError as error:
            flaws = (FLAW,) if is_flaw(error) else ()
        except Exception:  # Pillow does not open it: below it says why
            pass
    try:
        image = _decode(data)
    except DataError as error:
        if str(error) == "truncated":
            return _without_its_end(data)
        raise
    return image._replace(notes=image.notes + flaws)


def _decode_plain(data: bytes, header: Plain) -> DecodedImage:
    pixels = decode_plain(data, header)
    notes = (GRAY,) if header.is_gray else ()
    if not header.has_metadata:
        return DecodedImage(pixels, notes)
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:  # reads the header alone
        turn, notes_of_turn = _find_turn(image)
    if turn is not None:
        pixels = np.asarray(Image.fromarray(pixels).transpose(turn))
    return DecodedImage(pixels, notes + notes_of_turn)


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise DataError(f"too large: {width}x{height}, at most {MAX_PIXELS:,} pixels")


def _check_scans(jpeg: bytes) -> None:
    if count_scans(jpeg) > MAX_SCANS:
        raise DataError(f"too slow to decode: more than {MAX_SCANS} progressive scans")


def _decode(data: bytes) -> DecodedImage:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image.width, image.height)
            if image.format in ("JPEG", "MPO"):
                _check_scans(data)
            return _to_rgb(image)
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise DataError(f"too large: over {MAX_PIXELS:,} pixels") from None
    except UnidentifiedImageError:
        raise DataError(name_unidentified(data)) from None
    except MemoryError:
        raise DataError("too large for the memory") from None
    except Exception as error:  # damaged files reach every corner of the decoders
        reason = " ".join(str(error).split())
        if "truncated" in reason.lower() or isinstance(error, EOFError):
            raise DataError("truncated") from None
        if "MAX_TEXT" in reason:
            raise DataError("too large: the text in it unpacks to many times its size") from None
        raise DataError(f"corrupt: {reason or type(error).__name__}") from None


def _without_its_end(jpeg: bytes) -> DecodedImage:
    """Decodes a JPEG that lacks its end marker and nothing else, as some cameras write them.

    If nothing else is missing, then the pixels do not depend on what is put there instead.
    """
    if is_progressive(jpeg):  # whole scans may be missing
        raise DataError("truncated")
    jpeg = jpeg.removesuffix(END[:1])  # half of the marker: what follows would be no data
    image = _decode(jpeg + END)
    for other in NO_DATA:
        if not np.array_equal(image.pixels, _decode(jpeg + other + END).pixels):
            raise DataError("truncated")
    return image._replace(notes=(*image.notes, NO_END))


def _read_file(path: str | os.PathLike[str]) -> bytes:
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise DataError("not a file" if stat.S_ISDIR(status.st_mode) else "not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise DataError(f"too large: {status.st_size:,} bytes of at most {MAX_FILE_BYTES:,}")
        # Not open(): for a small file that costs as much as decoding a quarter of it.
        file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        try:
            data = os.read(file, status.st_size)
            while len(data) < status.st_size and (more := os.read(file, MAX_FILE_BYTES)):
                data += more
            return data
        finally:
            os.close(file)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        if isinstance(error, DataError):
            raise
        if isinstance(error, FileNotFoundError):
            raise DataError("no such file") from None
        if isinstance(error, PermissionError):
            raise DataError("no permission to read it") from None
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError(f"cannot be read: {reason}") from None


def _to_rgb(image: Image.Image) -> DecodedImage:
    mode, notes = image.mode, ()
    if mode == "I":
        raise DataError("unsupported: 32-bit pixels have no known range; save it with 8 or 16 bits")
    has_16_bits = bool(_SIXTEEN.search(f"{mode} {image.tile}"))  # Pillow keeps the high byte of RGB
    image.load()
    turn, notes_of_turn = _find_turn(image)
    first = (FIRST,) if image.format != "MPO" and _is_one_of_several(image) else ()
    if mode.startswith("I;16"):
        gray = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((gray + 128) // 257).astype(np.uint8))
    elif mode == "F":
        image, notes = Image.fromarray(_scale_float(np.asarray(image))), (FLOAT,)
    if image.mode in _GRAY_MODES:
        notes += (GRAY_16, GRAY) if has_16_bits else (GRAY,)
    elif image.mode not in _RGB_MODES:
        notes += (f"{image.mode} made RGB",)
    elif has_16_bits:
        notes += (COLOR_16,)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getextrema()[3][0] < 255:
            notes += (TRANSPARENT,)
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    if turn is not None:
        image = image.transpose(turn)
    return DecodedImage(np.asarray(image.convert("RGB")), notes + notes_of_turn + first)


def _scale_float(pixels: np.ndarray) -> np.ndarray:
    """Takes 0 to 1, or else 0 to 255, to uint8; what is not a number becomes 0."""
    pixels = np.nan_to_num(pixels, nan=0.0, posinf=np.inf, neginf=-np.inf)
    low, high = pixels.min(), pixels.max()
    if low < 0 or high > 255:
        raise DataError(
            f"unsupported: float pixels from {low:g} to {high:g}; save it with 8 or 16 bits, or "
            f"with values from 0 to 1 or from 0 to 255"
        )
    return np.rint(pixels * (255 if high <= 1 else 1)).astype(np.uint8)


def _is_one_of_several(image: Image.Image) -> bool:
    try:  # asks for no more than the second frame
        return bool(getattr(image, "is_animated", False))
    except Exception:  # what follows the first frame is damaged
        return True


def _find_turn(image: Image.Image) -> tuple[Image.Transpose | None, tuple[str, ...]]:
    """Gives how the EXIF block wants an image turned, and the notes on it."""
    try:
        exif = image.getexif()
        turn = _TURNS.get(exif.get(0x0112, 1))
        is_damaged = not exif and len(image.info.get("exif", b"")) > _EMPTY_EXIF_BYTES
    except Exception:  # Pillow's EXIF parser raises what it likes; the image itself is sound
        return None, (NO_EXIF,)
    if turn is None:
        return None, (NO_EXIF,) if is_damaged else ()
    return turn, (TURNED,)


def _silence_pillow() -> None:
    # Not catch_warnings: it saves and restores the filters of all threads, and two threads that
    # leave it in the other order keep the wrong ones. An ignored module is the same from any.
    if _IGNORE not in warnings.filters:
        warnings.filterwarnings("ignore", module=_IGNORE[3].pattern)
