"""Conversion between every readable and writable kind, and what it refuses."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from support.torch_models import ENDINGS

from vggjax.errors import WeightsError
from vggjax.models.network import VGG
from vggjax.models.params import shapes
from vggjax.weights.convert import convert_file, print_table
from vggjax.weights.package_names import read_metadata
from vggjax.weights.weight_file import read_weights, write_weights

SCRIPT = Path(__file__).parents[2] / "weights" / "convert.py"


@pytest.fixture
def weights(tiny_arch):
    rng = np.random.default_rng(0)
    model = nnx.eval_shape(lambda: VGG(tiny_arch))
    return {
        layer: {n: rng.uniform(0.1, 1, shape).astype(np.float32) for n, shape in sizes.items()}
        for layer, sizes in shapes(model).items()
    }


@pytest.mark.parametrize("src", ENDINGS)
@pytest.mark.parametrize("dst", ENDINGS)
def test_conversion_keeps_every_bit(tmp_path, weights, src, dst):
    write_weights(tmp_path / f"src{src}", weights)
    convert_file(tmp_path / f"src{src}", tmp_path / f"dst{dst}")
    got = read_weights(tmp_path / f"dst{dst}")
    assert list(got) == list(weights)
    for layer in weights:
        for name, array in weights[layer].items():
            np.testing.assert_array_equal(got[layer][name], array)


def test_safetensors_remember_the_source_through_two_conversions(tmp_path, weights):
    write_weights(tmp_path / "a.h5", weights)
    convert_file(tmp_path / "a.h5", tmp_path / "b.safetensors")
    convert_file(tmp_path / "b.safetensors", tmp_path / "c.safetensors")
    md5 = hashlib.md5((tmp_path / "a.h5").read_bytes()).hexdigest()
    metadata = read_metadata(tmp_path / "c.safetensors")
    assert (metadata["source"], metadata["source_md5"]) == ("a.h5", md5)


def test_the_same_weights_and_metadata_make_the_same_safetensors_file(tmp_path, weights):
    metadata = {name: f"ünï {name}" for name in "abcdefgh"}
    for name in ("one", "two", "three"):
        write_weights(tmp_path / f"{name}.safetensors", weights, metadata=metadata)
    files = {(tmp_path / f"{name}.safetensors").read_bytes() for name in ("one", "two", "three")}
    assert len(files) == 1
    plain = tmp_path / "plain"
    plain.touch()  # as readable for others as any file that is made here
    assert (tmp_path / "one.safetensors").stat().st_mode == plain.stat().st_mode
    assert read_metadata(tmp_path / "one.safetensors").items() >= metadata.items()
    assert read_weights(tmp_path / "one.safetensors").keys() == weights.keys()


def test_the_table_names_every_layer_and_counts_the_parameters(tmp_path, weights, capsys):
    write_weights(tmp_path / "a.h5", weights)
    rows = convert_file(tmp_path / "a.h5", tmp_path / "b.safetensors").rows
    assert [row.layer for row in rows] == list(weights)
    total = sum(a.size for params in weights.values() for a in params.values())
    assert sum(row.parameters for row in rows) == total
    print_table(rows)
    shown = capsys.readouterr().out
    assert all(layer in shown for layer in weights) and f"{total:,}" in shown
    assert "3x3x3x4" in shown


def test_nothing_is_written_onto_the_source(tmp_path, weights):
    path = tmp_path / "a.h5"
    write_weights(path, weights)
    before = path.read_bytes()
    (tmp_path / "link.h5").symlink_to(path)
    for dst in (path, tmp_path / "link.h5"):
        with pytest.raises(WeightsError, match="both source and destination"):
            convert_file(path, dst)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("dst", "reason"),
    [("b.txt", "none of .safetensors"), ("gone/b.h5", "no folder"), ("", "none of")],
)
def test_a_destination_that_cannot_be_is_refused_before_reading(tmp_path, dst, reason):
    with pytest.raises(WeightsError, match=reason):
        convert_file(tmp_path / "not_even_there.h5", tmp_path / dst)


def run(*args):
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, args)], capture_output=True, text=True, check=False
    )


def test_the_script_converts_and_prints_the_table(tmp_path, weights):
    write_weights(tmp_path / "a.h5", weights)
    done = run(tmp_path / "a.h5", tmp_path / "b.safetensors")
    assert done.returncode == 0, done.stderr
    assert "block5_conv2" in done.stdout
    assert list(read_weights(tmp_path / "b.safetensors")) == list(weights)


def test_the_script_says_what_is_wrong_in_one_line_and_exits_with_2(tmp_path):
    done = run(tmp_path / "gone.h5", tmp_path / "b.h5")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("convert.py: error: There is no file")
    assert done.stderr.count("\n") == 1
