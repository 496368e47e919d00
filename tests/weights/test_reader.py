"""The process that parses HDF5 files: stopped when it hangs, outlived when it crashes, bounded."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.hostile_layers import GROUP, KERNEL, L, made_weights

import vggjax
from vggjax.errors import WeightsError
from vggjax.weights.hdf5 import worker
from vggjax.weights.hdf5.worker import Reader
from vggjax.weights.hdf5.worker_child import Window
from vggjax.weights.keras.read import is_hdf5, read_keras_h5
from vggjax.weights.tensor_spans import Span, check_spans
from vggjax.weights.weight_file import read_weights, write_weights

needs_signals = pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no signals here")
APART = worker._CODE.partition("from vggjax")[0]
"""What the process runs before its own module: the package without its `__init__`."""


def run_apart(code, **options):
    """Runs code as the process of the reader runs its own, and gives what it printed."""
    package = str(Path(vggjax.__file__).parent)
    command = [sys.executable, "-S", "-c", APART + code, json.dumps(sys.path), package]
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def path(tmp_path):
    write_weights(tmp_path / "w.h5", made_weights())
    return tmp_path / "w.h5"


def same(got, want):
    return all(np.array_equal(got[k][n], a) for k, v in want.items() for n, a in v.items())


@needs_signals
def test_a_process_that_hangs_is_killed_and_the_next_file_is_read(path):
    with Reader(timeout_s=0.3) as process:
        read_keras_h5(path, reader=process)
        os.kill(process._process.pid, signal.SIGSTOP)
        start = time.monotonic()
        with pytest.raises(WeightsError, match=r"w\.h5: reading it took longer") as caught:
            read_keras_h5(path, reader=process)
        assert (caught.value.code, time.monotonic() - start < 3) == ("E_TIMEOUT", True)
        assert same(read_keras_h5(path, reader=process), made_weights())


@needs_signals
def test_a_process_that_crashes_is_a_damaged_file_and_the_next_one_is_read(path):
    with Reader() as process:
        read_keras_h5(path, reader=process)
        os.kill(process._process.pid, signal.SIGSEGV)
        with pytest.raises(WeightsError, match=r"w\.h5: the HDF5 library crashed on it") as caught:
            read_keras_h5(path, reader=process)
        assert caught.value.code == "E_FORMAT"
        assert same(read_keras_h5(path, reader=process), made_weights())


def test_one_process_reads_on_after_a_refusal_of_any_kind(path, tmp_path):
    def refuse(shapes):
        raise WeightsError("not wanted", code="E_SHAPE")

    write_weights(tmp_path / "nan.h5", made_weights())
    with h5py.File(tmp_path / "nan.h5", "r+") as file:
        del file[L][KERNEL]
        kernel = np.full((3, 3, 4, 4), np.nan, "f4")
        file[L].create_dataset(KERNEL, data=kernel, compression="gzip")
        file["block1_conv1"].create_dataset("x", data=kernel)
    (tmp_path / "text.h5").write_text("text")
    with Reader() as process:
        read_keras_h5(path, reader=process)
        number = process._process.pid
        for bad, options in ((path, {"check": refuse}), (tmp_path / "text.h5", {})):
            with pytest.raises(WeightsError):
                read_keras_h5(bad, reader=process, **options)
            assert same(read_keras_h5(path, reader=process), made_weights())
        assert process._process.pid == number
        with pytest.raises(WeightsError, match="1,44|144 NaN"):  # numbers still in the pipe
            read_keras_h5(tmp_path / "nan.h5", reader=process)
        assert same(read_keras_h5(path, reader=process), made_weights())


def test_the_shapes_are_asked_about_before_any_number_is_read(path):
    with h5py.File(path, "r+") as file:
        file[L][KERNEL][0, 0, 0, 0] = np.nan

    def refuse(shapes):
        assert shapes[L] == {"kernel": (3, 3, 4, 4), "bias": (4,)}
        raise WeightsError("not wanted", code="E_SHAPE")

    with pytest.raises(WeightsError, match="not wanted"):
        read_weights(path, check=refuse)
    with pytest.raises(WeightsError, match="NaN"):
        read_weights(path)


def test_no_process_is_left_behind(path):
    with Reader() as process:
        read_keras_h5(path, reader=process)
        child = process._process
    assert child.returncode is not None
    assert child.stdin.closed and child.stdout.closed


def test_the_process_starts_without_jax_and_soon():
    start = time.monotonic()
    loaded = run_apart("import vggjax.weights.hdf5.worker_child; print(sorted(sys.modules))")
    assert time.monotonic() - start < 5
    assert "'h5py'" in loaded and "'jax'" not in loaded and "'flax'" not in loaded


@pytest.mark.skipif(sys.platform != "linux", reason="the bounds are Linux's")
@pytest.mark.parametrize(("action", "error"), [
    ("bytearray(2**31)", "MemoryError"),
    ("open('x', 'wb', buffering=0).write(b'x')", "OSError"),
])  # fmt: skip
def test_the_process_can_neither_take_all_memory_nor_write_a_file(tmp_path, action, error):
    code = f"""
from vggjax.weights.hdf5.worker_child import limit
limit(5, 0)
try:
    {action}
except {error}:
    print("bounded")
"""
    assert run_apart(code, cwd=tmp_path) == "bounded\n"


def test_an_external_file_is_not_even_opened(tmp_path):
    path = tmp_path / "w.weights.h5"
    write_weights(path, made_weights())
    os.mkfifo(tmp_path / "other.h5")  # whoever opens it waits for ever
    with h5py.File(path, "r+") as file:
        del file[GROUP]
        file[GROUP] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/x")
        file["layers/a"] = h5py.SoftLink(f"/{GROUP}")
    with Reader(timeout_s=5) as process, pytest.raises(WeightsError) as caught:
        read_keras_h5(path, reader=process)
    assert caught.value.code == "E_LINK"


def test_a_signature_further_in_is_found_and_its_weights_are_read(tmp_path, path):
    with h5py.File(tmp_path / "user.h5", "w", userblock_size=1024) as file, h5py.File(path) as good:
        for name in good:
            good.copy(name, file)
        for name, value in good.attrs.items():
            file.attrs[name] = value
    assert is_hdf5(tmp_path / "user.h5")
    assert same(read_weights(tmp_path / "user.h5"), made_weights())
    (tmp_path / "text").write_text("x" * 5000)
    assert not is_hdf5(tmp_path / "text")


def test_spans_must_lie_in_the_file_and_share_no_byte():
    spans = [Span("a", (2,), "<f4", 8), Span("b", (2,), "<f4", 16), Span("c", (9,), "<f4")]
    check_spans(spans, size_bytes=24)
    for wrong, code in (
        (Span("x", (2,), "<f4", 20), "E_TRUNCATED"),
        (Span("x", (2,), "<f4", -4), "E_TRUNCATED"),
        (Span("x", (2,), "<f4", 12), "E_ALIAS"),
        (Span("x", (2,), "<f4", 16), "E_ALIAS"),
        (Span("x", (2**29,), "<f4"), "E_BOMB"),
        (Span("x", (2**28,), "<f4"), "E_BOMB"),
        (Span("x", (2**70, 2**70), "<f4"), "E_BOMB"),
    ):
        with pytest.raises(WeightsError, match="x|together") as caught:
            check_spans([*spans, wrong], size_bytes=24)
        assert caught.value.code == code, wrong


def test_a_window_shows_its_bytes_alone(tmp_path):
    (tmp_path / "x").write_bytes(b"0123456789")
    with open(tmp_path / "x", "rb", buffering=0) as file:
        for source in (file, memoryview(b"0123456789")):
            window, piece = Window(source, start=2, size=5), bytearray(3)
            assert (window.seek(0, os.SEEK_END), window.seek(1), window.tell()) == (5, 1, 1)
            assert (window.readinto(memoryview(piece)), bytes(piece)) == (3, b"345")
            with pytest.raises(OSError):
                window.readinto(memoryview(piece))
