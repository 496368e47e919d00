"""Identify image formats by their first bytes and by file name; decode nothing.

One table of signatures serves both the formats that decode.py reads and the refusal of others.
"""

import os
import re
import stat
import struct

FORMAT_ENDINGS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".pjpeg", ".pjp"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif"),
    "DICOM": (".dcm", ".dicom"),
}

FORMATS = tuple(FORMAT_ENDINGS)
"""No others: Pillow hands EPS to Ghostscript, and rarely used decoders are rarely checked."""

PILLOW_FORMATS = tuple(name for name in FORMATS if name not in ("HEIF", "DICOM"))
"""Those that Pillow decodes; the others need pillow-heif and pydicom."""

ENDINGS = tuple(ending for endings in FORMAT_ENDINGS.values() for ending in endings)
"""File names that count as images when a folder is scanned; in lower case."""

_SIGNATURES = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n",
    "WEBP": rb"RIFF.{4}WEBP",
    "GIF": rb"GIF8",
    "BMP": rb"BM",
    "TIFF": rb"II[*+]\x00|MM\x00[*+]",
    "PPM": rb"P[1-6][\s#]",
    "AVIF": rb".{4}ftyp.{0,56}avi[fs]",
    "HEIF": rb".{4}ftyp(?:hei[cxms]|hev[cxms]|mif1|msf1)",
    "DICOM": rb".{128}DICM",
    "MP4 or QuickTime": rb".{4}ftyp",
    "EPS": rb"%!PS",
    "PDF": rb"%PDF",
    "PSD": rb"8BPS",
    "SVG": rb".{0,508}<svg",
    "ICO": rb"\x00\x00\x01\x00",
    "JPEG 2000": rb"\x00\x00\x00\x0cjP  ",
    "JPEG XL": rb"\xff\x0a|\x00\x00\x00\x0cJXL ",
}
"""Format -> how its files begin; the first that matches counts."""

_OTHER_CONTENT = {
    "a web page, which a failed download leaves": rb"\s*<(?:!doctype html|html)",
    "a Git LFS pointer, which `git lfs pull` replaces by the image": rb"version https://git-lfs",
    "a ZIP archive": rb"PK\x03\x04",
}
"""What files with an image's name may hold instead -> how it begins, in any case."""

_COMPILED = {name: re.compile(start, re.DOTALL) for name, start in _SIGNATURES.items()}


def format_of_file(path: str | os.PathLike[str]) -> str | None:
    """Return which of `FORMATS` a regular file's content has; None if it cannot be opened."""
    name = format_of_content(path)
    return name if name in FORMATS else None


def format_of_content(path: str | os.PathLike[str]) -> str | None:
    """Return the image format, read here or not, whose signature a file begins with, if any."""
    start = _start_of(path)
    return None if start is None else _identify(start)


def _start_of(path: str | os.PathLike[str]) -> bytes | None:
    """Return how a regular file begins; None of any other: opening a pipe would block."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return None
        with open(path, "rb") as file:
            return file.read(512)
    except (OSError, ValueError):  # ValueError: a null byte in the name
        return None


def _identify(start: bytes) -> str | None:
    return next((name for name, known in _COMPILED.items() if known.match(start)), None)


def format_named(name: str) -> str | None:
    """Return the format that a file name's ending claims."""
    ending = os.path.splitext(name)[1].lower()
    return next((name for name, endings in FORMAT_ENDINGS.items() if ending in endings), None)


def may_be_deep(path: str | os.PathLike[str] | None) -> bool:
    """Return whether a file's name and first bytes allow more than 8 bits a channel."""
    name = None if path is None else format_named(os.fspath(path))
    if path is None or name not in ("PNG", "TIFF", "PPM", "DICOM"):
        return False
    start = _start_of(path)
    if start is None:
        return False
    return start[24:25] == b"\x10" if _identify(start) == "PNG" else True


def ending_of(format_name: str) -> str:
    """Return the most common ending of a format, with its dot."""
    return FORMAT_ENDINGS[format_name][0]


def is_heif(data: bytes) -> bool:
    """Return whether bytes are HEIC or another HEIF, AVIF aside."""
    return _identify(data) == "HEIF"


def unidentified_reason(data: bytes) -> str:
    """Return why bytes that Pillow does not identify are no usable image."""
    name = _identify(data)
    if name is None:
        contents = (what for what, start in _OTHER_CONTENT.items() if re.match(start, data, re.I))
        return ": ".join(["not an image", *contents])
    if name == "AVIF":
        return "unsupported format (AVIF): this Pillow was built without it; save it as JPEG or PNG"
    if name in FORMATS:
        bands = _tiff_bands(data) if name == "TIFF" else None
        return bands or "corrupt: its header cannot be read"
    return f"unsupported format ({name}): save it as JPEG or PNG"


_SAMPLES, _BITS, _SAMPLE_FORMAT = 277, 258, 339
_TIFF_TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}
"""Field type -> its code in `struct`."""


def _tiff_bands(data: bytes) -> str | None:
    """Describe the bands of a TIFF that Pillow cannot read; None if its directory is damaged."""
    order = "<" if data[:2] == b"II" else ">"
    is_big = data[2:4] in (b"+\x00", b"\x00+")
    count_code, entry_code, size = ("Q", "HHQ8s", 20) if is_big else ("H", "HHI4s", 12)
    tags = {}
    try:
        (start,) = struct.unpack_from(order + ("Q" if is_big else "I"), data, 8 if is_big else 4)
        (count,) = struct.unpack_from(order + count_code, data, start)
        start += struct.calcsize(count_code)
        for position in range(start, start + size * min(count, 1000), size):
            tag, kind, number, value = struct.unpack_from(order + entry_code, data, position)
            if tag in (_SAMPLES, _BITS, _SAMPLE_FORMAT):
                code = f"{order}{_TIFF_TYPES[kind]}"
                fits = number * struct.calcsize(code) <= len(value)
                offset = struct.unpack(order + ("Q" if is_big else "I"), value)[0]
                tags[tag] = struct.unpack_from(code, value if fits else data, 0 if fits else offset)
    except (struct.error, KeyError, OverflowError):
        return None
    (bands,), (bits,) = tags.get(_SAMPLES, (1,)), tags.get(_BITS, (1,))
    pixels = "bits" if tags.get(_SAMPLE_FORMAT, (1,))[0] != 3 else "bits in floating point"
    plural, way = (
        ("", "save it with 8 or 16 bits") if bands == 1 else ("s", "save three of them as RGB")
    )
    return f"unsupported: {bands} band{plural} of {bits} {pixels}; {way}"
