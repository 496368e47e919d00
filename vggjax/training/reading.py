"""Reads the images before the first step, and says which were left out and which adapted."""

from collections import Counter

from vggjax.errors import printable
from vggjax.training.console import ProgressConsole
from vggjax.training.prepare import RunContext

MAX_NAMED = 20
"""Images named on the screen; model.json names all that were left out."""


def read_images(run: RunContext, screen: ProgressConsole) -> None:
    """Decodes the splits that fit the memory, with a bar; says what was found."""
    for name, examples in run.loaders.items():
        screen.begin(f"reading {name}", len(examples))
        examples.prepare(lambda done, _: screen.advance(done))
    for reason in list(left_out(run).items())[:MAX_NAMED]:
        screen.print("left out: {}: {}".format(*map(printable, reason)))
    report_adapted(run, screen)


def report_adapted(
    run: RunContext, screen: ProgressConsole, *, said: Counter[str] | None = None
) -> None:
    """Says how many images were not plain RGB and what was done to them, unless that was said."""
    counts = adapted(run)
    if counts and counts != said:
        told = "; ".join(f"{count:,} {note}" for note, count in counts.most_common())
        screen.print(f"adapted: {told}")


def adapted(run: RunContext) -> Counter[str]:
    """Counts the images of train and val by what was done to them so far."""
    return sum((examples.adapted for examples in run.loaders.values()), Counter())


def left_out(run: RunContext) -> dict[str, str]:
    """Gives the images that could not be read so far: id -> reason."""
    return {
        run.source.ids[i]: reason
        for examples in run.loaders.values()
        for i, reason in sorted(examples.unreadable.items())
    }
