"""The exchange of cached features: every row of a batch comes from the process that has it."""

import numpy as np
import pytest

from vggjax.data.loader import Process, epoch_order
from vggjax.training.cache.exchange import Exchange, own_positions

SHAPES = [(1, 1), (2, 1), (2, 2), (3, 2), (4, 1)]


def processes(count: int, devices: int) -> list[Process]:
    return [Process(index, count, devices, devices) for index in range(count)]


@pytest.mark.parametrize("batch_size", [1, 5, 8, 40])
@pytest.mark.parametrize(("count", "devices"), SHAPES)
def test_each_position_has_one_owner(count, devices, batch_size):
    owned = [own_positions(23, batch_size, process) for process in processes(count, devices)]
    assert sorted(np.concatenate(owned)) == list(range(23))
    assert all((np.diff(own) > 0).all() for own in owned)


@pytest.mark.parametrize("batch_size", [1, 5, 8, 40])
@pytest.mark.parametrize(("count", "devices"), SHAPES)
def test_what_is_sent_and_taken_makes_the_batch(count, devices, batch_size):
    order = epoch_order(23, seed=1, epoch=2, shuffle=True)
    group = processes(count, devices)
    exchanges = [list(Exchange(23, batch_size, process).parts(order)) for process in group]
    assert len({parts.send.shape for own in exchanges for parts in own}) == 1
    for number, offset in enumerate(range(0, 23, batch_size)):
        parts = [own[number] for own in exchanges]
        for process, own in zip(group, parts, strict=True):
            has = own_positions(23, batch_size, process)
            assert np.isin(own.send[own.send >= 0], has).all()
            rows = own.take.reshape(devices, -1)
            taken = [
                # all_to_all: device d of this process gets row p of what device d of p sends
                np.concatenate([other.send[d, process.index] for other in parts])[rows[d]]
                for d in range(devices)
            ]
            expected = order[process.part(offset, batch_size)]
            assert (np.concatenate(taken)[: len(expected)] == expected).all()
