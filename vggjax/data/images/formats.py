"""Identify image formats by their first bytes and by file name; decode nothing.

One table of signatures serves both the formats that decode.py reads and the refusal of others.
"""

import os
import re

_ENDINGS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".pjpeg", ".pjp"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}

FORMATS = tuple(_ENDINGS)
"""No others: Pillow hands EPS to Ghostscript, and rarely used decoders are rarely checked."""

ENDINGS = tuple(ending for endings in _ENDINGS.values() for ending in endings)
"""File names that count as images when a folder is scanned; in lower case."""

_SIGNATURES = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n",
    "WEBP": rb"RIFF.{4}WEBP",
    "GIF": rb"GIF8",
    "BMP": rb"BM",
    "TIFF": rb"II\*\x00|MM\x00\*",
    "PPM": rb"P[1-6]\s",
    "HEIC or AVIF": rb".{4}ftyp",
    "EPS": rb"%!PS",
    "PDF": rb"%PDF",
    "PSD": rb"8BPS",
    "SVG": rb".{0,508}<svg",
    "ICO": rb"\x00\x00\x01\x00",
    "JPEG 2000": rb"\x00\x00\x00\x0cjP  ",
    "JPEG XL": rb"\xff\x0a|\x00\x00\x00\x0cJXL ",
}
"""Format -> how its files begin; the first that matches counts."""

_COMPILED = {name: re.compile(start, re.DOTALL) for name, start in _SIGNATURES.items()}


def format_of_file(path: str | os.PathLike[str]) -> str | None:
    """Return which of `FORMATS` a regular file's content has; None if it cannot be opened."""
    try:
        with open(path, "rb") as file:
            start = file.read(12)
    except OSError:
        return None
    return next((name for name in FORMATS if _COMPILED[name].match(start)), None)


def format_of_content(path: str | os.PathLike[str]) -> str | None:
    """Return the image format, read here or not, whose signature a file begins with, if any."""
    try:
        with open(path, "rb") as file:
            start = file.read(512)
    except OSError:
        return None
    return next((name for name, known in _COMPILED.items() if known.match(start)), None)


def format_named(name: str) -> str | None:
    """Return the format that a file name's ending claims."""
    ending = os.path.splitext(name)[1].lower()
    return next((name for name, endings in _ENDINGS.items() if ending in endings), None)


def ending_of(format_name: str) -> str:
    """Return the most common ending of a format, with its dot."""
    return _ENDINGS[format_name][0]


def unidentified_reason(data: bytes) -> str:
    """Return why bytes that Pillow does not identify are no usable image."""
    name = next((name for name, start in _COMPILED.items() if start.match(data)), None)
    if name is None:
        return "not an image"
    if name in FORMATS:
        return "corrupt: its header cannot be read"
    return f"unsupported format ({name}): save it as JPEG or PNG"
