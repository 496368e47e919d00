"""Gives files and folders names that every system can hold, and that differ on every system.

Windows refuses some characters and names, and takes `Cat` and `cat` for one, as macOS does; names
that are not UTF-8 cannot be copied to either. A name that is safe stays as it is.
"""

import re
import unicodedata

_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|$)", re.IGNORECASE)
_REFUSED = re.compile(r'[<>:"/\\|?*]')
MAX_BYTES = 255


def safe_name(name: str) -> str:
    """Gives one file's or folder's name without what some system refuses, and never hidden."""
    text = "".join(c if c.isprintable() and not _REFUSED.match(c) else "_" for c in name)
    if text.startswith("."):
        text = "_" + text[1:]
    if text.endswith((".", " ")):
        text = text.rstrip(". ") + "_"
    if _RESERVED.match(text):
        text = "_" + text
    if text == "__MACOSX":  # a scan would pass it over
        text = "_MACOSX"
    return text or "_"


def fitted(stem: str, ending: str) -> str:
    """Joins stem and ending, the stem cut so that they fit into what a folder entry can hold."""
    room = MAX_BYTES - len(ending.encode())
    return stem.encode()[:room].decode(errors="ignore") + ending


class Names:
    """Hands out safe names below a folder; the same path gets the same name again."""

    def __init__(self) -> None:
        self._given: dict[tuple[str, ...], tuple[str, ...]] = {(): ()}
        self._taken: set[tuple[str, ...]] = set()

    def folder(self, parts: tuple[str, ...]) -> tuple[str, ...]:
        """Gives the safe path of a folder."""
        if parts not in self._given:
            parent = self.folder(parts[:-1])
            self._given[parts] = (*parent, self._take(parent, safe_name(parts[-1]), ""))
        return self._given[parts]

    def file(self, parts: tuple[str, ...], stem: str, ending: str) -> tuple[str, ...]:
        """Gives the safe path of a new file in the folder `parts`."""
        parent = self.folder(parts)
        whole = safe_name(stem + ending)
        return (*parent, self._take(parent, whole.removesuffix(ending), ending))

    def _take(self, parent: tuple[str, ...], stem: str, ending: str) -> str:
        name, number = fitted(stem, ending), 2
        while (key := (*parent, _folded(name))) in self._taken:
            name = fitted(stem, f"_{number}{ending}")
            number += 1
        self._taken.add(key)
        return name


def _folded(name: str) -> str:
    """What systems that do not tell case, or two ways to code a letter, compare."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
