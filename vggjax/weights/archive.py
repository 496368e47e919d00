"""Opens zip archives that strangers made (`.keras`, and torch's files): members are checked first.

Nothing is unpacked to a name of the archive's: a caller reads the one member that it wants, to the
end, whereby its checksum is checked.
"""

import contextlib
import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO

from vggjax.errors import WeightsError, printable

MAX_MEMBERS = 10_000
MAX_UNPACKED_BYTES = 2**31
"""VGG19 with its top is 575 MB as float32, 1.15 GB as float64."""

_MAX_RATIO = 100  # deflate makes trained weights a tenth smaller, not a hundred times
_FREE_BYTES = 2**22  # a small member may be packed as well as it likes
_MAX_DIRECTORY_BYTES = MAX_MEMBERS * 512


@contextlib.contextmanager
def open_archive(file: IO[bytes]) -> Iterator[zipfile.ZipFile]:
    """Opens an archive whose list of members holds nothing unsafe.

    Raises:
        WeightsError: damaged, a name twice or leading elsewhere, a link, a bomb, or encrypted.
    """
    try:
        _check_directory(file)
        with zipfile.ZipFile(file) as archive:
            _check_members(archive.infolist())
            yield archive
    except WeightsError:
        raise
    except (
        zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, struct.error,
        ValueError, OverflowError, OSError,
    ) as error:  # fmt: skip
        # zipfile raises all of these for damaged archives, depending on where the damage lies.
        raise WeightsError(
            f"it is a damaged archive ({printable(error)}). Fetch or write it again.", code="E_ZIP"
        ) from None


def _check_directory(file: IO[bytes]) -> None:
    """Refuses a list of members so long that reading it would take all memory."""
    size_bytes = file.seek(0, io.SEEK_END)
    file.seek(max(0, size_bytes - 2**16 - 22))
    tail = file.read()
    found = tail.rfind(b"PK\x05\x06")
    if found < 0 or len(tail) < found + 22:
        raise zipfile.BadZipFile("its list of members is missing: cut short?")
    directory_bytes = struct.unpack_from("<L", tail, found + 12)[0]
    if directory_bytes == 2**32 - 1:  # the larger form; its place is in the 20 bytes before
        if found < 20 or tail[found - 20 : found - 16] != b"PK\x06\x07":
            raise zipfile.BadZipFile("its list of members is damaged")
        file.seek(min(struct.unpack_from("<Q", tail, found - 12)[0], size_bytes))
        record = file.read(56)
        if len(record) < 56:
            raise zipfile.BadZipFile("its list of members is damaged")
        directory_bytes = struct.unpack_from("<Q", record, 40)[0]
    if directory_bytes > _MAX_DIRECTORY_BYTES:
        raise WeightsError(
            f"it is an archive with a list of members of {directory_bytes:,} bytes, as no file of "
            f"weights has.",
            code="E_ZIP",
        )


def _check_members(members: list[zipfile.ZipInfo]) -> None:
    if len(members) > MAX_MEMBERS:
        raise WeightsError(f"it is an archive of {len(members):,} members.", code="E_ZIP")
    seen: set[str] = set()
    for member in members:
        name = member.filename
        if name in seen:
            raise WeightsError(f"it has two members {printable(name)!r}.", code="E_DUPLICATE")
        seen.add(name)
        parts = name.replace("\\", "/").split("/")
        if ".." in parts or name[:1] in ("/", "\\") or ":" in parts[0]:
            raise WeightsError(
                f"its member {printable(name)!r} leads out of the archive. Nothing was unpacked.",
                code="E_ZIP",
            )
        if stat.S_ISLNK(member.external_attr >> 16):
            raise WeightsError(f"its member {printable(name)!r} is a link.", code="E_ZIP")
        if member.flag_bits & 1:
            raise WeightsError(f"its member {printable(name)!r} is encrypted.", code="E_ZIP")
        if member.file_size > max(_FREE_BYTES, _MAX_RATIO * member.compress_size):
            raise WeightsError(
                f"its member {printable(name)!r} would unpack from {member.compress_size:,} to "
                f"{member.file_size:,} bytes, as no weights do.",
                code="E_BOMB",
            )
    if sum(member.file_size for member in members) > MAX_UNPACKED_BYTES:
        raise WeightsError("it would unpack to more than any VGG has.", code="E_BOMB")


def check_contents(archive: zipfile.ZipFile) -> None:
    """Reads every member to its end, and so its checksum, for readers that do not look at it.

    Raises:
        WeightsError: a member is not what was put in.
    """
    if (name := archive.testzip()) is not None:
        raise WeightsError(
            f"it is a damaged archive: the checksum of {printable(name)!r} is wrong. Fetch or write "
            f"it again.",
            code="E_ZIP",
        )


def member_start(file: IO[bytes], member: zipfile.ZipInfo) -> int:
    """Gives the byte of the archive where the contents of an uncompressed member begin."""
    file.seek(member.header_offset + 26)
    name_bytes, extra_bytes = struct.unpack("<HH", file.read(4))
    return member.header_offset + 30 + name_bytes + extra_bytes
