"""What `vggjax serve` and `vggjax demo` run, where their packages are installed."""

import importlib
from types import ModuleType
from typing import Any

from vggjax.errors import ConfigError


def run_service(run: Any, **options: Any) -> int:
    """Serve a run until a signal ends it; the options are those of `server.serve`."""
    import_with_extra("vggjax.serve.server", "serve").serve(run, **options)
    return 0


def run_demo(run: Any, **options: Any) -> int:
    """Show a run's page until a signal ends it; the options are those of `demo.serve_demo`."""
    import_with_extra("vggjax.serve.demo", "demo").serve_demo(run, **options)
    return 0


def import_with_extra(module: str, extra: str) -> ModuleType:
    """Import a module whose packages are an extra.

    Raises:
        ConfigError: they are not installed; the message says how to install them.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"vggjax {extra} needs packages that are not installed ({error.name} is missing): "
            f"pip install 'vggjax[{extra}]'."
        ) from None
