"""Checks arrays that HDF5 stores in pieces, packed or not, before a piece is unpacked.

HDF5 gives zeros for a piece that is missing or that claims another place, and takes packed bytes
for numbers where the list of filters is lost. So the pieces must tile the array, each of a length
that its filters allow.
"""

import itertools
import math

import h5py

from vggjax.errors import WeightsError
from vggjax.weights.tensor_spans import Span

_MAX_CHUNKS = 100_000
_MAX_RATIO = 100  # gzip makes trained weights a tenth smaller, not a hundred times
_FREE_BYTES = 2**24  # a small array may be packed as well as it likes
_GZIP, _FLETCHER32 = h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_FLETCHER32
_FILTERS = {_GZIP, h5py.h5z.FILTER_SHUFFLE, _FLETCHER32}


def check_chunks(dataset: h5py.Dataset, plist: h5py.h5p.PropDCID, span: Span) -> None:
    """Holds that the pieces are all there, of known filters and credible lengths.

    Raises:
        WeightsError: any of these fails.
    """
    filters = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
    if strange := set(filters) - _FILTERS:
        raise WeightsError(
            f"{span.where} is packed by the filter {min(strange)}; read are gzip, shuffle and "
            f"fletcher32.",
            code="E_FILTER",
        )
    chunk = plist.get_chunk()
    counts = [-(-n // length) for n, length in zip(span.shape, chunk, strict=True)]
    chunk_bytes = math.prod(chunk) * int(span.dtype[-1])
    if math.prod(counts) > _MAX_CHUNKS or math.prod(counts) * math.prod(chunk) > _padded(span):
        raise WeightsError(
            f"{span.where} is cut into pieces of {chunk}, as no weights are.", code="E_BOMB"
        )
    places, size_bytes = set(), 0

    def look(piece: h5py.h5d.StoreInfo) -> bool | None:
        nonlocal size_bytes
        places.add(piece.chunk_offset)
        size_bytes += piece.size
        packed = [f for i, f in enumerate(filters) if not piece.filter_mask >> i & 1]
        # Only gzip may leave a piece as it is, where it would grow.
        right = set(filters) - set(packed) <= {_GZIP} and piece.filter_mask < 2 ** len(filters)
        if _GZIP not in packed:
            right &= piece.size == chunk_bytes + 4 * (_FLETCHER32 in packed)
        return None if right else True  # True ends the round

    if dataset.id.chunk_iter(look):
        raise WeightsError(
            f"{span.where} has a piece whose length does not go with its filters; the file is "
            f"damaged. Fetch or write it again.",
            code="E_FILTER",
        )
    steps = [range(0, n, length) for n, length in zip(span.shape, chunk, strict=True)]
    complete = len(places) == math.prod(counts) and all(
        at in step for place in places for at, step in zip(place, steps, strict=True)
    )
    if not complete or size_bytes == 0:
        raise unwritten(span.where)
    if span.nbytes > max(_FREE_BYTES, _MAX_RATIO * size_bytes):
        raise WeightsError(
            f"{span.where} would unpack to {span.nbytes / size_bytes:,.0f} times its size; "
            f"weights do not.",
            code="E_BOMB",
        )


def check_index(dataset: h5py.Dataset, where: str) -> None:
    """Holds that each piece is found by its place: where an index is damaged, HDF5 gives zeros.

    Raises:
        WeightsError: a piece that is there is not found.
    """
    for place in itertools.product(
        *(range(0, n, length) for n, length in zip(dataset.shape, dataset.chunks, strict=True))
    ):
        try:
            dataset.id.read_direct_chunk(place)
        except (OSError, RuntimeError, ValueError):
            raise unwritten(where) from None


def unwritten(where: str) -> WeightsError:
    """Words the refusal of an array of which something was never written."""
    return WeightsError(
        f"{where} was declared, but not all of its numbers were ever written.", code="E_UNWRITTEN"
    )


def _padded(span: Span) -> int:
    """How many numbers the pieces may have together: those at the edges are not full."""
    return 8 * span.size + 2**20
