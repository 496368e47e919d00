"""Two thousand damaged copies of each file of named tensors: none crashes, hangs or lies."""

import pytest
from support.fuzz_files import EIGHT, fuzz, made_weights

from vggjax.weights.weight_file import read_weights, write_weights

WEIGHTS = made_weights(EIGHT)


def read(path, check):
    return read_weights(path, check=check)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["vggjax", "torchvision", "timm"])
def test_damaged_safetensors_are_refused_or_read_as_they_are(tmp_path, layout):
    path = tmp_path / "w.safetensors"
    write_weights(path, WEIGHTS, layout=layout)
    content = path.read_bytes()
    data = 8 + int.from_bytes(content[:8], "little")
    outcome = fuzz(path, read, WEIGHTS, seed=4)
    print(outcome.counts)
    for _, changed, arrays in outcome.changed:
        assert len(arrays) <= sum(at >= data for at in changed)
        assert not any(at < 8 for at in changed), "the header's length is checked"


@pytest.mark.slow
def test_a_damaged_state_dict_never_gives_other_values(tmp_path):
    pytest.importorskip("torch", reason="torch reads state dicts, and is not installed")
    path = tmp_path / "w.pth"
    write_weights(path, WEIGHTS)
    outcome = fuzz(path, read, WEIGHTS, seed=5)
    print(outcome.counts)
    assert outcome.changed == []
