"""Images of every kind that people have, and files that only look like images."""

import io
import os
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from vggjax.data.images import decode
from vggjax.data.images.decode import load_image
from vggjax.errors import DataError


def noise(height=48, width=64, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def smooth(height=48, width=64) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([y * 5 % 256, x * 4 % 256, (x + y) % 256], -1).astype(np.uint8)


def encode(image: Image.Image | np.ndarray, kind: str, **options) -> bytes:
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def raw_png(width: int, height: int, pixels: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats_give_the_pixels_that_were_saved(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(load_image(encode(noise(), kind, **options)), noise())


def test_a_jpeg_gives_what_pillow_gives():
    data = encode(smooth(), "JPEG")
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(load_image(data), np.asarray(image))


def test_a_file_is_told_by_its_content_and_not_by_its_name(tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(encode(noise(), "PNG"))
    np.testing.assert_array_equal(load_image(path), noise())


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr"])
def test_other_modes_become_rgb_as_pillow_converts_them(mode):
    image = Image.fromarray(smooth()).convert(mode)
    kind = "PNG" if mode in ("L", "1", "P") else "TIFF"
    np.testing.assert_array_equal(load_image(encode(image, kind)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_over_white(mode):
    image = Image.fromarray(smooth()).convert("RGBA")
    image.putalpha(0)
    assert load_image(encode(image.convert(mode), "PNG")).min() == 255


def test_a_palette_with_one_transparent_color_is_laid_over_white():
    image = Image.new("P", (4, 4))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    loaded = load_image(encode(image, "PNG", transparency=0))
    assert loaded[0, 0].tolist() == [255, 255, 255] and loaded[0, 1].tolist() == [0, 0, 255]


def test_half_transparent_red_is_pink():
    image = Image.new("RGBA", (2, 2), (255, 0, 0, 128))
    assert load_image(encode(image, "PNG"))[0, 0].tolist() == [255, 127, 127]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_gray_is_scaled_and_not_cut_off(kind):
    gray = np.array([[0, 257, 32768, 65535]], np.uint16)
    loaded = load_image(encode(Image.fromarray(gray), kind))
    assert loaded[0].tolist() == [[0] * 3, [1] * 3, [128] * 3, [255] * 3]


@pytest.mark.parametrize("values", [[0, 256], [-1, 1], [0, np.inf]])
def test_float_pixels_of_no_known_range_are_refused(values):
    with pytest.raises(DataError, match="unsupported: float pixels from"):
        load_image(encode(Image.fromarray(np.array([values], np.float32)), "TIFF"))


def test_32_bit_pixels_are_refused():
    with pytest.raises(DataError, match="no known range"):
        load_image(encode(Image.fromarray(np.ones((4, 4), np.int32)), "TIFF"))


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0, 0.5, 1, np.nan], [0, 128, 255, 0]), ([0, 1, 254.6, np.nan], [0, 1, 255, 0])],
)
def test_float_pixels_of_0_to_1_or_0_to_255_are_scaled(values, expected):
    loaded = load_image(encode(Image.fromarray(np.array([values], np.float32)), "TIFF"))
    assert loaded[0].tolist() == [[value] * 3 for value in expected]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_camera_s_rotation_is_applied_as_pillow_applies_it(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(noise(6, 9), "PNG", exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(load_image(data), np.asarray(ImageOps.exif_transpose(image)))


def test_a_damaged_exif_block_turns_nothing():
    data = encode(smooth(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\xff" * 40)
    assert load_image(data).shape == (48, 64, 3)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_gives_its_first_frame(kind):
    red, blue = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(red, kind, save_all=True, append_images=[blue] * 3, **options)
    assert load_image(data)[4, 4].tolist() == [255, 0, 0]


JPEG = encode(smooth(256, 256), "JPEG")
BAD = {
    "empty": (b"", "empty file"),
    "text": (b"hello, I am text\n" * 20, "not an image"),
    "html": (b"<!DOCTYPE html><html>404</html>" * 9, "not an image"),
    "half_jpeg": (JPEG[: len(JPEG) // 2], "truncated"),
    "half_png": (encode(noise(), "PNG")[:3000], "truncated"),
    "jpeg_start": (JPEG[:20], "corrupt|truncated"),
    "png_start": (encode(noise(), "PNG")[:20], "corrupt|truncated"),
    "huffman": (JPEG.replace(b"\xff\xc4", b"\xff\xc4\xff\xff\xff\xff"), "corrupt|truncated"),
    "heic": (struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic" + b"\0" * 99, "unsupported.*HEIC"),
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


def test_a_image_of_as_many_pixels_as_are_allowed_is_read(monkeypatch):
    monkeypatch.setattr(decode, "MAX_PIXELS", 48 * 64)
    assert load_image(encode(noise(48, 64), "PNG")).shape == (48, 64, 3)
    with pytest.raises(DataError, match="too large"):
        load_image(encode(noise(48, 65), "PNG"))


def test_a_jpeg_that_lacks_only_its_end_marker_is_read():
    np.testing.assert_array_equal(load_image(JPEG[:-2]), load_image(JPEG))


def test_a_jpeg_that_lacks_a_little_more_is_refused():
    with pytest.raises(DataError, match="truncated"):
        load_image(encode(noise(256, 256), "JPEG")[:-40])


def test_a_jpeg_of_hundreds_of_scans_is_refused_before_it_is_decoded():
    data = encode(smooth(), "JPEG", progressive=True)
    assert 5 <= decode.count_scans(data) <= 20
    last = data.rindex(b"\xff\xda")
    with pytest.raises(DataError, match="too slow"):
        load_image(data[:-2] + data[last:-2] * 200 + b"\xff\xd9")


def test_scan_markers_in_metadata_and_behind_the_end_do_not_count():
    data = encode(smooth(), "JPEG", progressive=True, comment=b"\xff\xda" * 500)
    assert load_image(data + b"\xff\xda" * 500).shape == (48, 64, 3)


def test_what_is_no_regular_file_is_refused_and_never_waited_for(tmp_path):
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


def test_pillow_s_warnings_do_not_leak_from_any_thread():
    data = encode(smooth(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\xff" * 40)
    bad = [data, BAD["bomb_with_a_warning"][0], encode(Image.new("P", (4, 4)), "PNG")]
    caught: list[BaseException] = []

    def run() -> None:
        for _ in range(20):
            for item in bad:
                try:
                    load_image(item)
                except DataError:
                    pass
                except BaseException as error:
                    caught.append(error)

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not seen and not caught
