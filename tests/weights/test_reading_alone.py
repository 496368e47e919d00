"""Reading a weight file opens that file, writes none, runs none of its code and opens no socket.

An audit hook sees all that Python does, in this process and in the one that parses.
"""

import json
import os
import subprocess
import sys
import zipfile

import pytest
from support.apart import run_apart
from support.hostile_layers import tiny_weights

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
outcomes = {}
for watched in (False, True):  # what is imported late is imported the first time
    for path in sys.argv[2:]:
        events, outcome, watching = [], "read", watched
        try:
            read_weights(path)
        except Exception as error:
            outcome = getattr(error, "code", repr(error))
        watching = False
        outcomes[path] = [outcome, events]
print(json.dumps(outcomes))
"""
PARSE = """
import json
from vggjax.weights.keras.child import answer, limit
path, good = sys.argv[2:]
kind = "keras" if path.endswith(".keras") else "h5"
limit(20, os.path.getsize(path))
answer(good, kind)
watching = True
message = answer(path, kind)
watching = False
print(json.dumps(["error" if "error" in json.loads(message) else "read", events]))
"""
ENDINGS = (".h5", ".weights.h5", ".keras", ".safetensors")


def writes(event):
    name, *args = event
    return name == "open" and (
        any(letter in args[1] for letter in "wax+")
        or int(args[2]) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    )


def check(events, path):
    """Assert that nothing happened but the opening of one file for reading."""
    opened = [event for event in events if event[0] == "open"]
    # The parent's end of a pipe has a number; the null device takes what a crash would print.
    files = [event for event in opened if event[1] != os.devnull and not event[1].isdigit()]
    assert {event[1] for event in files} <= {str(path)}, opened
    assert not [event for event in files if writes(event)]
    # Python may start the child through posix_spawn, which has an event of its own.
    allowed = {"open", "subprocess.Popen", "os.posix_spawn"}
    assert {event[0] for event in events} <= allowed, events
    started = [" ".join(event) for event in events if event[0] == "subprocess.Popen"]
    assert all("keras.child" in line for line in started)


@pytest.fixture
def files(tmp_path):
    """Good files by ending, and an archive with a Lambda that would leave a mark."""
    for ending in ENDINGS:
        write_weights(tmp_path / f"good{ending}", tiny_weights())
    config = {"class_name": "Lambda", "config": {"function": f"open({str(tmp_path / 'mark')!r})"}}
    with zipfile.ZipFile(tmp_path / "bad.keras", "w") as archive:
        archive.write(tmp_path / "good.weights.h5", "model.weights.h5")
        archive.writestr("config.json", json.dumps(config))
    return tmp_path


def test_reading_opens_one_file_and_starts_one_process_and_does_nothing_else(files):
    before = sorted(files.iterdir())
    outcomes = json.loads(run_apart(HOOK + READ, *before))
    assert len(outcomes) == len(before) == 5
    for path, (outcome, events) in outcomes.items():
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
    outcome, events = json.loads(run_apart(HOOK + PARSE, path, good))
    assert outcome == ("error" if name.startswith("bad") else "read")
    check(events, path)
    assert "subprocess.Popen" not in {event[0] for event in events}
    assert sorted(files.iterdir()) == before


def test_the_check_fails_for_everything_that_is_forbidden(tmp_path):
    for code in ("open('x', 'w')", "eval('1')", "import socket; socket.socket()", "os.mkdir('y')",
                 "import marshal; marshal.loads(marshal.dumps(1))"):  # fmt: skip
        lines = ["import json, os", f"os.chdir({str(tmp_path)!r})", HOOK, "watching = True", code,
                 "watching = False", "print(json.dumps(events))"]  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", "\n".join(lines)], capture_output=True, check=True
        )
        with pytest.raises(AssertionError):
            check(json.loads(done.stdout), tmp_path / "w.h5")
