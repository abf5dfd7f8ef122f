"""A Hub on this machine: as much of its HTTP interface as a snapshot download needs."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


class Hub:
    """Models by id, each with commits by hash; ``main`` is the newest.

    Attributes:
        requests: method and path of all that was asked for.
        broken: paths that are answered with status 500.
    """

    def __init__(self) -> None:
        self.models: dict[str, dict[str, dict[str, bytes]]] = {}
        self.requests: list[tuple[str, str]] = []
        self.broken: set[str] = set()
        self.url = ""

    def publish(self, name: str, folder: str | Path) -> str:
        """Add a commit with the files of a folder; returns its hash."""
        root = Path(folder)
        files = {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
        digest = hashlib.sha1()
        for path, content in files.items():
            digest.update(path.encode() + content)
        commits = self.models.setdefault(name, {})
        commits[digest.hexdigest()] = files
        return digest.hexdigest()

    @property
    def fetched(self) -> list[str]:
        """Names of the files that were downloaded, in alphabetical order."""
        return sorted(
            path.split("/resolve/")[1].partition("/")[2]
            for method, path in self.requests
            if method == "GET" and "/resolve/" in path
        )

    def find(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | str:
        """Commit and files, or the Hub's error code."""
        commits = self.models.get(name)
        if commits is None:
            return "RepoNotFound"
        commit = list(commits)[-1] if revision == "main" else revision
        return (commit, commits[commit]) if commit in commits else "RevisionNotFound"


@contextmanager
def serve() -> Iterator[Hub]:
    """A running Hub."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append((self.command, path))
            if path.rpartition("/")[2] in hub.broken:
                return self._send(500, b"")
            if path.startswith("/api/models/"):
                kind = "/tree/" if "/tree/" in path else "/revision/"
                name, _, revision = path.removeprefix("/api/models/").partition(kind)
                return self._describe(name, revision or "main", tree=kind == "/tree/")
            name, _, rest = path.strip("/").partition("/resolve/")
            revision, _, file = rest.partition("/")
            return self._file(name, revision, file)

        def _describe(self, name: str, revision: str, *, tree: bool) -> None:
            found = hub.find(name, revision)
            if isinstance(found, str):
                return self._send(404, b"{}", {"X-Error-Code": found})
            commit, files = found
            if tree:
                answer: Any = [
                    {"type": "file", "path": file, "size": len(content), "oid": _etag(content)}
                    for file, content in files.items()
                ]
            else:
                answer = {"id": name, "sha": commit, "siblings": [{"rfilename": file} for file in files]}
            return self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

        def _file(self, name: str, revision: str, file: str) -> None:
            found = hub.find(name, revision)
            if isinstance(found, str):
                return self._send(404, b"", {"X-Error-Code": found})
            commit, files = found
            if file not in files:
                return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return self._send(200, files[file], {"ETag": f'"{_etag(files[file])}"', "X-Repo-Commit": commit})

        def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
