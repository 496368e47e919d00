"""The published files: where they are searched, what counts, and the errors without a network.

A server on this machine stands in for Keras' storage. That the table agrees with Keras' own
constants is in test_keras_functions.py.
"""

import functools
import hashlib
import http.server
import threading
import time

import numpy as np
import pytest
import requests
from support.array_files import NARROW
from support.networks import random_weights

from vggjax.errors import WeightsError
from vggjax.weights import pretrained
from vggjax.weights.convert import convert_file
from vggjax.weights.digests import Published
from vggjax.weights.weight_file import write_weights

WEIGHTS = random_weights(NARROW, None)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The server's files, with the top (True) and without; empty caches."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VGGJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for folder in ("server/vgg16", "weights", "cache", "keras/models"):
        (tmp_path / folder).mkdir(parents=True)
    paths = {}
    for top in (True, False):
        name = Published("vgg16", top, 0, "").file_name
        paths[top] = tmp_path / "server" / "vgg16" / name
        fc1 = {"fc1": {"bias": np.ones(2, np.float32)}} if top else {}
        write_weights(paths[top], WEIGHTS | fc1)
    return paths


def make_table(files, address="http://127.0.0.1:9"):  # nobody listens there
    contents = {top: path.read_bytes() for top, path in files.items()}
    return tuple(
        Published("vgg16", top, len(content), hashlib.md5(content).hexdigest(), address)
        for top, content in contents.items()
    )


@pytest.fixture
def find(files):
    """`find_pretrained` without a network."""
    return functools.partial(pretrained.find_pretrained, published=make_table(files))


@pytest.fixture
def online(files, tmp_path):
    """`find_pretrained` with the server, and the list of requests that the server has answered."""
    received = []

    class Server(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=tmp_path / "server")

        def do_GET(self):
            wanted = self.headers.get("Range")
            content = (tmp_path / "server" / self.path[1:]).read_bytes()
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
            if start >= len(content):
                return self.send_error(416)
            self.send_response(206 if wanted else 200)
            if wanted:
                self.send_header("Content-Range", f"bytes {start}-{len(content)}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start:])

        def log_request(self, *_):
            name = self.path.split("/")[-1]
            received.append(f"{self.command} {name} {self.headers.get('Range', '')}".strip())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        table = make_table(files, f"http://127.0.0.1:{server.server_port}")
        yield functools.partial(pretrained.find_pretrained, published=table), received
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("place", ["weights", "cache", "keras/models"])
def test_a_copy_on_this_machine_is_found_without_the_network(files, find, tmp_path, place):
    copy = tmp_path / place / files[True].name
    files[True].rename(copy)
    assert find("vgg16", include_top=True).path.resolve() == copy
    assert find("vgg16", include_top=False).path.resolve() == copy  # a complete file has the base


def test_the_smaller_file_is_preferred_without_the_top_and_never_used_with_it(
    files, find, tmp_path
):
    files[False].rename(tmp_path / "cache" / files[False].name)
    with pytest.raises(WeightsError):
        find("vgg16", include_top=True)
    files[True].rename(tmp_path / "weights" / files[True].name)
    assert find("vgg16", include_top=False).path.name == files[False].name


def test_a_converted_file_counts_only_if_it_was_converted_from_the_published_one(
    files, find, tmp_path
):
    converted = tmp_path / "weights" / "vgg16.safetensors"
    convert_file(files[True], converted)
    assert find("vgg16", include_top=True).path.resolve() == converted
    write_weights(converted, WEIGHTS, metadata={"source_md5": "another"})
    with pytest.raises(WeightsError, match=r"Skipped: weights.vgg16\.safetensors \(not conv"):
        find("vgg16", include_top=True)
    converted.write_bytes(b"damaged")
    with pytest.raises(WeightsError, match=r"Skipped: weights.vgg16\.safetensors \(not conv"):
        find("vgg16", include_top=True)


@pytest.mark.parametrize("damage", ["size", "md5"])
def test_a_damaged_copy_is_reported_and_skipped(files, find, tmp_path, damage):
    content = files[True].read_bytes()
    changed = content[:-1] if damage == "size" else content[:-1] + bytes([content[-1] ^ 1])
    (tmp_path / "weights" / files[True].name).write_bytes(changed)
    problem = "bytes instead of" if damage == "size" else r"its md5 is \w{32} instead of"
    with pytest.raises(WeightsError, match=rf"Skipped: weights.*{problem}"):
        find("vgg16", include_top=True)
    good = tmp_path / "keras" / "models" / files[True].name
    good.write_bytes(content)
    assert find("vgg16", include_top=True).path == good


def test_a_missing_file_is_downloaded_once_and_verified(files, online, tmp_path, capfd):
    find, received = online
    (tmp_path / "cache").rmdir()
    path = find("vgg16", include_top=False).path
    assert path == tmp_path / "cache" / files[False].name
    assert path.read_bytes() == files[False].read_bytes()
    assert find("vgg16", include_top=False).path == path
    assert received == [f"HEAD {path.name}", f"GET {path.name}"]
    assert "100%" in capfd.readouterr().err


def test_a_download_that_differs_is_refused_and_removed(files, online, tmp_path):
    files[False].write_bytes(files[False].read_bytes()[:-100])
    with pytest.raises(WeightsError, match="cannot be downloaded"):
        online[0]("vgg16", include_top=False)
    assert not list((tmp_path / "cache").iterdir())


def test_a_download_replaces_a_truncated_copy(files, online, tmp_path):
    (tmp_path / "cache" / files[False].name).write_bytes(files[False].read_bytes()[:-100])
    assert online[0]("vgg16", include_top=False).path.read_bytes() == files[False].read_bytes()


def test_an_interrupted_download_resumes_where_it_ended(files, online, tmp_path):
    find, received = online
    content, name = files[False].read_bytes(), files[False].name
    (tmp_path / "cache" / f".{name}.part").write_bytes(content[:1000])
    path = find("vgg16", include_top=False).path
    assert path.read_bytes() == content and received[-1] == f"GET {name} bytes=1000-"
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == [name]


def test_a_part_of_another_file_is_removed_and_the_next_attempt_succeeds(files, online, tmp_path):
    find, _ = online
    content, name = files[False].read_bytes(), files[False].name
    for part in (b"x" * 1000, b"x" * len(content)):
        (tmp_path / "cache" / f".{name}.part").write_bytes(part)
        with pytest.raises(WeightsError, match="cannot be downloaded"):
            find("vgg16", include_top=False)
        assert not list((tmp_path / "cache").iterdir())
    assert find("vgg16", include_top=False).path.read_bytes() == content


def test_without_a_network_the_error_lists_the_ways_out_within_seconds(files, find):
    start = time.monotonic()
    with pytest.raises(WeightsError) as caught:
        find("vgg16", include_top=True)
    assert time.monotonic() - start < 60
    entry = make_table(files)[0]
    for part in (entry.url, entry.md5, f"{entry.size_bytes:,}", "set `weights` to none",
                 str(pretrained.cache_dir() / entry.file_name)):  # fmt: skip
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_server_that_never_answers_is_given_up_after_the_timeout(find, monkeypatch):
    end = threading.Event()

    def never(*_, **__):
        end.wait(120)
        raise requests.ConnectionError

    monkeypatch.setattr("requests.head", never)
    start = time.monotonic()
    with pytest.raises(WeightsError, match=r"no answer within 0\.2 s"):
        find("vgg16", include_top=True, probe_s=0.2)
    end.set()
    assert time.monotonic() - start < 60


def test_a_network_without_published_weights_is_refused_with_those_that_have_them(find):
    with pytest.raises(WeightsError, match="for vgg16; got vgg11"):
        find("vgg11", include_top=True)


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_the_cache_is_in_the_system_s_place_unless_the_environment_names_one(
    tmp_path, monkeypatch, platform
):
    for name in ("VGGJAX_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", platform)
    assert "cache" in str(pretrained.cache_dir()).lower()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert platform != "linux" or pretrained.cache_dir() == tmp_path / "vggjax"
    monkeypatch.setenv("VGGJAX_CACHE", "~/elsewhere")
    assert pretrained.cache_dir().name == "elsewhere" and pretrained.cache_dir().is_absolute()
