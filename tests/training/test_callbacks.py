"""Callbacks and loggers: what they are told, and that none of them costs a run."""

import json
import sys
import types
from collections import defaultdict

import pytest
from support.training_runs import interrupt_at, make_config, make_three_classes

import vggjax
from vggjax.api import fit
from vggjax.errors import ConfigError
from vggjax.training.callbacks.callback import Callback
from vggjax.training.callbacks.loggers import IDS_FILE, make_loggers
from vggjax.training.run_dir.log import metric_points, read_log
from vggjax.training.signals import Interrupted


class Recorder(Callback):
    """Keeps its events."""

    def __init__(self):
        self.events = []

    def on_step(self, event):
        self.events.append(event)

    on_epoch = on_end = on_step

    def of(self, kind):
        return [event for event in self.events if event.kind == kind]


class Broken(Callback):
    """Fails at the second step, and would count later calls."""

    def __init__(self):
        self.steps = 0

    def on_step(self, event):
        self.steps += 1
        if self.steps == 2:
            raise RuntimeError("the server is gone")

    def on_end(self, event):
        raise AssertionError("it is not called again")


class Service(types.ModuleType):
    """A stand-in of wandb, mlflow and trackio, which keeps the points of each of its runs."""

    def __init__(self, name):
        super().__init__(name)
        self.runs, self.ended, self.begun = defaultdict(list), [], []
        self.current, self.info, self.id = None, types.SimpleNamespace(run_id=None), None

    def begin(self, run_id, name):
        self.begun.append((run_id, name))
        self.current = self.id = self.info.run_id = run_id or f"run-{len(self.begun)}"
        return self

    def init(self, *, project, name, config, id=None, resume):
        assert (project, resume) == ("vggjax", "allow") and config["model"] == "tiny"
        return self.begin(id, name)

    def define_metric(self, name, *, step_metric):
        assert (name, step_metric) == ("*", "step")

    def log(self, points, step=None):
        points = dict(points)
        step = points.pop("step") if step is None else step
        self.runs[self.current].append((step, points))

    def set_experiment(self, name):
        assert name == "vggjax"

    def start_run(self, *, run_id, run_name):
        return self.begin(run_id, run_name)

    def log_params(self, params):
        assert params["model"] == "tiny"

    def log_metrics(self, points, *, step):
        self.log(points, step)

    def finish(self, exit_code=0):
        self.ended.append(exit_code == 0)

    def end_run(self, status):
        self.ended.append(status == "FINISHED")


NAMES = ("wandb", "mlflow", "trackio")


@pytest.fixture
def services(monkeypatch):
    """Put stand-ins in the place of the loggers' packages."""
    for name in ("WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME", "TRACKIO_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    modules = {name: Service(name) for name in NAMES}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return modules


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_three_classes(tmp_path_factory.mktemp("callbacks"))


def logged_points(workdir):
    records = [record for record in read_log(workdir) if metric_points(record)]
    return [(record["step"], metric_points(record)) for record in records]


def test_a_run_tells_its_callbacks_and_goes_on_without_the_one_that_fails(
    images, tmp_path, services, capsys
):
    recorder, broken = Recorder(), Broken()
    config = make_config(images, tmp_path / "run", epochs=2, log_to=NAMES)
    result = fit(config, callbacks=[broken, recorder])
    log = read_log(tmp_path / "run")
    for kind in ("step", "epoch"):
        records = [record for record in log if record["kind"] == kind]
        events = recorder.of(kind)
        assert [event.step for event in events] == [record["step"] for record in records]
        assert [{"kind": e.kind, "step": e.step, **e.values} for e in events] == records
    (end,) = recorder.of("end")
    assert end.values["test/accuracy"] == result.evaluation["accuracy"]
    assert (end.step, end.error, end.workdir) == (10, "", result.workdir)
    assert end.config.num_epochs == 2 and recorder.events[-1] is end
    assert broken.steps == 2 and result.report is not None
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "Broken" in line]
    assert "failed in on_step and is not called again; the run goes on" in line
    assert "RuntimeError: the server is gone (test_callbacks.py, line" in line
    for name, service in services.items():
        assert service.ended == [True], name
        assert list(service.runs.values()) == [logged_points(tmp_path / "run")], name
        assert {key for _, points in logged_points(tmp_path / "run") for key in points} >= {
            "train/loss", "train/epoch_loss", "val/accuracy", "test/accuracy", "learning_rate/head",
        }  # fmt: skip


def test_a_resumed_run_goes_on_in_the_same_run_of_the_logger(
    images, tmp_path, services, monkeypatch
):
    recorder = Recorder()
    config = make_config(images, tmp_path / "run", epochs=2, log_to=("mlflow", "wandb"))
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_at(patch, 6)
        fit(config, callbacks=[recorder])
    (end,) = recorder.of("end")
    assert end.error and end.values == {} and recorder.events[-1] is end
    later = make_config(images, tmp_path / "run", epochs=2, log_to=NAMES)
    fit(later)
    for name in ("mlflow", "wandb"):
        service = services[name]
        assert service.ended == [False, True] and len(service.runs) == 1
        assert service.begun[0][0] is None and service.begun[1][0] == "run-1"
        assert {step for step, _ in logged_points(tmp_path / "run")} <= {
            step for step, _ in service.runs["run-1"]
        }
    # One that comes later has what was logged before, too.
    assert list(services["trackio"].runs.values()) == [logged_points(tmp_path / "run")]
    ids = json.loads((tmp_path / "run" / IDS_FILE).read_text())
    assert {*ids} == {*NAMES}


def test_a_logger_that_is_not_installed_is_named_before_the_training(images, tmp_path, monkeypatch):
    for name in NAMES:
        monkeypatch.setitem(sys.modules, name, None)  # import raises ImportError
        with pytest.raises(ConfigError, match=f"`log_to` {name} .*pip install {name}"):
            fit(make_config(images, tmp_path / "run", log_to=(name,)))
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="Did you mean 'mlflow'"):
        vggjax.Config(log_to=("mlfow",))


def test_tensorboard_is_one_of_log_to():
    for config in (vggjax.Config(log_to="tensorboard"), vggjax.Config(tensorboard=True)):
        assert config.writes_events and make_loggers(config) == []
    assert not vggjax.Config().writes_events
