"""What had to be done to an image is noted in fixed words; plain images have no notes."""

import importlib.util
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_images import encode, noise, smooth

from vggjax.data.images.decode import read_image
from vggjax.errors import DataError

MAKER = Path(__file__).parents[3] / "shared" / "hostile" / "make_bad_images.py"


def image(mode="RGB") -> Image.Image:
    return Image.fromarray(smooth()).convert(mode)


def transparent(mode: str, alpha: int) -> Image.Image:
    rgba = image("RGBA")
    rgba.putalpha(alpha)
    return rgba.convert(mode)


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def color_png_of_16_bits() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    row = b"\0" + struct.pack(">6H", 0, 0x1234, 0xFFFF, 0xFF00, 0x00FF, 0x8000)  # two pixels
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def flawed() -> bytes:
    data = encode(noise(256, 256), "JPEG")
    return data[:20_000] + bytes(range(1, 65)) + data[20_064:]


GRAY_16 = Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20) * 150)
FRAMES = {"save_all": True, "append_images": [Image.fromarray(noise())] * 2}
BROKEN_EXIF = b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\xff" * 40
GRAY, WHITE = "gray made RGB", "transparency laid over white"
TURNED, FIRST = "turned as its EXIF says", "first of several frames used"
CASES = {
    "plain JPEG": (encode(image(), "JPEG"), ()),
    "progressive JPEG": (encode(image(), "JPEG", progressive=True), ()),
    "JPEG of no turn": (encode(image(), "JPEG", exif=turned(1)), ()),
    "PNG": (encode(image(), "PNG"), ()),
    "palette": (encode(image("P"), "PNG"), ()),
    "GIF": (encode(image("P"), "GIF"), ()),
    "WebP": (encode(image(), "WEBP"), ()),
    "BMP": (encode(image(), "BMP"), ()),
    "TIFF": (encode(image(), "TIFF"), ()),
    "opaque alpha": (encode(transparent("RGBA", 255), "PNG"), ()),
    "gray JPEG": (encode(image("L"), "JPEG"), (GRAY,)),
    "gray PNG": (encode(image("L"), "PNG"), (GRAY,)),
    "one bit": (encode(image("1"), "PNG"), (GRAY,)),
    "opaque gray": (encode(transparent("LA", 255), "PNG"), (GRAY,)),
    "alpha": (encode(transparent("RGBA", 90), "PNG"), (WHITE,)),
    "gray alpha": (encode(transparent("LA", 90), "PNG"), (GRAY, WHITE)),
    "one clear color": (encode(image("P"), "PNG", transparency=bytes(256)), (WHITE,)),
    "16-bit PNG": (encode(GRAY_16, "PNG"), ("16-bit gray scaled to 8 bits", GRAY)),
    "16-bit TIFF": (encode(GRAY_16, "TIFF"), ("16-bit gray scaled to 8 bits", GRAY)),
    "16-bit color": (color_png_of_16_bits(), ("16-bit color scaled to 8 bits",)),
    "float": (encode(image("F"), "TIFF"), ("float pixels scaled to 8 bits", GRAY)),
    "CMYK JPEG": (encode(image("CMYK"), "JPEG"), ("CMYK made RGB",)),
    "CMYK TIFF": (encode(image("CMYK"), "TIFF"), ("CMYK made RGB",)),
    "LAB": (encode(Image.merge("LAB", [image("L")] * 3), "TIFF"), ("LAB made RGB",)),
    "YCbCr": (encode(image("YCbCr"), "TIFF"), ("YCbCr made RGB",)),
    "GIF frames": (encode(image(), "GIF", **FRAMES), (FIRST,)),
    "WebP frames": (encode(image(), "WEBP", **FRAMES), (FIRST,)),
    "PNG frames": (encode(image(), "PNG", **FRAMES), (FIRST,)),
    "TIFF pages": (encode(image(), "TIFF", **FRAMES), (FIRST,)),
    "turned JPEG": (encode(image(), "JPEG", exif=turned(6)), (TURNED,)),
    "turned gray": (encode(image("L"), "JPEG", exif=turned(3)), (GRAY, TURNED)),
    "turned CMYK": (encode(image("CMYK"), "JPEG", exif=turned(8)), ("CMYK made RGB", TURNED)),
    "turned PNG": (encode(image(), "PNG", exif=turned(2)), (TURNED,)),
    "turn of no meaning": (encode(image(), "JPEG", exif=turned(9)), ()),
    "broken EXIF": (encode(image(), "JPEG", exif=BROKEN_EXIF), ("damaged EXIF ignored",)),
    "no end": (encode(image(), "JPEG")[:-2], ("end marker missing",)),
    "half an end": (encode(image("L"), "JPEG")[:-1], (GRAY, "end marker missing")),
    "flaw": (flawed(), ("flaw in the JPEG data passed over",)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_image_s_notes_say_what_was_done_to_it(name):
    data, notes = CASES[name]
    assert read_image(data).notes == notes


def test_16_bit_colors_are_scaled_and_not_cut_off():
    pixels = read_image(color_png_of_16_bits()).pixels
    assert pixels.tolist() == [[[0, 0x12, 255], [255, 0, 0x80]]]


# Every image of ../shared/hostile: used, used with a note, or refused with the right reason

NOTES = {
    "trunc_jpg_eoi": "end marker missing",
    "scan_garbage": "flaw in the JPEG data passed over",
    "gray16": "16-bit gray scaled to 8 bits",
    "rgb16": "16-bit color scaled to 8 bits",
    "float_tiff": "float pixels scaled to 8 bits",
    "cmyk": "CMYK made RGB",
    "lab": "LAB made RGB",
    "rgba": WHITE,
    "palette_trns": WHITE,
    "la": GRAY,
    "onebit": GRAY,
    "gray8": GRAY,
    "gif_anim": FIRST,
    "webp_anim": FIRST,
    "apng": FIRST,
    "exif_rot3": TURNED,
    "exif_rot6": TURNED,
    "exif_rot8": TURNED,
    "exif_bad": "damaged EXIF ignored",
}
NO_NOTE = {
    "s1x5000": "its shape is the doctor's affair",
    "s5000x1": "its shape is the doctor's affair",
    "gif_frames": "its 5,000 frames are alike, and Pillow wrote them as one",
}
REASONS = {
    "truncated": "truncated",
    "empty": "empty file",
    "not-an-image": "not an image",
    "corrupt": "corrupt",
    "too-large": "too large",
    "too-slow": "too slow",
    "unsupported": "unsupported format",
    "not-found": "no such file|too many levels",
    "not-a-file": "not a file|not a regular file",
    "permission": "no permission",
    "ignored": "not an image",
}


def test_every_hostile_image_gets_what_it_should(tmp_path):
    if not MAKER.exists():
        pytest.skip("../shared/hostile is not here")
    spec = importlib.util.spec_from_file_location("hostile", MAKER)
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    assert set(NOTES) | set(NO_NOTE) <= set(maker.IMG)
    # Bombs are hundreds of MB to make, and tried in test_images.py; root may read anything.
    left_out = {name for name in maker.IMG if name.startswith("bomb")}
    left_out |= {"unreadable"} if os.geteuid() == 0 else set()
    names = [name for name in maker.IMG if name not in left_out]
    subprocess.run([sys.executable, MAKER, "--out", tmp_path, "--only", *names], check=True)
    for name in names:
        want, path = maker.IMG[name]["want"], tmp_path / "img" / name / maker.IMG[name]["fname"]
        try:
            notes = read_image(path).notes
        except DataError as error:
            reason = "too-large" if name == "ztxt_bomb" else want.partition(":")[2]
            reason = "unsupported" if name == "avif" else reason
            assert reason and want != "OK", f"{name}: refused, {error}"
            assert any(r in str(error).lower() for r in REASONS[reason].split("|")), (name, error)
            continue
        assert not want.startswith("SKIP"), f"{name} should be refused"
        if name not in NO_NOTE:
            assert (NOTES[name] in notes) if name in NOTES else want == "OK" and not notes, name
