"""What the tests of weight files share."""

import os

import pytest
from support.apart import ForkingParser

from vggjax.weights.keras import read


@pytest.fixture(scope="module")
def fast_parser():
    """Parse Keras files in forks of one process, instead of a new process for each."""
    if not hasattr(os, "fork"):
        yield
        return
    with ForkingParser() as parser, pytest.MonkeyPatch.context() as patch:
        patch.setattr(read, "run_child", parser.run)
        yield
