"""A flipped bit or other damage in a run folder is detected, or changes no figure."""

import json
import random
import shutil
from collections import Counter

import numpy as np
import pytest
from support.chaos import IS_FULL, Fault
from support.mutations import flipped, mutated_json, mutated_text
from support.training_runs import assert_same_weights

from vggjax.errors import VggjaxError
from vggjax.models.params import extract
from vggjax.report.compare import write_comparison
from vggjax.report.facts import describe_stages, describe_training, stage_starts
from vggjax.report.run_files import read_run, split_predictions
from vggjax.training.cache.store import FileStore
from vggjax.training.run_dir.log import read_log
from vggjax.training.run_dir.manifest import find_damage
from vggjax.training.run_dir.run_result import load_run_result

STEP = "vggjax.training.progress.MetricAccumulator.add"


@pytest.fixture
def run(place, tmp_path):
    return shutil.copytree(place.whole, tmp_path / "run")


def readings(run):
    """Return all that predict, evaluate, report and export take from a finished run's folder."""
    result = load_run_result(run, strict=True)
    files = read_run(run)
    weights = extract(result.model)
    kept = {split: split_predictions(result, files, split) for split in ("test", "val")}
    figures = {
        "config": result.config,
        "info": result.info,
        "images": result.source.ids,
        "splits": {name: indices.tolist() for name, indices in result.splits.items()},
        "duplicates": result.duplicates,
        "weights": {f"{k}/{n}": a.tobytes() for k, v in weights.items() for n, a in v.items()},
        "evaluation": files.evaluation,
        "data": files.data,
        "described model": files.info,
        "predictions": files.predictions,
        # Computed anew if their file is damaged: the last bit may be another.
        "probabilities": {k: [a.round(5).tolist() for a in v] for k, v in kept.items()},
    }
    curves = {
        "rows": files.rows,
        "best": files.best_epoch,
        "collapses": files.collapses,
        "stages": describe_stages(files.rows),
        "starts": stage_starts(files.rows),
        "facts": describe_training(files),
    }
    return figures, curves


def outcome_of(run, expected):
    """Read a damaged run; return detected, harmless or a curve's figure, and fail otherwise."""
    try:
        figures, curves = readings(run)
    except VggjaxError as error:
        assert "\n" not in str(error)
        return "refused in one line"
    for name, value in expected[0].items():
        assert figures[name] == value, f"{name} changed silently"
    return "no figure changed" if repr(curves) == repr(expected[1]) else "figures of curves changed"


def files_of(run):
    return sorted(
        path
        for path in run.rglob("*")
        if path.is_file() and path.stat().st_size and path.name != ".lock"
    )


def test_a_flipped_bit_in_any_file_is_detected_or_harmless(run, table):
    expected, rng, counts = readings(run), random.Random(0), Counter()
    files = [path for path in files_of(run) if "plots" not in path.parts]
    for path in files:
        content = path.read_bytes()
        for _ in range(100 if IS_FULL else 20):
            path.write_bytes(flipped(content, rng))
            outcome = outcome_of(run, expected)
            relative = path.relative_to(run)
            if relative.parts[0] == "checkpoints":
                damage = find_damage(run / "checkpoints" / relative.parts[1])
                assert damage, relative
                outcome = "checkpoint set aside"
            assert outcome != "figures of curves changed" or path.name == "log.jsonl"
            counts[relative.parts[0], outcome] += 1
        path.write_bytes(content)
    for (name, outcome), count in sorted(counts.items()):
        table.add(f"a flipped bit in {name}", f"{count}: {outcome}")


FUZZED = {
    "model.json": mutated_json,
    "eval.json": mutated_json,
    "data.json": mutated_json,
    "config.json": mutated_json,
    "splits.csv": mutated_text,
    "predictions.csv": mutated_text,
    "log.jsonl": mutated_text,
    "probabilities.npz": flipped,
}


@pytest.mark.parametrize("name", FUZZED)
def test_a_mutated_file_of_a_run_is_refused_or_changes_no_figure(run, table, name):
    expected, content, counts = readings(run), (run / name).read_bytes(), Counter()
    for seed in range(2000 if IS_FULL else 300):
        (run / name).write_bytes(FUZZED[name](content, random.Random(f"{name}:{seed}")))
        outcome = outcome_of(run, expected)
        assert outcome != "figures of curves changed" or name == "log.jsonl", seed
        counts[outcome] += 1
    for outcome, count in sorted(counts.items()):
        table.add(f"mutated {name}", f"{count}: {outcome}")


@pytest.mark.parametrize("name", ["model.json", "eval.json", "data.json", "config.json"])
def test_a_file_without_a_digest_is_read_or_refused_without_a_traceback(run, name):
    """As versions before the digests wrote them: edited, they may give other figures."""
    fields = json.loads((run / name).read_bytes())
    content = json.dumps(
        {k: v for k, v in fields.items() if k not in ("format", "sha256")}
    ).encode()
    for seed in range(2000 if IS_FULL else 300):
        (run / name).write_bytes(mutated_json(content, random.Random(f"{name}:{seed}")))
        try:
            readings(run)
        except VggjaxError as error:
            assert "\n" not in str(error)


def test_a_mutated_log_never_breaks_the_pages_that_show_it(run, place, table, tmp_path):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    from support.mutations import edited

    for seed in range(2000 if IS_FULL else 300):
        rng = random.Random(seed)
        changed = [edited(line, rng) if rng.random() < 0.3 else line for line in lines]
        (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in changed))
        readings(run)
        if seed % 100 == 0:
            write_comparison([run, place.whole], tmp_path / "comparison.html")
        assert len(read_log(run)) <= len(lines)


def test_a_mutated_checkpoint_is_always_noticed(run, table):
    folder = run / "checkpoints" / "24"
    paths, count = files_of(folder), 2000 if IS_FULL else 300
    for seed in range(count):
        rng = random.Random(seed)
        path = rng.choice(paths)
        content = path.read_bytes()
        bad = mutated_text(content, rng)
        path.write_bytes(bad)
        assert bad == content or find_damage(folder), (seed, path)
        path.write_bytes(content)
    assert find_damage(folder) is None
    table.add("mutated files of a checkpoint", f"{count}: noticed")


@pytest.fixture(scope="module")
def stopped(place):
    """Return a run that was killed in the second epoch of its second stage."""
    outcome = place.run("stopped", fault=Fault(STEP, 21))
    assert outcome.code == -9, outcome.output
    assert (place.folder / "stopped" / "features").exists()
    return place.folder / "stopped"


@pytest.mark.parametrize("seed", range(100 if IS_FULL else 6))
def test_a_run_resumed_over_a_flipped_bit_is_refused_or_ends_as_if_undisturbed(
    place, stopped, table, seed
):
    name, rng = f"flipped-{seed}", random.Random(seed)
    run = shutil.copytree(stopped, place.folder / name)
    path = rng.choice(files_of(run))
    path.write_bytes(flipped(path.read_bytes(), rng))
    outcome = place.run(name)
    assert outcome.is_orderly, outcome.output
    if outcome.code == 0:
        assert_same_weights(place.whole, run)
        place.check_figures(name)
        aside = "Set aside" in outcome.output
        end = "the weights the same" + (", from an earlier checkpoint" if aside else "")
    else:
        assert outcome.code == 2, outcome.output
        end = "refused in one line"
    table.add(f"resumed over a bit in {path.relative_to(run).as_posix()[:60]}", end)
    shutil.rmtree(run)


def test_damaged_features_are_computed_anew(stopped, tmp_path, table):
    folder, counts = shutil.copytree(stopped / "features", tmp_path / "features"), Counter()
    for record in folder.glob("*.json"):
        path = record.with_suffix("")
        rows = np.load(path)
        expected = rows.copy()
        for file in (path, record):
            content = file.read_bytes()
            for seed in range(500 if IS_FULL else 100):
                file.write_bytes(flipped(content, random.Random(seed)))
                store = FileStore(path, rows.shape, rows.dtype.name)
                if store.is_complete:
                    assert np.array_equal(store.rows(), expected) and not store.masked
                counts["used, the same" if store.is_complete else "computed anew"] += 1
                store.close()
            file.write_bytes(content)
    for outcome, count in counts.items():
        table.add("a flipped bit in features/", f"{count}: {outcome}")
