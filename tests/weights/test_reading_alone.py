"""Reading a weight file opens that file, writes none, runs none of its code and opens no socket.

An audit hook sees all that Python does, in this process's stead and in that of the reader.
"""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.hostile_layers import made_weights

import vggjax
from vggjax.weights.hdf5 import worker
from vggjax.weights.weight_file import write_weights

HOOK = """
import os, sys
events = []
QUIET = ("object.", "os.listdir", "os.scandir", "sys._getframe", "sys.unraisable", "code.__new__",
         "builtins.id", "marshal.dumps", "cpython.", "_thread.", "time.sleep", "sys.set")
def hook(event, args):
    if watching and not event.startswith(QUIET):
        events.append([event, *(os.fspath(a) if isinstance(a, (str, os.PathLike)) else repr(a)
                                for a in args)])
watching = False
sys.addaudithook(hook)
"""
READ = """
import json
from vggjax.weights.weight_file import read_weights
found = {}
for watched in (False, True):  # what is imported late is imported the first time
    for path in sys.argv[1:]:
        events, outcome, watching = [], "read", watched
        try:
            read_weights(path)
        except Exception as error:
            outcome = getattr(error, "code", repr(error))
        watching = False
        found[path] = [outcome, events]
print(json.dumps(found))
"""
SERVE = """
import io, json
from vggjax.weights.hdf5.worker_child import serve
answers, lines = io.BytesIO(), []
for path in (sys.argv[3], sys.argv[4]):
    kind = "zip" if path.endswith(".keras") else "h5"
    request = {"path": path, "kind": kind, "bytes": os.path.getsize(path), "seconds": 20}
    unpack = "" if "bad" in path else "[]\\n"
    lines.append((json.dumps(request) + "\\n" + unpack).encode())
serve(io.BytesIO(lines[0]), answers)
watching = True
serve(io.BytesIO(lines[1]), answers)
watching = False
print(json.dumps(["error" if b'"error"' in answers.getvalue() else "read", events]))
"""
ENDINGS = (".h5", ".weights.h5", ".keras", ".safetensors")


def watched(command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def writes(event):
    name, *args = event
    return name == "open" and (
        any(letter in args[1] for letter in "wax+")
        or int(args[2]) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    )


def check(events, path):
    """Holds that nothing happened but the opening of one file for reading."""
    opened = [event for event in events if event[0] == "open"]
    # The parent's end of a pipe has a number; the null device takes what a crash would print.
    own = [event for event in opened if event[1] not in (os.devnull,) and not event[1].isdigit()]
    assert {event[1] for event in own} <= {str(path), "/proc/self/statm"}, opened
    assert not [event for event in own if writes(event)]
    harmless = {"open", "resource.setrlimit", "subprocess.Popen", "os.kill"}
    assert {event[0] for event in events} <= harmless, events
    started = [" ".join(event) for event in events if event[0] == "subprocess.Popen"]
    assert all("worker_child" in line for line in started)
    assert len([event for event in events if event[0] == "os.kill"]) <= len(started)


@pytest.fixture
def files(tmp_path):
    """Good files by ending, and an archive with a Lambda that would leave a mark."""
    for ending in ENDINGS:
        write_weights(tmp_path / f"good{ending}", made_weights())
    config = {"class_name": "Lambda", "config": {"function": f"open({str(tmp_path / 'mark')!r})"}}
    with zipfile.ZipFile(tmp_path / "bad.keras", "w") as archive:
        archive.write(tmp_path / "good.weights.h5", "model.weights.h5")
        archive.writestr("config.json", json.dumps(config))
    return tmp_path


def test_importing_opens_one_file_for_reading_and_does_nothing_else(files):
    before = sorted(files.iterdir())
    found = watched([sys.executable, "-c", HOOK + READ, *map(str, before)])
    assert len(found) == len(before) == 5
    for path, (outcome, events) in found.items():
        assert outcome == ("E_CODE" if "bad" in path else "read")
        check(events, path)
        started = [event for event in events if event[0] == "subprocess.Popen"]
        assert len(started) == (0 if path.endswith(".safetensors") else 1)
        assert any(event[0] == "open" and event[1] == path for event in events)
    assert sorted(files.iterdir()) == before


@pytest.mark.parametrize("name", ["good.h5", "good.weights.h5", "good.keras", "bad.keras"])
def test_the_process_that_parses_opens_one_file_and_does_nothing_else(files, name):
    path, before = files / name, sorted(files.iterdir())
    good = files / f"good{''.join(path.suffixes)}"
    code = worker._CODE.partition("from vggjax")[0] + HOOK + SERVE
    package = str(Path(vggjax.__file__).parent)
    command = [sys.executable, "-S", "-c", code, json.dumps(sys.path), package, good, path]
    outcome, events = watched(list(map(str, command)))
    assert outcome == ("error" if name.startswith("bad") else "read")
    check(events, path)
    assert "subprocess.Popen" not in {event[0] for event in events}
    assert sorted(files.iterdir()) == before


def test_the_check_sees_what_must_not_be(tmp_path):
    for code in ("open('x', 'w')", "eval('1')", "import socket; socket.socket()", "os.mkdir('y')",
                 "import marshal; marshal.loads(marshal.dumps(1))"):  # fmt: skip
        lines = ["import json, os", f"os.chdir({str(tmp_path)!r})", HOOK, "watching = True", code,
                 "watching = False", "print(json.dumps(events))"]  # fmt: skip
        events = watched([sys.executable, "-c", "\n".join(lines)])
        with pytest.raises(AssertionError):
            check(events, tmp_path / "w.h5")
