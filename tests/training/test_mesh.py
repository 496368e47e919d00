"""The mesh `data` x `model`: what it splits, what its devices send, and that it learns the same."""

import json
import math
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from support.steps import BN, PLAIN, losses_of, make_batch, make_step
from support.training_runs import (
    interrupt_at,
    make_config,
    make_three_classes,
    weights_of,
)

from vggjax.cli.main import main
from vggjax.errors import ConfigError
from vggjax.models.head import Head
from vggjax.models.network import Network
from vggjax.training.config import Config
from vggjax.training.devices.collectives import parse_collectives
from vggjax.training.devices.memory import abstract_step, compiled_memory
from vggjax.training.freezing import label_layers
from vggjax.training.parallel import Placement
from vggjax.training.signals import Interrupted
from vggjax.training.trainer import train

HEAD = "flatten-16-8-16-3"

EIGHT = """
import json, sys
import conftest, jax
jax.config.update("jax_num_cpu_devices", 8)
from support.steps import BN, losses_of
meshes = [(1,), (2,), (4,), (8,), (8, 2), (8, 4), (8, 8)]
cases = [("jit", *mesh) for mesh in meshes] + [("pmap", 2), ("pmap", 4), ("pmap", 8)]
print(json.dumps([[case, losses_of(*case)] for case in cases]))
print(json.dumps([[case, losses_of(*case, arch=BN)] for case in [("jit", 1), ("jit", 8, 2)]]))
"""


@pytest.mark.slow
def test_eight_devices_have_the_losses_of_one():
    paths = os.pathsep.join(path for path in sys.path if path)
    program = [sys.executable, "-c", EIGHT]
    ended = subprocess.run(
        program, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    for line in ended.stdout.splitlines():
        (_, expected), *others = json.loads(line)
        assert len(expected) == 20 and len(others) in (9, 1)
        for case, losses in others:
            np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-5, err_msg=str(case))


def test_a_mesh_of_two_by_two_has_the_losses_of_one_device():
    expected, losses = (losses_of("jit", *mesh, arch=BN) for mesh in ((1,), (4, 2)))
    assert len(set(expected)) == 20
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["adam", "nadam", "rmsprop", "sgd"])
def test_fc_layers_and_their_moments_are_split_and_nothing_else(optimizer):
    step = make_step(
        head=HEAD, placement=Placement(shard_fc=2), optimizer=optimizer, unfreeze="none", ema=0.9
    )
    names = set()
    for path, leaf in jax.tree.leaves_with_path(step.state):
        name, expected = jax.tree_util.keystr(path), list(leaf.shape)
        if "['fc1']" in name or "['fc3']" in name:
            expected[-1] //= 2
        elif "['fc2']['kernel']" in name:
            expected[0] //= 2
        assert leaf.addressable_shards[0].data.shape == tuple(expected), name
        names |= {name.split("[")[0]} if expected != list(leaf.shape) else set()
    assert names == {".params", ".opt_state.inner_states", ".averages"}


def collectives_of(placement, unfreeze):
    """Return a step's collectives, and the sizes of each device's gradients by layer."""
    step = make_step(head=HEAD, placement=placement, optimizer="sgd", unfreeze=unfreeze)
    compiled = step.run.lower(step.state, placement.put_batch(make_batch())).compile()
    labels = label_layers(step.model, (unfreeze,))
    gradients = [
        (path[0].key, leaf.addressable_shards[0].data.size)
        for path, leaf in jax.tree.leaves_with_path(step.state.params)
        if labels[path[0].key] != "frozen"
    ]
    return parse_collectives(compiled.as_text()), gradients


def array_sizes(collectives):
    """Return the sizes of the arrays, in order, without the single numbers."""
    return sorted(math.prod(shape) for one in collectives for shape in one.shapes if shape)


@pytest.mark.parametrize("unfreeze", ["block5", "none"])
def test_a_step_sums_the_gradients_of_what_trains_and_sends_nothing_else(unfreeze):
    found, gradients = collectives_of(Placement(), unfreeze)
    assert {(one.kind, one.devices) for one in found} == {("all-reduce", 4)}
    assert array_sizes(found) == sorted(size for _, size in gradients)
    # The number of images, and the sums of four metrics.
    assert sum(not shape for one in found for shape in one.shapes) == 5


def test_split_layers_send_their_rows_and_sum_their_own_parts_of_gradients():
    found, gradients = collectives_of(Placement(shard_fc=2), "block5")
    over_all, over_two = ([one for one in found if one.devices == n] for n in (4, 2))
    assert len(over_all) + len(over_two) == len(found)
    assert {one.kind for one in over_all} == {"all-reduce"}
    whole, split = (
        [size for layer, size in gradients if layer.startswith("fc") == is_fc]
        for is_fc in (False, True)
    )
    assert array_sizes(over_all) == sorted(whole)
    # Two devices share 4 of the 8 rows. Of each row's 8 features before fc1 they gather the values
    # and sum the gradients; of fc2's 8 outputs they sum both; of fc3's 16 each sends a half.
    rows = [4 * 8] * 4 + [2 * 8] * 4
    assert array_sizes(over_two) == sorted(split + rows)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "%all-reduce.3 = (f32[4]{0}, /*index=1*/bf16[3,3,3,4]{3,2,1,0}, f32[]) all-reduce(%a, "
            "%b, %c), replica_groups={{0,1},{2,3}}, to_apply=%add",
            ("all-reduce", 2, ((4,), (3, 3, 3, 4), ()), 16 + 216 + 4),
        ),
        (
            "ROOT %all-gather.1 = f32[8,3]{1,0} all-gather(%a), channel_id=1, "
            "replica_groups=[4,2]<=[8], dimensions={0}",
            ("all-gather", 2, ((8, 3),), 96),
        ),
        (
            "%s = (f32[2,3]{1,0}, f32[8,3]{1,0}) all-gather-start(%a), "
            "replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, dimensions={0}",
            ("all-gather", 4, ((8, 3),), 96),
        ),
        ("%r = s32[6] reduce-scatter(%a), replica_groups={}", ("reduce-scatter", 0, ((6,),), 24)),
        ("%all-reduce-done = f32[4]{0} all-reduce-done(%all-reduce-start)", None),
        ("%add = f32[4]{0} add(%all-reduce.3, %b)", None),
    ],
)  # fmt: skip
def test_collectives_are_read_from_any_notation(line, expected):
    assert parse_collectives(line) == ([expected] if expected else [])


def test_a_mesh_takes_less_of_each_device():
    head = Head.parse("flatten-1024-1024-3")
    model = nnx.eval_shape(lambda: Network(PLAIN, head=head, image_size=32))
    config = Config(model="vgg11", weights="none", image_size=32, epochs=2)
    whole, half = (
        compiled_memory(*abstract_step(config, model, Placement(shard_fc=n), 8)).state
        for n in (1, 2)
    )
    # Kernels of fc1 and fc2, and Adam's moments.
    assert whole - half == pytest.approx(3 * 4 * (1024 * 1024 + 1024 * 8) / 2, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [((4, 2), (1, 1)), ((2, 1), (4, 4))])
def test_a_run_resumes_on_another_mesh(first, then, tmp_path, monkeypatch):
    data = make_three_classes(tmp_path)
    rates = dict(optimizer="sgd", learning_rate=0.05, head="flatten-8-8-classes", epochs=2)
    whole = make_config(data, tmp_path / "whole", **rates)
    train(whole)
    runs = [
        make_config(data, tmp_path / "run", devices=devices, shard_fc=shards, **rates)
        for devices, shards in (first, then)
    ]
    with monkeypatch.context() as patch:
        interrupt_at(patch, 7)
        with pytest.raises(Interrupted):
            train(runs[0])
    train(runs[1])
    expected, received = weights_of(tmp_path / "whole"), weights_of(tmp_path / "run")
    for name, array in expected.items():
        np.testing.assert_allclose(received[name], array, rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"shard_fc": 2, "parallel": "pmap"}, "`shard_fc` must be 1 if `parallel` is pmap; got 2"),
        ({"shard_fc": 2, "head": "gap-classes"}, "hidden layers, .* got gap-classes"),
        ({"shard_fc": 3}, "`shard_fc` must be a divisor of the width of fc1, 256; got 3"),
        ({"shard_fc": 2, "head": "gap-4-8-7-classes"}, "divisor of the width of fc3, 7; got 2"),
        ({"shard_fc": 0}, "`shard_fc` must be above 0; got 0"),
    ],
)
def test_what_cannot_be_split_is_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        Config(**settings)


def test_devices_that_do_not_divide_are_refused():
    with pytest.raises(ConfigError, match="`shard_fc` must divide the number of devices, 4; got 3"):
        Placement(shard_fc=3)


def test_the_mesh_is_printed():
    assert str(Placement(shard_fc=2)) == (
        "4 x cpu, mesh of 2 data x 2 model: fc layers split over 2"
    )
    assert str(Placement()) == "4 x cpu"


def test_summary_prints_what_devices_send(capsys):
    words = "summary tiny --no-include-top --head flatten-8-8-3 --image-size 32 --unfreeze all"
    assert main([*words.split(), "--devices", "4", "--shard-fc", "2", "--batch-size", "8"]) == 0
    printed = capsys.readouterr().out
    assert main([*words.split(), "--shard-fc", "2"]) == 2
    assert "--shard-fc 2 needs --devices" in capsys.readouterr().err
    assert "mesh of 2 data x 2 model" in printed and " on each for a step of 8 images" in printed
    assert "  all-reduce over 4 devices: 24 arrays, " in printed
    assert "  all-gather over 2 devices: 2 arrays, 0.000 MB" in printed
