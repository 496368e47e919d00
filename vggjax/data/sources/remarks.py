"""Words what a person should know of a dataset before training: `Source.notes`, a sentence each.

None of it is an error: what is passed over is told, so that nobody thinks that it was learned from.
"""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath

from vggjax.errors import printable

_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar")


def join_names(names: Sequence[str], most: int = 10) -> str:
    """Quotes the first few names, and says how many more there are."""
    text = ", ".join(repr(name) for name in list(names)[:most])
    return text + (f" and {len(names) - most} more" if len(names) > most else "")


def remarks_on_classes(class_names: Sequence[str]) -> list[str]:
    """Remarks on numbers sorted as words, and on names that a person takes for one."""
    found = []
    if all(name.isdecimal() for name in class_names):
        by_value = sorted(class_names, key=int)
        if list(class_names) != by_value:
            first = ", ".join(printable(name) for name in class_names[:12])
            more = " ..." if len(class_names) > 12 else ""
            found.append(f"Class names are sorted as words, not as numbers: {first}{more}.")
    twins = defaultdict(list)
    for name in class_names:
        twins[unicodedata.normalize("NFKC", name.casefold()).strip()].append(name)
    for names in twins.values():
        if len(names) > 1:
            found.append(
                f"Classes {join_names(names)} differ only in upper and lower case, spaces around, or "
                f"the way that letters are coded, and are kept apart: one class or "
                f"{'two' if len(names) == 2 else len(names)}?"
            )
    return found


def remarks_on_files(
    hidden: Sequence[str], loose: Sequence[str], others: Sequence[str]
) -> list[str]:
    """Remarks on what a scan passed over: hidden folders, images without a class, other files."""
    found = []
    if hidden:
        found.append(
            f"Hidden folder{'s' if len(hidden) > 1 else ''} {join_names(hidden, 3)} "
            f"{'are' if len(hidden) > 1 else 'is'} passed over."
        )
    if loose:
        one = len(loose) == 1
        found.append(
            f"{len(loose):,} image{' lies' if one else 's lie'} beside the class folders, "
            f"{'has' if one else 'have'} no label and {'is' if one else 'are'} passed over: "
            f"{join_names(loose, 3)}."
        )
    archives = [name for name in others if name.lower().endswith(_ARCHIVES)]
    if archives:
        found.append(
            f"{len(archives):,} archive{' is' if len(archives) == 1 else 's are'} passed over, not "
            f"unpacked: {join_names(archives, 3)}."
        )
    kinds = Counter(
        PurePosixPath(name).suffix.lower() or "without an ending"
        for name in others
        if not name.lower().endswith(_ARCHIVES)
    )
    if kinds:
        most = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))[:5]
        text = ", ".join(f"{count:,} {printable(kind)}" for kind, count in most)
        found.append(f"Files whose ending is no image's are passed over: {text}.")
    return found
