"""The short way through plain JPEG: Pillow's pixels bit for bit, and Pillow's refusals."""

import io
import itertools
import os
import random

import numpy as np
import pytest
from PIL import Image
from test_images import encode, noise, smooth

from vggjax.data.images import decode
from vggjax.data.images.decode import decode_plain_jpeg, load_image, read_image, read_jpeg_header
from vggjax.errors import DataError

SIZES = ((1, 1), (7, 5), (16, 16), (33, 47))


@pytest.fixture
def by_pillow(monkeypatch):
    """Reads a JPEG as if there were no short way; what is refused gives its reason."""

    def read(data: bytes) -> np.ndarray | str:
        with monkeypatch.context() as patch:
            patch.setattr(decode, "read_jpeg_header", lambda data: None)
            return outcome(data)

    return read


def outcome(data: bytes) -> np.ndarray | str:
    try:
        return load_image(data)
    except DataError as error:
        return str(error)


def plain_jpegs() -> list[bytes]:
    """Gray and color, each subsampling, baseline and progressive, odd sizes, two qualities."""
    found = []
    for make, size, quality in itertools.product((smooth, noise), SIZES, (30, 90)):
        image = Image.fromarray(make(*size))
        for progressive in (False, True):
            options = {"quality": quality, "progressive": progressive}
            found.append(encode(image.convert("L"), "JPEG", **options))
            found += [encode(image, "JPEG", subsampling=s, **options) for s in range(3)]
    found.append(encode(smooth(33, 47), "JPEG", restart_marker_blocks=2))
    found.append(encode(smooth(33, 47), "JPEG", keep_rgb=True))
    return found


def damage(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(2, len(data))
    some = bytes(draw.randrange(256) for _ in range(draw.randrange(1, 9)))
    return {
        "cut": data[: max(3, at)],
        "noise": data[:at] + some + data[at + len(some) :],
        "bit": data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :],
        "more": data[:at] + some + data[at:],
        "less": data[:at] + data[at + len(some) :],
        "twice": data[: at + 99] + data[at:],
        "end": data[:at] + b"\xff\xd9" + data[at:],
        "closed": data[:at] + b"\xff\xd9",
    }[draw.choice(("cut", "noise", "bit", "more", "less", "twice", "end", "closed"))]


def test_the_short_way_gives_pillow_s_pixels_for_every_kind_of_plain_jpeg(by_pillow):
    for data in plain_jpegs():
        taken = decode_plain_jpeg(data, read_jpeg_header(data))
        np.testing.assert_array_equal(taken, by_pillow(data))
        np.testing.assert_array_equal(load_image(data), taken)


def test_damage_has_the_same_outcome_by_either_way(by_pillow, capfd):
    draw, whole, found = random.Random(0), plain_jpegs(), []
    for _ in range(600):
        data = damage(draw.choice(whole), draw)
        mine, theirs = outcome(data), by_pillow(data)
        assert type(mine) is type(theirs), (mine, theirs)
        np.testing.assert_array_equal(mine, theirs)
        found.append(isinstance(mine, str))
    assert 100 < sum(found) < 500  # of either kind enough
    assert capfd.readouterr() == ("", "")  # libjpeg likes to speak to stderr


def test_a_jpeg_cut_at_any_byte_is_never_a_image_but_for_its_end_marker():
    data = encode(noise(16, 16), "JPEG")
    read = [cut for cut in range(len(data)) if not isinstance(outcome(data[:cut]), str)]
    assert read == [len(data) - 2, len(data) - 1]


def test_a_progressive_jpeg_without_its_last_scans_is_truncated():
    data = encode(smooth(), "JPEG", progressive=True)
    scans = [at for at in range(len(data)) if data.startswith(b"\xff\xda", at)]
    assert len(scans) > 5
    for cut in (*scans[1:], len(data) - 2):
        assert outcome(data[:cut]) == "truncated"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_is_turned_as_its_exif_says(orientation, by_pillow):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(smooth(13, 22), "JPEG", exif=exif)
    assert read_jpeg_header(data).has_metadata
    np.testing.assert_array_equal(load_image(data), by_pillow(data))
    assert load_image(data).shape == ((13, 22, 3) if orientation < 5 else (22, 13, 3))


def test_a_turn_that_only_xmp_knows_is_made(by_pillow):
    xmp = b"<x xmlns:tiff='t' tiff:Orientation=\"6\"/>"
    data = encode(smooth(13, 22), "JPEG", xmp=xmp)
    assert load_image(data).shape == (22, 13, 3)
    np.testing.assert_array_equal(load_image(data), by_pillow(data))


@pytest.mark.parametrize("mode", ["CMYK", "YCCK"])
def test_four_colors_are_pillow_s(mode):
    data = encode(Image.fromarray(smooth()).convert("CMYK"), "JPEG")
    if mode == "YCCK":  # what Photoshop writes: an Adobe segment with another transform
        at = data.index(b"Adobe")
        data = data[: at + 11] + b"\x02" + data[at + 12 :]
    assert read_jpeg_header(data) is None
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(load_image(data), np.asarray(image.convert("RGB")))


def test_a_jpeg_with_a_second_image_in_it_is_pillow_s():
    first, second = Image.fromarray(smooth()), Image.fromarray(noise())
    data = encode(first, "MPO", save_all=True, append_images=[second])
    assert read_jpeg_header(data) is None
    np.testing.assert_array_equal(load_image(data), load_image(encode(first, "JPEG")))
    assert read_image(data).notes == ()  # a preview or a depth map is no frame


def test_size_and_scans_are_checked_before_the_short_way_decodes(monkeypatch):
    monkeypatch.setattr(decode, "decode_plain_jpeg", lambda *_: pytest.fail("decoded"))
    data = encode(smooth(), "JPEG")
    at = data.index(b"\xff\xc0")
    with pytest.raises(DataError, match="too large: 65500x65500"):
        read_image(data[: at + 5] + b"\xff\xdc\xff\xdc" + data[at + 9 :])
    data = encode(smooth(), "JPEG", progressive=True)
    with pytest.raises(DataError, match="too slow"):
        read_image(data[:-2] + data[data.rindex(b"\xff\xda") : -2] * 200 + b"\xff\xd9")


def test_no_memory_for_the_pixels_is_a_reason(monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(decode, "decode_plain_jpeg", fail)
    with pytest.raises(DataError, match="too large for the memory"):
        read_image(encode(smooth(), "JPEG"))


def test_a_file_is_read_whole_however_little_comes_at_a_time(tmp_path, monkeypatch):
    path = tmp_path / "a.jpg"
    path.write_bytes(encode(noise(), "JPEG"))
    expected, read = load_image(path), os.read
    monkeypatch.setattr(os, "read", lambda file, size: read(file, min(size, 100)))
    np.testing.assert_array_equal(load_image(path), expected)
