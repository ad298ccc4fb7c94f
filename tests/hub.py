"""A Hugging Face hub on this machine for tests: serves folders as repositories of models and data sets as the real one
does, and fails on request.

Large files (LARGE) are redirected to another address, as LFS files are; a repository can be gated, a revision be gone.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, quote, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".bin", ".safetensors", ".parquet", ".gz", "collection.tsv")


class Hub(BaseHTTPRequestHandler):
    """`root/org/name/…` is model org/name, `root/datasets/org/name/…` a data set.

    Each file's first `failures` requests get 503, its first `cuts` downloads half of it; `damage` names files that come
    with a byte changed; a file's bytes come in pieces of a sixteenth, each after `delay` seconds. `gated` has the status
    that files of a repository answer with, `gone` revisions that are there no more.
    """

    protocol_version = "HTTP/1.1"
    root: Path
    failures = cuts = 0
    delay = 0.0
    damage: set[str]
    gated: ClassVar[Mapping[str, int]] = {}
    gone: Collection[str] = ()
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
        elif path.startswith("/lfs/"):
            self.content(self.root / path.removeprefix("/lfs/"), count, {})
        else:
            self.file(path, count)

    def folder(self, kind: str, repository: str) -> Path:
        return (self.root / "datasets" if kind == "datasets" else self.root) / repository

    def refused(self, folder: Path, revision: str) -> bool:
        """Whether a repository or a revision of it is not there, which is then answered."""
        if not folder.is_dir():
            # As the hub answers whoever is not logged in: it may be a private one.
            self.error(401, "RepoNotFound", "Invalid username or password.")
        elif revision in self.gone:
            self.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return not folder.is_dir() or revision in self.gone

    def about(self, parts: list[str], query: dict[str, list[str]]) -> None:
        """kind, org, name, then nothing, `revision/…` or `tree/revision/folder`."""
        folder, revision = self.folder(parts[0], "/".join(parts[1:3])), (parts[4:5] or [""])[0]
        if self.refused(folder, revision):
            return None
        if parts[3:4] == ["tree"]:
            below = folder / "/".join(parts[5:])
            if not below.is_dir():
                return self.error(404, "EntryNotFound", "no such folder")
            deep = query.get("recursive", ["false"])[0].lower() in ("true", "1")
            paths = sorted(below.rglob("*") if deep else below.iterdir())
            return self.json([self.entry(folder, path) for path in paths])
        files = [self.entry(folder, path) for path in sorted(folder.rglob("*")) if path.is_file()]
        about = {"id": "/".join(parts[1:3]), "sha": commit(revision), "private": False, "disabled": False}
        about |= {
            "gated": "manual" if folder.relative_to(self.root).as_posix() in self.gated else False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
        }
        sizes = ("size", "lfs") if "blobs" in query else ()
        siblings = [{"rfilename": one["path"]} | {key: one[key] for key in sizes if key in one} for one in files]
        return self.json(about | {"siblings": siblings})

    def error(self, status: int, code: str, message: str) -> None:
        self.reply(status, b"{}", {"X-Error-Code": code, "X-Error-Message": message})

    @staticmethod
    def entry(folder: Path, path: Path) -> dict[str, object]:
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            return {"type": "directory", "path": name, "size": 0, "oid": COMMIT}
        large = {"lfs": {"oid": tag(path), "sha256": tag(path), "size": path.stat().st_size, "pointerSize": 130}}
        about = {"type": "file", "path": name, "size": path.stat().st_size, "oid": git(path.read_bytes())}
        return about | (large if name.endswith(LARGE) else {})

    def file(self, path: str, count: int) -> None:
        repository, _, rest = path.lstrip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        file = self.root / repository / name
        if self.refused(self.root / repository, revision):
            return None
        if status := self.gated.get(repository):
            return self.error(status, "GatedRepo", f"Access to {repository} is restricted.")
        if not file.is_file():
            return self.error(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": commit(revision)}
        if not name.endswith(LARGE):
            return self.content(file, count, headers | {"ETag": f'"{tag(file)}"'})
        headers |= {"X-Linked-Etag": f'"{tag(file)}"', "X-Linked-Size": str(file.stat().st_size)}
        # On another machine, by its name.
        place = f"http://localhost:{self.server.server_port}/lfs/{quote(f'{repository}/{name}')}"
        return self.reply(302, b"", headers | {"Location": place, "ETag": '"of-the-pointer"'})

    def content(self, file: Path, count: int, headers: dict[str, str]) -> None:
        content, headers = file.read_bytes(), headers | {"Accept-Ranges": "bytes"}
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
            piece = len(body) // 16 + 1 if self.delay and "Accept-Ranges" in (headers or {}) else len(body) or 1
            for start in range(0, len(body), piece):
                time.sleep(self.delay if piece < len(body) else 0.0)
                self.wfile.write(body[start : start + piece])
        if sent is not None:
            self.close_connection = True


def git(content: bytes) -> str:
    """What git calls a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def tag(file: Path) -> str:
    """A file's digest as the hub gives it: SHA-256 of a large one, git's of a small one."""
    content = file.read_bytes()
    return hashlib.sha256(content).hexdigest() if file.as_posix().endswith(LARGE) else git(content)


def commit(revision: str) -> str:
    """The commit that a revision means: itself where it is one."""
    return revision if re.fullmatch("[0-9a-f]{40}", revision) else COMMIT


@contextmanager
def serving(root: Path, *, damage: Collection[str] = (), **trouble: Any) -> Iterator[tuple[str, Counter]]:
    """(address, requests so far) of a hub over `root` for a while; with the troubles that `Hub` names."""
    asked: Counter = Counter()
    own = {"root": root, "asked": asked, "damage": set(damage)} | trouble
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Serving", (Hub,), own))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
