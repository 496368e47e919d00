"""The well-known datasets from their archives: fetched, unpacked safely, and never half there.

That they are the same as tfds prepares them is in test_tfds.py. A server on this machine stands in
for the archives' servers; the archives are the tests' own.
"""

import concurrent.futures
import io
import os
import subprocess
import sys
import tarfile

import pytest
from support import tfds_archives
from support.file_server import serve
from support.full_disk import file_size_limit
from support.tfds_archives import HIDE_TENSORFLOW, WELL_KNOWN, open_own

from vggjax.data.sources import archives as reading
from vggjax.errors import DataError


@pytest.fixture(autouse=True)
def without_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def flowers():
    return tfds_archives.flowers()[0]


def files_of(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_dataset_is_downloaded_once_and_its_archive_is_not_kept(flowers, tmp_path):
    with serve(flowers) as server:
        source = open_own("tf_flowers", tmp_path, flowers, server.address)
        assert server.requests == ["HEAD flower_photos.tgz", "GET flower_photos.tgz"]
    again = open_own("tf_flowers", tmp_path, flowers)
    assert again.fingerprint == source.fingerprint and len(again) == 20
    assert again.read(7).pixels.tobytes() == source.read(7).pixels.tobytes()
    assert files_of(tmp_path) == ["images.bin", "index.npz"]


def test_a_broken_download_is_resumed_by_the_next_command(tmp_path):
    flowers, _ = tfds_archives.flowers(each=40)
    with serve(flowers) as server:
        server.cuts = [2**16 + 5, 0]
        with pytest.raises(DataError, match="broke off after 65,536 bytes .* command resumes"):
            open_own("tf_flowers", tmp_path, flowers, server.address)
        assert files_of(tmp_path) == [".flower_photos.tgz.part"]
        assert len(open_own("tf_flowers", tmp_path, flowers, server.address)) == 200
        assert server.requests[-1] == "GET flower_photos.tgz bytes=65536-"


def test_an_archive_with_another_checksum_is_never_read(flowers, tmp_path):
    other = tfds_archives.flowers(each=5)[0]
    with serve(other) as server, pytest.raises(DataError, match="bytes") as error:
        open_own("tf_flowers", tmp_path, flowers, server.address)
    assert files_of(tmp_path) == []
    for part in (server.url("flower_photos.tgz"), f"into {tmp_path / 'downloads' / 'manual'}"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "place",
    ["flower_photos.tgz", "downloads/flower_photos.tgz", "downloads/manual/flower_photos.tgz",
     "flower_photos (1).tgz", "downloads/tf_flowers/download.tensorflow.org_Z9.tgz"],
)  # fmt: skip
def test_an_archive_put_there_by_hand_is_found_by_its_contents_and_stays(place, flowers, tmp_path):
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(flowers["flower_photos.tgz"])
    assert len(open_own("tf_flowers", tmp_path, flowers)) == 20
    assert path.exists()


def test_another_file_of_the_archive_s_name_is_reported_and_skipped(flowers, tmp_path):
    data = flowers["flower_photos.tgz"]
    (tmp_path / "flower_photos.tgz").write_bytes(data[:-1] + b"?")
    with pytest.raises(DataError, match=r"Skipped: .*/flower_photos\.tgz \(its sha256 is .* inst"):
        open_own("tf_flowers", tmp_path, flowers)


def test_a_full_disk_while_unpacking_leaves_nothing_half(flowers, tmp_path):
    (tmp_path / "flower_photos.tgz").write_bytes(flowers["flower_photos.tgz"])
    with file_size_limit(5000), pytest.raises(DataError, match="cannot be written to .*: File too"):
        open_own("tf_flowers", tmp_path, flowers)
    assert files_of(tmp_path) == ["flower_photos.tgz"]
    assert len(open_own("tf_flowers", tmp_path, flowers)) == 20


KILLED = """
import os, sys
from support.tfds_archives import flowers, open_own
from vggjax.data.sources import wellknown

hashed = []
def md5(*args, **kwargs):
    hashed.append(args)
    if len(hashed) == 7:
        os._exit(9)  # as a kill: nothing is cleaned up
    return hash_of(*args, **kwargs)
hash_of, wellknown.hashlib.md5 = wellknown.hashlib.md5, md5
open_own("tf_flowers", sys.argv[1], flowers()[0])
"""


def test_a_process_killed_while_unpacking_leaves_nothing_that_is_used(flowers, tmp_path):
    (tmp_path / "flower_photos.tgz").write_bytes(flowers["flower_photos.tgz"])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    assert subprocess.run(command, env=environment, timeout=100).returncode == 9
    assert not {"images.bin", "index.npz"} & set(files_of(tmp_path))
    assert len(open_own("tf_flowers", tmp_path, flowers)) == 20
    assert files_of(tmp_path) == ["flower_photos.tgz", "images.bin", "index.npz"]


@pytest.mark.parametrize("name", ["images.bin", "index.npz"])
def test_a_damaged_copy_is_made_anew(name, flowers, tmp_path):
    (tmp_path / "flower_photos.tgz").write_bytes(flowers["flower_photos.tgz"])
    fingerprint = open_own("tf_flowers", tmp_path, flowers).fingerprint
    (path,) = tmp_path.rglob(name)
    path.write_bytes(path.read_bytes()[:-3])
    again = open_own("tf_flowers", tmp_path, flowers)
    assert again.fingerprint == fingerprint and again.read(0).pixels.shape == (20, 30, 3)


def test_two_at_once_prepare_it_once(flowers, tmp_path):
    with serve(flowers) as server, concurrent.futures.ThreadPoolExecutor(3) as pool:
        futures = [
            pool.submit(open_own, "tf_flowers", tmp_path, flowers, server.address) for _ in range(3)
        ]
        assert len({future.result().fingerprint for future in futures}) == 1
        assert server.requests.count("GET flower_photos.tgz") == 1


def test_paths_and_links_that_lead_outside_have_no_effect(flowers, tmp_path):
    """Every member that is not a plain file of the expected name is passed over."""
    hostile = {
        "flower_photos/../../daisy/x.jpg": None, "/flower_photos/daisy/x.jpg": None,
        "../flower_photos/daisy/x.jpg": None, "flower_photos/daisy/../../x.jpg": None,
        "flower_photos/daisy/link.jpg": tarfile.SYMTYPE,
        "flower_photos/daisy/hard.jpg": tarfile.LNKTYPE,
        "flower_photos/daisy/device.jpg": tarfile.CHRTYPE,
    }  # fmt: skip
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, kind in hostile.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind or tarfile.REGTYPE, "/etc/hostname"
            archive.addfile(member)
        with tarfile.open(fileobj=io.BytesIO(flowers["flower_photos.tgz"])) as plain:
            for member in plain:
                archive.addfile(member, plain.extractfile(member))
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "flower_photos.tgz").write_bytes(file.getvalue())
    hostile_flowers = {"flower_photos.tgz": file.getvalue()}
    assert len(open_own("tf_flowers", folder, hostile_flowers)) == 20
    assert files_of(tmp_path) == ["flower_photos.tgz", "images.bin", "index.npz"]


@pytest.mark.parametrize(
    ("name", "limit"),
    [("mnist", "MAX_MEMBER_BYTES")]  # a gzip file has one member
    + [
        (name, limit)
        for name in ("tf_flowers", "cats_vs_dogs")
        for limit in ("MAX_MEMBERS", "MAX_MEMBER_BYTES", "MAX_BYTES")
    ],
)
def test_an_archive_that_unpacks_to_too_much_is_refused(name, limit, tmp_path, monkeypatch):
    archives = WELL_KNOWN[name]()
    for file, data in archives.items():
        (tmp_path / file).write_bytes(data)
    monkeypatch.setattr(reading, limit, 10)
    with pytest.raises(DataError, match="holds more than .* so it was not unpacked"):
        open_own(name, tmp_path, archives)
    assert files_of(tmp_path) == sorted(archives)


def test_a_member_larger_than_it_declares_is_read_no_further(tmp_path, monkeypatch):
    """A zip's directory may declare any size."""
    archive = tfds_archives.cats_vs_dogs()["kagglecatsanddogs_5340.zip"]
    path = tmp_path / "x.zip"
    path.write_bytes(archive)
    monkeypatch.setattr(reading._Budget, "spend", lambda self, size_bytes: None)
    monkeypatch.setattr(reading, "MAX_MEMBER_BYTES", 10)
    with pytest.raises(DataError, match="holds more than"):
        list(reading.zip_members(path, ".*", lambda done, total: None))


TRAIN = (
    HIDE_TENSORFLOW
    + """
from support.tfds_archives import flowers, remote_files
from vggjax.cli.main import main
from vggjax.data.sources import wellknown
from vggjax.models import arch

arch.register_arch(arch.Arch("tiny", (1, 1, 2, 2, 2), (4, 4, 8, 8, 8)))
wellknown.archives_of = lambda builder: remote_files(flowers(each=10)[0], sys.argv[1])
code = main(sys.argv[2:])
assert not [name for name in sys.modules if name.split(".")[0] in ("tensorflow", "keras")]
sys.exit(code)
"""
)


@pytest.mark.slow
def test_without_tensorflow_the_flowers_are_fetched_examined_and_trained_on(tmp_path):
    archives, _ = tfds_archives.flowers(each=10)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    train = "train --dataset tf_flowers --model tiny --weights none --unfreeze all --image-size 32"
    train += f" --epochs 1 --workdir {tmp_path / 'run'}"
    with serve(archives) as server:
        for words in ("doctor tf_flowers", train):
            command = [sys.executable, "-c", TRAIN, server.address, *words.split()]
            command += ["--data-dir", str(tmp_path / "data")]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        assert server.requests.count("GET flower_photos.tgz") == 1
    assert "epoch 1/1" in done.stdout and (tmp_path / "run" / "eval.json").exists()
