"""Damaged copies of files of named tensors: none crashes the reader or gives other values."""

import pytest
from support.fuzz_files import EIGHT, fuzz
from support.networks import random_weights

from vggjax.weights.weight_file import read_weights, write_weights

counts = pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.slow)])

WEIGHTS = random_weights(EIGHT)


def read(path, check):
    return read_weights(path, check=check)


@counts
@pytest.mark.parametrize("layout", ["vggjax", "torchvision", "timm"])
def test_a_damaged_safetensors_file_is_refused_or_differs_only_in_its_changed_numbers(
    tmp_path, layout, count
):
    path = tmp_path / "w.safetensors"
    write_weights(path, WEIGHTS, layout=layout)
    content = path.read_bytes()
    data_start = 8 + int.from_bytes(content[:8], "little")
    outcome = fuzz(path, read, WEIGHTS, seed=4, count=count)
    for _, changed, arrays in outcome.changed:
        assert len(arrays) <= sum(position >= data_start for position in changed)
        assert not any(position < 8 for position in changed), "the header's length is checked"


@counts
def test_a_damaged_state_dict_never_gives_other_values(tmp_path, count):
    pytest.importorskip("torch", reason="torch is not installed")
    path = tmp_path / "w.pth"
    write_weights(path, WEIGHTS)
    assert fuzz(path, read, WEIGHTS, seed=5, count=count).changed == []
