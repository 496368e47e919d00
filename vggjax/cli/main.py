"""The command line: `vggjax <command>`, the same as `python -m vggjax <command>`.

Exit codes: 0 done; 3 done, but some images were left out, each named with its reason; 2 nothing
done and the user can mend it (one line on stderr); 1 a bug; 130 and 143 after a Ctrl-C or SIGTERM.
"""

import contextlib
import io
import sys
from collections.abc import Sequence

from vggjax.cli.commands import COMMANDS
from vggjax.errors import ConfigError, VggjaxError, one_line_message, printable, unknown_name
from vggjax.training.compiled import keep_compiled
from vggjax.training.parallel import leave
from vggjax.training.signals import Interrupted


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and gives its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: vggjax COMMAND ...; each command has --help\n")
        for name, command in COMMANDS.items():
            print(f"  {name:<16} {command.__doc__.splitlines()[0]}")
        return 0
    if argv[0] == "--version":
        from vggjax import __version__

        print(__version__)
        return 0
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show is no error
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        if argv[0] not in COMMANDS:
            raise ConfigError(unknown_name("command", argv[0], COMMANDS))
        keep_compiled()
        return COMMANDS[argv[0]](argv[1:])
    except VggjaxError as error:
        return _fail(one_line_message(error))
    except Interrupted as stopped:
        return _fail(str(stopped), code=128 + stopped.signum)
    except KeyboardInterrupt:
        return _fail("by Ctrl-C", code=130)
    except BrokenPipeError:  # `vggjax ... | head`
        with contextlib.suppress(OSError):
            sys.stdout.close()
        return 141
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _fail("Out of memory. A smaller --batch-size or --image-size takes less.")
    except OSError as error:
        place = f": {printable(error.filename)}" if error.filename else ""
        return _fail(f"{error.strerror or error}{place}")


def _fail(message: str, *, code: int = 2) -> int:
    message = " ".join(message.splitlines())
    word = "error" if code == 2 else "stopped"
    sys.stdout.flush()
    print(f"vggjax: {word}: {message}", file=sys.stderr)
    leave(code)
    return code
