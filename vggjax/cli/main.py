"""The command line: `vggjax COMMAND`, the same as `python -m vggjax COMMAND`.

Exit codes: 0 done; 3 done, but some images were left out, each named with its reason; 2 nothing
done, and one line on stderr says what to fix; 1 a bug; 130 and 143 after a Ctrl-C or SIGTERM.
"""

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from vggjax.cli.commands.runs import default_config, parse_launch, parse_train
from vggjax.cli.commands.table import COMMANDS
from vggjax.cli.help import command_page, train_page
from vggjax.cli.parsing import flags_of, parse
from vggjax.errors import (
    ConfigError,
    VggjaxError,
    one_line_message,
    printable,
    unknown_name,
    with_flags,
)
from vggjax.training.config import Config
from vggjax.training.signals import Interrupted, signal_name, signal_of
from vggjax.weights.pretrained import cache_dir

MAX_CACHE_BYTES = 256 * 2**20
"""Size of the compilation cache. A step of VGG16 takes 150 kB; the oldest are deleted first."""


OTHER_NAMES = {
    **dict.fromkeys(("fit", "finetune", "run"), "Did you mean 'train'?"),
    **dict.fromkeys(("test", "val", "validate", "eval", "score"), "Did you mean 'evaluate'?"),
    **dict.fromkeys(("infer", "inference", "classify"), "Did you mean 'predict'?"),
    **dict.fromkeys(("check", "analyze", "lint", "clean"), "Did you mean 'doctor'?"),
    **dict.fromkeys(("info", "models", "show"), "Did you mean 'summary'?"),
}
"""A command of another tool -> the way out."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot print is no error
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        return _run(argv)
    except VggjaxError as error:
        return _fail(_with_flags(one_line_message(error)), is_printed=error.is_printed_elsewhere)
    except Interrupted as interrupt:
        return _fail(_with_flags(str(interrupt)), code=128 + interrupt.signum)
    except KeyboardInterrupt as interrupt:
        signum = signal_of(interrupt)
        return _fail(f"by {signal_name(signum)}", code=128 + signum)
    except BrokenPipeError:  # `vggjax ... | head`
        with contextlib.suppress(OSError):
            sys.stdout.close()
        return 141
    except (MemoryError, RuntimeError, ValueError) as error:
        if "jax" in sys.modules and _is_lost_process(error):
            return _fail("Another process of the run has ended. The same command resumes the run.")
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        flags = flags_of(Config if argv[0] == "train" else COMMANDS[argv[0]])
        sizes = [flag for flag in ("--batch-size", "--image-size") if flag in flags]
        way_out = f" A smaller {' or '.join(sizes)} takes less." if sizes else ""
        return _fail(f"Out of memory.{way_out}")
    except OSError as error:
        place = f": {printable(error.filename)}" if error.filename else ""
        return _fail(f"{error.strerror or error}{place}")


def _is_lost_process(error: Exception) -> bool:
    from vggjax.training.devices.processes import is_lost_process

    return is_lost_process(error)


def keep_compiled_programs() -> None:
    """Let JAX keep compiled programs on disk, so that the next command starts sooner.

    Sets JAX's own environment variables, before jax is imported; one that the user set wins. Where
    the folder cannot be written, or a program not be read, it is compiled anew without a word.
    """
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = cache_dir() / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if not os.access(folder, os.W_OK):
        return
    _sweep(folder)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(MAX_CACHE_BYTES))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    # The convolution's partitioning over devices is a Python callback: its address differs from
    # process to process and must not be part of the cache's key.
    os.environ.setdefault("JAX_REMOVE_CUSTOM_PARTITIONING_PTR_FROM_CACHE_KEY", "1")


def _sweep(folder: Path) -> None:
    """Delete the programs that a killed process, or one on a full disk, did not write to their end.

    JAX writes a program's time of use after it, and without that writes no further one.
    """
    names = set(os.listdir(folder))
    for name in names:
        program, ending, _ = name.rpartition("-cache")
        if ending and f"{program}-atime" not in names:
            with contextlib.suppress(OSError):
                (folder / name).unlink()


def _run(argv: list[str]) -> int:
    if argv[:1] == ["--version"]:
        print(version("vggjax"))
        return 0
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: vggjax COMMAND ...; `vggjax COMMAND --help` describes a command\n")
        for name, command in COMMANDS.items():
            print(f"  {name:<16} {(command.__doc__ or '').splitlines()[0]}")
        return 0
    name, words = argv[0], argv[1:]
    if name in OTHER_NAMES:
        raise ConfigError(f"Unknown command {name!r}. {OTHER_NAMES[name]}")
    if name not in COMMANDS:
        raise ConfigError(unknown_name("command", name, COMMANDS))
    if asked := {"-h", "--help", "--help-all"} & {*words}:
        if name == "train":
            print(train_page(default_config(words, dataset=""), whole="--help-all" in asked))
        else:
            print(command_page(name, COMMANDS[name]))
        return 0
    keep_compiled_programs()
    if name == "train":
        return COMMANDS[name](parse_train(words))
    if name == "launch":
        return parse_launch(words)
    return parse(COMMANDS[name], words, name)


def _with_flags(message: str) -> str:
    """Write the settings that a message names in backticks as flags: `num_threads` in the code."""
    flags = {*flags_of(Config), *(flag for run in COMMANDS.values() for flag in flags_of(run))}
    return with_flags(message, (flag.removeprefix("--").replace("-", "_") for flag in flags))


def _fail(message: str, *, code: int = 2, is_printed: bool = False) -> int:
    """Print the one line on stderr, unless it `is_printed` already; return the exit code."""
    message = " ".join(message.splitlines())
    with contextlib.suppress(OSError):  # the disk to which both streams go is full
        sys.stdout.flush()
        if not is_printed:
            print(f"vggjax: {'error' if code == 2 else 'stopped'}: {message}", file=sys.stderr)
    if "jax" in sys.modules:  # one of several processes must not wait for the others
        from vggjax.training.devices.processes import exit_process

        exit_process(code)
    return code
