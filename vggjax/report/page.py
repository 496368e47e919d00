"""Render the HTML pages: one Jinja environment and one style sheet for all of them."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vggjax.report.plot_style import DARK, LIGHT
from vggjax.report.thumbnails import jpeg_uri


def render(name: str, context: dict[str, Any]) -> str:
    """Fill a template of pages/; all text is escaped, and a missing name is an error."""
    return _environment().get_template(name).render(context).lstrip()


@functools.cache
def _environment() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "pages"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(light=LIGHT, dark=DARK)
    filters: dict[str, Callable[[Any], str]] = {
        "count": lambda number: f"{number:,}",
        "jpeg_uri": jpeg_uri,
        "loss": format_loss,
        "percent": percent,
        "sentence": lambda text: f"{_upper_first(text.rstrip('. '))}.",
        "upper_first": _upper_first,
    }
    environment.filters |= filters
    return environment


def format_loss(loss: float) -> str:
    """Format a loss, which a diverged network makes large."""
    return f"{loss:.3f}" if loss < 1000 else f"{loss:.2g}"


def percent(share: float) -> str:
    """Format a share of 1 in percent."""
    return f"{share:.1%}"


def _upper_first(text: str) -> str:
    return text[:1].upper() + text[1:]
