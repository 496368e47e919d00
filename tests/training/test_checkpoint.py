"""Checkpoints: which are kept, and that none is used that is not what was written."""

import json
import os
import shutil

import numpy as np
import optax
import pytest
from support.full_disk import file_size_limit

from vggjax.errors import VggjaxError
from vggjax.models.head import Head
from vggjax.models.network import Network
from vggjax.training.freezing import label_layers
from vggjax.training.parallel import Placement
from vggjax.training.progress import TrainProgress
from vggjax.training.run_dir.checkpoint import Checkpoints, is_finite
from vggjax.training.run_dir.manifest import MANIFEST, find_damage
from vggjax.training.step import make_state


@pytest.fixture(scope="module")
def state():
    model = Network("narrow", head=Head("gap", outputs=3), image_size=32)
    labels = label_layers(model, ("none",))
    return Placement().fetch(make_state(model, optax.sgd(0.1, momentum=0.9), labels))


def save(workdir, state, steps, *, best=()):
    """Save checkpoints of these steps, as one process; return the notes at its start."""
    with Checkpoints(workdir) as checkpoints:
        progress = checkpoints.latest_progress()
        for step in steps:
            progress.step = step
            if step in best:
                progress.best_step, progress.best_value = step, float(step)
            checkpoints.save(state._replace(step=np.int32(step)), progress)
        return checkpoints.notes


def kept(workdir):
    folder = workdir / "checkpoints"
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def latest(workdir, **options):
    with Checkpoints(workdir, **options) as checkpoints:
        return checkpoints.latest_progress(), checkpoints.notes


def flip_a_bit(path, seed=0):
    data = bytearray(path.read_bytes())
    position = np.random.default_rng(seed).integers(8 * len(data))
    data[position // 8] ^= 1 << position % 8
    path.write_bytes(data)


def test_the_latest_two_and_the_best_are_kept_however_often_the_run_is_killed(tmp_path, state):
    save(tmp_path, state, [1, 2, 3, 4], best=[2])
    assert kept(tmp_path) == [2, 3, 4]
    litter = tmp_path / "checkpoints" / "5.orbax-checkpoint-tmp"
    litter.mkdir()
    for step in (5, 6, 7):  # each in a new process, which does not remember the earlier ones
        save(tmp_path, state, [step])
    assert kept(tmp_path) == [2, 6, 7]
    assert not litter.exists()
    save(tmp_path, state, [8, 9], best=[8])
    assert kept(tmp_path) == [8, 9]


def test_a_run_that_is_killed_while_it_deletes_a_checkpoint_leaves_no_part_of_one(
    tmp_path, state, monkeypatch
):
    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "_sweep", lambda self: None)
        save(tmp_path, state, [1, 2, 3])
    assert kept(tmp_path) == [2, 3]
    [deleted] = (tmp_path / "checkpoints" / "deleted").iterdir()
    os.remove(next(path for path in deleted.rglob("*") if path.is_file()))
    assert latest(tmp_path)[1] == []
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "3"]


def test_a_flipped_bit_anywhere_is_found_and_the_checkpoint_before_is_used(tmp_path, state):
    save(tmp_path, state, [1, 2], best=[1])
    folder = tmp_path / "checkpoints" / "2"
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    assert len(files) > 5
    for path in files:
        intact = path.read_bytes()
        flip_a_bit(path)
        assert find_damage(folder), path
        path.write_bytes(intact)
    assert find_damage(folder) is None

    flip_a_bit(max(files, key=lambda path: path.stat().st_size))
    with pytest.raises(VggjaxError, match="Damaged checkpoints .* 2 .*`strict_resume`"):
        latest(tmp_path, strict=True)
    assert kept(tmp_path) == [1, 2]
    progress, notes = latest(tmp_path)
    assert (progress.step, progress.best_step) == (1, 1)
    assert notes[0].startswith("Set aside the checkpoint of step 2: ")
    assert kept(tmp_path) == [1]
    assert len(list((tmp_path / "damaged-checkpoints").iterdir())) == 1  # nothing is deleted


def test_best_weights_that_are_damaged_while_the_run_goes_on_are_refused(tmp_path, state):
    model = Network("narrow", head=Head("gap", outputs=3), image_size=32)
    with pytest.raises(VggjaxError, match="cannot be used: .* is damaged. The same command"):
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(state._replace(step=np.int32(1)), TrainProgress(step=1, best_step=1))
            checkpoints.save(state._replace(step=np.int32(2)), TrainProgress(step=2, best_step=1))
            flip_a_bit(next((tmp_path / "checkpoints" / "1").glob("model/d/*")))
            checkpoints.restore_model(model, 1)


def test_a_missing_and_an_added_file_are_damage(tmp_path, state):
    save(tmp_path, state, [1])
    folder = tmp_path / "checkpoints" / "1"
    (folder / "new").write_text("")
    assert "new" in find_damage(folder)
    (folder / "new").unlink()
    next(folder.glob("model/*")).rename(folder / MANIFEST.replace("manifest", "moved"))
    assert find_damage(folder)


def test_where_the_best_weights_are_lost_the_next_epoch_is_the_best(tmp_path, state):
    save(tmp_path, state, [1, 2, 3], best=[1])
    flip_a_bit(tmp_path / "checkpoints" / "1" / MANIFEST)
    progress, notes = latest(tmp_path)
    assert (progress.step, progress.best_step, progress.best_value) == (3, 3, None)
    assert "The best weights, of step 1, are lost" in notes[1]
    assert progress.update_best(-1.0)


def test_a_checkpoint_without_a_manifest_is_used_where_no_other_is_intact(tmp_path, state):
    """Killed just before it was written, or from a version that wrote none."""
    save(tmp_path, state, [1])
    os.remove(tmp_path / "checkpoints" / "1" / MANIFEST)
    assert latest(tmp_path) == (TrainProgress(step=1), [])


def test_a_checkpoint_that_a_kill_left_without_its_manifest_yields_to_an_intact_one(
    tmp_path, state
):
    save(tmp_path, state, [1, 2])
    os.remove(tmp_path / "checkpoints" / "2" / MANIFEST)
    progress, notes = latest(tmp_path, strict=True)
    assert progress.step == 1 and kept(tmp_path) == [1]
    assert any("Deleted the checkpoint of step 2" in note for note in notes)


def test_a_manifest_names_every_file(tmp_path, state):
    save(tmp_path, state, [1])
    folder = tmp_path / "checkpoints" / "1"
    text = (folder / MANIFEST).read_text().rpartition("}")[0] + "}"
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert set(json.loads(text)["files"]) == files - {MANIFEST}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_number_that_is_not_finite_makes_a_state_not_finite(state, value):
    largest = np.full(8, np.finfo(np.float32).max)
    assert is_finite(state) and is_finite(state._replace(factor=largest))
    largest[3] = value
    assert not is_finite(state._replace(factor=largest))


def test_a_full_disk_is_one_error_without_tracebacks(tmp_path, state, capfd):
    with file_size_limit(1000):
        with pytest.raises(VggjaxError, match="checkpoint in .* cannot be written: File too large"):
            save(tmp_path, state, [1, 2])
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("anew", [False, True])
def test_a_run_folder_that_was_deleted_is_not_made_anew(tmp_path, state, anew):
    workdir = tmp_path / "run"
    with Checkpoints(workdir) as checkpoints:
        shutil.rmtree(workdir)
        if anew:
            workdir.mkdir()
        with pytest.raises(VggjaxError, match="run was deleted or replaced while this run used"):
            checkpoints.save(state._replace(step=np.int32(1)), TrainProgress(step=1))
        assert anew or not workdir.exists()
