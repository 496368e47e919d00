"""Compile the C++ kernels, the fast convolution and resize, when the package is installed.

Any C++17 compiler with GCC's vector types works, on x86-64 from GCC 10 or Clang 9 on: `$CXX`,
otherwise g++, clang++ or c++. Without a compiler, or if it fails, the package installs as pure
Python, convolves with jax.numpy and resizes with Pillow. The kernels are compiled once per
instruction set and selected at run time, so a wheel also works on other machines than the one that
built it. `VGGJAX_NO_NATIVE=1` skips compilation.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path("vggjax", "models", "kernels", "native")
LIBRARY = FOLDER / "kernels.so"
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden")

OBJECTS = {
    "dispatch": ("dispatch.cc",),
    "stages": ("stages.cc",),
    "winograd": ("winograd_ffi.cc",),
    "resize": ("resize.cc",),
    "baseline_winograd": ("winograd_kernels.cc", "-DVECTOR_BYTES=16"),
    "baseline_resize": ("resize_kernels.cc",),
}
"""Object file -> its source and options. The kernels' tables are named like their objects."""

X86_OBJECTS = {
    "avx2_winograd": ("winograd_kernels.cc", "-DVECTOR_BYTES=32", "-mavx2", "-mfma"),
    "avx512_winograd": ("winograd_kernels.cc", "-DVECTOR_BYTES=64", "-mavx512f", "-mfma"),
    "avx512_bf16_winograd": (
        "winograd_kernels.cc",
        "-DVECTOR_BYTES=64",
        "-mavx512bw",
        "-mavx512bf16",
        "-mfma",
    ),  # fmt: skip
    "avx2_resize": ("resize_kernels.cc", "-mavx2"),
}
"""The further objects on x86-64."""


class CustomBuildHook(BuildHookInterface):
    """Put the library into the wheel, or beside its sources for an editable install."""

    def initialize(self, version: str, build_data: dict) -> None:
        """Compile and tag the wheel with its platform; a failure only prints a warning."""
        if self.target_name != "wheel" or os.environ.get("VGGJAX_NO_NATIVE"):
            return
        self._scratch = tempfile.TemporaryDirectory()
        root, editable = Path(self.root), version == "editable"
        target = root / LIBRARY if editable else Path(self._scratch.name, LIBRARY.name)
        try:
            compile_library(root, target)
        except (OSError, subprocess.SubprocessError, ImportError) as error:
            reason = getattr(error, "stderr", None) or error
            self.app.display_warning(f"{LIBRARY.name} was not compiled: {reason}")
            return
        build_data["pure_python"] = False
        # Loaded through ctypes, so any version of Python works.
        tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{tag}"
        if not editable:
            build_data["force_include"][str(target)] = str(LIBRARY)

    def finalize(self, version: str, build_data: dict, artifact_path: str) -> None:
        """Delete the temporary files."""
        if hasattr(self, "_scratch"):
            self._scratch.cleanup()


def find_compiler() -> list[str]:
    """Return the compiler's command: `$CXX`, which may hold options, or the first one installed.

    Raises:
        FileNotFoundError: there is no compiler.
    """
    if command := os.environ.get("CXX"):
        return shlex.split(command)
    for name in ("g++", "clang++", "c++"):
        if path := shutil.which(name):
            return [path]
    raise FileNotFoundError("no C++ compiler: neither $CXX nor g++, clang++ or c++")


def compile_library(root: Path, target: Path) -> None:
    """Compile the library from the sources under `root` to the file `target`.

    Raises:
        OSError, subprocess.CalledProcessError: there is no compiler, or it fails.
        ImportError: jaxlib is not installed, whose headers declare XLA's interface.
    """
    import jaxlib

    compiler = find_compiler()
    headers = Path(jaxlib.__file__).parent / "include"
    x86 = platform.machine().lower() in ("x86_64", "amd64")

    def run(*arguments: str) -> None:
        subprocess.run([*compiler, *arguments], check=True, capture_output=True, text=True)

    with tempfile.TemporaryDirectory() as folder:

        def compile_object(name: str, source: str, *options: str) -> str:
            file = str(Path(folder, f"{name}.o"))
            options = (*FLAGS, f"-I{headers}", f"-DNAME={name}", *options)
            run(*options, "-c", str(root / FOLDER / source), "-o", file)
            return file

        objects = OBJECTS | (X86_OBJECTS if x86 else {})
        with ThreadPoolExecutor() as pool:
            files = list(pool.map(lambda item: compile_object(item[0], *item[1]), objects.items()))
        linked = Path(folder, target.name)
        run("-shared", *files, "-o", str(linked))
        # Replaced, not overwritten: a process may have the old file loaded.
        shutil.copy(linked, target.with_suffix(".new"))
        target.with_suffix(".new").replace(target)
