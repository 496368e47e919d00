"""Compiles the fast convolution (vggjax/models/native/) when the package is installed.

Any C++17 compiler that knows GCC's vector types will do: `$CXX`, else g++, clang++ or c++. Without
one, or where it fails, the install goes on as pure Python and convolves with jax.numpy. The kernels
are compiled once for each instruction set and chosen among when they run, so that a wheel works on
machines other than the one that built it. `VGGJAX_NO_NATIVE=1` leaves all this out.
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

SOURCES = Path("vggjax", "models", "native")
LIBRARY = "winograd.so"
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden")

X86_VARIANTS = {
    "baseline_kernels": ("-DVECTOR_BYTES=16",),
    "avx2_kernels": ("-DVECTOR_BYTES=32", "-mavx2", "-mfma"),
    "avx512_kernels": ("-DVECTOR_BYTES=64", "-mavx512f", "-mfma"),
}
VARIANTS = {
    "x86_64": X86_VARIANTS,
    "amd64": X86_VARIANTS,
}
PORTABLE = {"baseline_kernels": ("-DVECTOR_BYTES=16",)}


class CustomBuildHook(BuildHookInterface):
    """Puts the compiled library into the wheel, or beside its source for an editable install."""

    def initialize(self, version: str, build_data: dict) -> None:
        """Compiles and marks the wheel with its platform; fails at nothing."""
        if self.target_name != "wheel" or os.environ.get("VGGJAX_NO_NATIVE"):
            return
        source = Path(self.root) / SOURCES
        if version == "editable":
            folder = source
        else:
            self._scratch = tempfile.TemporaryDirectory()
            folder = Path(self._scratch.name)
        try:
            compile_library(source, folder / LIBRARY)
        except (OSError, subprocess.SubprocessError, ImportError) as error:
            said = getattr(error, "stderr", None) or error
            self.app.display_warning(f"The fast convolution was not compiled: {said}")
            return
        build_data["pure_python"] = False
        # Loaded through ctypes: any Python will do.
        tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{tag}"
        if version != "editable":
            build_data["force_include"][str(folder / LIBRARY)] = str(SOURCES / LIBRARY)

    def finalize(self, version: str, build_data: dict, artifact_path: str) -> None:
        """Clears up."""
        if hasattr(self, "_scratch"):
            self._scratch.cleanup()


def find_compiler() -> list[str]:
    """Gives the compiler's command: `$CXX`, which may hold options, or the first that is there.

    Raises:
        FileNotFoundError: there is none.
    """
    named = os.environ.get("CXX")
    if named:
        return shlex.split(named)
    for name in ("g++", "clang++", "c++"):
        if found := shutil.which(name):
            return [found]
    raise FileNotFoundError("no C++ compiler: neither $CXX nor g++, clang++ or c++")


def compile_library(source: Path, library: Path) -> None:
    """Compiles the sources in a folder into a library, each instruction set beside the others.

    Raises:
        OSError, subprocess.CalledProcessError: without a compiler, or where it refuses.
        ImportError: without jaxlib, whose headers describe XLA's interface.
    """
    compiler = find_compiler()
    variants = VARIANTS.get(platform.machine().lower(), PORTABLE)
    with tempfile.TemporaryDirectory() as folder:

        def run(*arguments: str) -> None:
            subprocess.run([*compiler, *arguments], check=True, capture_output=True, text=True)

        def compile_one(name: str, file: str, *options: str) -> str:
            made = str(Path(folder, f"{name}.o"))
            run(*FLAGS, *options, "-c", str(source / file), "-o", made)
            return made

        jobs = [
            (name, "winograd_kernels.cc", f"-DNAME={name}", *options)
            for name, options in variants.items()
        ]
        jobs.append(("ffi", "winograd_ffi.cc", f"-I{xla_headers()}"))
        with ThreadPoolExecutor() as pool:
            objects = list(pool.map(lambda job: compile_one(*job), jobs))
        linked = Path(folder, library.name)
        run("-shared", *objects, "-o", str(linked))
        # Replaced, not overwritten: a process may have the old one loaded.
        shutil.copy(linked, library.with_suffix(".new"))
        library.with_suffix(".new").replace(library)


def xla_headers() -> str:
    """Finds the headers of XLA's foreign function interface without importing jax."""
    import jaxlib

    return str(Path(jaxlib.__file__).parent / "include")
