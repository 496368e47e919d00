"""Open zip archives from untrusted sources (`.keras`, and torch's files) after checking them.

Nothing is extracted: a caller reads the one member that it needs to its end, which verifies the
member's checksum.
"""

import contextlib
import io
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO

from vggjax.errors import WeightsError, printable

MAX_MEMBERS = 10_000
MAX_UNPACKED_BYTES = 2**31
"""VGG19 with its top has 575 MB as float32, 1.15 GB as float64."""

_MAX_RATIO = 100  # deflate saves a tenth of trained weights, not 99 %
_FREE_BYTES = 2**22  # members up to this size may have any ratio
_MAX_DIRECTORY_BYTES = MAX_MEMBERS * 512


@contextlib.contextmanager
def open_archive(file: IO[bytes]) -> Iterator[zipfile.ZipFile]:
    """Open an archive whose directory lists nothing unsafe."""
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
        # zipfile raises all of these for damaged archives, depending on where the damage is.
        raise WeightsError(f"it is a damaged archive ({printable(error)}).", code="E_ZIP") from None


def _check_directory(file: IO[bytes]) -> None:
    """Refuse a directory so long that parsing it would take all memory.

    The end-of-directory records are those of APPNOTE.TXT, 4.3.14 to 4.3.16.
    """
    file_bytes = file.seek(0, io.SEEK_END)
    file.seek(max(0, file_bytes - 2**16 - 22))
    tail = file.read()
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) < end + 22:
        raise zipfile.BadZipFile("its directory is missing, perhaps truncated")
    directory_bytes = struct.unpack_from("<L", tail, end + 12)[0]
    if directory_bytes == 2**32 - 1:  # zip64; the 20 bytes before say where its record is
        if end < 20 or tail[end - 20 : end - 16] != b"PK\x06\x07":
            raise zipfile.BadZipFile("its directory is damaged")
        file.seek(min(struct.unpack_from("<Q", tail, end - 12)[0], file_bytes))
        record = file.read(56)
        if len(record) < 56:
            raise zipfile.BadZipFile("its directory is damaged")
        directory_bytes = struct.unpack_from("<Q", record, 40)[0]
    if directory_bytes > _MAX_DIRECTORY_BYTES:
        raise WeightsError(
            f"it is an archive with a directory of {directory_bytes:,} bytes.", code="E_ZIP"
        )


def _check_members(members: list[zipfile.ZipInfo]) -> None:
    if len(members) > MAX_MEMBERS:
        raise WeightsError(f"it is an archive of {len(members):,} members.", code="E_ZIP")
    names: set[str] = set()
    for member in members:
        name, shown = member.filename, repr(printable(member.filename))
        if name in names:
            raise WeightsError(f"it has two members {shown}.", code="E_DUPLICATE")
        names.add(name)
        parts = name.replace("\\", "/").split("/")
        if ".." in parts or name[:1] in ("/", "\\") or re.match("[A-Za-z]:", name):
            raise WeightsError(f"its member {shown} leads out of the archive.", code="E_ZIP")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise WeightsError(f"its member {shown} is a link.", code="E_ZIP")
        if member.flag_bits & 1:
            raise WeightsError(f"its member {shown} is encrypted.", code="E_ZIP")
        if member.file_size > max(_FREE_BYTES, _MAX_RATIO * member.compress_size):
            raise WeightsError(
                f"its member {shown} would expand from {member.compress_size:,} to "
                f"{member.file_size:,} bytes, which no weights do.",
                code="E_BOMB",
            )
    if sum(member.file_size for member in members) > MAX_UNPACKED_BYTES:
        raise WeightsError("it would expand to more than any VGG has.", code="E_BOMB")


def check_contents(archive: zipfile.ZipFile) -> None:
    """Verify the checksum of every member."""
    if (name := archive.testzip()) is not None:
        raise WeightsError(
            f"it is a damaged archive: the checksum of {printable(name)!r} is wrong.", code="E_ZIP"
        )


def member_start(file: IO[bytes], member: zipfile.ZipInfo) -> int:
    """Return the position in the archive where an uncompressed member's contents begin."""
    file.seek(member.header_offset + 26)
    name_bytes, extra_bytes = struct.unpack("<HH", file.read(4))
    return member.header_offset + 30 + name_bytes + extra_bytes
