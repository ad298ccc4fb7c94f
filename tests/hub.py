"""A Hugging Face hub on this machine for tests: serves folders as model repositories, and fails on request."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """`root/org/name/…` is repository org/name; each file's first `failures` requests get 503, first `cuts` downloads half of it."""

    protocol_version = "HTTP/1.1"
    root: Path
    failures = cuts = 0
    asked: Counter
    lock = threading.Lock()

    def log_message(self, *arguments: object) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        with self.lock:
            self.asked[self.command, path] += 1
            count = self.asked[self.command, path]
        if count <= self.failures:
            self.reply(503, b"busy")
        elif path.startswith("/api/models/"):
            self.about("/".join(path.split("/")[3:5]), tree="/tree/" in path)
        else:
            self.file(path, count)

    def about(self, repository: str, tree: bool) -> None:
        folder = self.root / repository
        if not folder.is_dir():
            return self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        answer: object = {"id": repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
        if tree:
            blobs = {name: (folder / name).read_bytes() for name in files}
            answer = [
                {"type": "file", "path": name, "size": len(blob), "oid": hashlib.sha1(blob).hexdigest()}
                for name, blob in blobs.items()
            ]
        self.reply(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def file(self, path: str, count: int) -> None:
        repository, _, rest = path.lstrip("/").partition("/resolve/")
        found = self.root / repository / rest.partition("/")[2]
        if not found.is_file():
            return self.reply(404, b"", {"X-Error-Code": "EntryNotFound"})
        content = found.read_bytes()
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        start = self.headers.get("Range", "").removeprefix("bytes=").partition("-")[0]
        part = content[int(start) :] if start else content
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cut = self.command == "GET" and count <= self.failures + self.cuts
        self.reply(206 if start else 200, part, headers, len(part) // 2 if cut else None)

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None, sent: int | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if sent is None else body[:sent])
        if sent is not None:
            self.close_connection = True


@contextmanager
def serving(root: Path, failures: int = 0, cuts: int = 0) -> Iterator[tuple[str, Counter]]:
    """(address, requests so far) of a hub over `root` for a while."""
    asked: Counter = Counter()
    kind = type("Serving", (Hub,), {"root": root, "failures": failures, "cuts": cuts, "asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
