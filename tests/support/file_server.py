"""A web server on this machine that serves bytes, and breaks off, refuses or lies when asked to."""

import contextlib
import http.server
import threading
from collections.abc import Iterator


class FileServer:
    """`files` maps names to contents; `requests` lists what was asked, as `GET x.tgz bytes=5-`."""

    def __init__(self, files: dict[str, bytes]):
        self.files = files
        self.requests: list[str] = []
        self.address = ""
        self.ranges = True
        """Whether it answers a request for a part with that part."""
        self.cuts: list[int] = []
        """After so many bytes the next connections are cut, one number a connection."""

    def url(self, name: str) -> str:
        return f"{self.address}/{name}"


@contextlib.contextmanager
def serve(files: dict[str, bytes]) -> Iterator[FileServer]:
    """Serve `files` until the end of the `with`."""
    shared = FileServer(files)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer()

        def do_GET(self):
            body = self.answer()
            cut = shared.cuts.pop(0) if shared.cuts else len(body)
            self.wfile.write(body[:cut])
            if cut < len(body):
                self.close_connection = True

        def answer(self) -> bytes:
            name, wanted = self.path[1:], self.headers.get("Range", "")
            shared.requests.append(f"{self.command} {name} {wanted}".strip())
            if name not in shared.files:
                self.send_error(404)
                return b""
            content = shared.files[name]
            start = int(wanted[6:-1]) if wanted and shared.ranges else 0
            if start >= len(content) > 0:
                self.send_error(416)
                return b""
            self.send_response(206 if start else 200)
            if start:
                last = f"{len(content) - 1}/{len(content)}"
                self.send_header("Content-Range", f"bytes {start}-{last}")
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            return content[start:]

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        shared.address = f"http://127.0.0.1:{server.server_port}"
        yield shared
        server.shutdown()
        thread.join()
