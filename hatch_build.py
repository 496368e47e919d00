"""Compiles the fast convolution and the fast resize when the package is installed.

Any C++17 compiler that knows GCC's vector types will do: `$CXX`, else g++, clang++ or c++. Without
one, or where it fails, the install goes on as pure Python, convolves with jax.numpy and resizes
with Pillow. The kernels are compiled once for each instruction set and chosen among when they run,
so that a wheel works on machines other than the one that built it. `VGGJAX_NO_NATIVE=1` leaves all
this out.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FLAGS = ("-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden")
X86 = ("x86_64", "amd64")


@dataclass(frozen=True)
class Library:
    """One shared library: `kernels` is compiled once for each instruction set, `rest` once."""

    name: str
    folder: Path
    """Of its sources; the library is put beside them."""
    kernels: str
    rest: str
    baseline: dict[str, tuple[str, ...]]
    """Kernels, by the name of their table of entries, and options that any machine knows."""
    x86: dict[str, tuple[str, ...]]
    """The further ones, on these machines."""
    calls_xla: bool = False

    @property
    def file(self) -> Path:
        """Gives its place in the package."""
        return self.folder / f"{self.name}.so"

    def variants(self) -> dict[str, tuple[str, ...]]:
        """Gives the kernels that are compiled on this machine."""
        return self.baseline | (self.x86 if platform.machine().lower() in X86 else {})


LIBRARIES = (
    Library(
        "winograd",
        Path("vggjax", "models", "kernels", "native"),
        kernels="winograd_kernels.cc",
        rest="winograd_ffi.cc",
        baseline={"baseline_kernels": ("-DVECTOR_BYTES=16",)},
        x86={
            "avx2_kernels": ("-DVECTOR_BYTES=32", "-mavx2", "-mfma"),
            "avx512_kernels": ("-DVECTOR_BYTES=64", "-mavx512f", "-mfma"),
        },
        calls_xla=True,
    ),
    Library(
        "resize",
        Path("vggjax", "data", "images", "native"),
        kernels="resize_kernels.cc",
        rest="resize.cc",
        baseline={"baseline_resize": ()},
        x86={"sse41_resize": ("-msse4.1",), "avx2_resize": ("-mavx2",)},
    ),
)


class CustomBuildHook(BuildHookInterface):
    """Puts the compiled libraries into the wheel, or beside their sources where it is editable."""

    def initialize(self, version: str, build_data: dict) -> None:
        """Compiles and marks the wheel with its platform; fails at nothing."""
        if self.target_name != "wheel" or os.environ.get("VGGJAX_NO_NATIVE"):
            return
        root = Path(self.root)
        editable = version == "editable"
        if not editable:
            self._scratch = tempfile.TemporaryDirectory()
        for library in LIBRARIES:
            target = (
                root / library.file if editable else Path(self._scratch.name, library.file.name)
            )
            try:
                compile_library(library, root, target)
            except (OSError, subprocess.SubprocessError, ImportError) as error:
                said = getattr(error, "stderr", None) or error
                self.app.display_warning(f"{library.file.name} was not compiled: {said}")
                continue
            build_data["pure_python"] = False
            # Loaded through ctypes: any Python will do.
            tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"py3-none-{tag}"
            if not editable:
                build_data["force_include"][str(target)] = str(library.file)

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


def compile_library(library: Library, root: Path, target: Path) -> None:
    """Compiles a library from the sources under `root`, each instruction set beside the others.

    Raises:
        OSError, subprocess.CalledProcessError: without a compiler, or where it refuses.
        ImportError: without jaxlib, whose headers describe XLA's interface.
    """
    compiler = find_compiler()
    with tempfile.TemporaryDirectory() as folder:

        def run(*arguments: str) -> None:
            subprocess.run([*compiler, *arguments], check=True, capture_output=True, text=True)

        def compile_one(name: str, file: str, *options: str) -> str:
            made = str(Path(folder, f"{name}.o"))
            run(*FLAGS, *options, "-c", str(root / library.folder / file), "-o", made)
            return made

        jobs = [
            (name, library.kernels, f"-DNAME={name}", *options)
            for name, options in library.variants().items()
        ]
        jobs.append(("rest", library.rest, *([f"-I{xla_headers()}"] if library.calls_xla else [])))
        with ThreadPoolExecutor() as pool:
            objects = list(pool.map(lambda job: compile_one(*job), jobs))
        linked = Path(folder, target.name)
        run("-shared", *objects, "-o", str(linked))
        # Replaced, not overwritten: a process may have the old one loaded.
        shutil.copy(linked, target.with_suffix(".new"))
        target.with_suffix(".new").replace(target)


def xla_headers() -> str:
    """Finds the headers of XLA's foreign function interface without importing jax."""
    import jaxlib

    return str(Path(jaxlib.__file__).parent / "include")
