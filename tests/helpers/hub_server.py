"""A server on this machine that answers as the Hugging Face hub does for a few repositories."""

import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer:
    """Repositories by name, as folders, and what was asked for.

    Attributes:
        repositories: Folder of each repository.
        gated: Names of those that are answered with 403.
        token: Token that is needed, if any.
        downloads: Files that were sent, `user/repo/file`.
        failures: Number of answers that will be 503.
    """

    def __init__(self, repositories: dict[str, Path]):
        self.repositories = repositories
        self.gated: set[str] = set()
        self.token: str | None = None
        self.downloads: list[str] = []
        self.failures = 0
        self.endpoint = ""


@contextlib.contextmanager
def serve(repositories: dict[str, Path]) -> Iterator[HubServer]:
    """Serves folders until the block ends."""
    hub = HubServer(repositories)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path = unquote(self.path.split("?")[0]).strip("/").split("/")
            listing = path[:2] == ["api", "models"]
            repo = "/".join(path[2:4] if listing else path[:2])
            code, error = 200, ""
            if hub.failures:
                hub.failures -= 1
                code = 503
            elif repo not in hub.repositories:
                code, error = 404, "RepoNotFound"
            elif hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
                code, error = 401, "RepoNotFound"
            elif repo in hub.gated and not listing:
                code, error = 403, "GatedRepo"
            if code != 200:
                return self.answer(code, b"{}", {"X-Error-Code": error} if error else {})
            folder = hub.repositories[repo]
            if listing:
                files = sorted(p for p in folder.rglob("*") if p.is_file())
                names = [{"rfilename": p.relative_to(folder).as_posix()} for p in files]
                body = json.dumps({"id": repo, "sha": COMMIT, "siblings": names})
                return self.answer(200, body.encode(), {})
            name = "/".join(path[4:])
            if not (folder / name).is_file():
                return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            data = (folder / name).read_bytes()
            if self.command == "GET":
                hub.downloads.append(f"{repo}/{name}")
            etag = f'"{hashlib.sha256(data).hexdigest()}"'
            self.answer(200, data, {"ETag": etag, "X-Repo-Commit": COMMIT})

        do_HEAD = do_GET

        def answer(self, code: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
