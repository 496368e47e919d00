"""What XLA compiled is kept in this package's cache, so that the next command starts sooner."""

import os

import jax

from vggjax.weights.pretrained import cache_dir

MAX_BYTES = 256 * 2**20
"""A step of VGG16 takes about 150 kB; what was used longest ago goes first."""


def keep_compiled() -> None:
    """Lets JAX keep compiled programs from process to process.

    A folder that the user gave JAX wins. Where the cache cannot be written nothing is kept.
    """
    if jax.config.jax_compilation_cache_dir:
        return
    folder = cache_dir() / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if not os.access(folder, os.W_OK):
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    # How the convolution is spread over devices is a Python callback, whose address is another in
    # each process and says nothing about what it does.
    jax.config.update("jax_remove_custom_partitioning_ptr_from_cache_key", True)
