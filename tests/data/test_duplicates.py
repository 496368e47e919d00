"""Duplicates: equal pixels, and the same photograph re-encoded, cropped or brightened."""

import itertools
import time

import numpy as np
import pytest
import scipy.fft
from PIL import Image
from support.scenes import saved, scene

from vggjax.data.images.decode import DecodedImage
from vggjax.data.quality import duplicates
from vggjax.data.quality.duplicates import Duplicates, find_duplicates
from vggjax.data.quality.similarity import (
    hash_frequencies,
    image_signature,
    is_near_duplicate,
    turn_frequencies,
    upright_turns,
)
from vggjax.data.sources.open import open_source
from vggjax.data.sources.source import Source
from vggjax.errors import DataError

KINDS = ("exact", "near", "turned")


def source_of(images: list[np.ndarray | str], labels: list[int] | None = None) -> Source:
    """Return a dataset without files; a text is the reason why that image is unreadable."""

    def read(i: int) -> DecodedImage:
        if isinstance(images[i], str):
            raise DataError(images[i])
        return DecodedImage(images[i])

    labels = np.asarray(labels or [0] * len(images), np.int32)
    ids = [f"train/{i}" for i in range(len(images))]
    return Source("made", ("a", "b"), labels, ids, None, read, "")


def find(*images: np.ndarray | str, **options) -> Duplicates:
    return find_duplicates(source_of(list(images)), **options)


def resized(image: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def brightened(image: np.ndarray, times: float) -> np.ndarray:
    return np.clip(image * times, 0, 255).astype(np.uint8)


def test_equal_pixels_are_one_group_numbered_by_its_smallest_index():
    result = find(scene(0), scene(1), scene(0), scene(2), scene(1), scene(0))
    assert result.groups.tolist() == [0, 1, 0, 3, 1, 0] and result.groups.dtype == np.int64
    assert result.exact_groups.tolist() == [0, 1, 0, 3, 1, 0]
    assert (result.exact, result.near) == (3, 0)
    assert result.members(result.groups) == [[0, 2, 5], [1, 4]]


def test_a_change_of_one_pixel_makes_a_near_duplicate():
    other = scene(0).copy()
    other[5, 5, 2] ^= 1
    result = find(scene(0), other)
    assert (result.exact, result.near) == (0, 1)
    assert result.groups.tolist() == [0, 0] and result.exact_groups.tolist() == [0, 1]


def test_equal_bytes_in_another_shape_are_not_a_duplicate():
    flat = np.full((4, 6, 3), 9, np.uint8)
    assert find(flat, flat.reshape(6, 4, 3)).exact == 0


CHANGES = {
    "JPEG of quality 30": lambda x: saved(x, 30),
    "half the size": lambda x: resized(x, 64, 64),
    "twice the size": lambda x: resized(x, 256, 256),
    "squashed": lambda x: resized(x, 128, 90),
    "3 % cut off each side": lambda x: x[4:-4, 4:-4],
    "5 % cut off the left": lambda x: x[:, 6:],
    "4 % cut off the top": lambda x: x[5:],
    "brighter by 15 %": lambda x: brightened(x, 1.15),
    "darker by 15 %": lambda x: brightened(x, 0.85),
    "all of it": lambda x: saved(resized(brightened(x[2:, 2:], 0.9), 100, 100), 60),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_photograph_is_a_near_duplicate_after(change):
    scenes = [scene(seed) for seed in range(20)]
    result = find(*scenes, *(CHANGES[change](image) for image in scenes))
    together = sum(result.groups[20 + i] == i for i in range(20))
    assert together >= 17 and result.exact == 0  # see the rates in similarity.py
    assert result.near == together  # no other scene is taken for it


@pytest.mark.parametrize(
    "other",
    [
        lambda x: 255 - x,
        lambda x: x[:, ::-1],
        lambda x: x[20:-20, 20:-20],
        lambda x: np.rot90(x),
    ],
    ids=["negative", "mirrored", "center crop", "rotated"],
)
def test_a_transformed_image_is_not_a_near_duplicate(other):
    scenes = [scene(seed) for seed in range(10)]
    assert find(*scenes, *(other(image) for image in scenes)).near == 0


TURNED = {
    "mirrored": lambda x: x[:, ::-1],
    "upside down": lambda x: x[::-1],
    "half a turn": lambda x: x[::-1, ::-1],
    "a quarter to the left": np.rot90,
    "a quarter to the right": lambda x: np.rot90(x, -1),
    "transposed": lambda x: x.transpose(1, 0, 2),
    "transposed and half a turn": lambda x: x.transpose(1, 0, 2)[::-1, ::-1],
}


@pytest.mark.parametrize("turn", TURNED)
@pytest.mark.parametrize(
    "change",
    [
        lambda x: x,
        lambda x: saved(x, 40),
        lambda x: brightened(resized(x, 100, 90), 0.85),
        lambda x: x[3:-3, 3:-3],
    ],
    ids=["exactly", "saved again", "smaller and darker", "cropped"],
)
def test_a_mirrored_or_rotated_copy_is_found_and_is_no_near_duplicate(turn, change):
    scenes = [scene(seed) for seed in range(10)]
    result = find(*scenes, *(change(np.ascontiguousarray(TURNED[turn](x))) for x in scenes))
    together = sum(result.groups[10 + i] == i for i in range(10))
    assert together >= 9 and result.turned == together  # see the rates in similarity.py
    assert (result.exact, result.near) == (0, 0) and result.near_groups.tolist() == [*range(20)]


def test_all_eight_turns_of_one_image_are_one_group():
    image = scene(3)
    turns = [np.ascontiguousarray(turn(image)) for turn in TURNED.values()]
    result = find(image, *turns, saved(image, 60), image)
    assert set(result.groups.tolist()) == {0}
    assert result.counts == {"exact": 1, "near": 1, "turned": 7}


def test_drawings_on_a_plain_ground_are_not_mirrored_copies():
    drawings = []
    for top, left in itertools.product(range(4, 40, 6), repeat=2):
        drawing = np.zeros((64, 64, 3), np.uint8)
        drawing[top : top + 20, left : left + 18] = 255
        drawings.append(drawing)
    assert find(*drawings).turned == 0


def test_hundreds_of_different_scenes_have_no_near_duplicates():
    assert find(*(scene(seed, 64) for seed in range(400))).counts == dict.fromkeys(KINDS, 0)


def test_flat_images_with_noise_are_not_near_duplicates():
    rng = np.random.default_rng(0)
    dark = [rng.integers(0, 12, (64, 64, 3), np.uint8) for _ in range(30)]
    white = [255 - rng.integers(0, 6, (64, 64, 3), np.uint8) for _ in range(30)]
    assert find(*dark, *white).near == 0
    assert find(dark[0], white[0], dark[0]).exact == 1


def test_skies_with_one_gradient_are_not_near_duplicates():
    sky = np.linspace(90, 230, 96)[:, None, None] + np.linspace(0, 20, 96)[None, :, None]
    rng = np.random.default_rng(0)
    skies = [sky + rng.normal(0, 4, (96, 96, 3)) for _ in range(30)]
    assert find(*(np.clip(image, 0, 255).astype(np.uint8) for image in skies)).near == 0


def detailed(seed: int) -> np.ndarray:
    """Draw a scene with as much contrast in its details as in its large shapes."""
    fine = np.random.default_rng(seed).integers(0, 256, (22, 22, 3), np.uint8)
    fine = np.asarray(Image.fromarray(fine).resize((128, 128), Image.Resampling.BICUBIC), float)
    return (0.5 * scene(seed) + 0.5 * fine).astype(np.uint8)


@pytest.mark.parametrize("cut", [(3, 3, 3, 3), (0, 0, 6, 0), (6, 0, 0, 0), (0, 5, 0, 0)])
def test_a_cropped_image_with_many_details_is_aligned_with_the_original(cut):
    top, bottom, left, right = cut
    scenes = [detailed(seed) for seed in range(30)]
    cropped = [image[top : 128 - bottom, left : 128 - right] for image in scenes]
    thumbs = [np.stack([image_signature(x)[1] for x in part]) for part in (scenes, cropped)]
    assert is_near_duplicate(*thumbs).sum() >= 20


def test_a_blend_of_two_images_is_not_a_near_duplicate():
    one, other = (np.stack([scene(seed + k) for seed in range(30)]) for k in (0, 100))
    mixed = (0.6 * one + 0.4 * other).astype(np.uint8)
    thumbs = [np.stack([image_signature(x)[1] for x in part]) for part in (one, mixed)]
    assert is_near_duplicate(*thumbs).sum() == 0


def test_an_object_on_a_white_background_is_a_near_duplicate_of_its_copy():
    def product(seed: int) -> np.ndarray:
        image = np.full((128, 128, 3), 255, np.uint8)
        image[36:92, 40:88] = scene(seed, 56)[:, :48]
        return image

    products = [product(seed) for seed in range(20)]
    assert find(*products, *(saved(image, 40) for image in products)).near >= 19


def test_pages_of_one_form_with_other_text_are_not_near_duplicates():
    form = np.full((160, 120, 3), 250, np.uint8)
    form[:40] = (20, 40, 160)
    form[40:, :30] = 200

    def page(seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        text = Image.fromarray(rng.integers(0, 60, (40, 30), np.uint8)).resize((120, 160))
        return form - np.minimum(form, np.asarray(text)[..., None])

    pages = [page(seed) for seed in range(30)]
    assert find(*pages).near == 0
    assert find(*pages, *(saved(image, 50) for image in pages)).near == 30


def test_images_below_32_px_have_exact_duplicates_only():
    small = scene(0, 31)
    other = brightened(small, 1.05)
    assert find(small, other).near == 0 and find(small, other, small).exact == 1
    assert image_signature(scene(0, 31)) is None and image_signature(scene(0, 32)) is not None
    assert find_duplicates(open_source("digits")).near == 0


@pytest.mark.parametrize("size", [(64, 64), (32, 33), (100, 47), (128, 90)])
def test_a_signature_averages_areas_and_compares_frequencies_with_their_median(size):
    height, width = size
    pixels = scene(1)[:height, :width]
    gray = np.asarray(Image.fromarray(pixels).convert("L"), float)
    fine = np.repeat(np.repeat(gray, 32, 0), 32, 1)  # each cell of the grid has whole pixels
    cells = fine.reshape(32, height, 32, width).mean((1, 3))
    frequencies, thumb = image_signature(pixels)
    (code,) = hash_frequencies(frequencies[None]).tolist()
    assert (
        np.abs(thumb.reshape(16, 16) - cells.reshape(16, 2, 16, 2).mean((1, 3))).max() <= 1
    )  # rounded twice
    low = scipy.fft.dctn(np.rint(cells))[:8, :8].ravel()
    bits = np.array([bool(code >> k & 1) for k in reversed(range(64))])
    clear = np.abs(low - np.median(low)) > 1e-3 * np.abs(low).max()  # cells round either way
    assert clear.sum() > 20
    np.testing.assert_array_equal(bits[clear], (low > np.median(low))[clear])


def test_near_duplicates_can_be_ignored():
    result = find(scene(0), saved(scene(0), 50), scene(0), near=False)
    assert result.groups.tolist() == [0, 1, 0] and (result.exact, result.near) == (1, 0)


def test_a_chain_of_near_duplicates_is_one_group():
    image = scene(3)
    result = find(*(image[k:, k:] for k in (0, 3, 6, 9, 12)))
    assert set(result.groups.tolist()) == {0}


def test_an_unreadable_image_is_alone_in_its_group_with_its_reason():
    result = find("truncated", scene(0), "empty file", scene(0))
    assert result.unreadable == {0: "truncated", 2: "empty file"}
    assert result.groups.tolist() == [0, 1, 2, 1]
    assert result.sizes.tolist() == [[0, 0], [128, 128], [0, 0], [128, 128]]


def test_a_dataset_without_readable_images_is_not_an_error():
    assert find("empty file", "empty file").exact == 0
    assert find().groups.shape == (0,)


def test_groups_do_not_depend_on_threads_or_block_sizes(monkeypatch):
    scenes = [scene(seed, 64) for seed in range(60)]
    images = [*scenes, *(saved(image, 60) for image in scenes), "truncated", *scenes[:7]]
    one, five = (find(*images, num_threads=threads) for threads in (1, 5))
    np.testing.assert_array_equal(one.groups, five.groups)
    assert one.unreadable == five.unreadable and (one.exact, one.near) == (five.exact, five.near)
    monkeypatch.setattr(duplicates, "_BLOCK", 77)
    monkeypatch.setattr(duplicates, "_COLUMNS", 11)
    np.testing.assert_array_equal(one.groups, find(*images).groups)


def test_progress_increases_to_the_total():
    calls = []
    find(*[scene(0, 32)] * 70, progress=lambda *args: calls.append(args))
    assert calls == sorted(calls) and calls[-1] == (70, 70)


def test_notes_of_the_decoder_are_kept():
    source = source_of([scene(0), scene(1)])
    read = source.read
    object.__setattr__(source, "read", lambda i: read(i)._replace(notes=("gray made RGB",) * i))
    assert find_duplicates(source).notes == [(), ("gray made RGB",)]


def test_an_unexpected_error_while_reading_is_raised():
    source = source_of([scene(0)])
    object.__setattr__(source, "read", lambda i: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        find_duplicates(source)


def test_frames_of_a_fixed_camera_are_not_compared_pairwise(monkeypatch):
    compared = []
    is_near_duplicate = duplicates.is_near_duplicate

    def counted(one, other):
        compared.append(len(one))
        return is_near_duplicate(one, other)

    monkeypatch.setattr(duplicates, "is_near_duplicate", counted)
    monkeypatch.setattr(duplicates, "_MAX_CANDIDATES", 4)
    frames = [brightened(scene(0, 32), 0.5 + i / 400) for i in range(100)]
    assert set(find(*frames).groups.tolist()) == {0}
    assert sum(compared) <= 2 * 4 * 2 * 100  # as they are and upright, in two turns at most


@pytest.mark.parametrize("count", [2_000, pytest.param(60_000, marks=pytest.mark.slow)])
def test_an_image_is_compared_with_later_ones_of_a_close_hash_in_seconds(count):
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, count, dtype=np.uint64)
    hashes[50] = hashes[7]  # nearer to 7 than its near-duplicate is
    hashes[count - 1] = hashes[7] ^ np.uint64(0b111)
    thumbs = np.zeros((count, 256), np.uint8)
    thumbs[[7, count - 1]] = image_signature(scene(0))[1]
    start = time.process_time()
    with duplicates.ThreadPoolExecutor(2) as threads:
        pairs = duplicates._near_pairs(hashes, thumbs, threads)
    assert pairs.tolist() == [[7, count - 1]]
    assert time.process_time() - start < 12  # 2 s for 60,000 on an idle core


def test_an_image_is_upright_in_one_turn_unless_it_is_a_close_call():
    low = np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32)
    low[:, 1], low[:, 8] = 9, 5  # brighter on the left, less so at the top
    for turn in range(8):
        rows, turns = upright_turns(turn_frequencies(low, turn))
        assert rows.tolist() == [*range(8)] and len(set(turns.tolist())) == 1
    low[:, 1] = 0.1 * np.sqrt(np.square(low[:, 1:]).mean(1))  # as bright on the right
    rows, turns = upright_turns(low)
    assert np.bincount(rows).tolist() == [2] * 8 and set(turns.tolist()) == {4, 6}


def test_near_duplicates_as_they_are_do_not_count_as_turned():
    low, thumbs = map(
        np.stack, zip(*map(image_signature, [scene(0), saved(scene(0), 60)]), strict=True)
    )
    with duplicates.ThreadPoolExecutor(1) as threads:
        assert duplicates._turned_pairs(low, thumbs, threads).tolist() == []
