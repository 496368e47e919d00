"""Encode images of known pixels to files of every kind, and build PNGs by hand."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def noise(height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """Return random pixels: uint8 (H, W, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def smooth(height: int = 48, width: int = 64) -> np.ndarray:
    """Return gradients, which JPEG encodes well: uint8 (H, W, 3)."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([y * 5 % 256, x * 4 % 256, (x + y) % 256], -1).astype(np.uint8)


def encode(image: Image.Image | np.ndarray, kind: str, **options) -> bytes:
    """Return the file that Pillow writes."""
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def raw_png(width: int, height: int, rows: bytes, *, bits: int = 8, color: int = 2) -> bytes:
    """Return a PNG, RGB or of another color type, with any header and any (filtered) rows."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))
    body = header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def raw_tiff(samples: np.ndarray, *, photometric: int = 1) -> bytes:
    """Return an uncompressed TIFF of any number of bands, (H, W, bands), of uint8 or uint16."""
    height, width, bands = samples.shape
    bits = 8 * samples.dtype.itemsize
    bits_at = 8 + 2 + 12 * 9 + 4
    data_at = bits_at + 2 * bands
    tags = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, bands, bits_at), (259, 3, 1, 1),
        (262, 3, 1, photometric), (273, 4, 1, data_at), (277, 3, 1, bands), (278, 4, 1, height),
        (279, 4, 1, samples.nbytes),
    ]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4)
    return (
        head
        + struct.pack(f"<{bands}H", *[bits] * bands)
        + samples.astype(f"<u{bits // 8}").tobytes()
    )


def orientation_exif(orientation: int) -> Image.Exif:
    """Return EXIF metadata with this orientation, 1 to 8."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif
