"""A stream of images has each once, in one order, from files, lists, tar shards and Parquet."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from support.tiny_run import make_images

from vggjax.data.images.decode import DEFAULT_RENDERING
from vggjax.data.images.preprocess import Preprocessing
from vggjax.data.stream import progress
from vggjax.data.stream.batches import stream_batches
from vggjax.data.stream.images import Part, open_images
from vggjax.data.stream.known import NameIndex
from vggjax.data.stream.shards import shard_images
from vggjax.errors import ConfigError, DataError


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Return photos/, 12 images in 3 folders; the working directory is the one above."""
    monkeypatch.chdir(tmp_path)
    return make_images(Path("photos"), ("a", "b", "c"), each=4)


def make_tar(path, files, mode="w", **others):
    """Write a tar with files by name, and others, which are bytes."""
    with tarfile.open(path, mode) as archive:
        for name, file in files.items():
            archive.add(file, name)
            archive.addfile(tarfile.TarInfo(f"{Path(name).stem}.cls"), io.BytesIO())
        for name, content in others.items():
            info = tarfile.TarInfo(name.replace("__", "/").replace("_", "."))
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def named(photos):
    return {f"{path.parent.name}/{path.name}": path for path in sorted(photos.rglob("*.png"))}


def contents(patterns, **options):
    images = list(open_images(patterns, **options))
    assert not any(image.reason for image in images)
    return [image.content or image.path.read_bytes() for image in images]


def test_folders_lists_tars_and_parquet_hold_the_same_images(photos):
    files = named(photos)
    expected = [path.read_bytes() for path in files.values()]
    for name, mode in (("x.tar", "w"), ("x.tar.gz", "w:gz"), ("x.tar.xz", "w:xz")):
        make_tar(name, files, mode, a___hidden_png=b"x", notes_txt=b"text")
        assert contents([name]) == expected
        names = [str(image.path) for image in open_images([name])]
        assert names == [f"{name}/{member}" for member in files]
    Path("lists").mkdir()
    lines = [f"../{path}" for path in files.values()]
    Path("lists/all.txt").write_text("\n".join(lines) + "\n\n")
    assert contents(["lists/all.txt"]) == expected
    images = [{"bytes": data, "path": "same.png"} for data in expected]
    parquet.write_table(pa.table({"label": [1] * 12, "image": images}), "x.parquet")
    parquet.write_table(pa.table({"jpg": expected, "id": list(range(12))}), "y.parquet")
    assert contents(["x.parquet"]) == contents(["y.parquet"]) == expected
    assert str(next(open_images(["x.parquet"])).path) == "x.parquet/0/same.png"
    assert contents(["photos"]) == contents(["photos", "lists/all.txt"][:1]) == expected


def test_a_folder_without_images_has_its_shards(photos):
    make_tar("photos/old.tar", {})  # a backup beside the images
    assert len(contents(["photos"])) == 12
    files = list(named(photos).items())
    Path("shards").mkdir()
    for number in range(3):
        make_tar(f"shards/{number}.tar", dict(files[4 * number : 4 * number + 4]))
    assert contents(["shards"]) == contents(["shards/*.tar"]) == contents(["photos"])
    assert len(contents(["shards/0.tar", "./shards/0.tar", "shards"])) == 12  # each once


@pytest.mark.parametrize("count", [1, 2, 5])
def test_shards_are_all_images_each_once(photos, count):
    parts = [
        list(open_images(["photos"], part=Part.parse(f"{i + 1}/{count}"))) for i in range(count)
    ]
    paths = [image.path for part in parts for image in part]
    assert sorted(paths) == sorted(named(photos).values())
    assert all(part == sorted(part) for part in parts)


def test_an_image_stays_in_its_part_whatever_comes_beside_it(photos):
    before = [image.path for image in open_images(["photos"], part=Part.parse("2/3"))]
    make_images(Path("photos"), ("d",), each=20)
    after = [image.path for image in open_images(["photos"], part=Part.parse("2/3"))]
    assert [path for path in after if path.parent.name != "d"] == before


@pytest.mark.parametrize("text", ["0/4", "5/4", "3", "1/0", "-1/4", "a/b", "1/2/3"])
def test_what_is_no_part_is_refused(text):
    with pytest.raises(ConfigError, match="PART/PARTS, as in 3/16"):
        Part.parse(text)


def test_a_damaged_tar_gives_the_images_before_the_damage_and_says_so(photos):
    make_tar("x.tar", named(photos))
    whole, intact = Path("x.tar").read_bytes(), contents(["x.tar"])
    end = len(whole.rstrip(b"\0"))
    for size in [*range(100, end, 1777), end - 100, end // 512 * 512]:
        Path("x.tar").write_bytes(whole[:size])
        *images, last = open_images(["x.tar"])
        assert "tar file that cannot be read" in last.reason and last.path == Path("x.tar")
        assert [image.content for image in images] == intact[: len(images)]
    Path("x.tar").write_bytes(b"text")
    (image,) = open_images(["x.tar"])
    assert "tar file that cannot be read" in image.reason


def test_parquet_without_images_is_said_with_its_columns(photos):
    parquet.write_table(pa.table({"label": [1], "text": ["a"]}), "x.parquet")
    with pytest.raises(DataError, match="no column of images.*its columns: label, text"):
        next(shard_images(Path("x.parquet")))
    Path("y.parquet").write_text("text")
    (image,) = open_images(["y.parquet"])
    assert "Parquet file that cannot be read" in image.reason


def test_a_name_that_is_twice_in_a_tar_is_two_images(photos):
    with tarfile.open("x.tar", "w") as archive:
        for path in list(named(photos).values())[:3]:
            archive.add(path, "same.png")
    names = [image.path.name for image in open_images(["x.tar"])]
    assert names == ["same.png", "same.png#2", "same.png#3"]


def test_a_name_index_is_a_dictionary():
    names = [f"photo {i}.jpg" for i in range(500)]
    index = NameIndex((name, i) for i, name in enumerate([*names, *names]))
    assert [index.find(name) for name in names] == list(range(500))
    assert "photo 7.jpg" in index and "photo 500.jpg" not in index
    assert NameIndex().find("a") is None


def test_batches_have_every_item_in_order_with_its_image_or_reason(photos):
    Path("photos/b/01.png").write_text("text")
    images = list(open_images(["photos"]))
    preprocessing = Preprocessing("torch", 16)

    def read(image):
        return None if image.path.parent.name == "a" else image.read(DEFAULT_RENDERING)

    batches = list(stream_batches(images, read, preprocessing, batch_size=4))
    assert [item for batch in batches for item, _ in batch.items] == images
    outcomes = [outcome for batch in batches for _, outcome in batch.items]
    assert outcomes[:4] == [None] * 4 and outcomes[5] == "not an image"
    assert [len(batch.images) for batch in batches if len(batch.images)] == [4, 4]
    (few,) = stream_batches(images[6:9], read, preprocessing, batch_size=32)
    assert len(few.images) == 4 and not few.images[3].any()  # the next power of two
    assert np.asarray(few.images[:3]).any((1, 2, 3)).all()


def test_items_that_need_no_model_do_not_pile_up():
    batches = stream_batches(
        range(3000), lambda item: None, Preprocessing("torch", 16), batch_size=4
    )
    assert max(len(batch.items) for batch in batches) <= 512


def test_without_a_terminal_a_stream_prints_its_rate_more_rarely_up_to_once_a_minute(
    monkeypatch, capsys
):
    seconds = iter(range(10**6))  # each look at the clock takes a second
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))
    assert list(progress.show_progress(range(400), "Predicting")) == list(range(400))
    lines = capsys.readouterr().err.splitlines()
    counts = [int(line.split()[1]) for line in lines]
    gaps = [after - before for before, after in zip(counts, counts[1:], strict=False)]
    assert (
        counts[0] < 45 and gaps[:2] == sorted(gaps[:2]) and gaps[2:] == [gaps[-1]] * len(gaps[2:])
    )
    assert all(line.startswith("vggjax: ") and line.endswith(" a second") for line in lines)
