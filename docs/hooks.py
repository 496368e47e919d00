"""What the site takes from the code: the README, the pages of --help, and the error codes."""

import re

from vggjax.cli.commands.table import COMMANDS
from vggjax.cli.help import command_page, train_page
from vggjax.errors import CODES
from vggjax.training.config import Config

REPOSITORY = "https://github.com/vggjax/vggjax/blob/main/"


def on_page_markdown(markdown: str, *, page, **_: object) -> str:
    """Fill a page's marks; the first page is the README."""
    if page.file.src_uri == "index.md":
        with open("README.md", encoding="utf-8") as file:
            markdown = file.read().replace("](docs/", "](")
        files = r"\]\((examples|(?:[A-Z]+|weights/README|benchmarks/README)\.(?:md|cff))\)"
        return re.sub(files, rf"]({REPOSITORY}\1)", markdown)
    pages = {"train": train_page(Config(), whole=True)}
    pages |= {name: command_page(name, run) for name, run in COMMANDS.items() if name != "train"}
    commands = [f"## vggjax {name}\n\n```text\n{text}\n```\n" for name, text in pages.items()]
    codes = ["| code | meaning |", "|---|---|"]
    codes += [f"| `{code}` | {meaning} |" for code, meaning in CODES.items()]
    markdown = markdown.replace("<!-- commands -->", "\n".join(commands))
    return markdown.replace("<!-- codes -->", "\n".join(codes))
