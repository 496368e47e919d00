"""Run the service: `vggjax serve`."""

import asyncio
import os
import signal
import socket
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from vggjax.errors import printable
from vggjax.evaluation.predict import load_run
from vggjax.serve.app import make_app
from vggjax.serve.limits import Limits, bind, read_token, unusable_address
from vggjax.training.signals import SIGNALS

MAX_CONNECTIONS = 1000
"""Open connections, beyond which new ones are refused."""


def serve(
    run: str | os.PathLike[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token_file: Path | None = None,
    limits: Limits | None = None,
) -> None:
    """Answer requests with a run's model until SIGTERM or Ctrl-C; requests in flight are answered.

    Args:
        run: the finished run's folder, or `hf://user/name` on a model hub.
        host: the address to listen on; one that other machines reach needs a token.
        port: 0 takes a free one.
        token_file: a file with the token; None reads it from `VGGJAX_TOKEN`, if that is set.
        limits: the largest request, and how many are held at once.

    Raises:
        WeightsError: there is no finished model, or it is damaged.
        ConfigError: an address, a token or limits that cannot be used.
        DataError: the model's outputs are not finite.
    """
    limits = limits or Limits()
    token = read_token(token_file, host=host)
    listener = bind(host, port)
    with listener:
        classifier = load_run(run)
        app = make_app(classifier, limits, token=token)
        port = listener.getsockname()[1]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        names = len(classifier.class_names)
        model = f"{classifier.info.arch}, {names:,} classes"
        line = f"Serving  {printable(run)} ({model}) at {address}/predict, described at "
        line += f"{address}/docs; Ctrl-C stops"
        config = uvicorn.Config(
            app,
            log_level="error",
            access_log=False,
            server_header=False,
            ws="none",
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=int(limits.timeout_s) + 5,
        )
        server = _Server(config, line)
        try:
            asyncio.run(server.serve(sockets=[listener]))
        except OSError as error:  # another process began to listen meanwhile
            raise unusable_address(host, port, error) from None


class _Server(uvicorn.Server):
    """A server that prints one line when it listens, and for which a signal is a normal end."""

    def __init__(self, config: uvicorn.Config, line: str):
        super().__init__(config)
        self._line = line

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(self._line, flush=True)

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Stop at the first signal; unlike the base class, do not raise it again at the end."""
        known = {signum: signal.signal(signum, self.handle_exit) for signum in SIGNALS}
        try:
            yield
        finally:
            for signum, answer in known.items():
                signal.signal(signum, answer)
