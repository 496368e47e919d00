"""Pixels of more than 8 bits: scaled by their full range, or by the one that is given."""

import numpy as np
import pytest
from PIL import Image
from support.image_files import encode, raw_png

from vggjax.data.images import depth
from vggjax.data.images.decode import Rendering, read_image
from vggjax.errors import DataError

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)
"""A scanner's 12 bits."""


def tiff(numbers: np.ndarray, **options) -> bytes:
    return encode(Image.fromarray(numbers), "TIFF", **options)


def pnm(kind: str, numbers: np.ndarray, most: int) -> bytes:
    height, width = numbers.shape[:2]
    head = f"{kind}\n# a comment\n{width} {height}\n{most}\n".encode()
    return head + numbers.astype(">u2").tobytes()


GRAY = {
    "PNG": encode(Image.fromarray(RAMP), "PNG"),
    "TIFF": tiff(RAMP),
    "PGM": pnm("P5", RAMP, 65535),
}


@pytest.mark.parametrize("kind", GRAY)
def test_twelve_bits_leave_17_levels_unless_their_range_is_given(kind):
    whole, ranged = (read_image(GRAY[kind], Rendering(pixel_range=r)) for r in (None, (0, 4095)))
    assert len(np.unique(whole.pixels)) == 17
    assert len(np.unique(ranged.pixels)) == 256
    expected = np.rint(RAMP / 4095 * 255).astype(np.uint8)
    np.testing.assert_array_equal(ranged.pixels, np.repeat(expected[..., None], 3, -1))
    assert ranged.extent == (0, 4095) and ranged.notes[0] == depth.GRAY_16


def color(alpha: bool = False) -> np.ndarray:
    planes = [RAMP, RAMP[::-1], RAMP.T, np.full_like(RAMP, 0xFFFF)]
    return np.stack(planes[: 4 if alpha else 3], -1)


def color_png(numbers: np.ndarray) -> bytes:
    height, width, bands = numbers.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in numbers)
    return raw_png(width, height, rows, bits=16, color={3: 2, 4: 6}[bands])


@pytest.mark.parametrize(
    "data", [color_png(color()), color_png(color(True)), pnm("P6", color(), 65535)]
)
def test_color_of_16_bits_keeps_both_bytes_in_a_given_range(data):
    image = read_image(data, Rendering(pixel_range=(0, 4095)))
    np.testing.assert_array_equal(image.pixels, np.rint(color() / 4095 * 255).astype(np.uint8))
    assert image.extent == (0, 4095)


def test_gray_with_alpha_of_16_bits_keeps_both_bytes_in_a_given_range():
    planes = np.stack([RAMP, np.full_like(RAMP, 0xFFFF)], -1)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in planes)
    data = raw_png(64, 64, rows, bits=16, color=4)
    image = read_image(data, Rendering(pixel_range=(0, 4095)))
    expected = np.rint(RAMP / 4095 * 255)[..., None]
    np.testing.assert_array_equal(image.pixels, np.repeat(expected, 3, -1))
    assert image.extent == (0, 4095) and image.notes[0] == depth.GRAY_16


def test_a_pgm_is_scaled_by_its_own_maximum():
    image = read_image(pnm("P5", RAMP, 4095))
    np.testing.assert_array_equal(image.pixels[..., 0], np.rint(RAMP / 4095 * 255))
    with pytest.raises(DataError, match="truncated"):
        read_image(pnm("P5", RAMP, 4095)[:-1])


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_numbers_without_a_known_range_need_one(dtype):
    data = tiff(RAMP.astype(dtype) - 1000)
    with pytest.raises(DataError, match="from -1000 to 3095.*`pixel_range`"):
        read_image(data)
    image = read_image(data, Rendering(pixel_range=(-1000, 3095)))
    assert len(np.unique(image.pixels)) == 256 and image.extent == (-1000, 3095)


def test_numbers_beyond_the_range_are_clipped():
    image = read_image(GRAY["PNG"], Rendering(pixel_range=(1000, 2000)))
    assert (image.pixels[RAMP <= 1000] == 0).all() and (image.pixels[RAMP >= 2000] == 255).all()


def test_a_few_outliers_do_not_count_as_the_extent():
    marked = RAMP.copy()
    marked[0, 0] = 65535
    low, high = read_image(
        encode(Image.fromarray(marked), "PNG"), Rendering(pixel_range=(0, 1))
    ).extent
    assert low >= 0 and 4000 < high <= 4095


@pytest.mark.parametrize("mark", [-9999, -3.4e38, 65535])
def test_a_number_for_pixels_without_data_does_not_count_as_the_extent(mark):
    numbers = np.linspace(10, 300, 4096, dtype=np.float32).reshape(64, 64)
    numbers[:5] = mark
    image = read_image(tiff(numbers), Rendering(pixel_range=(0, 1)))
    assert image.extent == pytest.approx((numbers[5, 0], 300))
    # Two numbers, or a few, may be all that there is.
    few = np.where(numbers == mark, 0, 65535).astype(np.uint16)
    assert read_image(tiff(few), Rendering(pixel_range=(0, 1))).extent == (0, 65535)
