"""Tells whether two images are the same photograph: saved again, resized, cropped, brightened.

In:  uint8 RGB pixels.  An image becomes 64 bits of perceptual hash (ImageHash's pHash), which
finds candidates quickly, and a gray thumbnail, 16x16 bytes, which decides. Two thumbnails are
laid over each other by least squares: brightness, contrast, a small shift and a small change of
size, each axis on its own. What stays unexplained, as a share of the image's own variance, is
the residual; and what there is in small cells must agree, cell by cell, or two pages of one form
would be one image. Mirrored and rotated images do not count.
"""

import numpy as np

THUMB_PX = 16
MIN_SIDE_PX = 32
"""Smaller images have too little in them: only equal pixels make them equal. (Of the 1,797 digits
of 8 px, 39 would be taken for copies; at 32 px CIFAR-10's pairs are true ones.)"""

MAX_DISTANCE = 12
MAX_RESIDUAL = 0.04
"""Bits of 64, and share of the variance.

Looked at by eye, pair by pair, on 4,317 flowers of 128 px and 12,000 CIFAR-10 images of 32 px:
up to this residual every pair found was one photograph (or a burst of one scene), and the first
pair that was not, two dandelions on a dark ground, has 0.047. Of 300 flowers each saved again as
JPEG of quality 25, halved, doubled, darkened or brightened by 15 %, over 99 % are found; cropped by
3 % on each side or by 5 % on one, 97 and 98 %.
"""

MIN_DETAIL = 0.6
"""The median correlation of 4x4 cells without their slope: 99 % of the copies above have 0.9 or
more, images of one layout with other details, and skies with one gradient, 0.3 or less."""

_CELL_PX = 4
_MIN_CELL_CONTRAST = 1.5
"""Gray levels of deviation in a cell; below, JPEG decides what is in it."""

_MIN_CELLS = 3

_MIN_CORRELATION = 0.7
_MAX_FIRST_RESIDUAL = 0.25
"""What is further apart before it is aligned does not come within `MAX_RESIDUAL` after it."""

_MAX_SHIFT = 1.5
"""Thumbnail pixels: 9 % of the side."""

_CHUNK = 1024


def describe(pixels: np.ndarray) -> tuple[int, np.ndarray] | None:
    """Gives the hash, 64 bits, and the thumbnail, uint8 (16, 16); None for a small image."""
    import cv2
    import imagehash
    from PIL import Image

    if min(pixels.shape[:2]) < MIN_SIDE_PX:
        return None
    gray = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)
    # pHash begins by resizing to 32x32 with a slow filter: this spares it the large image.
    small = cv2.resize(gray, (32, 32), interpolation=cv2.INTER_AREA)
    thumb = cv2.resize(small, (THUMB_PX, THUMB_PX), interpolation=cv2.INTER_AREA)
    bits = imagehash.phash(Image.fromarray(small)).hash
    return int.from_bytes(np.packbits(bits).tobytes(), "big"), thumb


def is_near_duplicate(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Tells of each pair of thumbnails, uint8 (K, 256), whether they are one photograph; bool (K,).

    A pair's answer does not depend on the other pairs. About 0.1 ms for a pair that passes.
    """
    same = np.zeros(len(one), bool)
    for start in range(0, len(one), _CHUNK):
        part = slice(start, start + _CHUNK)
        contrast = np.minimum(one[part].std(1), other[part].std(1))
        same[part] = _same(_normalized(one[part]), _normalized(other[part]), contrast)
    return same


def _same(one: np.ndarray, other: np.ndarray, contrast: np.ndarray) -> np.ndarray:
    left = np.flatnonzero(_correlation(one, other) >= _MIN_CORRELATION)
    residual, moves = _fit(one[left], other[left])
    left, moves = left[residual <= _MAX_FIRST_RESIDUAL], moves[residual <= _MAX_FIRST_RESIDUAL]
    # The first fit is linear, good for half a pixel: meet half-way, and fit what is left.
    moves = np.clip(moves, -_MAX_SHIFT, _MAX_SHIFT) / 2
    first, second = _moved(one[left], moves), _moved(other[left], -moves)
    residual, _ = _fit(first, second)
    same = np.zeros(len(one), bool)
    agree = _cells_agree(first, second, contrast[left])
    same[left] = (residual <= MAX_RESIDUAL) & agree
    return same


def _correlation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.einsum("kij,kij->k", one, other) / THUMB_PX**2


def _cells_agree(one: np.ndarray, other: np.ndarray, contrast: np.ndarray) -> np.ndarray:
    first, second = _cells(one), _cells(other)
    deviations = first.std(2), second.std(2)
    correlated = (first * second).mean(2) / np.maximum(deviations[0] * deviations[1], 1e-6)
    weak = np.minimum(*deviations) * contrast[:, None] < _MIN_CELL_CONTRAST
    # The median of the cells that have something in them: the weak ones are sorted to the end.
    ordered = np.sort(np.where(weak, np.inf, correlated), 1)
    count = (~weak).sum(1)
    middle = ordered[np.arange(len(one)), np.minimum(count // 2, ordered.shape[1] - 1)]
    return (count >= _MIN_CELLS) & (middle >= MIN_DETAIL)


def _cells(thumbs: np.ndarray) -> np.ndarray:
    """Cuts thumbnails into cells without their mean and slope; (K, 16, 16) to (K, cells, 16)."""
    side = THUMB_PX // _CELL_PX
    cut = thumbs.reshape(len(thumbs), side, _CELL_PX, side, _CELL_PX).transpose(0, 1, 3, 2, 4)
    return cut.reshape(len(thumbs), side * side, _CELL_PX**2) @ _WITHOUT_SLOPE


def _make_projection() -> np.ndarray:
    """Makes the matrix, float32 (16, 16), that takes the best plane out of a cell."""
    y, x = np.mgrid[:_CELL_PX, :_CELL_PX].reshape(2, -1)
    plane, _ = np.linalg.qr(np.stack([np.ones_like(x), x, y], 1).astype(float))
    return (np.eye(_CELL_PX**2) - plane @ plane.T).astype(np.float32)


_WITHOUT_SLOPE = _make_projection()
_AXIS = (np.arange(THUMB_PX, dtype=np.float32) - (THUMB_PX - 1) / 2) / (THUMB_PX / 2)  # -1 ... 1


def _normalized(thumbs: np.ndarray) -> np.ndarray:
    """Takes brightness and contrast out; float32 (K, 16, 16)."""
    flat = thumbs.reshape(len(thumbs), -1).astype(np.float32)
    flat -= flat.mean(1, keepdims=True)
    flat /= np.maximum(flat.std(1, keepdims=True), 1e-3)
    return flat.reshape(-1, THUMB_PX, THUMB_PX)


def _fit(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Explains `other` by `one` and its moves; the residuals (K,) and the moves (K, 4).

    One step of Lucas and Kanade's method: a small move changes an image by its gradient. The moves
    are the shift in x and in y, then the stretch in x and in y, in pixels at the border.
    """
    middle = (one + other) / 2
    inner = (slice(None), slice(1, -1), slice(1, -1))
    dx = (middle[:, 1:-1, 2:] - middle[:, 1:-1, :-2]) / 2
    dy = (middle[:, 2:, 1:-1] - middle[:, :-2, 1:-1]) / 2
    x, y = _AXIS[None, None, 1:-1], _AXIS[None, 1:-1, None]
    parts = [np.ones_like(dx), one[inner], dx, dy, dx * x, dy * y]
    terms = np.stack([part.reshape(len(one), (THUMB_PX - 2) ** 2) for part in parts], 1)
    target = other[inner].reshape(len(one), (THUMB_PX - 2) ** 2, 1)
    ridge = 1e-3 * np.eye(len(parts), dtype=np.float32)
    found = np.linalg.solve(terms @ terms.transpose(0, 2, 1) + ridge, terms @ target)  # (K, 6, 1)
    unexplained = target - terms.transpose(0, 2, 1) @ found
    residual = np.square(unexplained).mean((1, 2)) / np.maximum(target.var((1, 2)), 1e-6)
    return residual, found[:, 2:, 0]


def _moved(thumbs: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """Samples thumbnails at moved places, bilinear; beyond the border is the border's value."""
    last = np.float32(THUMB_PX - 1)
    place = np.arange(THUMB_PX, dtype=np.float32)
    xs = np.clip(place + moves[:, 0, None] + moves[:, 2, None] * _AXIS, 0, last)  # (K, 16)
    ys = np.clip(place + moves[:, 1, None] + moves[:, 3, None] * _AXIS, 0, last)
    left, top = (np.minimum(at.astype(np.int64), THUMB_PX - 2) for at in (xs, ys))
    across, down = (xs - left)[:, None, :], (ys - top)[:, :, None]
    rows = np.take_along_axis(thumbs, top[:, :, None], 1) * (1 - down)
    rows += np.take_along_axis(thumbs, top[:, :, None] + 1, 1) * down
    columns = np.take_along_axis(rows, left[:, None, :], 2) * (1 - across)
    return columns + np.take_along_axis(rows, left[:, None, :] + 1, 2) * across
