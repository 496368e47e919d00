"""A file is written whole or not at all, whatever ends the writing early."""

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support.apart import command
from support.array_files import NARROW
from support.networks import random_weights

from vggjax.atomic import atomic_write, check_output_file, is_temporary, write_text
from vggjax.errors import ConfigError
from vggjax.weights.weight_file import read_weights, write_weights


def names(folder):
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("error", [OSError, ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_and_no_other(tmp_path, error):
    path = tmp_path / "file"
    for old in (None, "old"):
        if old:
            write_text(path, old)
        with pytest.raises(error), atomic_write(path) as temporary:
            temporary.write_text("half")
            assert (path.read_text() if path.exists() else None) == old
            raise error
        assert (path.read_text() if path.exists() else None) == old
        assert names(tmp_path) == ({"file"} if old else set())


def test_a_folder_that_cannot_be_written_to_raises_an_os_error(tmp_path):
    with pytest.raises(OSError):
        write_text(tmp_path / "gone" / "file", "text")


def test_a_text_keeps_every_character_and_every_undecodable_byte(tmp_path):
    text = "image \N{SNOWMAN} " + os.fsdecode(b"\xff.jpg")
    write_text(tmp_path / "file", text)
    assert (tmp_path / "file").read_bytes() == "image \N{SNOWMAN} ".encode() + b"\xff.jpg"


def test_threads_that_write_the_same_file_never_mix_their_contents(tmp_path):
    path, texts = tmp_path / "file", [letter * 10_000 for letter in "abcd"]

    def write(text):
        for _ in range(20):
            write_text(path, text)
            assert path.read_text() in texts

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in texts and names(tmp_path) == {"file"}


def test_only_old_temporary_files_of_the_same_name_are_removed(tmp_path):
    path = tmp_path / "a[1].txt"
    stale, recent, other = (tmp_path / f".{name}.part" for name in ("a[1].txt.7-7", "a[1].txt.8-8",
                                                                     "a1.txt.7-7"))  # fmt: skip
    for temporary in (stale, recent, other):
        temporary.touch()
    for temporary in (stale, other):
        os.utime(temporary, (0, 0))
    write_text(path, "text")
    assert names(tmp_path) == {path.name, recent.name, other.name}


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path):
    path = tmp_path / ("\N{SNOWMAN}" * 85)  # 255 bytes
    for text in ("first", "second"):
        write_text(path, text)
        assert path.read_text() == text
    assert names(tmp_path) == {path.name}


def test_temporary_files_are_told_by_their_names(tmp_path):
    for name in ("a", "contents.json", "n" * 250):
        with atomic_write(tmp_path / name) as temporary:
            temporary.write_text("text")
            assert is_temporary(temporary.name) and not is_temporary(name)
    assert not is_temporary(".name.part")


CONVERT = """
import resource, signal
from vggjax.errors import WeightsError, one_line_message
from vggjax.weights.convert import convert_file
src, dst, killed = sys.argv[2:]
signal.signal(signal.SIGXFSZ, signal.SIG_DFL if killed == "True" else signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))
try:
    convert_file(src, dst)
except WeightsError as error:
    sys.exit(one_line_message(error))
"""


def convert(src, dst, *, killed):
    """Convert in a process that may write 1500 bytes to a file: killed there, or refused."""
    code = command(CONVERT, src, dst, killed)
    return subprocess.run(code, capture_output=True, text=True, check=False)


@pytest.mark.skipif(os.name != "posix", reason="this system does not limit a file's length")
@pytest.mark.parametrize("ending", [".safetensors", ".h5", ".keras"])
def test_a_conversion_that_is_killed_or_finds_the_disk_full_leaves_the_old_file(tmp_path, ending):
    src, dst = tmp_path / "src.h5", tmp_path / f"dst{ending}"
    write_weights(src, random_weights(NARROW, None))
    write_weights(dst, random_weights(NARROW, None, seed=1))
    before = dst.read_bytes()
    full = convert(src, dst, killed=False)
    assert full.returncode == 1 and full.stderr.count("\n") == 1
    assert str(dst) in full.stderr and full.stderr.endswith("[E_WRITE]\n")
    assert dst.read_bytes() == before and names(tmp_path) == {"src.h5", dst.name}
    assert convert(src, dst, killed=True).returncode == -signal.SIGXFSZ
    assert dst.read_bytes() == before
    for temporary in tmp_path.glob(".*"):
        os.utime(temporary, (0, 0))
    write_weights(dst, read_weights(src))
    assert names(tmp_path) == {"src.h5", dst.name}


def test_a_replaced_file_keeps_its_mode(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")
    path.chmod(0o640)
    write_text(path, "new")
    assert path.read_text() == "new" and path.stat().st_mode & 0o777 == 0o640


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes")
def test_what_is_no_regular_file_is_never_replaced(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    before = names(tmp_path)
    for name, kind in (
        ("link", "link"),
        ("dangling", "link"),
        ("pipe", "pipe"),
        ("folder", "fold"),
    ):
        with pytest.raises(OSError, match=kind):
            write_text(tmp_path / name, "new")
        with pytest.raises(ConfigError, match=kind):
            check_output_file(tmp_path / name, field="out")
    assert names(tmp_path) == before and (tmp_path / "file").read_text() == "old"
    assert check_output_file(tmp_path / "pipe", field="csv", stream=True).name == "pipe"
    with pytest.raises(ConfigError, match="`csv` is the name of a file; got '-'.*/dev/stdout"):
        check_output_file("-", field="csv", stream=True)


def test_an_output_is_no_input_and_no_file_of_a_run(tmp_path):
    image = tmp_path / "a.jpg"
    image.write_bytes(b"")
    with pytest.raises(ConfigError, match="`csv` .*a.jpg is also read"):
        check_output_file(tmp_path / "." / "a.jpg", field="csv", inputs=[image])
    assert check_output_file(tmp_path / "model.json", field="out").name == "model.json"
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="model.json is a file of a run"):
        check_output_file(tmp_path / "model.json", field="out")
    assert check_output_file(tmp_path / "b.csv", field="csv", inputs=[image]).name == "b.csv"
    (tmp_path / "splits.csv").write_text("")
    for name in ("plots/curves.png", "checkpoints/7/mine.csv", "probabilities-val.npz", ".lock"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        with pytest.raises(ConfigError, match="is a file of a run"):
            check_output_file(tmp_path / name, field="out")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no sockets in files")
def test_a_stream_is_no_socket_and_no_disk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind("socket")
    with pytest.raises(ConfigError, match="is a device or socket"):
        check_output_file("socket", field="csv", stream=True)
    monkeypatch.setattr(stat, "S_ISCHR", lambda mode: False)  # as of a disk
    with pytest.raises(ConfigError, match="is a device or socket"):
        check_output_file(os.devnull, field="csv", stream=True)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the system has no /dev/stdout")
def test_the_standard_output_is_written_to_where_it_stands(tmp_path):
    code = (
        "import os; from vggjax.atomic import *\n"
        "print('before', flush=True)\n"
        "path = check_output_file('/dev/stdout', field='csv', stream=True)\n"
        "os.write(open_stream(path), b'row\\n')\n"
        "print('after')"
    )
    with open(tmp_path / "out", "w") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, check=True)
    assert (tmp_path / "out").read_text() == "before\nrow\nafter\n"


def test_an_output_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(ConfigError, match="permission denied"):
        check_output_file(tmp_path / "a.csv", field="csv")
