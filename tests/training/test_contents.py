"""Images that change, are added or vanish after a run has begun."""

import json
import os
import shutil

import numpy as np
import pytest
from support.tiny_run import make_images, make_run
from support.training_runs import make_config, make_three_classes

from vggjax.cli.main import main
from vggjax.data.sources.open import open_source
from vggjax.errors import ConfigError, DataError
from vggjax.training.cross_validation import prepare_cross_validation, write_folds
from vggjax.training.prepare import prepare_run
from vggjax.training.run_dir import contents
from vggjax.training.run_dir.contents import CONTENTS_FILE, Contents, read_contents, write_contents
from vggjax.training.run_dir.folder import make_workdir
from vggjax.training.trainer import train


@pytest.fixture
def images(tmp_path):
    return make_three_classes(tmp_path)


def start(images, workdir, **settings):
    run = prepare_run(make_config(images, workdir, **settings))
    make_workdir(workdir, run.config, run.source, run.splits, run.duplicates, contents=run.contents)
    return run


def change(path):
    """Flip a bit and put the time back: name, size and time stay."""
    status, data = path.stat(), bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("duplicates", ["near", "exact", "ignore"])
def test_changed_added_and_missing_images_are_named_at_resume(images, tmp_path, duplicates):
    workdir, settings = tmp_path / "run", {"duplicates": duplicates}
    run = start(images, workdir, **settings)
    assert list(read_contents(workdir)) == list(run.source.ids)
    assert start(images, workdir, **settings).contents == {}, "an earlier start read the files"
    first, second, third = (images / id for id in run.source.ids[:3])
    change(first)
    with pytest.raises(DataError, match=f"trained on: changed: {run.source.ids[0]}\\. Restore"):
        start(images, workdir, **settings)
    second.unlink()
    third.write_bytes(third.read_bytes() + b"more")
    shutil.copy(images / run.source.ids[3], third.with_name("new.png"))
    names = [f"{third.parent.name}/new.png", *run.source.ids[:3]]
    change_text = f"new: {names[0]}; gone: {names[2]}; changed: {names[1]}, {names[3]}\\."
    with pytest.raises(DataError, match=change_text):
        start(images, workdir, **settings)


def test_only_files_that_were_touched_are_read_again(images, tmp_path, monkeypatch):
    workdir, read, read_state = tmp_path / "run", [], contents.read_state
    ids = start(images, workdir).source.ids
    monkeypatch.setattr(contents, "read_state", lambda path: read.append(path) or read_state(path))
    os.utime(images / ids[3])
    for expected in ([images / ids[3]], []):
        start(images, workdir)
        assert read == expected
        read.clear()
    copy = shutil.copytree(images, tmp_path / "copy")
    start(copy, workdir)
    assert len(read) == len(ids)


def test_a_run_of_an_earlier_version_has_no_contents_and_is_resumed(images, tmp_path):
    run = start(images, tmp_path / "run")
    (tmp_path / "run" / CONTENTS_FILE).unlink()
    change(images / run.source.ids[0])
    start(images, tmp_path / "run")
    assert not (tmp_path / "run" / CONTENTS_FILE).exists()


def test_damaged_contents_are_refused_with_the_way_out(images, tmp_path):
    start(images, tmp_path / "run")
    path = tmp_path / "run" / CONTENTS_FILE
    path.write_text(path.read_text().replace("png", "pnG", 1))
    with pytest.raises(ConfigError, match="damaged.* delete it"):
        start(images, tmp_path / "run")


def test_each_fold_of_a_cross_validation_has_the_contents(images, tmp_path):
    config = make_config(images, tmp_path / "run", cross_validate=2)
    write_folds(prepare_cross_validation(config))
    texts = {(path / CONTENTS_FILE).read_text() for path in (tmp_path / "run").glob("fold-*")}
    assert texts == {(tmp_path / "run" / CONTENTS_FILE).read_text()}


def test_images_without_files_have_no_contents(tmp_path):
    config = make_config("digits", tmp_path / "run", duplicates="ignore")
    assert prepare_run(config).contents == {}


def test_images_that_vanish_during_training_are_named_and_left_out(
    images, tmp_path, monkeypatch, capsys
):
    config = make_config(images, tmp_path / "run", epochs=2, cache_mb=0)
    run = prepare_run(config)
    gone = run.source.ids[run.splits["train"][0]]
    save = contents.write_contents

    def write_and_remove(workdir, states):
        save(workdir, states)
        (images / gone).unlink()

    monkeypatch.setattr("vggjax.training.run_dir.folder.write_contents", write_and_remove)
    assert train(config).left_out == {gone: "no such file"}
    assert capsys.readouterr().out.count(f"left out: {gone}: no such file") == 1


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_images_that_vanished_are_named_and_evaluation_goes_on(tmp_path, capsys, task):
    images, settings = make_images(tmp_path / "data", ("a", "b", "c")), {}
    if task == "multilabel":
        rows = [
            f"{path.relative_to(tmp_path)},{path.parent.name}|a" for path in images.rglob("*.png")
        ]
        images = tmp_path / "table.csv"
        images.write_text("path,label\n" + "\n".join(rows))
        settings = {"task": task, "label_separator": "|", "duplicates": "ignore"}
    workdir = make_run(tmp_path / "run", images, **settings)
    source = open_source(str(images), options=prepare_options(settings))
    states = Contents(source)
    states.add_all(1, None)
    write_contents(workdir, states.states())
    assert main(["evaluate", "--workdir", str(workdir)]) == 0
    whole = np.load(workdir / "probabilities.npz")
    gone = whole["index"][: 4 if task == "multiclass" else 3]  # of multiclass, all of class "a"
    if task == "multiclass":
        shutil.rmtree(source.path(int(gone[0])).parent)
    for i in gone:
        source.path(int(i)).unlink(missing_ok=True)
    capsys.readouterr()
    code = main(["evaluate", "--workdir", str(workdir)])
    assert code == 3
    result = json.loads((workdir / "eval.json").read_text())
    reason = "missing, and was there when the run began"
    assert result["unreadable"] == {source.ids[i]: reason for i in gone}
    assert capsys.readouterr().err.count("vggjax: left out: ") == len(gone)
    rest = np.load(workdir / "probabilities.npz")
    for name in whole:
        np.testing.assert_allclose(rest[name], whole[name][len(gone) :], rtol=1e-5)
    change(source.path(int(whole["index"][6])))
    assert main(["evaluate", "--workdir", str(workdir)]) == 2
    assert f"changed: {source.ids[whole['index'][6]]}" in capsys.readouterr().err


def prepare_options(settings):
    from vggjax.data.sources.options import DatasetOptions

    return DatasetOptions(**{key: settings[key] for key in settings if key != "duplicates"})
