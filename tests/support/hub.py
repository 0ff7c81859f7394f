"""A hub for tests: the few answers of its HTTP interface that pushing and opening a model needs."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0" * 40
# A repository of this owner is there for those who send this token.
PRIVATE, TOKEN = "private/", "hf_secret"
MODEL = r"/api/models/(?P<repo>[^/]+/[^/]+)"


@contextmanager
def local_hub() -> Iterator[tuple[str, dict[str, dict[str, bytes]]]]:
    """Its address, and what its repositories hold: name -> path -> content.

    A name may end in "@" and a revision, which is then another content of the same repository.
    """
    repositories: dict[str, dict[str, bytes]] = {}

    class Hub(_Hub):
        held = repositories

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", repositories
    finally:
        server.shutdown()
        server.server_close()


def _commit_of(name: str) -> str:
    return hashlib.sha1(name.encode()).hexdigest()


class _Hub(BaseHTTPRequestHandler):
    held: dict[str, dict[str, bytes]]
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if "organization" in asked else ""
            self.held.setdefault(name, {})
            self._json({"url": f"http://{self.headers['Host']}/{name}", "id": "0"})
        elif self.path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif re.fullmatch(MODEL + "/preupload/main", self.path):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._json({"files": files, "commitOid": COMMIT})
        elif commit := re.fullmatch(MODEL + "/commit/main", self.path):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    self.held[commit["repo"]][value["path"]] = base64.b64decode(value["content"])
            address = f"http://{self.headers['Host']}/{commit['repo']}/commit/{COMMIT}"
            self._json({"commitUrl": address, "commitOid": COMMIT, "success": True})
        else:
            self.send_error(404)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        info = re.fullmatch(MODEL + r"(/revision/(?P<revision>\w+))?", path)
        tree = re.fullmatch(MODEL + r"/tree/(?P<revision>\w+)", path)
        file = re.fullmatch(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>\w+)/(?P<path>.+)", path)
        found = info or tree or file
        if not found or not self._may_read(found["repo"]):
            self._missing("RepoNotFound")
            return
        files = self._files(found["repo"], found["revision"] or "main")
        if files is None:
            self._missing("RevisionNotFound")
            return
        commit = self._commit(found["repo"], found["revision"] or "main")
        if info:
            siblings = [{"rfilename": name} for name in files]
            self._json({"id": info["repo"], "sha": commit, "siblings": siblings, "tags": []})
        elif tree:
            self._json(
                [
                    {"type": "file", "path": name, "size": len(content), "oid": COMMIT}
                    for name, content in files.items()
                ]
            )
        elif file and file["path"] in files:
            content = files[file["path"]]
            etag = f'"{hashlib.sha1(content).hexdigest()}"'
            self._send(content, {"ETag": etag, "X-Repo-Commit": commit})
        else:
            self._missing("EntryNotFound")

    def _may_read(self, repo: str) -> bool:
        authorised = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        known = any(name.partition("@")[0] == repo for name in self.held)
        return known and (authorised or not repo.startswith(PRIVATE))

    def _files(self, repo: str, revision: str) -> dict[str, bytes] | None:
        """What a branch, tag or commit holds."""
        for name in (f"{repo}@{revision}", repo if revision == "main" else ""):
            if name in self.held:
                return self.held[name]
        return next((self.held[name] for name in self.held if _commit_of(name) == revision), None)

    def _commit(self, repo: str, revision: str) -> str:
        name = f"{repo}@{revision}"
        if name in self.held:
            return _commit_of(name)
        return _commit_of(repo) if revision == "main" else revision

    def _missing(self, code: str) -> None:
        """What tells the client a missing repository from a missing revision or file."""
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_HEAD(self) -> None:
        self.do_GET()

    def _json(self, answer: Any) -> None:
        self._send(json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _send(self, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass
