"""Two thousand damaged copies of each of Keras' files: none crashes, hangs or lies."""

import h5py
import pytest
from support.fuzz_files import THREE, fuzz, made_weights, places

from vggjax.weights.hdf5.worker import Reader
from vggjax.weights.keras.read import read_keras_h5, read_keras_zip
from vggjax.weights.weight_file import write_weights

WEIGHTS = made_weights(THREE)
LATE = 2.0
"""Seconds after which a file counts as one that hangs; a good one takes a hundredth."""


def spans(path, reader):
    """What the file says of its arrays: (layer, parameter) -> (place, type)."""
    layers = reader.find(path, "h5")["layers"]
    return {(k, n): tuple(fields[2:]) for k, v in layers.items() for n, fields in v.items()}


def check_plain(path, outcome, reader):
    """Values differ only where bytes of theirs do, or where the array's own header lies."""
    good, where = spans(path, reader), places(path.read_bytes(), WEIGHTS)
    moved = 0
    for contents, changed, arrays in outcome.changed:
        (path.parent / "again.h5").write_bytes(contents)
        now = spans(path.parent / "again.h5", reader)
        for array in arrays:
            if now[array] != good[array]:
                moved += 1
            else:
                assert set(changed) & set(where[array]), array
    print(outcome.counts, f"{moved} moved")
    assert moved <= sum(outcome.counts.values()) / 50, f"{moved} arrays lie elsewhere or are cast"


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".h5", ".weights.h5"])
def test_a_damaged_h5_is_refused_or_read_as_it_is(tmp_path, ending):
    path = tmp_path / f"w{ending}"
    write_weights(path, WEIGHTS)
    with Reader(timeout_s=LATE) as reader:
        outcome = fuzz(
            path, lambda p, check: read_keras_h5(p, check=check, reader=reader), WEIGHTS, seed=1
        )
        check_plain(path, outcome, reader)


@pytest.mark.slow
def test_a_damaged_archive_never_gives_other_values(tmp_path):
    path = tmp_path / "w.keras"
    write_weights(path, WEIGHTS)
    with Reader(timeout_s=LATE) as reader:
        outcome = fuzz(
            path, lambda p, check: read_keras_zip(p, check=check, reader=reader), WEIGHTS, seed=2
        )
    assert outcome.changed == []


@pytest.mark.slow
def test_damaged_packed_arrays_with_checksums_never_give_other_values(tmp_path):
    path = tmp_path / "w.h5"
    write_weights(path, WEIGHTS)
    with h5py.File(path, "r+") as file:
        for layer, params in WEIGHTS.items():
            for name, array in zip(file[layer].attrs["weight_names"], params.values(), strict=True):
                del file[layer][name]
                options = {"compression": "gzip", "shuffle": True, "fletcher32": True}
                file[layer].create_dataset(name, data=array, chunks=array.shape, **options)
    with Reader(timeout_s=LATE) as reader:
        outcome = fuzz(
            path,
            lambda p, check: read_keras_h5(p, check=check, reader=reader),
            WEIGHTS, seed=3, count=300,
        )  # fmt: skip
    assert outcome.changed == []
