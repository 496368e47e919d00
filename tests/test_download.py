"""Downloads: resumed, verified, shared between processes, and never half there."""

import hashlib
import threading

import pytest
from support.file_server import serve
from support.full_disk import file_size_limit

from vggjax import download as module
from vggjax.download import DownloadError, RemoteFile, download

CONTENT = bytes(range(256)) * 4000  # 1,024,000 bytes
PIECE = 2**16


@pytest.fixture(autouse=True)
def without_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server():
    with serve({"a.tgz": CONTENT}) as server:
        yield server


def remote(server, *, content=CONTENT, name="a.tgz"):
    return RemoteFile(server.url(name), name, len(content), hashlib.sha256(content).hexdigest())


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_download_is_reported_in_bytes_and_leaves_nothing_but_the_file(server, tmp_path):
    moves = []
    target = tmp_path / "new" / "a.tgz"
    download(remote(server), target, progress=lambda *move: moves.append(move))
    assert target.read_bytes() == CONTENT and names(target.parent) == ["a.tgz"]
    assert moves == sorted(moves) and moves[-1] == (len(CONTENT), len(CONTENT))
    assert server.requests == ["HEAD a.tgz", "GET a.tgz"]


def test_a_cut_connection_is_continued_where_it_ended(server, tmp_path):
    server.cuts = [6 * PIECE, 2 * PIECE + 5]
    download(remote(server), tmp_path / "a.tgz")
    assert (tmp_path / "a.tgz").read_bytes() == CONTENT
    parts = [f"GET a.tgz bytes={start * PIECE}-" for start in (6, 8)]
    assert server.requests[1:] == ["GET a.tgz", *parts]


def test_a_server_without_ranges_sends_the_whole_file_again(server, tmp_path):
    server.ranges, server.cuts = False, [6 * PIECE]
    download(remote(server), tmp_path / "a.tgz")
    assert (tmp_path / "a.tgz").read_bytes() == CONTENT


def test_a_server_that_always_cuts_ends_with_an_error_and_the_next_call_goes_on(server, tmp_path):
    server.cuts = [6 * PIECE, 0]
    with pytest.raises(DownloadError, match="broke off after 393,216 bytes .* resumes"):
        download(remote(server), tmp_path / "a.tgz")
    assert names(tmp_path) == [".a.tgz.part"]
    download(remote(server), tmp_path / "a.tgz")
    assert server.requests[-1] == f"GET a.tgz bytes={6 * PIECE}-"
    assert (tmp_path / "a.tgz").read_bytes() == CONTENT


@pytest.mark.parametrize("given", [CONTENT[:-1], CONTENT + b"x", CONTENT[:-1] + b"x"])
def test_other_contents_are_refused_and_removed(server, tmp_path, given):
    server.files["a.tgz"] = given
    with pytest.raises(DownloadError, match="bytes|sha256"):
        download(remote(server), tmp_path / "a.tgz")
    assert names(tmp_path) == []


def test_a_complete_part_is_used_without_asking_for_it(server, tmp_path):
    (tmp_path / ".a.tgz.part").write_bytes(CONTENT)
    download(remote(server), tmp_path / "a.tgz")
    assert server.requests == ["HEAD a.tgz"] and names(tmp_path) == ["a.tgz"]


def test_a_write_that_fails_keeps_what_arrived(server, tmp_path):
    with file_size_limit(300_000), pytest.raises(DownloadError, match="File too large"):
        download(remote(server), tmp_path / "a.tgz")
    assert names(tmp_path) == [".a.tgz.part"]
    download(remote(server), tmp_path / "a.tgz")
    assert (tmp_path / "a.tgz").read_bytes() == CONTENT


def test_a_disk_without_room_is_refused_before_the_download(server, tmp_path, monkeypatch):
    usage = module.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DownloadError, match=r"No space left on device \(1 MB are needed, 0 MB"):
        download(remote(server), tmp_path / "a.tgz")
    assert names(tmp_path) == []


def test_two_at_once_download_it_once(server, tmp_path):
    threads = [
        threading.Thread(target=download, args=(remote(server), tmp_path / "a.tgz"))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.requests.count("GET a.tgz") == 1 and names(tmp_path) == ["a.tgz"]


def test_a_missing_file_is_reported_with_the_servers_answer(server, tmp_path):
    with pytest.raises(DownloadError, match="^the server answers 404$"):
        download(remote(server, name="gone.tgz"), tmp_path / "gone.tgz")
