"""A stand-in of a model hub's HTTP interface, as huggingface_hub speaks it, on this machine."""

import base64
import contextlib
import http.server
import json
import threading
from collections.abc import Iterator


class Hub:
    """`repos` maps user/name to its files; only `token` may write, and read what is private."""

    def __init__(self, token: str):
        self.token = token
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.commits = 0
        self.address = ""

    @property
    def commit(self) -> str:
        return f"{self.commits:040x}"


@contextlib.contextmanager
def serve_hub(token: str = "hf_secret") -> Iterator[Hub]:
    """Serve an empty hub until the end of the `with`."""
    hub = Hub(token)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data

        def answer(self, content: bytes = b"", status: int = 200, **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def say(self, value: object, status: int = 200, **headers: str) -> None:
            headers["Content_Type"] = "application/json"
            self.answer(json.dumps(value).encode(), status, **headers)

        def is_owner(self) -> bool:
            return self.headers.get("Authorization") == f"Bearer {hub.token}"

        def do_POST(self) -> None:
            body, path = self.body(), self.path.split("?")[0]
            if path == "/api/validate-yaml":
                return self.say({"errors": [], "warnings": []})
            if not self.is_owner():
                return self.say({"error": "Invalid credentials"}, 401)
            if path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked['organization']}/{asked['name']}"
                if name in hub.repos:
                    return self.say({"url": f"{hub.address}/{name}"}, 409)
                is_private = asked.get("visibility") == "private" or asked.get("private") is True
                hub.repos[name], hub.private[name] = {}, is_private
                return self.say({"url": f"{hub.address}/{name}"})
            _, _, _, user, name, action, *_ = path.split("/")
            if action == "preupload":
                files = json.loads(body)["files"]
                modes = [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for f in files
                ]
                return self.say({"files": modes})
            assert action == "commit", path
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    hub.repos[f"{user}/{name}"][line["value"]["path"]] = content
            hub.commits += 1
            url = f"{hub.address}/{user}/{name}/commit/{hub.commit}"
            return self.say({"commitUrl": url, "commitOid": hub.commit, "success": True})

        def do_GET(self) -> None:
            parts = self.path.split("?")[0].strip("/").split("/")
            is_api = parts[:2] == ["api", "models"]
            user, name, *rest = parts[2:] if is_api else parts
            repo = f"{user}/{name}"
            if repo not in hub.repos or (hub.private[repo] and not self.is_owner()):
                return self.say({"error": "not found"}, 401, X_Error_Code="RepoNotFound")
            if is_api:
                facts = {"id": repo, "private": hub.private[repo], "sha": hub.commit}
                return self.say(facts | {"siblings": [{"rfilename": n} for n in hub.repos[repo]]})
            _, revision, file = rest[0], rest[1], "/".join(rest[2:])
            if revision not in ("main", hub.commit):
                return self.say({"error": "no"}, 404, X_Error_Code="RevisionNotFound")
            if file not in hub.repos[repo]:
                return self.say({"error": "no"}, 404, X_Error_Code="EntryNotFound")
            etag = f'"{hub.commit}-{file}"'
            return self.answer(hub.repos[repo][file], ETag=etag, X_Repo_Commit=hub.commit)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
