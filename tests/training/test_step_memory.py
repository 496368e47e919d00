"""The memory of a step: what it takes, the batch that fits, and the precision of what it holds."""

import os
import re
from types import SimpleNamespace

import jax
import pytest
from flax import nnx
from support.steps import BN, PLAIN, make_batch, make_step

from vggjax.errors import ConfigError
from vggjax.models.arch import register_arch
from vggjax.models.head import Head
from vggjax.models.network import VGG
from vggjax.training.config import Config
from vggjax.training.devices import memory
from vggjax.training.devices.memory import find_batch_size, step_memory
from vggjax.training.parallel import Placement, default_dtype


@pytest.fixture(scope="module")
def model():
    register_arch(PLAIN)
    head = Head.parse("gap-8-3")
    return nnx.eval_shape(lambda: VGG(PLAIN, head=head, image_size=32))


def config(**settings):
    defaults = dict(model="plain", weights="none", image_size=32, unfreeze="all", epochs=2)
    return Config(**defaults | settings)


def test_the_state_and_the_batch_are_the_arguments_of_a_step(model):
    placement = Placement(num_devices=1)
    one, two = (step_memory(config(), model, placement, size) for size in (32, 64))
    images = 32 * 32 * 3  # bytes of one
    assert 32 * images <= two.state - one.state <= 32 * (images + 16)
    params = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    # Parameters and Adam's two moments, once: the new ones take over the memory of the old ones.
    assert 3 * 4 * params <= one.state - 32 * images <= 3 * 4 * params + 32 * 16 + 500
    in_parts = step_memory(config(), model, Placement(num_devices=1, parts=4), 64)
    assert in_parts.workspace < 0.5 * two.workspace


@pytest.mark.parametrize("devices", [1, 2])
def test_the_largest_batch_that_fits_is_found(model, monkeypatch, devices):
    placement = Placement(num_devices=devices)
    fits = step_memory(config(), model, placement, 32 * devices).total / memory.SHARE
    monkeypatch.setattr(memory, "memory_limit", lambda: int(1.2 * fits))
    size, found = find_batch_size(config(), model, placement, most=1000)
    assert size == 32 * devices and found.total <= fits
    assert find_batch_size(config(), model, placement, most=20)[0] == 20
    monkeypatch.setattr(memory, "memory_limit", lambda: 1000)
    with pytest.raises(ConfigError, match="one image on each device takes .* MB"):
        find_batch_size(config(), model, placement, most=1000)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch_size": "automatic"}, "`batch_size` takes int or auto; got 'automatic'"),
        ({"batch_size": 0}, "`batch_size` must be above 0; got 0"),
        ({"batch_size": 4, "accumulate": 8}, "`accumulate` must be at most `batch_size`, 4; got 8"),
    ],
)
def test_numbers_that_no_step_can_have_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        Config(**settings)


def test_bfloat16_keeps_state_loss_and_statistics_in_float32():
    step = make_step(BN, "flatten-8-3", dtype="bfloat16", ema=0.9)
    batch = make_batch(masked=2)
    jaxpr = str(jax.make_jaxpr(step.run)(step.state, step.placement.put_batch(batch)))
    assert re.search(r":bf16\[[\d,]*\] = conv", jaxpr) and ":bf16[8,8] = dot_general" in jaxpr
    # Roots and logarithms are of statistics, softmax and moments.
    assert not re.search(r":bf16\[[\d,]*\] = (exp|log|rsqrt|sqrt|div)\b", jaxpr)
    state, metrics = step(step.state, batch)
    kinds = {leaf.dtype.name for leaf in jax.tree.leaves((state, metrics))}
    assert kinds == {"float32", "int32"}


@pytest.mark.parametrize(
    ("backend", "dtype"), [("cpu", "float32"), ("gpu", "bfloat16"), ("tpu", "bfloat16")]
)
def test_the_default_precision_is_that_of_the_matrix_units(monkeypatch, backend, dtype):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert default_dtype() == dtype


@pytest.mark.parametrize(
    ("platform", "kind", "capability", "words"),
    [
        ("gpu", "NVIDIA H100", "9.0", "products in TF32"),
        ("gpu", "NVIDIA V100", "7.0", ""),
        ("tpu", "TPU v5e", "", "products in bfloat16"),
    ],
)
def test_rounded_products_are_named(platform, kind, capability, words):
    placement = Placement(num_devices=1)
    device = SimpleNamespace(platform=platform, device_kind=kind, compute_capability=capability)
    placement.devices = [device]
    text = placement.precision("float32")
    assert words in text and (text == "float32") == (not words)


def test_auto_resumes_with_any_batch_size_and_the_precision_is_said():
    assert "batch_size" not in Config(batch_size="auto").differences(Config(batch_size=8))
    placement = Placement(num_devices=1)
    assert placement.precision("float32") == "float32"
    assert "loss" in placement.precision("bfloat16")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="the memory in use is unknown")
def test_the_memory_is_what_ulimit_leaves(monkeypatch):
    limit = 2**50
    monkeypatch.setattr("resource.getrlimit", lambda kind: (limit, -1))
    whole = memory.memory_limit()
    limit = 2**42
    monkeypatch.setattr("os.sysconf", lambda name: 4096 if "SIZE" in name else 2**40)
    assert 0 < memory.memory_limit() < 2**42 // jax.local_device_count()
    limit = 2**20
    assert memory.memory_limit() == 0 < whole
