"""Decoding: the pixels are Pillow's, every adaptation is noted, and bad files are refused."""

import io
import itertools
import os
import random
import struct
import sys
import threading
import warnings

import numpy as np
import PIL
import pytest
from PIL import Image, ImageOps
from support.image_files import encode, noise, orientation_exif, raw_png, raw_tiff, smooth

from vggjax.data.images import decode, depth
from vggjax.data.images.decode import (
    MAX_PIXELS,
    Rendering,
    count_scans,
    decode_plain_jpeg,
    load_image,
    read_image,
    read_jpeg_header,
)
from vggjax.errors import DataError

YCBCR = pytest.mark.skipif(
    int(PIL.__version__.partition(".")[0]) < 13,
    reason="Pillow before 13 cannot read the YCbCr TIFF that it writes",
)


def outcome(data: bytes) -> np.ndarray | str:
    """Return the pixels, or the reason for the refusal."""
    try:
        return load_image(data)
    except DataError as error:
        return str(error)


@pytest.fixture
def by_pillow(monkeypatch):
    """Return `outcome` as it would be if no JPEG were plain."""

    def read(data: bytes) -> np.ndarray | str:
        with monkeypatch.context() as patch:
            patch.setattr(decode, "read_jpeg_header", lambda data: None)
            return outcome(data)

    return read


# The pixels


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats_return_the_saved_pixels_whatever_the_file_name(kind, tmp_path):
    options = {"lossless": True} if kind == "WEBP" else {}
    path = tmp_path / "photo.jpg"
    path.write_bytes(encode(noise(), kind, **options))
    np.testing.assert_array_equal(load_image(path), noise())


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", pytest.param("YCbCr", marks=YCBCR)])
def test_other_modes_become_rgb_as_pillow_converts_them(mode):
    image = Image.fromarray(smooth()).convert(mode)
    kind = "PNG" if mode in ("L", "1", "P") else "TIFF"
    np.testing.assert_array_equal(load_image(encode(image, kind)), np.asarray(image.convert("RGB")))


def test_transparency_is_composited_over_white():
    clear = Image.fromarray(smooth()).convert("RGBA")
    clear.putalpha(0)
    for mode in ("RGBA", "LA"):
        assert load_image(encode(clear.convert(mode), "PNG")).min() == 255
    half_red = Image.new("RGBA", (2, 2), (255, 0, 0, 128))
    assert load_image(encode(half_red, "PNG"))[0, 0].tolist() == [255, 127, 127]
    palette = Image.new("P", (4, 4))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    pixels = load_image(encode(palette, "PNG", transparency=0))
    assert pixels[0, :2].tolist() == [[255, 255, 255], [0, 0, 255]]


def test_16_bits_are_scaled_and_not_truncated():
    gray = Image.fromarray(np.array([[0, 257, 32768, 65535]], np.uint16))
    for kind in ("PNG", "TIFF"):
        expected = [[level] * 3 for level in (0, 1, 128, 255)]
        assert load_image(encode(gray, kind))[0].tolist() == expected
    assert load_image(COLOR_16).tolist() == [[[0, 0x12, 255], [255, 0, 0x80]]]


def test_float_pixels_are_scaled_if_their_range_is_known():
    def load(values):
        return load_image(encode(Image.fromarray(np.array([values], np.float32)), "TIFF"))

    assert load([0, 0.5, 1, np.nan])[0, :, 0].tolist() == [0, 128, 255, 0]
    assert load([0, 1, 254.6, np.nan])[0, :, 0].tolist() == [0, 1, 255, 0]
    for values in ([0, 256], [-1, 1], [0, np.inf]):
        with pytest.raises(DataError, match="unsupported: float pixels from"):
            load(values)
    with pytest.raises(DataError, match="no known range"):
        load_image(encode(Image.fromarray(np.ones((4, 4), np.int32)), "TIFF"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_as_pillow_applies_it(orientation, by_pillow):
    data = encode(noise(6, 9), "PNG", exif=orientation_exif(orientation))
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(load_image(data), np.asarray(ImageOps.exif_transpose(image)))
    data = encode(smooth(13, 22), "JPEG", exif=orientation_exif(orientation))
    assert read_jpeg_header(data).has_metadata
    np.testing.assert_array_equal(load_image(data), by_pillow(data))
    assert load_image(data).shape == ((13, 22, 3) if orientation < 5 else (22, 13, 3))


def test_an_orientation_that_only_xmp_has_is_applied(by_pillow):
    xmp = b"<x xmlns:tiff='t' tiff:Orientation=\"6\"/>"
    data = encode(smooth(13, 22), "JPEG", xmp=xmp)
    assert load_image(data).shape == (22, 13, 3)
    np.testing.assert_array_equal(load_image(data), by_pillow(data))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation_is_used(kind):
    red, blue = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(red, kind, save_all=True, append_images=[blue] * 3, **options)
    assert load_image(data)[4, 4].tolist() == [255, 0, 0]


# JPEG


def plain_jpegs() -> list[bytes]:
    """Return gray and color, all subsamplings, baseline and progressive, odd sizes, 2 qualities."""
    sizes = ((1, 1), (7, 5), (16, 16), (33, 47))
    files = []
    for make, size, quality in itertools.product((smooth, noise), sizes, (30, 90)):
        image = Image.fromarray(make(*size))
        for progressive in (False, True):
            options = {"quality": quality, "progressive": progressive}
            files.append(encode(image.convert("L"), "JPEG", **options))
            files += [encode(image, "JPEG", subsampling=s, **options) for s in range(3)]
    files.append(encode(smooth(33, 47), "JPEG", restart_marker_blocks=2))
    files.append(encode(smooth(33, 47), "JPEG", keep_rgb=True))
    return files


def damage(data: bytes, draw: random.Random) -> bytes:
    """Mutate a JPEG at a random place in a random way."""
    at = draw.randrange(2, len(data))
    inserted = bytes(draw.randrange(256) for _ in range(draw.randrange(1, 9)))
    return draw.choice(
        [
            data[: max(3, at)],
            data[:at] + inserted + data[at + len(inserted) :],
            data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :],
            data[:at] + inserted + data[at:],
            data[:at] + data[at + len(inserted) :],
            data[: at + 99] + data[at:],
            data[:at] + b"\xff\xd9" + data[at:],
            data[:at] + b"\xff\xd9",
        ]
    )


def test_every_kind_of_plain_jpeg_has_pillow_s_pixels(by_pillow):
    for data in plain_jpegs():
        pixels = decode_plain_jpeg(data, read_jpeg_header(data))
        np.testing.assert_array_equal(pixels, by_pillow(data))
        np.testing.assert_array_equal(load_image(data), pixels)


def test_damage_has_the_same_outcome_with_and_without_the_fast_decoder(by_pillow, capfd):
    draw, files, refused = random.Random(0), plain_jpegs(), 0
    for _ in range(200):
        data = damage(draw.choice(files), draw)
        fast, slow = outcome(data), by_pillow(data)
        assert type(fast) is type(slow), (fast, slow)
        np.testing.assert_array_equal(fast, slow)
        refused += isinstance(fast, str)
    assert 20 < refused < 180  # enough of either kind
    assert capfd.readouterr() == ("", "")  # libjpeg prints warnings to stderr


def test_of_a_cut_jpeg_only_the_end_marker_may_be_missing():
    data = encode(noise(16, 16), "JPEG")
    accepted = [cut for cut in range(len(data)) if not isinstance(outcome(data[:cut]), str)]
    assert accepted == [len(data) - 2, len(data) - 1]
    np.testing.assert_array_equal(load_image(data[:-2]), load_image(data))


def test_a_progressive_jpeg_without_its_last_scans_is_truncated():
    data = encode(smooth(), "JPEG", progressive=True)
    scans = [at for at in range(len(data)) if data.startswith(b"\xff\xda", at)]
    assert len(scans) > 5
    for cut in (*scans[1:], len(data) - 2):
        assert outcome(data[:cut]) == "truncated"


@pytest.mark.parametrize("mode", ["CMYK", "YCCK"])
def test_a_jpeg_of_four_channels_is_left_to_pillow(mode):
    data = encode(Image.fromarray(smooth()).convert("CMYK"), "JPEG")
    if mode == "YCCK":  # as Photoshop writes it: an Adobe segment with another transform
        at = data.index(b"Adobe")
        data = data[: at + 11] + b"\x02" + data[at + 12 :]
    assert read_jpeg_header(data) is None
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(load_image(data), np.asarray(image.convert("RGB")))


def test_a_jpeg_with_a_second_image_in_it_is_left_to_pillow():
    first, second = Image.fromarray(smooth()), Image.fromarray(noise())
    data = encode(first, "MPO", save_all=True, append_images=[second])
    assert read_jpeg_header(data) is None
    np.testing.assert_array_equal(load_image(data), load_image(encode(first, "JPEG")))
    assert read_image(data).notes == ()  # a preview or a depth map is no frame


def test_size_and_scans_are_checked_before_a_jpeg_is_decoded(monkeypatch):
    monkeypatch.setattr(decode, "decode_plain_jpeg", lambda *_: pytest.fail("decoded"))
    data = encode(smooth(), "JPEG")
    at = data.index(b"\xff\xc0")
    with pytest.raises(DataError, match="too large: 65500x65500"):
        read_image(data[: at + 5] + b"\xff\xdc\xff\xdc" + data[at + 9 :])
    data = encode(smooth(), "JPEG", progressive=True)
    assert 5 <= count_scans(data) <= 20
    with pytest.raises(DataError, match="too slow"):
        read_image(data[:-2] + data[data.rindex(b"\xff\xda") : -2] * 200 + b"\xff\xd9")


def test_scan_markers_in_metadata_and_after_the_end_do_not_count():
    data = encode(smooth(), "JPEG", progressive=True, comment=b"\xff\xda" * 500)
    assert load_image(data + b"\xff\xda" * 500).shape == (48, 64, 3)


def test_too_little_memory_is_a_reason(monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(decode, "decode_plain_jpeg", fail)
    assert outcome(encode(smooth(), "JPEG")) == "too large for the memory"


# Huge JPEGs, and more formats


@pytest.fixture
def small_limits(monkeypatch):
    """Let 40,000 pixels be as many as 64 million, and a side of 16 px as long as 1,024."""
    monkeypatch.setattr(decode, "MAX_PIXELS", 40_000)
    monkeypatch.setattr(decode, "MAX_JPEG_PIXELS", 160_000)
    monkeypatch.setattr(decode, "_REDUCED_SIDE_PX", 16)


@pytest.mark.parametrize(
    "size, expected", [((300, 400), (38, 50)), ((120, 400), (30, 100)), ((40, 2000), (20, 1000))]
)
@pytest.mark.parametrize("by", ["simplejpeg", "Pillow"])
def test_a_huge_jpeg_is_decoded_at_a_fraction_of_its_size(
    size, expected, by, small_limits, monkeypatch
):
    if by == "Pillow":
        monkeypatch.setattr(decode, "read_jpeg_header", lambda data: None)
    pixels = np.asarray(Image.fromarray(smooth()).resize(size[::-1]))
    got = read_image(encode(pixels, "JPEG", quality=95, exif=orientation_exif(3)))
    assert got.pixels.shape == (*expected, 3)
    assert set(got.notes) == {decode.REDUCED, decode.TURNED}
    small = np.asarray(Image.fromarray(pixels).resize(expected[::-1], Image.Resampling.BOX))
    assert np.abs(got.pixels.astype(int) - small[::-1, ::-1]).mean() < 3


def test_a_jpeg_beyond_the_limit_for_huge_ones_is_refused(small_limits):
    for pixels, options in ((noise(401, 400), {}), (noise(201, 400), {"progressive": True})):
        with pytest.raises(DataError, match="too large: .* at most 160,000 pixels"):
            read_image(encode(pixels, "JPEG", **options))
    with pytest.raises(DataError, match="too large: .* at most 40,000 pixels"):
        read_image(encode(noise(201, 200), "PNG"))


@pytest.mark.parametrize(
    "bands, kind, text",
    [(13, np.uint16, "13 bands of 16 bits"), (5, np.uint8, "5 bands of 8 bits")],
)
def test_a_tiff_of_many_bands_is_named_as_such(bands, kind, text, capfd):
    with pytest.raises(DataError, match=f"^unsupported: {text}; save three of them as RGB$"):
        read_image(raw_tiff(np.zeros((4, 6, bands), kind)))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_fourth_band_is_not_alpha_unless_the_file_says_so(kind):
    bands = np.full((4, 6, 4), 200, kind) * (257 if kind is np.uint16 else 1)
    bands[..., 3] = 0
    image = read_image(raw_tiff(bands, photometric=2))
    assert (image.pixels == 200).all() and image.notes[-1:] != (WHITE,)


def test_avif_and_heic_are_read():
    pillow_heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(smooth())).save(file, quality=95)
    for data in (encode(smooth(), "AVIF", quality=95), file.getvalue()):
        image = read_image(data)
        assert np.abs(image.pixels.astype(int) - smooth()).mean() < 4 and image.notes == ()


def test_heic_without_its_package_names_the_way_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(DataError, match=r"unsupported: HEIC needs .*'vggjax\[heif\]'"):
        read_image(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99))


def test_transparency_is_laid_over_the_background():
    drawing = Image.new("L", (8, 8), 255)
    drawing.putalpha(Image.fromarray(np.diag([255] * 8).astype(np.uint8)))
    white = read_image(encode(drawing, "PNG"))
    assert white.pixels.min() == 255 and white.notes == (GRAY, WHITE, BLANK)
    black = read_image(encode(drawing, "PNG"), Rendering(background="black"))
    np.testing.assert_array_equal(black.pixels[..., 0], np.diag([255] * 8))
    assert black.notes == (GRAY, decode.TRANSPARENT.format("black"))


# Notes


def image(mode="RGB") -> Image.Image:
    return Image.fromarray(smooth()).convert(mode)


def transparent(mode: str, alpha: int) -> Image.Image:
    rgba = image("RGBA")
    rgba.putalpha(alpha)
    return rgba.convert(mode)


def flawed_jpeg() -> bytes:
    data = encode(noise(256, 256), "JPEG")
    return data[:20_000] + bytes(range(1, 65)) + data[20_064:]


COLOR_16 = raw_png(2, 1, struct.pack(">x6H", 0, 0x1234, 0xFFFF, 0xFF00, 0x00FF, 0x8000), bits=16)
IMAGE_16 = Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20) * 150)
FRAMES = {"save_all": True, "append_images": [Image.fromarray(noise())] * 2}
BROKEN_EXIF = b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\xff" * 40
GRAY, GRAY_16, WHITE = decode.GRAY, depth.GRAY_16, decode.TRANSPARENT.format("white")
BLANK = decode.BLANK.format("white")
TURNED, FIRST = decode.TURNED, decode.FIRST
CASES = {
    "plain JPEG": (encode(image(), "JPEG"), ()),
    "progressive JPEG": (encode(image(), "JPEG", progressive=True), ()),
    "upright JPEG": (encode(image(), "JPEG", exif=orientation_exif(1)), ()),
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
    "transparent color": (encode(image("P"), "PNG", transparency=bytes(256)), (WHITE, BLANK)),
    "16-bit PNG": (encode(IMAGE_16, "PNG"), (GRAY_16, GRAY)),
    "16-bit TIFF": (encode(IMAGE_16, "TIFF"), (GRAY_16, GRAY)),
    "16-bit color": (COLOR_16, (depth.COLOR_16,)),
    "float": (encode(image("F"), "TIFF"), (depth.FLOAT, GRAY)),
    "CMYK JPEG": (encode(image("CMYK"), "JPEG"), ("CMYK made RGB",)),
    "CMYK TIFF": (encode(image("CMYK"), "TIFF"), ("CMYK made RGB",)),
    "LAB": (encode(Image.merge("LAB", [image("L")] * 3), "TIFF"), ("LAB made RGB",)),
    "YCbCr": (encode(image("YCbCr"), "TIFF"), ("YCbCr made RGB",)),
    "GIF frames": (encode(image(), "GIF", **FRAMES), (FIRST,)),
    "WebP frames": (encode(image(), "WEBP", **FRAMES), (FIRST,)),
    "PNG frames": (encode(image(), "PNG", **FRAMES), (FIRST,)),
    "TIFF pages": (encode(image(), "TIFF", **FRAMES), (FIRST,)),
    "turned JPEG": (encode(image(), "JPEG", exif=orientation_exif(6)), (TURNED,)),
    "turned gray": (encode(image("L"), "JPEG", exif=orientation_exif(3)), (GRAY, TURNED)),
    "turned CMYK": (
        encode(image("CMYK"), "JPEG", exif=orientation_exif(8)),
        ("CMYK made RGB", TURNED),
    ),
    "turned PNG": (encode(image(), "PNG", exif=orientation_exif(2)), (TURNED,)),
    "unknown orientation": (encode(image(), "JPEG", exif=orientation_exif(9)), ()),
    "broken EXIF": (encode(image(), "JPEG", exif=BROKEN_EXIF), (decode.NO_EXIF,)),
    "no end": (encode(image(), "JPEG")[:-2], (decode.NO_END,)),
    "half an end": (encode(image("L"), "JPEG")[:-1], (GRAY, decode.NO_END)),
    "flaw": (flawed_jpeg(), (decode.FLAW,)),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=YCBCR) if name == "YCbCr" else name for name in CASES]
)
def test_an_image_s_notes_name_what_was_done_to_it(name):
    data, notes = CASES[name]
    assert read_image(data).notes == notes


# Refusals

JPEG = encode(smooth(256, 256), "JPEG")
BAD = {
    "empty": (b"", "empty file"),
    "text": (b"hello, I am text\n" * 20, "not an image"),
    "html": (b"<!DOCTYPE html><html>404</html>" * 9, "not an image: a web page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "not an image.*Git LFS"),
    "zip": (b"PK\x03\x04" + b"\0" * 99, "not an image: a ZIP archive"),
    "half_jpeg": (JPEG[: len(JPEG) // 2], "truncated"),
    "half_png": (encode(noise(), "PNG")[:3000], "truncated"),
    "jpeg_start": (JPEG[:20], "corrupt|truncated"),
    "png_start": (encode(noise(), "PNG")[:20], "corrupt|truncated"),
    "webp_start": (b"RIFF\x10\0\0\0WEBPVP8 ", "corrupt|truncated"),
    "huffman": (JPEG.replace(b"\xff\xc4", b"\xff\xc4\xff\xff\xff\xff"), "corrupt|truncated"),
    "heic": (struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic" + b"\0" * 99, "HEIC|corrupt"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n", "unsupported.*EPS"),
    "pdf": (b"%PDF-1.4\n1 0 obj<<>>endobj\ntrailer<<>>\n%%EOF", "unsupported.*PDF"),
    "svg": (b"<?xml version='1.0'?><svg width='9' height='9'/>", "unsupported.*SVG"),
    "bomb": (raw_png(9400, 9400, b"\0" * 1000), "too large: 9400x9400"),
    "bomb_with_a_warning": (raw_png(12000, 9400, b"\0"), "too large: 12000x9400"),
    "bomb_with_an_error": (raw_png(65535, 65535, b"\0"), "too large"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_with_the_reason(name, tmp_path):
    data, reason = BAD[name]
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    with pytest.raises(DataError, match=reason) as error:
        load_image(path)
    assert "\n" not in str(error.value)


def test_exactly_the_allowed_number_of_pixels_passes_the_size_check():
    assert MAX_PIXELS == 8000 * 8000
    assert "too large" not in outcome(raw_png(8000, 8000, b""))
    assert outcome(raw_png(8000, 8001, b"")).startswith("too large: 8000x8001")


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nothing")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    reasons = {
        "pipe.jpg": "not a regular file",
        "dangling.jpg": "no such file",
        "loop.jpg": "cannot be read",
        "zero.jpg": "not a regular file",
        "": "not a file",
        "null\0byte.jpg": "cannot be read",
    }
    for name, reason in reasons.items():
        with pytest.raises(DataError, match=reason):
            load_image(f"{tmp_path}/{name}")


def test_a_file_is_read_whole_however_little_comes_at_a_time(tmp_path, monkeypatch):
    path = tmp_path / "a.jpg"
    path.write_bytes(encode(noise(), "JPEG"))
    expected, read = load_image(path), os.read
    monkeypatch.setattr(os, "read", lambda file, size: read(file, min(size, 100)))
    np.testing.assert_array_equal(load_image(path), expected)


def test_pillow_s_warnings_do_not_leak_from_any_thread():
    data = encode(smooth(), "JPEG", exif=BROKEN_EXIF)
    files = [data, BAD["bomb_with_a_warning"][0], encode(Image.new("P", (4, 4)), "PNG")]
    errors: list[BaseException] = []

    def run() -> None:
        for item in files * 20:
            try:
                outcome(item)
            except BaseException as error:
                errors.append(error)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not caught and not errors
