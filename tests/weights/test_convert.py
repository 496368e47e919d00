"""What a conversion writes, prints and refuses; test_origin.py chains conversions."""

import subprocess
import sys
from pathlib import Path

import pytest
from support.networks import random_weights

from vggjax.errors import WeightsError
from vggjax.weights.convert import convert_file, print_table
from vggjax.weights.weight_file import WeightFile, read_weights, write_weights

SCRIPT = Path(__file__).parents[2] / "weights" / "convert.py"


@pytest.fixture
def weights(tiny_arch):
    return random_weights(tiny_arch)


def test_the_same_weights_and_metadata_make_the_same_safetensors_file(tmp_path, weights):
    metadata = {name: f"ünï {name}" for name in "abcdefgh"}
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    write_weights(one, weights, metadata=metadata)
    write_weights(two, weights, metadata=dict(reversed(metadata.items())))
    assert one.read_bytes() == two.read_bytes()
    assert WeightFile(one).info.metadata == metadata
    plain = tmp_path / "plain"
    plain.touch()  # other users may read a weight file as they may any file
    assert one.stat().st_mode == plain.stat().st_mode


def test_the_table_lists_every_layer_and_counts_the_parameters(tmp_path, weights, capsys):
    write_weights(tmp_path / "a.h5", weights)
    print_table(WeightFile(tmp_path / "a.h5").shapes)
    printed = capsys.readouterr().out
    total = sum(array.size for params in weights.values() for array in params.values())
    assert all(layer in printed for layer in weights) and f"{total:,}" in printed
    assert "3x3x3x4" in printed


def test_the_source_is_never_overwritten(tmp_path, weights):
    path = tmp_path / "a.h5"
    write_weights(path, weights)
    before = path.read_bytes()
    (tmp_path / "link.h5").symlink_to(path)
    for dst in (path, tmp_path / "link.h5"):
        with pytest.raises(WeightsError, match="both source and destination"):
            convert_file(path, dst)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("dst", "layout", "reason"),
    [
        ("b.txt", None, "got 'b.txt'. Choices: .safetensors"),
        (".h5", None, "Choices"),
        ("", None, "Choices"),
        ("gone/b.h5", None, "no folder"),
        ("b.h5", "timm", "it goes with .safetensors, .pth, .pt"),
        ("b.pth", "vggjax", "it goes with .safetensors. Choices for .pth: torchvision, timm"),
    ],
)
def test_an_impossible_destination_is_refused_before_reading(tmp_path, dst, layout, reason):
    with pytest.raises(WeightsError, match=reason) as caught:
        convert_file(tmp_path / "missing.h5", tmp_path / dst, layout=layout)
    assert caught.value.code == "E_WRITE"


def run(*args):
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, args)], capture_output=True, text=True, check=False
    )


def test_the_script_converts_and_refuses_in_one_line(tmp_path, weights):
    write_weights(tmp_path / "a.h5", weights)
    converted = run(tmp_path / "a.h5", tmp_path / "b.safetensors")
    assert converted.returncode == 0, converted.stderr
    assert "block5_conv2" in converted.stdout
    assert list(read_weights(tmp_path / "b.safetensors")) == list(weights)
    refused = run(tmp_path / "gone.h5", tmp_path / "b.h5")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("convert.py: error: There is no file")
    assert refused.stderr.count("\n") == 1
