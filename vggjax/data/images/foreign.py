"""Names what a file is that no decoder takes, by its first bytes: the reason for its refusal."""

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
_OURS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")


def name_unidentified(data: bytes) -> str:
    """Gives the reason why bytes cannot be opened as an image, and the way out where one is."""
    head = data[:512].lstrip()
    if data[4:8] == b"ftyp":
        return "unsupported format (HEIC or AVIF): save it as JPEG or PNG"
    for start, name in _FOREIGN:
        if data.startswith(start) or (name == "SVG" and b"<svg" in head):
            return f"unsupported format ({name}): save it as JPEG or PNG"
    if data.startswith(_OURS):
        return "corrupt: its header cannot be read"
    return "not an image"
