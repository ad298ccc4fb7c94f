"""A Hugging Face hub on this machine for tests: serves folders as repositories of models and data sets, and fails on
request."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """`root/org/name/…` is model org/name, `root/datasets/org/name/…` a data set.

    Each file's first `failures` requests get 503, its first `cuts` downloads half of it; `damage` names files that come
    with a byte changed; a file's bytes come in pieces of a sixteenth, each after `delay` seconds.
    """

    protocol_version = "HTTP/1.1"
    root: Path
    failures = cuts = 0
    delay = 0.0
    damage: set[str]
    asked: Counter
    lock = threading.Lock()

    def log_message(self, *arguments: object) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        parts = urlsplit(self.path).path.strip("/").split("/")  # api, datasets, org, name, paths-info, revision
        paths = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body).get("paths", [])
        folder = self.folder(parts[1], "/".join(parts[2:4]))
        paths = [paths] if isinstance(paths, str) else paths
        self.json([self.entry(folder, folder / name) for name in paths if (folder / name).exists()])

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        path = unquote(address.path)
        with self.lock:
            self.asked[self.command, path] += 1
            count = self.asked[self.command, path]
        if count <= self.failures:
            self.reply(503, b"busy")
        elif path.startswith("/api/"):
            self.about(path.strip("/").split("/")[1:], parse_qs(address.query))
        else:
            self.file(path, count)

    def folder(self, kind: str, repository: str) -> Path:
        return (self.root / "datasets" if kind == "datasets" else self.root) / repository

    def about(self, parts: list[str], query: dict[str, list[str]]) -> None:
        """kind, org, name, then nothing, `revision/…` or `tree/revision/folder`."""
        folder = self.folder(parts[0], "/".join(parts[1:3]))
        if not folder.is_dir():
            return self.missing("Repo")
        if parts[3:4] == ["tree"]:
            below = folder / "/".join(parts[5:])
            if not below.is_dir():
                return self.missing("Entry")
            deep = query.get("recursive", ["false"])[0].lower() in ("true", "1")
            paths = sorted(below.rglob("*") if deep else below.iterdir())
            return self.json([self.entry(folder, path) for path in paths])
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        about = {"id": "/".join(parts[1:3]), "sha": commit(parts[4] if parts[3:4] == ["revision"] else "")}
        about |= {"private": False, "gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": []}
        self.json(about | {"siblings": [{"rfilename": name} for name in files]})

    def missing(self, what: str) -> None:
        self.reply(404, b"{}", {"X-Error-Code": f"{what}NotFound"})

    @staticmethod
    def entry(folder: Path, path: Path) -> dict[str, object]:
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            return {"type": "directory", "path": name, "size": 0, "oid": COMMIT}
        blob = path.read_bytes()
        return {"type": "file", "path": name, "size": len(blob), "oid": hashlib.sha1(blob).hexdigest()}

    def file(self, path: str, count: int) -> None:
        repository, _, rest = path.lstrip("/").partition("/resolve/")
        folder = self.root / repository
        if not folder.is_dir():
            return self.missing("Repo")
        file = folder / rest.partition("/")[2]
        if not file.is_file():
            return self.missing("Entry")
        content = file.read_bytes()
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": commit(rest.partition("/")[0]),
            "Accept-Ranges": "bytes",
        }
        if file.name in self.damage and self.command == "GET":
            with self.lock:
                self.damage.remove(file.name)  # once
            content = content[:-1] + bytes([content[-1] ^ 1])
        start = self.headers.get("Range", "").removeprefix("bytes=").partition("-")[0]
        part = content[int(start) :] if start else content
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cut = self.command == "GET" and count <= self.failures + self.cuts
        self.reply(206 if start else 200, part, headers, len(part) // 2 if cut else None)

    def json(self, value: object) -> None:
        self.reply(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None, sent: int | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            body = body if sent is None else body[:sent]
            piece = len(body) // 16 + 1 if self.delay and "ETag" in (headers or {}) else len(body) or 1
            for start in range(0, len(body), piece):
                time.sleep(self.delay if piece < len(body) else 0.0)
                self.wfile.write(body[start : start + piece])
        if sent is not None:
            self.close_connection = True


def commit(revision: str) -> str:
    """The commit that a revision means: itself where it is one."""
    return revision if re.fullmatch("[0-9a-f]{40}", revision) else COMMIT


@contextmanager
def serving(
    root: Path, failures: int = 0, cuts: int = 0, damage: tuple[str, ...] = (), delay: float = 0.0
) -> Iterator[tuple[str, Counter]]:
    """(address, requests so far) of a hub over `root` for a while."""
    asked: Counter = Counter()
    own = {"root": root, "failures": failures, "cuts": cuts, "asked": asked, "damage": set(damage), "delay": delay}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Serving", (Hub,), own))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
