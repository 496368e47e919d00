"""Compiled programs are kept from process to process, in a folder that the user can choose."""

import os
import subprocess
import sys

PROGRAM = """
from vggjax.cli.main import keep_compiled_programs

keep_compiled_programs()
import jax, jax.numpy as jnp
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
found = []
jax.monitoring.register_event_listener(lambda name, **_: found.append(name))
print(jax.jit(lambda x: jnp.sin(x) @ x)(jnp.eye(3)).sum())
print(sum(name.endswith("/cache_hits") for name in found))
"""


def run(**environment: str) -> list[str]:
    clean = {name: value for name, value in os.environ.items() if "JAX_COMPILATION" not in name}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=clean | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_second_process_reuses_what_the_first_compiled(tmp_path):
    first, second = run(VGGJAX_CACHE=str(tmp_path)), run(VGGJAX_CACHE=str(tmp_path))
    assert first[0] == second[0]
    assert int(first[1]) == 0 < int(second[1])


def test_the_folder_that_the_user_gave_jax_wins(tmp_path):
    run(VGGJAX_CACHE=str(tmp_path / "ours"), JAX_COMPILATION_CACHE_DIR=str(tmp_path / "theirs"))
    assert not (tmp_path / "ours").exists() and list((tmp_path / "theirs").iterdir())


def test_a_program_that_was_not_written_to_its_end_is_compiled_anew_and_kept(tmp_path):
    """As after a kill, or on a full disk: JAX writes the time of use after the program."""
    run(VGGJAX_CACHE=str(tmp_path))
    for path in (tmp_path / "compiled").iterdir():
        if path.name.endswith("-cache"):
            path.write_bytes(path.read_bytes()[:100])
        elif path.name.endswith("-atime"):
            path.unlink()
    assert int(run(VGGJAX_CACHE=str(tmp_path))[1]) == 0
    assert int(run(VGGJAX_CACHE=str(tmp_path))[1]) > 0


def test_without_a_writable_cache_nothing_is_kept(tmp_path):
    (tmp_path / "file").write_text("no folder")
    assert int(run(VGGJAX_CACHE=str(tmp_path / "file"))[1]) == 0
