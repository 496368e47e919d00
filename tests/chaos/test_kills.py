"""Killed or told to stop anywhere, a run ends with the weights of one that nothing disturbed."""

import random
import signal

import pytest
from support.chaos import IS_FULL, Fault

PHASES = {
    "scan": ["vggjax.training.prepare.open_source", "vggjax.training.prepare.find_duplicates"],
    "run folder": ["vggjax.training.trainer.make_workdir", "vggjax.training.trainer.Log"],
    "feature pass": ["vggjax.training.cache.store.FileStore.append"],
    "compile": ["vggjax.training.stage_loop.StageLoop.initial_state"],
    "step": ["vggjax.training.progress.MetricAccumulator.add"],
    "checkpoint": [
        "vggjax.training.run_dir.checkpoint.Checkpoints.save",
        "vggjax.training.run_dir.checkpoint.write_manifest",
        "vggjax.training.run_dir.log.append_log",
    ],
    "saved model": ["vggjax.training.trainer.save_model"],
    "evaluation": [
        "vggjax.evaluation.evaluate.predict_split",
        "vggjax.evaluation.evaluate.write_json",
    ],
    "report": ["vggjax.api.write_pages"],
}
"""Functions of each phase, in the order of a run."""

ROUNDS = 3 if IS_FULL else 1
PASSED = "ended before the signal"


def faults(seed, signum):
    """Yield a fault for each phase, chosen by the seed."""
    rng = random.Random(seed)
    for phase, places in PHASES.items():
        call = rng.choice((1, 2, 5)) if phase == "step" else 1
        delay_s = rng.uniform(0, 0.4) if phase == "compile" else rng.uniform(0, 0.03)
        yield phase, Fault(rng.choice(places), call, delay_s, signum)


def describe(fault):
    name = ".".join(fault.place.split(".")[-2:])
    return f"{name}, call {fault.call} + {1000 * fault.delay_s:.0f} ms"


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_a_run_killed_in_every_phase_ends_as_if_undisturbed(place, table, seed):
    name = f"killed-{seed}"
    for phase, fault in faults(seed, signal.SIGKILL):
        outcome = place.run(name, fault=fault)
        assert outcome.code in (-9, 0), outcome.output
        table.add(f"kill -9 in {phase}: {describe(fault)}", resumed(outcome))
    outcome = place.run(name)
    assert outcome.code == 0, outcome.output
    place.check_as_undisturbed(name)
    table.add(f"  then the same command ({resumed(outcome)})", "weights, log and figures the same")


@pytest.mark.parametrize("seed", range(ROUNDS))
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT] if IS_FULL else [signal.SIGTERM])
def test_a_run_told_to_stop_in_every_phase_says_so_and_ends_as_if_undisturbed(
    place, table, seed, signum
):
    name = f"stopped-{signum.name}-{seed}"
    for phase, fault in faults(10 + seed, signum):
        outcome = place.run(name, fault=fault)
        assert outcome.is_orderly and outcome.code in (128 + signum, 0), outcome.output
        if outcome.code:
            assert outcome.last_line.startswith("vggjax: stopped: "), outcome.output
        end = f"exit {outcome.code}" if outcome.code else PASSED
        table.add(f"{signum.name} in {phase}: {describe(fault)}", end)
    outcome = place.run(name)
    assert outcome.code == 0, outcome.output
    place.check_as_undisturbed(name)
    table.add(f"  then the same command ({resumed(outcome)})", "weights, log and figures the same")


def test_a_second_signal_ends_at_once_without_a_traceback(place, table):
    step = "vggjax.training.progress.MetricAccumulator.add"
    outcome = place.run("twice", fault=Fault(step, 2, 0, signal.SIGINT, times=2))
    assert outcome.is_orderly and outcome.code in (0, 130), outcome.output
    table.add("SIGINT twice within 50 ms in a step", f"exit {outcome.code}")
    assert place.run("twice").code == 0
    place.check_as_undisturbed("twice")


def resumed(outcome):
    """Return where a start began, in a few words."""
    lines = [line for line in outcome.output.splitlines() if line.startswith("Resuming")]
    if lines:
        text = lines[0].rstrip(".").lower()
    else:
        text = "already trained" if "is already trained" in outcome.output else "from the start"
    return f"{PASSED}; {text}" if outcome.code == 0 and "Report" not in outcome.output else text
