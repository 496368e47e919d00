"""What reading allocates: bombs cost neither memory nor time, good files no second copy."""

import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from support import hostile_archives, hostile_arrays, hostile_numbers, hostile_safetensors
from support.apart import run_apart
from support.array_files import flat
from support.hostile_layers import CASES, tiny_weights

from vggjax.weights.weight_file import write_weights

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="this system does not show a process' peak"
)

assert (
    hostile_archives and hostile_arrays and hostile_numbers and hostile_safetensors
)  # they register their cases
PEAK = """
import re
def peak():  # of this program alone, where getrusage counts the one that it was forked from, too
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
"""
READ = """
from vggjax.weights.weight_file import read_weights
for path in sys.argv[2:]:
    before = peak()
    try:
        code = "read" if read_weights(path) else "empty"
    except ValueError as error:
        code = error.code
    print(json.dumps([code, peak() - before]))
"""
PARSE = """
import os
from vggjax.weights.keras import child
for path in sys.argv[2:]:
    before = peak()
    child.answer(path, "keras" if path.endswith(".keras") else "h5")
    print(json.dumps(peak() - before))
"""


def read_apart(*paths):
    """Read files one after another; return (outcome, bytes by which each raised the peak)."""
    return [json.loads(line) for line in run_apart(PEAK + READ, *paths).splitlines()]


def parse_apart(*paths):
    """Parse files one after another; return the bytes by which each raised the peak."""
    return [json.loads(line) for line in run_apart(PEAK + PARSE, *paths).splitlines()]


def children_s():
    """Return the processor time of the processes that this one has waited for."""
    times = os.times()
    return times.children_user + times.children_system


def test_a_bomb_costs_neither_memory_nor_time(tmp_path):
    paths = []
    for i, case in enumerate(case for case in CASES if case.code == "E_BOMB"):
        (tmp_path / str(i)).mkdir()
        paths.append(tmp_path / str(i) / f"bad{case.ending}")
        case.make(paths[-1])
    assert len(paths) >= 6
    start_s = children_s()
    outcomes = read_apart(*paths)
    assert children_s() - start_s < 5 * len(paths)
    assert {code for code, _ in outcomes} == {"E_BOMB"}
    keras = [path for path in paths if path.suffix in (".h5", ".keras")]
    assert max(*(raised for _, raised in outcomes), *parse_apart(*keras)) < 2**27


def save(path, weights):
    if path.suffix != ".npz":
        return write_weights(path, weights)
    with open(path, "wb") as file:
        np.savez(file, **flat(weights, "{layer}.{param}"))


@pytest.mark.parametrize("ending", [".h5", ".keras", ".safetensors", ".npz"])
def test_reading_allocates_as_much_as_the_file_is_long(tmp_path, ending):
    weights, path, good = tiny_weights(), tmp_path / f"w{ending}", tmp_path / f"good{ending}"
    weights["fc1"] = {"kernel": np.ones((4, 2**21), "f4"), "bias": np.ones(2**21, "f4")}
    weights["predictions"] = {"kernel": np.ones((2**21, 3), "f4"), "bias": np.ones(3, "f4")}
    save(path, weights)
    save(good, tiny_weights())  # brings in whatever every file needs
    _, (outcome, raised) = read_apart(good, path)
    size_bytes = path.stat().st_size
    assert outcome == "read" and size_bytes > 2**26
    assert raised < 1.05 * size_bytes + 2**25  # a block is read at a time
    if ending in (".h5", ".keras"):
        assert parse_apart(good, path)[1] < 0.05 * size_bytes


def test_a_packed_array_is_read_chunk_by_chunk(tmp_path):
    path, good = tmp_path / "w.h5", tmp_path / "good.h5"
    write_weights(good, tiny_weights())
    write_weights(path, tiny_weights())
    numbers = np.tile(np.random.default_rng(0).standard_normal(2**12, np.float32), (2**11, 2))
    with h5py.File(path, "r+") as file:
        group = file.create_group("fc1")
        options = {"chunks": (64, 2**13), "compression": 1}
        group.create_dataset("fc1_W_1:0", data=numbers, **options)
        group["fc1_b_1:0"] = np.ones(2**13, "f4")
        group.attrs["weight_names"] = np.array([b"fc1_W_1:0", b"fc1_b_1:0"])
        file.attrs["layer_names"] = np.append(file.attrs["layer_names"], b"fc1")
    _, (outcome, raised) = read_apart(good, path)
    assert outcome == "read" and raised < 1.2 * numbers.nbytes
    assert parse_apart(good, path)[1] < 0.05 * numbers.nbytes
