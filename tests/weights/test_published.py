"""The published files: where they are looked for, what counts, and what is said with no network.

A small server on this machine stands in for Keras' storage. That the table agrees with Keras' own
constants is in test_keras_functions.py.
"""

import hashlib
import http.server
import threading
import time

import numpy as np
import pytest
import requests

import vggjax.weights.pretrained as published
from vggjax.errors import WeightsError
from vggjax.weights.convert import convert_file
from vggjax.weights.pretrained import PUBLISHED, Published, find_pretrained
from vggjax.weights.weight_file import read_weights, write_weights

WEIGHTS = {"block1_conv1": {"kernel": np.ones((3, 3, 3, 4), np.float32)}}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A full file and one without its top as they lie on the server, and empty caches."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VGGJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    for folder in ("server/vgg16", "weights", "cache", "keras/models"):
        (tmp_path / folder).mkdir(parents=True)
    table = []
    for top in (True, False):
        path = tmp_path / "server" / "vgg16" / Published("vgg16", top, 0, "").file_name
        write_weights(path, WEIGHTS | ({"fc1": {"bias": np.ones(2, np.float32)}} if top else {}))
        content = path.read_bytes()
        table.append(Published("vgg16", top, len(content), hashlib.md5(content).hexdigest()))
    monkeypatch.setattr(published, "PUBLISHED", tuple(table))
    monkeypatch.setattr(published, "ADDRESS", "http://127.0.0.1:9")  # nobody listens there
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return {entry.include_top: tmp_path / "server" / "vgg16" / entry.file_name for entry in table}


@pytest.fixture
def server(files, tmp_path, monkeypatch):
    """Serves the files; yields the list of requests."""
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
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
            at = self.headers.get("Range", "")
            requests.append(f"{self.command} {self.path.split('/')[-1]} {at}".strip())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        monkeypatch.setattr(published, "ADDRESS", f"http://127.0.0.1:{running.server_port}")
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield requests
        running.shutdown()
        thread.join()


def test_the_four_published_files_are_in_the_table():
    assert {entry.file_name: (entry.size_bytes, entry.md5) for entry in PUBLISHED} == {
        "vgg16_weights_tf_dim_ordering_tf_kernels.h5": (
            553_467_096, "64373286793e3c8b2b4e3219cbf3544b"),
        "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5": (
            58_889_256, "6d6bbae143d832006294945121d1f1fc"),
        "vgg19_weights_tf_dim_ordering_tf_kernels.h5": (
            574_710_816, "cbe5617147190e668d6c5d5026f83318"),
        "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5": (
            80_134_624, "253f8cb515780f3b799900260a226db6"),
    }  # fmt: skip
    assert all(entry.url.startswith("https://storage.googleapis.com/") for entry in PUBLISHED)


@pytest.mark.parametrize("place", ["weights", "cache", "keras/models"])
def test_a_copy_at_hand_is_found_without_the_network(files, tmp_path, place):
    copy = tmp_path / place / files[True].name
    files[True].rename(copy)
    assert find_pretrained("vgg16", include_top=True).resolve() == copy


def test_without_the_top_a_complete_file_at_hand_serves(files, tmp_path):
    files[True].rename(tmp_path / "weights" / files[True].name)
    assert find_pretrained("vgg16", include_top=False).name == files[True].name
    files[False].rename(tmp_path / "cache" / files[False].name)
    assert find_pretrained("vgg16", include_top=False).name == files[False].name


def test_with_the_top_a_file_without_it_never_serves(files, tmp_path):
    files[False].rename(tmp_path / "weights" / files[False].name)
    with pytest.raises(WeightsError):
        find_pretrained("vgg16", include_top=True)


def test_a_converted_file_counts_only_where_its_source_was_the_published_one(files, tmp_path):
    converted = tmp_path / "weights" / "vgg16.safetensors"
    convert_file(files[True], converted)
    assert find_pretrained("vgg16", include_top=True).resolve() == converted
    write_weights(converted, WEIGHTS, metadata={"source_md5": "another"})
    with pytest.raises(WeightsError, match=r"Passed over: weights.vgg16\.safetensors \(not conv"):
        find_pretrained("vgg16", include_top=True)


@pytest.mark.parametrize("damage", ["size", "md5"])
def test_a_copy_that_differs_is_named_and_passed_over(files, tmp_path, damage):
    content = files[True].read_bytes()
    changed = content[:-1] if damage == "size" else content[:-1] + bytes([content[-1] ^ 1])
    (tmp_path / "weights" / files[True].name).write_bytes(changed)
    words = r"bytes instead of" if damage == "size" else r"its md5 is \w{32} instead of"
    with pytest.raises(WeightsError, match=rf"Passed over: weights.*{words}"):
        find_pretrained("vgg16", include_top=True)
    good = tmp_path / "keras" / "models" / files[True].name
    good.write_bytes(content)
    assert find_pretrained("vgg16", include_top=True) == good


def test_a_file_not_at_hand_is_downloaded_once_and_checked(files, server, tmp_path, capfd):
    path = find_pretrained("vgg16", include_top=False)
    assert path == tmp_path / "cache" / files[False].name
    assert path.read_bytes() == files[False].read_bytes()
    assert "block1_conv1" in read_weights(path)
    assert find_pretrained("vgg16", include_top=False) == path
    assert server == [f"HEAD {path.name}", f"GET {path.name}"]
    assert "100%" in capfd.readouterr().err


def test_a_download_that_differs_is_refused_and_leaves_nothing(files, server, tmp_path):
    files[False].write_bytes(files[False].read_bytes()[:-100])
    with pytest.raises(WeightsError, match="cannot be downloaded"):
        find_pretrained("vgg16", include_top=False)
    assert not list((tmp_path / "cache").iterdir())


def test_a_half_download_of_before_is_replaced(files, server, tmp_path):
    (tmp_path / "cache" / files[False].name).write_bytes(files[False].read_bytes()[:-100])
    path = find_pretrained("vgg16", include_top=False)
    assert path.read_bytes() == files[False].read_bytes()


def test_a_download_that_was_cut_off_goes_on_where_it_ended(files, server, tmp_path):
    content, name = files[False].read_bytes(), files[False].name
    (tmp_path / "cache" / f".{name}.part").write_bytes(content[:1000])
    path = find_pretrained("vgg16", include_top=False)
    assert path.read_bytes() == content and server[-1] == f"GET {name} bytes=1000-"
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == [name]


def test_a_rest_of_another_file_is_noticed_and_the_next_try_succeeds(files, server, tmp_path):
    content, name = files[False].read_bytes(), files[False].name
    for rest in (b"x" * 1000, b"x" * len(content)):
        (tmp_path / "cache" / f".{name}.part").write_bytes(rest)
        with pytest.raises(WeightsError, match="cannot be downloaded"):
            find_pretrained("vgg16", include_top=False)
        assert not list((tmp_path / "cache").iterdir())
    assert find_pretrained("vgg16", include_top=False).read_bytes() == content


def test_without_a_network_the_three_ways_out_come_within_seconds(files):
    start = time.monotonic()
    with pytest.raises(WeightsError) as caught:
        find_pretrained("vgg16", include_top=True)
    assert time.monotonic() - start < 6
    message = str(caught.value)
    entry = published.PUBLISHED[0]
    for word in (entry.url, entry.md5, f"{entry.size_bytes:,}", "--weights FILE", "--weights none",
                 str(published.cache_dir() / entry.file_name)):  # fmt: skip
        assert word in message
    assert "\n" not in message


def test_a_network_that_never_answers_is_given_up_within_seconds(files, monkeypatch):
    def never(*_, **__):
        time.sleep(2)
        raise requests.ConnectionError

    monkeypatch.setattr(published, "PROBE_S", 0.2)
    monkeypatch.setattr("requests.head", never)
    start = time.monotonic()
    with pytest.raises(WeightsError, match=r"no answer within 0\.2 s"):
        find_pretrained("vgg16", include_top=True)
    assert time.monotonic() - start < 1.5


def test_a_network_without_published_weights_says_which_have_them(files):
    with pytest.raises(WeightsError, match="for vgg16; got vgg11.*--weights none"):
        find_pretrained("vgg11", include_top=True)
