"""What a conversion writes, prints and refuses; test_origin.py chains conversions."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.array_files import WEIGHTS
from support.networks import random_weights

from vggjax.cli.main import main
from vggjax.errors import ConfigError, WeightsError
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


def test_the_model_of_a_run_is_never_the_destination(tmp_path, weights):
    write_weights(tmp_path / "a.h5", weights)
    model = tmp_path / "model.safetensors"
    model.write_bytes(b"precious")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="model.safetensors is a file of a run"):
        convert_file(tmp_path / "a.h5", model)
    assert model.read_bytes() == b"precious"


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


def without(weights, layer, param=None):
    """Return weights that lack a layer, or one of its parameters."""
    rest = {k: dict(params) for k, params in weights.items() if param or k != layer}
    if param:
        del rest[layer][param]
    return rest


@pytest.mark.parametrize(
    "change, code",
    [
        (lambda w: without(w, "block3_conv2"), "E_MISSING"),
        (lambda w: without(w, "block3_conv2", "bias"), "E_MISSING"),
        (lambda w: w | {"block5_conv3": w["block5_conv2"]}, "E_UNEXPECTED"),
        (lambda w: w | {"block1_conv1": {"kernel": w["block1_conv1"]["kernel"],
                                         "bias": np.zeros(3, np.float32)}}, "E_SHAPE"),
        (lambda w: w | {"block3_conv2": w["block1_conv1"]}, "E_SHAPE"),
        (lambda w: w | {"fc2": {"kernel": np.ones((3, 3), np.float32),
                                "bias": np.ones(3, np.float32)}}, "E_SHAPE"),
    ],
)  # fmt: skip
def test_an_incomplete_network_is_refused_and_nothing_is_written(tmp_path, change, code):
    """A base of any widths is converted, and any dense layers that follow each other."""
    write_weights(tmp_path / "whole.safetensors", WEIGHTS)
    convert_file(tmp_path / "whole.safetensors", tmp_path / "whole.h5")
    src, dst = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    write_weights(src, change(WEIGHTS))
    with pytest.raises(WeightsError) as caught:
        convert_file(src, dst)
    assert caught.value.code == code and not dst.exists()


def test_the_model_says_what_the_file_must_hold(tmp_path, capsys):
    src, dst = str(tmp_path / "a.safetensors"), str(tmp_path / "b.h5")
    write_weights(src, random_weights("tiny", None))
    assert main(["convert", src, dst, "--model", "tiny"]) == 0
    assert main(["convert", src, dst, "--model", "narrow"]) == 2
    assert "do not fit narrow without a top" in capsys.readouterr().err
    assert main(["convert", src, dst, "--model", "vgg17"]) == 2
    assert "Did you mean" in capsys.readouterr().err


def test_a_convnet_is_converted_by_the_name_in_its_file(tmp_path):
    src, dst = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    weights = {
        "block1_conv1": dict(kernel=np.ones((3, 3, 3, 4), np.float32), bias=np.ones(4, np.float32)),
        "predictions": {"kernel": np.ones((4, 2), np.float32), "bias": np.ones(2, np.float32)},
    }
    write_weights(src, weights, metadata={"arch": "cnn-4-pool"})
    convert_file(src, dst)
    write_weights(src, weights, metadata={"arch": "cnn-4-pool-4"})
    with pytest.raises(WeightsError, match="missing: block2_conv1"):
        convert_file(src, dst)
