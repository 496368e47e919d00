"""A conversion that is killed, or whose disk is full, leaves the old file or none."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.hostile_layers import made_weights

import vggjax
from vggjax.weights.hdf5 import worker
from vggjax.weights.weight_file import read_weights, write_weights

resource = pytest.importorskip("resource", reason="this system bounds no file's length")

APART = worker._CODE.partition("from vggjax")[0]  # without the package's __init__, and so jax
CONVERT = """
import resource, signal
from vggjax.errors import WeightsError, one_line_message
from vggjax.weights.convert import convert_file
src, dst, length, killed = sys.argv[3:]
signal.signal(signal.SIGXFSZ, signal.SIG_DFL if killed == "True" else signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(length), int(length)))
try:
    convert_file(src, dst)
except WeightsError as error:
    sys.exit(one_line_message(error))
"""
ENDINGS = (".safetensors", ".weights.h5", ".h5", ".keras")


def convert(src, dst, *, length, killed):
    """Converts in a process that may write `length` bytes to a file, and is killed at the next."""
    package = str(Path(vggjax.__file__).parent)
    command = [sys.executable, "-S", "-c", APART + CONVERT, json.dumps(sys.path), package,
               str(src), str(dst), str(length), str(killed)]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("killed", [True, False], ids=["killed", "disk full"])
def test_a_conversion_that_ends_early_leaves_the_old_file_or_none(tmp_path, ending, killed):
    src, dst = tmp_path / "src.h5", tmp_path / f"dst{ending}"
    write_weights(src, made_weights())
    for old in (False, True):
        if old:
            write_weights(dst, made_weights(seed=1))
        before = dst.read_bytes() if old else None
        done = convert(src, dst, length=1500, killed=killed)
        assert done.returncode == (-signal.SIGXFSZ if killed else 1), done.stderr
        assert (dst.read_bytes() if dst.exists() else None) == before
        if not killed:
            assert done.stderr.count("\n") == 1
            assert str(dst) in done.stderr and done.stderr.endswith("[E_WRITE]\n")
            assert {path.name for path in tmp_path.iterdir()} <= {"src.h5", dst.name}
    for rest in tmp_path.glob(".*"):
        os.utime(rest, (0, 0))  # as if it were of yesterday
    done = convert(src, dst, length=10**6, killed=killed)
    assert done.returncode == 0, done.stderr
    assert read_weights(dst).keys() == made_weights().keys()
    assert {path.name for path in tmp_path.iterdir()} == {"src.h5", dst.name}
