"""Reads the pictures before the first step, and says which were left out and which adapted."""

from collections import Counter

from vggjax.errors import shown
from vggjax.training.screen import Screen
from vggjax.training.setup import Setup

MAX_NAMED = 20
"""Pictures named on the screen; model.json names all that were left out."""


def read_pictures(run: Setup, screen: Screen) -> None:
    """Decodes the splits that fit the memory, with a bar; says what was found."""
    for name, examples in run.examples.items():
        screen.begin(f"reading {name}", len(examples))
        examples.prepare(lambda done, _: screen.advance(done))
    for reason in list(left_out(run).items())[:MAX_NAMED]:
        screen.say("left out: {}: {}".format(*map(shown, reason)))
    say_adapted(run, screen)


def say_adapted(run: Setup, screen: Screen, *, said: Counter[str] | None = None) -> None:
    """Says how many pictures were not plain RGB and what was done to them, unless that was said."""
    counts = adapted(run)
    if counts and counts != said:
        told = "; ".join(f"{count:,} {note}" for note, count in counts.most_common())
        screen.say(f"adapted: {told}")


def adapted(run: Setup) -> Counter[str]:
    """Counts the pictures of train and val by what was done to them so far."""
    return sum((examples.adapted for examples in run.examples.values()), Counter())


def left_out(run: Setup) -> dict[str, str]:
    """Gives the pictures that could not be read so far: id -> reason."""
    return {
        run.source.ids[i]: reason
        for examples in run.examples.values()
        for i, reason in sorted(examples.unreadable.items())
    }
