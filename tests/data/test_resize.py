"""The compiled resize gives the installed Pillow's pixels, on every instruction set it knows."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from support.image_files import noise

from vggjax.data.images import resize as resize_module
from vggjax.data.images.resize import resize
from vggjax.models.kernels.library import kernel_choices, kernels_in_use

SIZES = (1, 2, 3, 7, 16, 31, 64, 97, 224)
FILTERS = ("bilinear", "bicubic")


def by_pillow(image, size, filter, box=None) -> np.ndarray:
    resampling = Image.Resampling[filter.upper()]
    return np.asarray(Image.fromarray(image).resize(size[::-1], resampling, box=box))


@pytest.fixture(params=kernel_choices())
def kernels(request, monkeypatch):
    """Force each way to resize that this machine has."""
    monkeypatch.setenv("VGGJAX_KERNELS", request.param)
    assert resize_module.is_compiled() == (request.param != "numpy")
    assert kernels_in_use() == request.param


@pytest.mark.parametrize("filter", FILTERS)
def test_any_size_to_any_other_is_pillow_s(kernels, filter):
    rng = np.random.default_rng(7)
    for height, width in itertools.product(SIZES, SIZES):
        image, size = noise(height, width), tuple(int(s) for s in rng.choice(SIZES, 2))
        resized = resize(image, size, filter=filter)
        np.testing.assert_array_equal(resized, by_pillow(image, size, filter), str(size))


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((375, 500), (224, 224)),
        ((1200, 1600), (32, 32)),
        ((1500, 40), (20, 30)),
        ((5, 900), (9, 9)),
    ],
)
def test_photographs_are_pillow_s(kernels, shape, size, filter):
    image = noise(*shape)
    np.testing.assert_array_equal(
        resize(image, size, filter=filter), by_pillow(image, size, filter)
    )


@pytest.mark.parametrize("filter", FILTERS)
def test_a_box_with_fractions_is_pillow_s(kernels, filter):
    rng = np.random.default_rng(3)
    for seed in range(40):
        height, width, *size = (int(s) for s in rng.integers(1, 120, 4))
        (left, right), (top, bottom) = (np.sort(rng.uniform(0, s, 2)) for s in (width, height))
        image, box = noise(height, width, seed), (left, top, right, bottom)
        resized = resize(image, tuple(size), filter=filter, box=box)
        np.testing.assert_array_equal(resized, by_pillow(image, size, filter, box))


@pytest.mark.parametrize("filter", FILTERS)
def test_the_extremes_are_clipped_as_pillow_clips_them(kernels, filter):
    checks = np.indices((60, 45)).sum(0)[..., None].repeat(3, 2) // 5 % 2 * 255
    for image in (checks.astype(np.uint8), np.full((60, 45, 3), 255, np.uint8)):
        for size in ((200, 200), (17, 13)):
            resized = resize(image, size, filter=filter)
            np.testing.assert_array_equal(resized, by_pillow(image, size, filter))


@pytest.mark.parametrize("filter", resize_module.FILTERS)
def test_it_writes_its_place_and_no_byte_beside(filter):
    for size in ((5, 3), (11, 17), (32, 32)):
        around = np.full((size[0] + 2, size[1] + 2, 3), 7, np.uint8)
        place = around[1:-1, 1:-1]
        image = noise(48, 64)
        assert resize(image, size, filter=filter, out=place) is place
        np.testing.assert_array_equal(place, by_pillow(image, size, filter))
        around[1:-1, 1:-1] = 7
        assert (around == 7).all()


def test_views_of_any_kind_are_read_and_written():
    image = noise(60, 80)
    for view in (image[5:40, 9:61], image[::-1], image[:, ::2], image.transpose(1, 0, 2)):
        expected = by_pillow(np.ascontiguousarray(view), (24, 20), "bilinear")
        np.testing.assert_array_equal(resize(view, (24, 20), filter="bilinear"), expected)
        turned = np.empty((20, 24, 3), np.uint8).transpose(1, 0, 2)
        np.testing.assert_array_equal(
            resize(view, (24, 20), filter="bilinear", out=turned), expected
        )


def test_threads_that_resize_at_once_do_not_meet():
    shapes = [(40 + i % 7, 90 - i % 5) for i in range(60)]
    with ThreadPoolExecutor(4) as pool:
        resized = pool.map(lambda s: resize(noise(*s), (33, 21), filter="bicubic"), shapes)
        for shape, one in zip(shapes, resized, strict=True):
            np.testing.assert_array_equal(one, by_pillow(noise(*shape), (33, 21), "bicubic"))


@pytest.mark.parametrize("box", [(-1, 0, 5, 5), (0, 0, 65, 5), (5, 0, 4, 9), (0, 0, 5, 48.1)])
@pytest.mark.parametrize("filter", FILTERS)
def test_a_box_outside_the_image_is_refused(box, filter):
    with pytest.raises(ValueError, match="[Bb]ox"):
        resize(noise(48, 64), (8, 8), filter=filter, box=box)


def test_what_is_no_image_is_refused():
    for image in (noise(4, 4).astype(np.float32), noise(4, 4)[..., :2], noise(4, 4)[0]):
        with pytest.raises((ValueError, TypeError)):
            resize(image, (8, 8), filter="bilinear")
