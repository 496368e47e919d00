"""`vggjax embed` and `vggjax similar`, on a small network's weights."""

import json
import os
import shutil
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from support.tiny_run import PASS_RTOL, make_images, make_run, random_model, write_base

from vggjax.cli.main import main
from vggjax.data.images.preprocess import Preprocessing, preprocess, resize_image
from vggjax.data.stream.options import StreamOptions
from vggjax.errors import ConfigError, DataError
from vggjax.features import embedding_store
from vggjax.features.embed_files import embed_command
from vggjax.features.embed_options import EmbedOptions
from vggjax.features.embedding_store import EmbeddingStore
from vggjax.features.embeddings import Embeddings, read_embeddings
from vggjax.features.similar import most_similar, near_duplicates, outliers
from vggjax.models.params import extract
from vggjax.weights.weight_file import write_weights

FLAGS = "--weights base.safetensors --model tiny --image-size 40".split()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a folder with weights, 9 images of 40x48 px, a text, and the index of the images."""
    root = tmp_path_factory.mktemp("made")
    write_base(root / "base.safetensors")
    make_images(root / "photos", ("a", "b", "c"), each=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert main(["embed", "photos", *FLAGS, "--out", "index.npz"]) == 0
    return root


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_vector_is_the_pooled_output_of_the_preprocessed_image(here):
    index = read_embeddings("index.npz")
    assert index.names == tuple(map(str, sorted(Path("photos").rglob("*.png"))))
    assert index.vectors.shape == (9, 8) and index.vectors.dtype == np.float32
    name = index.names[4]
    preprocessing = Preprocessing.from_json(index.metadata["preprocessing"])
    assert (preprocessing.mode, preprocessing.image_size) == ("torch", 40)
    image = resize_image(np.asarray(Image.open(name)), preprocessing)
    model = random_model("tiny")
    x = preprocess(np.asarray(image)[None], "torch")
    expected = jax.jit(lambda x: model(x, until="block5_pool").mean((1, 2)))(x)[0]
    np.testing.assert_allclose(index.vectors[4], expected, rtol=1e-3, atol=1e-6)
    assert (index.metadata["model"], index.metadata["layer"]) == ("tiny", "block5_pool")


def test_npz_and_parquet_hold_the_same(here):
    index = read_embeddings("index.npz")
    index.write(Path("copy.parquet"))
    copy = read_embeddings("copy.parquet")
    assert (copy.names, copy.metadata) == (index.names, index.metadata)
    np.testing.assert_array_equal(copy.vectors, index.vectors)


class Killed(BaseException):
    """What ends a call in the middle, as a signal would."""


def test_a_call_that_was_ended_goes_on_and_the_file_is_that_of_one_call(here, monkeypatch):
    Path("photos/b/bad.png").write_text("text")
    monkeypatch.setattr(embedding_store, "PART_BYTES", 2 * 8 * 4)  # two vectors
    add, embedded = EmbeddingStore.add, []

    def add_or_end(self, path, vector):
        if len(embedded) == 5:
            raise Killed
        embedded.append(str(path))
        add(self, path, vector)

    for name in ("whole.npz", "whole.parquet"):
        assert main(["embed", "photos", *FLAGS, "--out", name]) == 3
        assert not Path(f"{name}.parts").exists()
        again = name.replace("whole", "again")
        with monkeypatch.context() as patch:
            patch.setattr(EmbeddingStore, "add", add_or_end)
            with pytest.raises(Killed):
                main(["embed", "photos", *FLAGS, "--out", again])
        assert len(list(Path(f"{again}.parts").glob("*.npz"))) == 2 and not Path(again).exists()
        with pytest.raises(ConfigError, match="has vectors of another model or layer"):
            embed_command(["photos"], again, embed_options(layer="block4_pool"))
        embedded.clear()
        assert main(["embed", "photos", *FLAGS, "--out", again]) == 3
        assert not Path(f"{again}.parts").exists()
        whole, joined = read_embeddings(name), read_embeddings(again)
        assert (joined.names, joined.metadata) == (whole.names, whole.metadata)
        np.testing.assert_allclose(joined.vectors, whole.vectors, rtol=PASS_RTOL, atol=1e-6)


def embed_options(**settings):
    base = {"weights": "base.safetensors", "model": "tiny", "image_size": 40}
    return EmbedOptions(**base | settings)


def test_the_parts_of_a_stream_make_the_whole(here):
    with tarfile.open("photos.tar", "w") as archive:
        archive.add("photos", "photos")
    names = []
    for part in ("1/2", "2/2"):
        stream = StreamOptions(shard=part)
        assert embed_command(["photos.tar"], "part.npz", embed_options(), stream=stream) == 0
        names += read_embeddings("part.npz").names
    assert sorted(names) == [f"photos.tar/{name}" for name in read_embeddings("index.npz").names]


def test_layers_pools_and_a_run_s_model(here, capsys):
    def width(*flags):
        assert main(["embed", "photos/a", "--out", "other.npz", *flags]) == 0
        return read_embeddings("other.npz").vectors.shape[1]

    assert width(*FLAGS, "--layer", "block2_pool", "--pool", "none") == 10 * 10 * 4
    assert width(*FLAGS, "--layer", "relu3_2", "--pool", "max") == 8
    make_run(Path("run"), "photos")
    assert width("--workdir", "run", "--layer", "predictions") == 3
    assert main(["similar", "photos/b/00.png", "other.npz", "--top", "2"]) == 0
    assert capsys.readouterr().out.count("photos/a/") == 2
    assert main(["embed", "photos", "--workdir", "run", "--model", "vgg16", "--out", "x.npz"]) == 2
    assert "--workdir has its own --model; leave out vgg16" in capsys.readouterr().err


def test_images_that_cannot_be_read_are_left_out_and_named(here, capsys):
    Path("photos/bad.png").write_text("text")
    assert main(["embed", "photos", "gone.png", *FLAGS, "--out", "new.npz"]) == 3
    errors = capsys.readouterr().err
    assert "left out: photos/bad.png: not an image" in errors and "gone.png: no such" in errors
    assert read_embeddings("new.npz").names == read_embeddings("index.npz").names
    assert main(["embed", "photos/bad.png", *FLAGS, "--out", "none.npz"]) == 2
    assert not Path("none.npz").exists()


def test_a_new_image_finds_itself_first_and_an_indexed_one_only_others(here, capsys):
    shutil.copy("photos/b/01.png", "new.png")
    assert main(["similar", "new.png", "index.npz", "--top", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == " 1.0000  photos/b/01.png" and len(lines) == 3
    Path("base.safetensors").unlink()  # not needed for an image of the index
    assert main(["similar", "photos/b/01.png", "index.npz", "--top", "8"]) == 0
    assert "photos/b/01.png" not in capsys.readouterr().out
    assert main(["similar", "gone.png", "index.npz"]) == 2


def test_an_index_is_searched_from_any_folder(here, capsys, monkeypatch):
    shutil.copy("photos/b/01.png", "new.png")
    Path("deep").mkdir()
    monkeypatch.chdir("deep")
    assert main(["similar", "../new.png", "../index.npz", "--top", "1"]) == 0
    assert capsys.readouterr().out == " 1.0000  photos/b/01.png\n"
    Path("../base.safetensors").rename("../gone")
    for name in ("../photos/b/01.png", os.path.abspath("../photos/b/01.png")):
        assert main(["similar", name, "../index.npz"]) == 0  # an image of the index, not itself
        assert "photos/b/01.png" not in capsys.readouterr().out
    assert main(["similar", "../new.png", "../index.npz"]) == 2
    assert "A new image needs the model of the index, base.safetensors" in capsys.readouterr().err


def test_an_index_that_moved_alone_still_knows_its_images(here, capsys):
    Path("deep").mkdir()
    Path("index.npz").rename("deep/index.npz")
    Path("base.safetensors").unlink()
    assert main(["similar", "photos/b/01.png", "deep/index.npz"]) == 0
    assert "photos/b/01.png" not in capsys.readouterr().out


def test_an_index_of_an_older_version_starts_from_the_current_folder(here):
    index = read_embeddings("index.npz")
    facts = {key: value for key, value in index.metadata.items() if key != "folder"}
    Embeddings(index.names, index.vectors, facts).write(Path("old.npz"))
    shutil.copy("photos/b/01.png", "new.png")
    assert main(["similar", "new.png", "old.npz"]) == 0


def test_an_index_of_other_weights_is_not_searched(here, capsys):
    weights = extract(random_model("tiny"))
    weights["block1_conv1"]["bias"] = weights["block1_conv1"]["bias"] + 1
    write_weights("base.safetensors", weights, metadata={"preprocess": "torch"})
    shutil.copy("photos/b/01.png", "new.png")
    assert main(["similar", "new.png", "index.npz"]) == 2
    assert "made by other weights than are there now" in capsys.readouterr().err


def vectors(count=2100, width=32):
    """Return an index of vectors of which 5, 50 and 2,090 have nearly one direction."""
    array = np.random.default_rng(0).standard_normal((count, width)).astype(np.float32) + 1
    array[50], array[2090] = array[5] * 3, array[5] + 0.01
    array[7] = -10  # points away from all others
    return Embeddings(tuple(f"{i}.jpg" for i in range(count)), array, {})


def test_search_duplicates_and_outliers_are_those_of_all_pairs():
    index = vectors()
    assert near_duplicates(index, 0.99) == [["5.jpg", "50.jpg", "2090.jpg"]]
    (first, *_), similarities = outliers(index, 3), most_similar(index, index.vectors[5], 4)
    assert first.name == "7.jpg" and first.similarity < 0
    assert {match.name for match in similarities[:3]} == {"5.jpg", "50.jpg", "2090.jpg"}
    assert [m.similarity for m in similarities] == sorted(m.similarity for m in similarities)[::-1]
    array = index.vectors[:100]
    unit = array / np.linalg.norm(array, axis=1, keepdims=True)
    cosine = unit @ unit.T - 3 * np.eye(100)
    expected = np.sort(cosine, 1)[:, -5:].mean(1)
    part = Embeddings(index.names[:100], array, {})
    received = {m.name: m.similarity for m in outliers(part, 100)}
    np.testing.assert_allclose([received[name] for name in part.names], expected, atol=1e-5)


def test_other_files_and_settings_are_refused_in_a_sentence(here, capsys):
    np.savez("arrays.npz", vectors=np.ones((2, 3)))
    Path("text.parquet").write_text("text")
    for name in ("arrays.npz", "text.parquet"):
        with pytest.raises(DataError, match=f"{name} is no file of embeddings"):
            read_embeddings(name)
    for line, says in (
        ("similar index.npz", "--duplicates or --outliers"),
        ("similar photos/a index.npz --duplicates", "Give the images to search with"),
        ("similar gone.npz --outliers", "There is no file gone.npz"),
        ("similar photos/a/00.png --outliers", "embed` writes: not in NumPy's format .npz."),
        ("embed photos --out x.csv", "--out must end in .npz, .parquet"),
        ("embed photos --out x.npz --weights none", "random features say little"),
    ):
        assert main(line.split()) == 2
        assert says in capsys.readouterr().err
    with pytest.raises(ConfigError, match="cannot be written|Cannot write"):
        read_embeddings("index.npz").write(Path("gone/x.npz"))
    assert json.loads(json.dumps(read_embeddings("index.npz").metadata))
