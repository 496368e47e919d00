"""What reading takes: bombs cost neither memory nor time, good files no second copy."""

import json
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from support import hostile_archives, hostile_arrays, hostile_safetensors
from support.hostile_layers import CASES, made_weights

import vggjax
from vggjax.weights.hdf5 import worker
from vggjax.weights.weight_file import write_weights

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="this system does not tell a process' peak"
)

assert hostile_archives and hostile_arrays and hostile_safetensors  # they register their cases
READ = """
import re
from vggjax.weights.hdf5 import worker as reader
from vggjax.weights.weight_file import read_weights

def peak(process):  # of this program alone, where getrusage counts what it was forked from as well
    found = re.search(r"VmHWM:\\s*(\\d+) kB", open(f"/proc/{process}/status").read())
    return int(found[1]) * 1024 if found else 0

def end(self, end=reader.Reader._end):
    if self._process is not None:
        children.append(peak(self._process.pid))
    end(self)

reader.Reader._end = end
for path in sys.argv[3:]:
    children, before = [0], peak("self")
    try:
        code = "read" if read_weights(path) else "empty"
    except ValueError as error:
        code = error.code
    print(json.dumps([code, before, peak("self"), max(children)]))
"""


def read_apart(paths):
    """Reads files one after another: (code, peak before, peak, peak of the reader's process)."""
    code = worker._CODE.partition("from vggjax")[0] + READ
    package = str(Path(vggjax.__file__).parent)
    command = [sys.executable, "-S", "-c", code, json.dumps(sys.path), package, *paths]
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
    found = read_apart(paths)
    assert time.monotonic() - start < 5 * len(paths)
    assert {code for code, *_ in found} == {"E_BOMB"}
    assert max(own + child for _, _, own, child in found) < 2**28


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".h5", ".keras", ".safetensors"])
def test_reading_allocates_as_much_as_the_file_is_long(tmp_path, ending):
    weights, path = made_weights(), tmp_path / f"w{ending}"
    weights["fc1"] = {"kernel": np.ones((4, 2**22), "f4"), "bias": np.ones(2**22, "f4")}
    weights["predictions"] = {"kernel": np.ones((2**22, 3), "f4"), "bias": np.ones(3, "f4")}
    write_weights(path, weights)
    good = tmp_path / "good.h5"
    write_weights(good, made_weights())  # what every file needs is there before
    (_, _, _, rest), (code, before, peak, child) = read_apart([good, path])
    size_bytes = path.stat().st_size
    assert code == "read" and size_bytes > 2**27
    # Of both processes together, beyond what a small file takes.
    assert peak - before + child - rest < 1.1 * size_bytes


@pytest.mark.slow
def test_a_packed_file_is_read_piece_by_piece(tmp_path):
    path, good = tmp_path / "w.h5", tmp_path / "good.h5"
    write_weights(good, made_weights())
    write_weights(path, made_weights())
    numbers = np.tile(np.random.default_rng(0).standard_normal(2**12, np.float32), (2**12, 2))
    with h5py.File(path, "r+") as file:
        group = file.create_group("fc1")
        options = {"chunks": (64, 2**13), "compression": 1}
        group.create_dataset("fc1_W_1:0", data=numbers, **options)
        group["fc1_b_1:0"] = np.ones(2**13, "f4")
        group.attrs["weight_names"] = np.array([b"fc1_W_1:0", b"fc1_b_1:0"])
        file.attrs["layer_names"] = np.append(file.attrs["layer_names"], b"fc1")
    (_, _, _, rest), (code, before, peak, child) = read_apart([good, path])
    assert code == "read"
    assert peak - before < 1.1 * numbers.nbytes
    assert child - rest < 0.6 * numbers.nbytes
