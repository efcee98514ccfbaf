"""A bucket server on loopback: as much of Google Cloud Storage's JSON API as the clients need.

These are gcsfs, TensorStore's gcs driver, and the google-cloud-storage that Orbax asks whether a
bucket has folders. Faults are set on the server: buckets that refuse, and answers of 503.
"""

import base64
import contextlib
import email
import hashlib
import itertools
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

_START = 1_700_000_000_000_000  # generations are microseconds


class BucketServer(ThreadingHTTPServer):
    """Buckets in memory.

    Attributes:
        objects: Content and generation by bucket and name. A bucket that is no key does not exist.
        forbidden: Buckets that refuse every request.
        read_only: Buckets that refuse to be written.
        unavailable: Number of requests to answer with 503 from now on.
        refused: Number of requests that were.
        requests: Method and path of each request.
    """

    daemon_threads = True

    def __init__(self, *buckets: str):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, dict[str, tuple[bytes, int]]] = {name: {} for name in buckets}
        self.forbidden: set[str] = set()
        self.read_only: set[str] = set()
        self.unavailable = 0
        self.refused = 0
        self.requests: list[tuple[str, str]] = []
        self.lock = threading.RLock()
        self.uploads: dict[str, tuple[str, str, dict[str, str], bytearray]] = {}
        self._generations = itertools.count(_START)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        """Variables that lead the clients here, without credentials."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            # No metadata server is asked for credentials.
            "NO_GCE_CHECK": "true",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            "GCE_METADATA_HOST": "127.0.0.1:9",
            "GCE_METADATA_ROOT": "127.0.0.1:9",
            "GCE_METADATA_IP": "127.0.0.1:9",
        }

    def put(self, bucket: str, name: str, content: bytes) -> int:
        with self.lock:
            generation = next(self._generations)
            self.objects[bucket][name] = content, generation
            return generation

    def names(self, bucket: str, prefix: str = "") -> list[str]:
        with self.lock:
            return sorted(name for name in self.objects[bucket] if name.startswith(prefix))

    def content(self, bucket: str, name: str) -> bytes:
        return self.objects[bucket][name][0]


@contextlib.contextmanager
def serve(*buckets: str) -> Iterator[BucketServer]:
    """Serves empty buckets until the block ends."""
    server = BucketServer(*buckets)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def losses_in(server: BucketServer, run: str) -> dict[int, float]:
    """The losses that a run in `bucket` has written, by step."""
    lines = server.content("bucket", f"{run}/metrics.jsonl").decode().splitlines()
    return {line["step"]: line["loss"] for line in map(json.loads, lines)}


class _Refused(Exception):
    def __init__(self, code: int, reason: str):
        self.code, self.reason = code, reason


class _Handler(BaseHTTPRequestHandler):
    server: BucketServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PUT = do_DELETE = do_GET

    def _answer(self) -> None:
        body = self._read_body()
        url = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        path = url.path.removeprefix("/download")
        with self.server.lock:
            self.server.requests.append((self.command, self.path))
            try:
                if self.server.unavailable > 0:
                    self.server.unavailable -= 1
                    self.server.refused += 1
                    raise _Refused(503, "the server is overloaded")
                code, headers, content = self._route(path, query, body)
            except _Refused as refused:
                code, headers = refused.code, {}
                error = {"code": refused.code, "message": refused.reason}
                content = json.dumps({"error": error}).encode()
        with contextlib.suppress(ConnectionError):  # a client that was killed
            self._send(code, headers, content)

    def _send(self, code: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        if code not in (204, 304):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if code not in (204, 304):
            self.wfile.write(content)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _route(
        self, path: str, query: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        is_upload = path.startswith("/upload")
        # Names of objects are quoted, slashes too.
        parts = path.removeprefix("/upload").strip("/").split("/")
        if parts[:3] != ["storage", "v1", "b"] or len(parts) < 4:
            raise _Refused(404, f"no such resource: {path}")
        bucket, rest = unquote(parts[3]), [unquote(part) for part in parts[4:]]
        writes = self.command != "GET"
        if bucket in self.server.forbidden or (writes and bucket in self.server.read_only):
            raise _Refused(403, "anonymous caller does not have storage.objects access")
        if bucket not in self.server.objects:
            raise _Refused(404, "The specified bucket does not exist.")
        if is_upload:
            return self._upload(bucket, query, body)
        if not rest:
            return _json({"kind": "storage#bucket", "id": bucket, "name": bucket})
        if rest == ["o"]:
            return _json(self._list(bucket, query))
        if "rewriteTo" in rest or "copyTo" in rest:
            target = rest[-1]
            content, _ = self._object(bucket, rest[1])
            self._check_generation(bucket, target, query)
            self.server.put(rest[-3], target, content)
            resource = self._resource(rest[-3], target)
            return _json({"done": True, "resource": resource} if "rewriteTo" in rest else resource)
        return self._object_request(bucket, rest[1], query)

    def _object_request(
        self, bucket: str, name: str, query: dict[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        content, generation = self._object(bucket, name)
        self._check_generation(bucket, name, query)
        if query.get("ifGenerationNotMatch") == str(generation):
            return 304, {}, b""
        if self.command == "DELETE":
            del self.server.objects[bucket][name]
            return 204, {}, b""
        if query.get("alt") != "media":
            return _json(self._resource(bucket, name))
        headers = {"x-goog-generation": str(generation), "Content-Type": "application/octet-stream"}
        wanted = self.headers.get("Range")
        if wanted is None:
            return 200, headers, content
        first, last = wanted.removeprefix("bytes=").split("-")
        start = int(first) if first else max(0, len(content) - int(last))
        end = min(len(content), int(last) + 1) if first and last else len(content)
        if start >= len(content):
            raise _Refused(416, "the range is not satisfiable")
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        return 206, headers, content[start:end]

    def _object(self, bucket: str, name: str) -> tuple[bytes, int]:
        if name not in self.server.objects[bucket]:
            raise _Refused(404, f"No such object: {bucket}/{name}")
        return self.server.objects[bucket][name]

    def _check_generation(self, bucket: str, name: str, query: dict[str, str]) -> None:
        wanted = query.get("ifGenerationMatch")
        _, found = self.server.objects[bucket].get(name, (b"", 0))
        if wanted not in (None, str(found)):
            raise _Refused(412, "At least one of the pre-conditions you specified did not hold.")

    def _upload(
        self, bucket: str, query: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        kind, name = query["uploadType"], query.get("name", "")
        if kind == "multipart":
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            message = email.message_from_bytes(head + body)
            boundary = message.get_boundary()
            assert boundary is not None
            # By hand: the parser of mails changes line ends of the content.
            _, meta, content, _ = body.split(f"--{boundary}".encode(), 3)
            name = json.loads(_after_head(meta))["name"]
            body = _after_head(content)
            body = body[: -len(b"\r\n")] if body.endswith(b"\r\n") else body[:-1]
        elif kind == "resumable" and "upload_id" not in query:
            name = name or json.loads(body)["name"]
            self._check_generation(bucket, name, query)
            upload = f"upload{len(self.server.uploads)}"
            self.server.uploads[upload] = bucket, name, query, bytearray()
            where = f"/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={upload}"
            return 200, {"Location": self.server.url + where}, b""
        elif kind == "resumable":
            bucket, name, query, received = self.server.uploads[query["upload_id"]]
            received += body
            if self.headers.get("Content-Range", "").endswith("/*"):  # more will come
                return 308, {"Range": f"bytes=0-{len(received) - 1}"}, b""
            body = bytes(received)
        self._check_generation(bucket, name, query)
        self.server.put(bucket, name, body)
        return _json(self._resource(bucket, name))

    def _resource(self, bucket: str, name: str) -> dict[str, Any]:
        content, generation = self.server.objects[bucket][name]
        digest = base64.b64encode(hashlib.md5(content).digest()).decode()
        return {
            "kind": "storage#object",
            "bucket": bucket,
            "name": name,
            "size": str(len(content)),
            "generation": str(generation),
            "metageneration": "1",
            "md5Hash": digest,
            "etag": digest,
            "contentType": "application/octet-stream",
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "updated": "2026-01-01T00:00:00.000Z",
        }

    def _list(self, bucket: str, query: dict[str, str]) -> dict[str, Any]:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        start = max(query.get("startOffset", ""), query.get("pageToken", ""))
        items, prefixes = [], []
        for name in self.server.names(bucket, prefix):
            if name < start or ("endOffset" in query and name >= query["endOffset"]):
                continue
            if delimiter and delimiter in name[len(prefix) :]:
                end = name.index(delimiter, len(prefix)) + len(delimiter)
                if name[:end] not in prefixes:
                    prefixes.append(name[:end])
                continue
            if len(items) == int(query.get("maxResults", 1000)):
                return {"items": items, "prefixes": prefixes, "nextPageToken": name}
            items.append(self._resource(bucket, name))
        return {"kind": "storage#objects", "items": items, "prefixes": prefixes}


def _json(content: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()


def _after_head(part: bytes) -> bytes:
    """Returns what follows the first empty line of a part of a multipart body."""
    ends = [(part.find(mark), len(mark)) for mark in (b"\n\n", b"\r\n\r\n") if mark in part]
    place, length = min(ends)
    return part[place + length :]
