"""Names an image's format by its first bytes and by its ending; decodes nothing.

Only the formats that images.py reads; for the others, and for no image, the answer is None.
"""

import os

_STARTS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n": "PNG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
}

_FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".gif": "GIF",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}


def format_of(head: bytes) -> str | None:
    """Names the format of a file that begins with these bytes; 12 are enough."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    return next((name for start, name in _STARTS.items() if head.startswith(start)), None)


def format_of_file(path: str | os.PathLike[str]) -> str | None:
    """Names the format of a regular file by its content; None where it cannot be opened.

    A pipe would wait for a writer: the caller knows that the file is a regular one.
    """
    try:
        with open(path, "rb") as file:
            return format_of(file.read(12))
    except OSError:
        return None


def format_named(name: str) -> str | None:
    """Names the format that a file's ending claims."""
    return _FORMATS.get(os.path.splitext(name)[1].lower())


def ending_of(format_name: str) -> str:
    """Gives the ending that is commonest for a format, with its dot."""
    return next(ending for ending, name in _FORMATS.items() if name == format_name)
