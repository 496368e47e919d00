"""Random damage to each of Keras' formats: no file crashes the reader, hangs it, or gives others'
numbers."""

import h5py
import pytest
from support.fuzz_files import THREE, fuzz, places
from support.networks import random_weights

from vggjax.weights.keras.read import parse_keras
from vggjax.weights.weight_file import read_weights, write_weights

pytestmark = pytest.mark.usefixtures("fast_parser")
counts = pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.slow)])

WEIGHTS = random_weights(THREE)


def read(path, check):
    return read_weights(path, check=check)


def where(file):
    """Return where the file's arrays lie: (layer, parameter) -> (first byte, type)."""
    return {
        (layer, param): (span.start, span.dtype)
        for layer, params in file.layers.items()
        for param, (span, _) in params.items()
    }


@counts
@pytest.mark.parametrize("ending", [".h5", ".weights.h5"])
def test_a_damaged_h5_is_refused_or_its_values_differ_only_where_its_bytes_do(
    tmp_path, ending, count
):
    path, again = tmp_path / f"w{ending}", tmp_path / "again.h5"
    write_weights(path, WEIGHTS)
    outcome = fuzz(path, read, WEIGHTS, seed=1, count=count)
    good, ranges = where(parse_keras(path, "h5")), places(path.read_bytes(), WEIGHTS)
    moved = 0
    for contents, changed, arrays in outcome.changed:
        again.write_bytes(contents)
        damaged = where(parse_keras(again, "h5"))
        for array in arrays:
            if damaged[array] != good[array]:
                moved += 1  # HDF5 has no checksum over an array's address and type
            else:
                assert set(changed) & set(ranges[array]), array
    assert moved <= count / 50, f"{moved} arrays lie elsewhere or are cast"


@counts
def test_a_damaged_archive_never_gives_other_values(tmp_path, count):
    path = tmp_path / "w.keras"
    write_weights(path, WEIGHTS)
    outcome = fuzz(path, read, WEIGHTS, seed=2, count=count)
    assert outcome.changed == []


@counts
def test_damaged_packed_arrays_with_checksums_never_give_other_values(tmp_path, count):
    path = tmp_path / "w.h5"
    write_weights(path, WEIGHTS)
    options = {"compression": "gzip", "shuffle": True, "fletcher32": True}
    with h5py.File(path, "r+") as file:
        for layer, params in WEIGHTS.items():
            for name, array in zip(file[layer].attrs["weight_names"], params.values(), strict=True):
                del file[layer][name]
                file[layer].create_dataset(name, data=array, chunks=array.shape, **options)
    outcome = fuzz(path, read, WEIGHTS, seed=3, count=count)
    assert outcome.changed == []
