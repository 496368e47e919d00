"""Random damage to small weight files of each format.

A damaged file may be refused, or read. If it is read, its layers and shapes are the expected ones,
and its values are those that were written, as far as the format can show it: HDF5 and safetensors
have no checksum over plain numbers, and HDF5 has none over an array's address and type.
"""

import pickle
import random

import h5py
import numpy as np
import pytest
from support.array_files import BASE as ARRAYS
from support.array_files import flat, nested, onnx_model
from support.mutations import damaged
from support.networks import random_weights

from vggjax.errors import CODES, WeightsError
from vggjax.models.arch import Arch
from vggjax.weights.arrays.onnx import parse_onnx
from vggjax.weights.keras.read import parse_keras
from vggjax.weights.weight_file import read_weights, write_weights

pytestmark = pytest.mark.usefixtures("fast_parser")
counts = pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.slow)])

KERAS = random_weights(Arch("three", (1, 1, 1), (1, 1, 2)))
TORCH = random_weights(Arch("vgg11", (1, 1, 2, 2, 2), (1, 1, 2, 2, 2)))  # has torchvision's names


def files_with_other_values(path, weights, *, seed, count):
    """Read `count` damaged copies of a file; return those that were read with other values.

    Each is (contents, positions of the changed bytes, changed arrays).
    """
    content, bad = path.read_bytes(), path.with_name(f"bad-{path.name}")
    shapes = {k: {n: a.shape for n, a in v.items()} for k, v in weights.items()}
    files = []

    def check(received):
        if received != shapes:
            raise WeightsError("not the expected layers", code="E_SHAPE")

    for i in range(count):
        contents, changed = damaged(content, random.Random(f"{seed}:{i}"))
        bad.write_bytes(contents)
        try:
            got = read_weights(bad, check=check)
        except WeightsError as error:  # anything else is a bug
            assert error.code in CODES and "\n" not in str(error) and str(bad) in str(error)
            continue
        assert {k: {n: a.shape for n, a in v.items()} for k, v in got.items()} == shapes
        arrays = [
            (k, n) for k, v in weights.items() for n in v if not np.array_equal(got[k][n], v[n])
        ]
        assert all(np.isfinite(got[k][n]).all() for k, n in arrays)
        if arrays:
            files.append((contents, changed, arrays))
    return files


def spans(path):
    """Return {(layer, parameter): (first byte, type)} of an HDF5 file."""
    return {
        (layer, param): (span.start, span.dtype)
        for layer, params in parse_keras(path, "h5").layers.items()
        for param, (span, _) in params.items()
    }


@counts
@pytest.mark.parametrize("ending", [".h5", ".weights.h5"])
def test_a_damaged_h5_is_refused_or_its_values_differ_only_where_its_bytes_do(
    tmp_path, ending, count
):
    path, again = tmp_path / f"w{ending}", tmp_path / "again.h5"
    write_weights(path, KERAS)
    good, moved = spans(path), 0
    for contents, changed, arrays in files_with_other_values(path, KERAS, seed=1, count=count):
        again.write_bytes(contents)
        positions = spans(again)
        for layer, param in arrays:
            start, length = good[layer, param][0], KERAS[layer][param].nbytes
            if positions[layer, param] != good[layer, param]:
                moved += 1  # HDF5 has no checksum over an array's address and type
            else:
                assert set(changed) & set(range(start, start + length)), (layer, param)
    assert moved <= count / 50, f"{moved} arrays lie elsewhere or are cast"


@counts
def test_a_damaged_archive_never_gives_other_values(tmp_path, count):
    path = tmp_path / "w.keras"
    write_weights(path, KERAS)
    assert files_with_other_values(path, KERAS, seed=2, count=count) == []


@counts
def test_damaged_packed_arrays_with_checksums_never_give_other_values(tmp_path, count):
    path = tmp_path / "w.h5"
    write_weights(path, KERAS)
    options = {"compression": "gzip", "shuffle": True, "fletcher32": True}
    with h5py.File(path, "r+") as file:
        for layer, params in KERAS.items():
            for name, array in zip(file[layer].attrs["weight_names"], params.values(), strict=True):
                del file[layer][name]
                file[layer].create_dataset(name, data=array, chunks=array.shape, **options)
    assert files_with_other_values(path, KERAS, seed=3, count=count) == []


@counts
@pytest.mark.parametrize("layout", ["vggjax", "torchvision", "timm"])
def test_a_damaged_safetensors_file_is_refused_or_differs_only_in_its_changed_numbers(
    tmp_path, layout, count
):
    path = tmp_path / "w.safetensors"
    write_weights(path, TORCH, layout=layout)
    data_start = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    for _, changed, arrays in files_with_other_values(path, TORCH, seed=4, count=count):
        assert len(arrays) <= sum(position >= data_start for position in changed)
        assert not any(position < 8 for position in changed), "the header's length is checked"


@counts
def test_a_damaged_npz_never_gives_other_values(tmp_path, count):
    path = tmp_path / "w.npz"
    with open(path, "wb") as file:
        np.savez_compressed(file, **flat(ARRAYS, "{caffe}_{w}"))
    assert files_with_other_values(path, ARRAYS, seed=6, count=count) == []


@counts
def test_a_damaged_pickle_of_arrays_is_refused_or_has_the_expected_shapes(tmp_path, count):
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps(nested(flat(ARRAYS, "{caffe}/{param}")), 4))
    content, moved = path.read_bytes(), 0
    for _, changed, arrays in files_with_other_values(path, ARRAYS, seed=7, count=count):
        for layer, param in arrays:
            array = ARRAYS[layer][param]
            start = content.index(array.tobytes())
            moved += not set(changed) & set(range(start, start + array.nbytes))
    assert moved <= count / 5, "one byte states the byte order of all arrays"


@counts
def test_a_damaged_onnx_file_is_refused_or_differs_only_in_its_changed_numbers(tmp_path, count):
    pytest.importorskip("onnx", reason="onnx is not installed")
    path = tmp_path / "w.onnx"
    path.write_bytes(onnx_model(ARRAYS).SerializeToString())
    places = {
        (layer, param): span
        for layer, params in parse_onnx(path).layers.items()
        for param, (span, _) in params.items()
    }
    for _, changed, arrays in files_with_other_values(path, ARRAYS, seed=8, count=count):
        for place in arrays:
            span = places[place]
            assert set(changed) & set(range(span.start, span.start + span.nbytes)), place


@counts
def test_a_damaged_state_dict_never_gives_other_values(tmp_path, count):
    pytest.importorskip("torch", reason="torch is not installed")
    path = tmp_path / "w.pth"
    write_weights(path, TORCH)
    assert files_with_other_values(path, TORCH, seed=5, count=count) == []
