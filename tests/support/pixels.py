"""Compile image operations quickly, and compare what two compiled programs computed."""

from collections.abc import Callable

import jax
import numpy as np


def jit_quickly(function: Callable, **options) -> Callable:
    """Return `jax.jit(function)`, which compiles in a third of the time and runs slower."""
    flags = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(function, compiler_options=flags, **options)


def assert_same_pixels(images, expected, *, share: float = 0.999) -> None:
    """Assert that at least `share` of the pixels are equal within one gray level.

    Two programs may round a float32 to either side of a half; where a lookup table of RandAugment
    follows, a pixel of a thousand may then differ by more.
    """
    images, expected = np.asarray(images), np.asarray(expected)
    assert (images.dtype, images.shape) == (expected.dtype, expected.shape)
    difference = np.abs(images.astype(np.float64) - expected.astype(np.float64))
    assert np.mean(difference <= 1) >= share
