"""What reading takes: bombs cost neither memory nor time, good files no second copy."""

import json
import subprocess
import sys
import time
from pathlib import Path

import h5py
import hostile_archives
import hostile_arrays
import hostile_safetensors
import numpy as np
import pytest
from hostile_layers import CASES, made_weights

import vggjax
from vggjax.weights import reader
from vggjax.weights.files import write_weights

resource = pytest.importorskip("resource", reason="this system does not count memory")

assert hostile_archives and hostile_arrays and hostile_safetensors  # they register their cases
READ = """
import resource
from vggjax.weights.files import read_weights
def peak(who):
    return resource.getrusage(who).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
for path in sys.argv[3:-1]:
    before = peak(resource.RUSAGE_SELF)
    try:
        read_weights(path)
        code = "read"
    except ValueError as error:
        code = error.code
    own = peak(resource.RUSAGE_SELF) - (before if sys.argv[-1] == "beyond" else 0)
    print(json.dumps([code, own, peak(resource.RUSAGE_CHILDREN)]))
"""


def read_apart(paths, *, count):
    """Reads files one after another in a process of its own: (code, peak, peak of the readers)."""
    code = reader._CODE.partition("from vggjax")[0] + READ
    package = str(Path(vggjax.__file__).parent)
    command = [sys.executable, "-S", "-c", code, json.dumps(sys.path), package, *paths, count]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_bomb_costs_neither_memory_nor_time(tmp_path):
    paths = []
    for i, case in enumerate(case for case in CASES if case.code == "E_BOMB"):
        (tmp_path / str(i)).mkdir()
        paths.append(tmp_path / str(i) / f"bad{case.ending}")
        case.make(paths[-1])
    assert len(paths) >= 6
    start = time.monotonic()
    found = read_apart(paths, count="all")
    assert time.monotonic() - start < 5 * len(paths)
    assert {code for code, _, _ in found} == {"E_BOMB"}
    assert max(own + child for _, own, child in found) < 2**29


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".h5", ".keras", ".safetensors"])
def test_reading_allocates_as_much_as_the_file_is_long(tmp_path, ending):
    weights, path = made_weights(), tmp_path / f"w{ending}"
    weights["fc1"] = {"kernel": np.ones((4, 2**24), "f4"), "bias": np.ones(2**24, "f4")}
    weights["predictions"] = {"kernel": np.ones((2**24, 1), "f4"), "bias": np.ones(1, "f4")}
    write_weights(path, weights)
    good = tmp_path / "good.h5"
    write_weights(good, made_weights())  # what every file needs is there before
    small, large = read_apart([good, path], count="beyond")
    size_bytes = path.stat().st_size
    assert large[0] == "read" and size_bytes > 2**28
    # Of both processes together; the reader of the small file is the measure of one at rest.
    taken = large[1] + large[2] - small[2]
    assert taken < 1.1 * size_bytes


@pytest.mark.slow
def test_a_packed_file_is_read_piece_by_piece(tmp_path):
    path, good = tmp_path / "w.h5", tmp_path / "good.h5"
    write_weights(good, made_weights())
    write_weights(path, made_weights())
    numbers = np.random.default_rng(0).standard_normal((4096, 2**14), np.float32)
    with h5py.File(path, "r+") as file:
        group = file.create_group("fc1")
        options = {"chunks": (64, 2**14), "compression": 1}
        group.create_dataset("fc1_W_1:0", data=numbers, **options)
        group["fc1_b_1:0"] = np.ones(2**14, "f4")
        group.attrs["weight_names"] = np.array([b"fc1_W_1:0", b"fc1_b_1:0"])
        file.attrs["layer_names"] = np.append(file.attrs["layer_names"], b"fc1")
    small, large = read_apart([good, path], count="beyond")
    assert large[0] == "read"
    assert large[1] < 1.1 * numbers.nbytes
    assert large[2] - small[2] < 2**27
