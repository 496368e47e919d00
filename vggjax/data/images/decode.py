"""Decode one image, from a file or from bytes, without trusting it.

Out: uint8 RGB (H, W, 3). JPEG, PNG, WebP, GIF, BMP, TIFF, PPM and AVIF, identified by content, and
HEIC and DICOM with their extras; the first frame of an animation; EXIF rotation applied;
transparency laid over a background; more than 8 bits scaled to 8 (depth.py). Only regular files are
opened: a pipe or a device would block. The size is checked before anything is decoded. An unusable
image is a `DataError`; what had to be done to use an image is a note.

Plain JPEG files, which most photographs are (baseline or progressive, 8 bits, gray or three
components, sound), are decoded by libjpeg-turbo without Pillow around it: the same pixels at a
quarter of the cost. It stops at its first warning, and Pillow decodes everything else. A JPEG of
more than `MAX_PIXELS` is decoded at 1/2, 1/4 or 1/8 of its size, which costs less than the whole.
"""

import io
import logging
import os
import re
import stat
import struct
import warnings
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from vggjax.data.images.depth import is_deep, read_pnm, to_8_bits
from vggjax.data.images.dicom import is_dicom, read_dicom, render_dicom
from vggjax.data.images.formats import PILLOW_FORMATS, is_heif, unidentified_reason
from vggjax.errors import DataError

MAX_PIXELS = 64_000_000
"""64 million pixels are 192 MB as RGB; Pillow's own limit lets 537 MB pass with a warning."""

MAX_JPEG_PIXELS = 256_000_000
"""Of a JPEG that is decoded at a fraction of its size; a progressive one, whose coefficients are
all kept, counts twice."""

_REDUCED_SIDE_PX = 1024
"""A reduced JPEG has at least this short side, if a fraction allows it."""

_BLANK_CONTRAST = 8  # gray levels: light gray on white shows no more than white

MAX_FILE_BYTES = 512 * 2**20

MAX_SCANS = 100
"""A progressive JPEG has about ten scans; each costs a pass over the whole image."""

GRAY = "gray made RGB"
TRANSPARENT = "transparency laid over {}"
BLANK = "one color once transparency is laid over {}"
BLANKS = tuple(BLANK.format(name) for name in ("white", "black", "gray"))
REDUCED = "huge JPEG decoded at a fraction of its size"
EXTRA_BANDS = "first three of several bands used"
FIRST = "first of several frames used"
TURNED, NO_EXIF = "turned as its EXIF says", "damaged EXIF ignored"
NO_END, FLAW = "end marker missing", "flaw in the JPEG data passed over"

_GRAY_MODES = ("1", "L", "LA", "La")
_RGB_MODES = ("RGB", "RGBA", "RGBa", "RGBX", "P", "PA")

_ORIENTATION_TAG, _SAMPLES_TAG, _EXTRA_SAMPLES_TAG = 0x0112, 0x0115, 0x0152
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> the transpose that undoes it."""

_EMPTY_EXIF_BYTES = 20  # "Exif\0\0", a TIFF header, and a directory of no tags

_START, _END = b"\xff\xd8\xff", b"\xff\xd9"  # of a JPEG
_FRAMES = {0xC0, 0xC2}  # baseline and progressive frames, Huffman-coded
_SEGMENTS = {0xC4, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE}  # tables, restarts, APPn, comment
_FLAWS = ("Corrupt JPEG data", "Inconsistent progression", "Premature end")
"""How libjpeg's warnings begin (jerror.h): damage that its decoders otherwise pass over."""

_FILLERS = (
    b"\x00" * 256,
    b"\x5a" * 256,
    b"\xa5" * 256,
    b"".join(bytes([0xFF, 0xD0 + i % 8]) + b"\x5a" * 32 for i in range(16)),  # with restarts
)
"""Data to continue a scan with, which changes pixels if and only if the scan is incomplete."""

_PILLOW_FILTER = ("ignore", None, Warning, re.compile(r"(PIL|pydicom)\."), 0)
"""The entry that `warnings.filterwarnings("ignore", module=...)` inserts into the filters."""


class Rendering(NamedTuple):
    """How pixels that are not 8-bit RGB become so; a part of a model's preprocessing."""

    background: str = "white"
    """The color that transparency is laid over, by a name that Pillow knows."""
    pixel_range: tuple[float, float] | None = None
    """The numbers of black and white in images of more than 8 bits; None is their full range."""

    @property
    def remark(self) -> str:
        """Return what is not the default, ", transparency over black" say, or nothing."""
        text = "" if self.background == "white" else f", transparency over {self.background}"
        if self.pixel_range is not None:
            text += f", pixels from {self.pixel_range[0]:g} to {self.pixel_range[1]:g}"
        return text


DEFAULT_RENDERING = Rendering()


class DecodedImage(NamedTuple):
    """One decoded image, and notes on what had to be done to it."""

    pixels: np.ndarray
    """uint8 RGB (H, W, 3)."""
    notes: tuple[str, ...] = ()
    """Fixed texts, such as `16-bit gray scaled to 8 bits`, so that they can be counted."""
    extent: tuple[float, float] | None = None
    """Lowest and highest number of an image of more than 8 bits, without a few outliers, if a pixel
    range was given; None elsewhere, and where the file says what is shown."""


class JPEGHeader(NamedTuple):
    """The facts of a plain JPEG that precede its first scan."""

    height: int
    width: int
    is_gray: bool
    has_metadata: bool
    """Whether EXIF or XMP is present, which may hold an orientation."""
    size_at: int
    """Position of the height, and then the width, 16 bits each."""


for _name in ("PIL", "pydicom"):  # the reasons are in our own messages
    logging.getLogger(_name).addHandler(logging.NullHandler())
    logging.getLogger(_name).propagate = False


def load_image(
    source: str | os.PathLike[str] | bytes, rendering: Rendering = DEFAULT_RENDERING
) -> np.ndarray:
    """Return the pixels of `read_image`: uint8 RGB (H, W, 3)."""
    return read_image(source, rendering).pixels


def read_image(
    source: str | os.PathLike[str] | bytes, rendering: Rendering = DEFAULT_RENDERING
) -> DecodedImage:
    """Decode an image file, or its bytes; silence Pillow's warnings for the whole process.

    Raises:
        DataError: its message is the reason alone (`truncated` ...); the caller names the file.
    """
    data = source if isinstance(source, bytes) else _read_file(source)
    if not data:
        raise DataError("empty file")
    _silence_pillow()
    if not data.startswith(_START):
        return _decode_by_library(data, rendering)
    flaws: tuple[str, ...] = ()
    header = read_jpeg_header(data)
    if header is not None:
        _check_cost(header.width, header.height, data)
        try:
            return _decode_plain(data, header)
        except MemoryError:
            raise DataError("too large for the memory") from None
        except ValueError as error:
            flaws = (FLAW,) if str(error).startswith(_FLAWS) else ()
        except Exception:  # Pillow raises below, with the reason
            pass
    try:
        image = _decode_by_library(data, rendering)
    except DataError as error:
        if str(error) == "truncated":
            return _decode_without_end(data)
        raise
    return image._replace(notes=image.notes + flaws)


def convert_image(image: Image.Image, rendering: Rendering = DEFAULT_RENDERING) -> DecodedImage:
    """Return the pixels of an image that Pillow opened or made, as `read_image` returns them.

    Raises:
        DataError: it cannot be used; the message is the reason alone.
    """
    _silence_pillow()
    try:
        _check_cost(image.width, image.height)
        return _to_rgb(image, b"", rendering)
    except (OSError, ValueError) as error:  # DataError, too
        raise error if isinstance(error, DataError) else DataError(f"corrupt: {error}") from None


def image_size(data: bytes) -> tuple[int, int] | None:
    """Return (width, height) from an image's header; None if only decoding shows it."""
    header = read_jpeg_header(data) if data.startswith(_START) else None
    if header is not None:
        return header.width, header.height
    _silence_pillow()
    try:
        with Image.open(io.BytesIO(data), formats=PILLOW_FORMATS) as image:
            return image.size
    except Exception:  # the decoder says what is wrong
        return None


def _decode_plain(data: bytes, header: JPEGHeader) -> DecodedImage:
    factor = _reduction(header.width, header.height)
    pixels = decode_plain_jpeg(data, header, factor)
    notes = ((GRAY,) if header.is_gray else ()) + ((REDUCED,) if factor > 1 else ())
    if not header.has_metadata:
        return DecodedImage(pixels, notes)
    if factor > 1:  # Pillow refuses to open an image of this size, even for its metadata
        data = data[: header.size_at] + b"\0\1\0\1" + data[header.size_at + 4 : 2**20]
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:  # reads the header alone
        transpose, exif_notes = _exif_transpose(image)
    if transpose is not None:
        pixels = np.asarray(Image.fromarray(pixels).transpose(transpose))
    return DecodedImage(pixels, notes + exif_notes)


def _check_cost(width: int, height: int, jpeg: bytes = b"") -> None:
    limit, cost = MAX_PIXELS, width * height
    if jpeg:
        limit, cost = MAX_JPEG_PIXELS, cost * (1 + _is_progressive(jpeg))
    if cost > limit:
        raise DataError(f"too large: {width}x{height}, at most {limit:,} pixels")
    if count_scans(jpeg) > MAX_SCANS:
        raise DataError(f"too slow to decode: more than {MAX_SCANS} progressive scans")


def _is_progressive(jpeg: bytes) -> bool:
    return b"\xff\xc2" in jpeg[: jpeg.find(b"\xff\xda")]


def _reduction(width: int, height: int) -> int:
    """Return by what a JPEG's sides are divided when it is decoded: 1, 2, 4 or 8."""
    if width * height <= MAX_PIXELS:
        return 1
    return next((n for n in (8, 4) if min(width, height) >= n * _REDUCED_SIDE_PX), 2)


def _decode_by_library(data: bytes, rendering: Rendering) -> DecodedImage:
    notes: tuple[str, ...]
    try:
        if is_dicom(data):
            return _decode_dicom(data, rendering)
        if (pnm := read_pnm(data, rendering.pixel_range)) is not None:
            notes = (pnm.note, GRAY) if pnm.image.mode == "L" else (pnm.note,)
            return DecodedImage(np.asarray(pnm.image.convert("RGB")), notes, pnm.extent)
        with _open(data) as image:
            notes = ()
            if image.format in ("JPEG", "MPO"):
                _check_cost(image.width, image.height, data)
                factor = _reduction(image.width, image.height)
                if factor > 1:
                    image.draft(None, (image.width // factor, image.height // factor))
                    notes = (REDUCED,)
            else:
                _check_cost(image.width, image.height)
            decoded = _to_rgb(image, data, rendering)
            return decoded._replace(notes=decoded.notes + notes)
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise DataError(f"too large: over {MAX_PIXELS:,} pixels") from None
    except UnidentifiedImageError:
        raise DataError(unidentified_reason(data)) from None
    except MemoryError:
        raise DataError("too large for the memory") from None
    except Exception as error:  # damaged files raise anything, from any decoder
        text = " ".join(str(error).split())
        reason = f"corrupt: {text or type(error).__name__}"
        if "truncated" in text.lower() or isinstance(error, EOFError):
            reason = "truncated"
        elif "MAX_TEXT" in text:
            reason = "too large: the text in it unpacks to many times its size"
        raise DataError(reason) from None


def _open(data: bytes) -> Image.Image:
    """Open an image without decoding it; of a HEIC, decode the primary image."""
    if not is_heif(data):
        return Image.open(io.BytesIO(data), formats=PILLOW_FORMATS)
    try:
        import pillow_heif
    except ImportError:
        raise DataError(
            "unsupported: HEIC needs pillow-heif: pip install 'vggjax[heif]', or save it as JPEG"
        ) from None
    images = pillow_heif.open_heif(data)
    _check_cost(*images.size)
    return images.to_pillow()


def _decode_dicom(data: bytes, rendering: Rendering) -> DecodedImage:
    dataset = read_dicom(data)
    _check_cost(int(dataset.Columns), int(dataset.Rows))
    image, extent, notes, has_more_frames = render_dicom(dataset, rendering.pixel_range)
    notes += ((GRAY,) if image.mode == "L" else ()) + ((FIRST,) if has_more_frames else ())
    return DecodedImage(np.asarray(image.convert("RGB")), notes, extent)


def _decode_without_end(data: bytes) -> DecodedImage:
    """Decode a JPEG that lacks only its end marker, as some cameras write them."""
    if _is_progressive(data):  # scans may be missing
        raise DataError("truncated")
    data = data.removesuffix(_END[:1])  # half of the marker: what follows would be no data
    image = _decode_by_library(data + _END, DEFAULT_RENDERING)
    # Other data is missing if and only if the pixels depend on what is appended in its place.
    for filler in _FILLERS:
        filled = _decode_by_library(data + filler + _END, DEFAULT_RENDERING)
        if not np.array_equal(image.pixels, filled.pixels):
            raise DataError("truncated")
    return image._replace(notes=(*image.notes, NO_END))


def _read_file(path: str | os.PathLike[str]) -> bytes:
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise DataError("not a file" if stat.S_ISDIR(status.st_mode) else "not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise DataError(f"too large: {status.st_size:,} bytes of at most {MAX_FILE_BYTES:,}")
        # Not open(): for a small file that costs a quarter of its decoding.
        file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        try:
            data = os.read(file, status.st_size)
            while len(data) < status.st_size and (more := os.read(file, MAX_FILE_BYTES)):
                data += more
            return data
        finally:
            os.close(file)
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError("no such file") from None
    except PermissionError:
        raise DataError("no permission to read it") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError(f"cannot be read: {reason}") from None


def _to_rgb(image: Image.Image, data: bytes, rendering: Rendering) -> DecodedImage:
    notes: tuple[str, ...] = ()
    last_notes: tuple[str, ...] = (
        (FIRST,) if image.format != "MPO" and _has_more_frames(image) else ()
    )
    # A fourth band, infrared perhaps, is alpha only where the file says so; Pillow always does.
    tags = getattr(image, "tag_v2", {})
    is_fourth_unknown = bool(tags) and image.mode == "RGBA" and _EXTRA_SAMPLES_TAG not in tags
    if is_fourth_unknown or tags.get(_SAMPLES_TAG, 1) > 4:
        last_notes += (EXTRA_BANDS,)
    deep = None
    if is_deep(image):  # asked before loading: Pillow keeps only the high byte of 16-bit RGB
        deep = to_8_bits(image, data, rendering.pixel_range)
        notes = (deep.note,)
    image.load()
    transpose, exif_notes = _exif_transpose(image)
    image = deep.image if deep else image
    image = image.convert("RGB") if is_fourth_unknown else image
    if image.mode in _GRAY_MODES:
        notes += (GRAY,)
    elif image.mode not in _RGB_MODES:
        notes += (f"{image.mode} made RGB",)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        is_clear = np.asarray(image.getchannel("A")).min() < 255
        background = Image.new("RGBA", image.size, rendering.background)
        image = Image.alpha_composite(background, image).convert("RGB")
        if is_clear:
            notes += (TRANSPARENT.format(rendering.background),)
            if np.ptp(np.asarray(image), (0, 1)).max() <= _BLANK_CONTRAST:
                notes += (BLANK.format(rendering.background),)
    if transpose is not None:
        image = image.transpose(transpose)
    pixels = np.asarray(image.convert("RGB"))
    return DecodedImage(pixels, notes + exif_notes + last_notes, deep.extent if deep else None)


def _has_more_frames(image: Image.Image) -> bool:
    try:  # reads no further than the second frame
        return bool(getattr(image, "is_animated", False))
    except Exception:  # what follows the first frame is damaged
        return True


def _exif_transpose(image: Image.Image) -> tuple[Image.Transpose | None, tuple[str, ...]]:
    """Return the transpose that EXIF or XMP ask for, and notes on it."""
    try:
        exif = image.getexif()
        transpose = _TRANSPOSES.get(exif.get(_ORIENTATION_TAG, 1))
        is_damaged = not exif and len(image.info.get("exif") or b"") > _EMPTY_EXIF_BYTES
    except Exception:  # Pillow's EXIF parser raises anything; the image itself is sound
        transpose, is_damaged = None, True
    if transpose is not None:
        return transpose, (TURNED,)
    return None, (NO_EXIF,) if is_damaged else ()


def _silence_pillow() -> None:
    # Not catch_warnings: two threads that leave it in the other order keep the wrong filters.
    if _PILLOW_FILTER not in warnings.filters:
        warnings.filterwarnings("ignore", module=_PILLOW_FILTER[3].pattern)


def read_jpeg_header(data: bytes) -> JPEGHeader | None:
    """Read the segments of a JPEG up to its first scan; None if it is not plain."""
    frame, has_metadata, position, size = None, False, 2, len(data)
    while position + 4 <= size and data[position] == 0xFF:
        marker, length = data[position + 1], data[position + 2] << 8 | data[position + 3]
        if marker == 0xDA:
            return frame and frame._replace(has_metadata=has_metadata)
        if length < 2 or position + 2 + length > size:
            return None
        if marker in _FRAMES:
            if frame or length < 11:
                return None
            bits, height, width, components = struct.unpack_from(">BHHB", data, position + 4)
            if bits != 8 or components not in (1, 3) or length != 8 + 3 * components:
                return None
            frame = JPEGHeader(height, width, components == 1, False, position + 5)
        elif marker == 0xE1:
            has_metadata = True
        elif marker not in _SEGMENTS or data.startswith(b"MPF\0", position + 4):
            return None  # MPF: several images
        position += 2 + length
    return None


def decode_plain_jpeg(data: bytes, header: JPEGHeader, factor: int = 1) -> np.ndarray:
    """Decode a JPEG whose header `read_jpeg_header` returned, to uint8 RGB (H, W, 3).

    Its sides are divided by `factor`, 1, 2, 4 or 8, and rounded up.

    Raises:
        ValueError: the decoder's first warning or error.
    """
    height, width = -(-header.height // factor), -(-header.width // factor)
    pixels = np.empty((height, width, 3), np.uint8)
    least = {"min_height": height, "min_width": width, "min_factor": factor} if factor > 1 else {}
    decoded = simplejpeg.decode_jpeg(data, buffer=pixels, strict=True, **least)
    if decoded.shape != pixels.shape:
        raise ValueError("two headers")
    return pixels


def count_scans(data: bytes) -> int:
    """Count the scans of a JPEG by its markers, without decoding; stop at the end marker."""
    upper_bound = data.count(b"\xff\xda")  # includes those of thumbnails
    if upper_bound <= MAX_SCANS:
        return upper_bound
    scans, position = 0, 2
    while (position := data.find(b"\xff", position)) >= 0 and position + 4 <= len(data):
        marker = data[position + 1]
        if marker == 0xD9:
            break
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:  # stuffing, fill, restarts
            position += 1 if marker == 0xFF else 2
            continue
        scans += marker == 0xDA
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return scans
