"""The recipes on the screen: all of them as a table, or one of them whole."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vggjax.errors import ConfigError, unknown_name
from vggjax.training.lessons import LESSONS
from vggjax.training.recipes import RECIPES, command_of


def print_recipes(console: Console) -> None:
    """Prints each recipe's name, title and its author's figure."""
    table = Table(box=None, pad_edge=False)
    table.add_column("Recipe", style="bold", no_wrap=True)
    table.add_column("Lesson", overflow="fold")
    table.add_column("Its author's figure", overflow="fold")
    for name, lesson in LESSONS.items():
        table.add_row(name, escape(lesson.title), escape(lesson.figure))
    console.print(table)
    lines = (
        "",
        "Run one:    python train.py --recipe NAME, with any flag behind it; flags win.",
        "Read one:   vggjax recipes NAME",
    )
    console.print("\n".join(lines), markup=False, highlight=False)


def print_recipe(console: Console, name: str) -> None:
    """Prints what a recipe teaches, where it is from, its settings and its command.

    Raises:
        ConfigError: no such recipe; the message names the nearest one.
    """
    if name not in LESSONS:
        raise ConfigError(unknown_name("recipe", name, LESSONS))
    lesson = LESSONS[name]
    settings = [f"{field} {_written(value)}" for field, value in RECIPES.get(name, {}).items()]
    rows = [
        ("Recipe", f"{name}: {lesson.title}"),
        ("Teaches", lesson.teaches),
        ("Source", lesson.source),
        ("Figure", lesson.figure),
        ("Settings", ", ".join(settings)),
        ("Command", command_of(name)),
    ]
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for title, text in rows:
        if text:
            table.add_row(title, escape(text))
    console.print(table)


def _written(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
