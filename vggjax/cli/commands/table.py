"""The table of the commands."""

from collections.abc import Callable

from vggjax.cli.commands.datasets import augment_preview, doctor, estimate
from vggjax.cli.commands.images import embed, predict, similar, stylize
from vggjax.cli.commands.networks import convert, summary, verify
from vggjax.cli.commands.runs import evaluate, launch, recipes, report, train
from vggjax.cli.commands.services import card, demo, export, push, serve

COMMANDS: dict[str, Callable[..., int]] = {
    "train": train,
    "evaluate": evaluate,
    "report": report,
    "predict": predict,
    "embed": embed,
    "similar": similar,
    "stylize": stylize,
    "export": export,
    "serve": serve,
    "demo": demo,
    "card": card,
    "push": push,
    "convert": convert,
    "verify": verify,
    "summary": summary,
    "recipes": recipes,
    "launch": launch,
    "doctor": doctor,
    "estimate": estimate,
    "augment-preview": augment_preview,
}
"""Name -> command, in the order of the help."""
