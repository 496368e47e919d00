"""Several processes: each reads its own rows, and together they make the very batches of one."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.batches import assert_same_batches as assert_same
from support.batches import make_loader as examples
from support.batches import random_source as source

from vggjax.data.loader import Process
from vggjax.data.sources.source import Source
from vggjax.training.devices.processes import exit_process

ROOT = Path(__file__).parents[2]


def counted(made: Source) -> tuple[Source, list[int]]:
    reads: list[int] = []
    read = lambda i: (reads.append(i), made.read(i))[1]  # noqa: E731
    return Source(**{**vars(made), "read": read}), reads


def joined(parts: list[list[dict]]) -> list[dict]:
    """Concatenate the rows of the processes' batches."""
    return [
        {name: np.concatenate([part[name] for part in row]) for name in row[0]}
        for row in zip(*parts, strict=True)
    ]


@pytest.mark.parametrize("processes", [1, 2, 3, 6])
@pytest.mark.parametrize("cached", [True, False])
def test_the_processes_rows_together_are_the_batches_of_one(processes, cached):
    # 23 images in batches of 6: of the last one only five rows are images.
    made, order = source(bad={5}), {"seed": 2, "epoch": 1, "shuffle": True}
    parts = []
    for which in range(processes):
        split = examples(made)
        if cached:
            split.prepare()
        parts.append(list(split.batches(6, **order, process=Process(which, processes))))
        assert {len(batch["index"]) for batch in parts[-1]} == {6 // processes}
    assert_same(joined(parts), examples(made).batches(6, **order))


def test_each_process_decodes_its_own_images_and_no_others():
    everything = []
    for which in range(4):
        made, reads = counted(source())
        batches = examples(made).batches(8, shuffle=True, process=Process(which, 4))
        rows = np.concatenate([batch["index"] for batch in batches])
        assert sorted(reads) == sorted(rows[rows >= 0])
        everything += reads
    assert sorted(everything) == list(range(23))


@pytest.mark.parametrize("batch_size", [1, 5, 7, 30])
@pytest.mark.parametrize(("processes", "devices"), [(1, 4), (2, 1), (2, 2), (3, 2)])
def test_a_batch_that_does_not_divide_is_padded_at_its_end(processes, devices, batch_size):
    made, order = source(bad={5}), {"seed": 2, "epoch": 1, "shuffle": True}
    each = [Process(which, processes, devices) for which in range(processes)]
    batches = [
        list(examples(made).batches(batch_size, **order, process=process)) for process in each
    ]
    padded, expected = joined(batches), list(examples(made).batches(batch_size, **order))
    rows = len(padded[0]["index"])
    assert rows % (processes * devices) == 0 and 0 <= rows - batch_size < processes * devices
    assert all((batch["index"][batch_size:] == -1).all() for batch in padded)
    assert not any(batch["mask"][batch_size:].any() for batch in padded)
    assert_same([{k: x[:batch_size] for k, x in batch.items()} for batch in padded], expected)


def test_a_process_whose_rows_are_all_padding_reads_nothing():
    made, reads = counted(source(9))
    (_, last) = examples(made).batches(8, process=Process(1, 2), start=0)
    assert last["index"].tolist() == [-1] * 4 and not last["mask"].any()
    assert not last["images"].any() and sorted(reads) == [4, 5, 6, 7]


def test_each_process_starts_where_a_whole_epoch_would_stand():
    split, order = examples(source()), {"shuffle": True, "process": Process(1, 2)}
    whole = list(split.batches(4, **order))
    for start in range(len(whole) + 1):
        assert_same(split.batches(4, **order, start=start), whole[start:])


PROGRAM = """
import sys
import jax, jax.numpy as jnp, numpy as np
which, port, kind = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"127.0.0.1:{port}", 2, which)
from support.batches import make_loader as examples, random_source as source
from vggjax.data.loader import Process
from vggjax.training.parallel import Placement

placement = Placement(kind)
assert placement.process == Process(which, 2, 2, 2) and len(placement.devices) == 4
total = lambda _, batch: {n: jnp.sum(x.astype(jnp.int32)) for n, x in batch.items()}
ordered = lambda _, batch: jnp.sum(batch["index"] * (1 + jnp.arange(len(batch["index"]))))
if kind == "pmap":
    total = lambda _, batch, f=total: jax.lax.psum(f(_, batch), "data")
    ordered = lambda _, batch: jax.lax.psum(jnp.sum(batch["index"]), "data")
total, ordered = placement.compile(total), placement.compile(ordered)
state = placement.put_state(jnp.zeros(()))
for batch in examples(source(bad={5})).batches(8, shuffle=True, process=placement.process):
    assert len(batch["index"]) == 4
    print("rows", *batch["index"].tolist())
    batch = placement.put_batch(batch)
    sums = placement.fetch(total(state, batch))
    print("sums", *(int(sums[name]) for name in sorted(sums)),
          int(placement.fetch(ordered(state, batch))))
"""


GIVES_UP = """
import sys
import jax
jax.distributed.initialize(f"127.0.0.1:{sys.argv[2]}", 2, int(sys.argv[1]))
import numpy as np
from vggjax.training.devices.processes import exit_process
from vggjax.training.parallel import Placement

placement = Placement()
double = placement.compile(lambda _, batch: batch["index"].sum())
for _ in range(2):
    placement.fetch(double(None, placement.put_batch({"index": np.arange(4)})))
    if sys.argv[1] == "0":
        print("gave up")
        exit_process(2)
"""


def run_two(program: str, folder: Path, *arguments: str) -> tuple[list[int], list[str]]:
    """Run a program in two processes; return their exit codes and output."""
    (folder / "program.py").write_text(program)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    environment |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    running = [
        subprocess.Popen(
            [sys.executable, folder / "program.py", str(which), port, *arguments],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for which in range(2)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=280) for process in running]
    finally:
        for process in running:
            process.kill()
    return [process.returncode for process in running], [out for out, _ in outputs]


@pytest.mark.slow
def test_a_process_that_gives_up_leaves_none_hanging(tmp_path):
    codes, outputs = run_two(GIVES_UP, tmp_path)
    assert codes[0] == 2 and outputs[0].endswith("gave up\n")  # after what gloo prints
    assert codes[1] == -signal.SIGABRT


def test_one_process_alone_does_not_leave():
    exit_process(2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_two_real_processes_see_the_global_batches_of_one(kind, tmp_path):
    codes, outputs = run_two(PROGRAM, tmp_path, kind)
    assert codes == [0, 0]
    lines = [[line.split() for line in out.splitlines()] for out in outputs]
    rows = [[list(map(int, line[1:])) for line in own if line[0] == "rows"] for own in lines]
    sums = [[list(map(int, line[1:])) for line in own if line[0] == "sums"] for own in lines]

    expected = list(examples(source(bad={5})).batches(8, shuffle=True))
    assert [a + b for a, b in zip(*rows, strict=True)] == [b["index"].tolist() for b in expected]
    weights = 1 + np.arange(8) if kind == "jit" else np.ones(8, int)
    assert sums[0] == sums[1]
    assert sums[0] == [
        [int(batch[name].astype(int).sum()) for name in sorted(batch)]
        + [int((batch["index"] * weights).sum())]
        for batch in expected
    ]
