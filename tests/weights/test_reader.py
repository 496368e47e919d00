"""The process that parses Keras files: stopped when it hangs, survived when it crashes, limited."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.apart import command, run_apart
from support.hostile_layers import GROUP, KERNEL, L, tiny_weights
from support.networks import assert_same_weights

from vggjax.errors import WeightsError
from vggjax.weights.hdf5.unpack import ChunkedSpan
from vggjax.weights.keras.read import parse_keras, run_child
from vggjax.weights.tensor_spans import Span, check_spans
from vggjax.weights.weight_file import read_weights, write_weights

linux = pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")


@pytest.fixture
def path(tmp_path):
    write_weights(tmp_path / "w.h5", tiny_weights())
    return tmp_path / "w.h5"


def child_of_this_process(seconds=120):
    """Wait for the process that `run_child` starts, and return its number."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = status.read_text().rpartition(")")[2].split()
                command = status.with_name("cmdline").read_bytes()
            except OSError:
                continue
            if int(fields[1]) == os.getpid() and b"keras.child" in command:
                return int(status.parent.name)
        time.sleep(0.01)
    raise AssertionError("no such process")


@linux
def test_a_process_that_waits_forever_is_killed_in_time(tmp_path):
    os.mkfifo(tmp_path / "w.keras")  # whoever opens it waits for a writer
    start = time.monotonic()
    with pytest.raises(WeightsError, match=r"reading it took longer than 1 s") as caught:
        run_child(tmp_path / "w.keras", "keras", timeout_s=1)
    assert (caught.value.code, time.monotonic() - start < 60) == ("E_TIMEOUT", True)


@linux
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGSEGV, "E_FORMAT"), (signal.SIGXCPU, "E_TIMEOUT")]
)
def test_a_process_that_crashes_or_uses_up_its_time_refuses_the_file(tmp_path, number, code):
    os.mkfifo(tmp_path / "w.keras")
    killer = threading.Thread(target=lambda: os.kill(child_of_this_process(), number))
    killer.start()
    with pytest.raises(WeightsError) as caught:
        run_child(tmp_path / "w.keras", "keras")
    killer.join()
    assert caught.value.code == code


@linux
@pytest.mark.parametrize(("action", "error"), [
    ("bytearray(2**31)", "MemoryError"),
    ("open('x', 'wb', buffering=0).write(b'x')", "OSError"),
])  # fmt: skip
def test_the_process_can_neither_take_all_memory_nor_write_a_file(tmp_path, action, error):
    code = f"""
from vggjax.weights.keras.child import limit
limit(5, 0)
try:
    {action}
except {error}:
    print("limited")
"""
    assert run_apart(code, cwd=tmp_path) == "limited\n"


@linux
def test_the_system_ends_the_process_when_its_time_is_used_up():
    code = "from vggjax.weights.keras.child import limit\nlimit(1, 0)\nwhile True: pass"
    done = subprocess.run(command(code), stderr=subprocess.DEVNULL, check=False)
    assert done.returncode == -signal.SIGXCPU


def test_the_process_imports_numpy_and_h5py_and_no_jax():
    loaded = run_apart("import vggjax.weights.keras.child; print(sorted(sys.modules))")
    assert "'h5py'" in loaded
    assert not [name for name in ("jax", "flax", "scipy", "PIL") if f"'{name}'" in loaded]


def test_the_shapes_are_checked_before_any_number_is_read(path):
    with h5py.File(path, "r+") as file:
        file[L][KERNEL][0, 0, 0, 0] = np.nan

    def refuse(shapes):
        assert shapes[L] == {"kernel": (3, 3, 4, 4), "bias": (4,)}
        raise WeightsError("not wanted", code="E_SHAPE")

    with pytest.raises(WeightsError, match="not wanted"):
        read_weights(path, check=refuse)
    with pytest.raises(WeightsError, match="NaN"):
        read_weights(path)


@pytest.mark.parametrize("ending", [".h5", ".weights.h5", ".keras"])
def test_one_parse_serves_the_metadata_the_shapes_and_any_number_of_reads(tmp_path, ending):
    path, weights = tmp_path / f"w{ending}", tiny_weights()
    write_weights(path, weights, metadata={"source": "a test"})
    file = parse_keras(path, "keras" if ending == ".keras" else "h5")
    assert file.info.metadata == {"source": "a test"}
    assert file.shapes == {k: {n: a.shape for n, a in v.items()} for k, v in weights.items()}
    for _ in range(2):
        assert_same_weights(file.read(path), weights)


def test_an_external_file_is_not_even_opened(tmp_path):
    path = tmp_path / "w.weights.h5"
    write_weights(path, tiny_weights())
    os.mkfifo(tmp_path / "other.h5")  # whoever opens it waits for ever
    with h5py.File(path, "r+") as file:
        del file[GROUP]
        file[GROUP] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/x")
        file["layers/a"] = h5py.SoftLink(f"/{GROUP}")
    with pytest.raises(WeightsError) as caught:
        parse_keras(path, "h5")
    assert caught.value.code == "E_LINK"


def test_the_weights_behind_a_user_block_are_read(tmp_path, path):
    user_block = tmp_path / "user.h5"
    with h5py.File(user_block, "w", userblock_size=1024) as file, h5py.File(path) as good:
        for name in good:
            good.copy(name, file)
        for name, value in good.attrs.items():
            file.attrs[name] = value
        kernel = file[L][KERNEL][()]
        del file[L][KERNEL]
        file[L].create_dataset(KERNEL, data=kernel, compression="gzip")
    assert_same_weights(read_weights(user_block), tiny_weights())


def test_arrays_and_chunks_must_lie_in_the_file_and_share_no_byte():
    spans = [Span("a", (2,), "<f4", 8), Span("b", (2,), "<f4", 16), Span("c", (9,), "<f4")]
    check_spans([*spans, chunked((32, 8), (24, 8))], size_bytes=40)
    for wrong, code in (
        (Span("x", (2,), "<f4", 36), "E_TRUNCATED"),
        (Span("x", (2,), "<f4", -4), "E_TRUNCATED"),
        (Span("x", (2,), "<f4", 12), "E_ALIAS"),
        (Span("x", (2,), "<f4", 16), "E_ALIAS"),
        (Span("x", (2**29,), "<f4"), "E_BOMB"),
        (Span("x", (2**28,), "<f4"), "E_BOMB"),
        (Span("x", (2**70, 2**70), "<f4"), "E_BOMB"),
        (chunked((24, 8), (31, 8)), "E_ALIAS"),
        (chunked((24, 8), (24, 8)), "E_ALIAS"),
        (chunked((24, 8), (20, 2)), "E_ALIAS"),
        (chunked((24, 8), (33, 8)), "E_TRUNCATED"),
        (chunked((24, 8), (2**64 - 1, 8)), "E_TRUNCATED"),
    ):
        with pytest.raises(WeightsError, match="x|together") as caught:
            check_spans([*spans, wrong], size_bytes=40)
        assert caught.value.code == code, wrong


def chunked(*ranges):
    pieces = tuple((start, length, 0) for start, length in ranges)
    return ChunkedSpan("x", (4,), "<f4", chunk=(2,), pieces=pieces)
