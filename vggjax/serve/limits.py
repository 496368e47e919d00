"""What a service accepts, who may use it, and where it listens."""

import errno
import ipaddress
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from vggjax.errors import ConfigError, printable

TOKEN_VARIABLE = "VGGJAX_TOKEN"
"""The environment variable that holds the token where no file is given."""

MIN_TOKEN_LENGTH = 16

_MAKE_ONE = "`openssl rand -hex 32` prints a good one"


@dataclass(frozen=True)
class Limits:
    """The largest request, and how many are held at once."""

    max_body_mb: int = 32
    """MiB of one request."""
    max_files: int = 32
    """Images of one request."""
    max_megapixels: int = 64
    """Million pixels of one image, whose header is read before it is decoded."""
    max_queue: int = 256
    """Images that are decoded or wait; beyond them a request is answered with 503."""
    timeout_s: float = 30.0
    """Seconds from a request's head to its answer."""

    def __post_init__(self) -> None:
        """Refuse limits under which nothing could be answered."""
        for name in ("max_body_mb", "max_files", "max_megapixels", "max_queue", "timeout_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"`{name}` must be above 0; got {getattr(self, name)}.")
        if self.max_queue < self.max_files:
            raise ConfigError(
                f"`max_queue` must be at least `max_files`, {self.max_files}; got "
                f"{self.max_queue}: a request of so many images would always be refused."
            )

    @property
    def max_body_bytes(self) -> int:
        """Return the most bytes of one request."""
        return self.max_body_mb * 2**20

    @property
    def max_held_bytes(self) -> int:
        """Return the most bytes of all requests that are held at once: eight of the largest."""
        return 8 * self.max_body_bytes


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_token(file: str | os.PathLike[str] | None, *, host: str) -> str | None:
    """Return the token that requests must carry, from a file or else from `VGGJAX_TOKEN`.

    Raises:
        ConfigError: other machines reach `host` and there is no token, or it cannot be used.
    """
    token, place = os.environ.get(TOKEN_VARIABLE, ""), TOKEN_VARIABLE
    if file is not None:
        place = f"`token_file` {printable(file)}"
        try:
            token = Path(file).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise ConfigError(f"{place} cannot be read: {reason}.") from None
        if not token:
            raise ConfigError(f"{place} is empty; {_MAKE_ONE}.")
    if not token:
        if is_loopback(host):
            return None
        raise ConfigError(
            f"Other machines reach `host` {printable(host)}, so requests need a token: set "
            f"{TOKEN_VARIABLE} or give `token_file` ({_MAKE_ONE}), or keep the host 127.0.0.1."
        )
    if len(token) < MIN_TOKEN_LENGTH:
        raise ConfigError(
            f"The token of {place} has {len(token)} characters, and needs {MIN_TOKEN_LENGTH} or "
            f"more; {_MAKE_ONE}."
        )
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise ConfigError(
            f"The token of {place} must be ASCII without spaces, as a header can hold it; "
            f"{_MAKE_ONE}."
        )
    return token


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address and does not listen yet; port 0 is a free one.

    Raises:
        ConfigError: it cannot be bound; the message says why.
    """
    if not 0 <= port < 2**16:
        raise ConfigError(f"`port` must be from 0 to 65535; got {port}.")
    try:
        flags = socket.AI_PASSIVE
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=flags
        )[0]
    except (OSError, UnicodeError):
        raise ConfigError(f"`host` {printable(host)} is no address of this machine.") from None
    listener = socket.socket(family, kind)
    if os.name == "posix":  # elsewhere it lets two processes share a port
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise unusable_address(host, port, error) from None
    return listener


def unusable_address(host: str, port: int, error: OSError) -> ConfigError:
    """Return the error for an address that cannot be bound, or not be listened to."""
    if error.errno == errno.EADDRINUSE:
        return ConfigError(
            f"Port {port} of {printable(host)} is in use. Give another `port`; 0 takes a free one."
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return ConfigError(
            f"Port {port} needs rights that this user lacks. Give a `port` from 1024 on."
        )
    return ConfigError(
        f"Cannot listen on port {port} of `host` {printable(host)}: {error.strerror or error}."
    )
