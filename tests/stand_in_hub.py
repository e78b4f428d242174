"""A stand-in for the Hugging Face Hub: a real HTTP server on 127.0.0.1 that remembers every byte.

It answers the routes that huggingface_hub 2.4.0 takes to create a repository, read it, make a
branch and commit to it over git-LFS (hf_api.py: create_repo, model_info, create_branch,
create_commit; _commit_api.py; lfs.py). Xet storage has no stand-in: set HF_HUB_DISABLE_XET.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_StandInStandInStandInStandInStandIn01"


@dataclass
class Commit:
    oid: str
    message: str
    changed: dict[str, bytes]


@dataclass
class Repo:
    private: bool
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    commits: dict[str, list[Commit]] = field(default_factory=lambda: {"main": []})


@dataclass
class Fault:
    """Goes wrong `times` times on requests whose "METHOD path" contains `on`."""

    on: str
    status: int = 0
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    echo_headers: bool = False
    lose_answer: bool = False


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class StandInHub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.namespaces = {"ana"}
        self.creates_public_whatever_is_asked = False
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def seen(self, fragment: str) -> list[Request]:
        return [r for r in self.requests if fragment in f"{r.method} {r.path}"]


def git_blob_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_lfs(name: str) -> bool:
    return name.endswith((".safetensors", ".bin", ".png"))


class _Handler(BaseHTTPRequestHandler):
    server: StandInHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def do_GET(self) -> None:
        self._handle("GET")

    def do_POST(self) -> None:
        self._handle("POST")

    def do_PUT(self) -> None:
        self._handle("PUT")

    def _handle(self, method: str) -> None:
        body = self._read_body()
        path = self.path.split("?")[0]
        request = Request(method, self.path, dict(self.headers.items()), body)
        with self.server.lock:
            self.server.requests.append(request)
            fault = next(
                (f for f in self.server.faults if f.times and f.on in f"{method} {path}"), None
            )
            if fault is not None:
                fault.times -= 1
            if fault is not None and not fault.lose_answer:
                error = str(dict(self.headers)) if fault.echo_headers else "scripted fault"
                self._answer(fault.status, {"error": error}, fault.headers)
                return
            status, node, headers = self._route(method, path, body)
        if fault is not None:
            self.close_connection = True
            return
        self._answer(status, node, headers)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, status: int, node: Any, headers: dict[str, str]) -> None:
        payload = json.dumps(node).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def _route(self, method: str, path: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        hub = self.server
        if method == "PUT" and path.startswith("/storage/"):
            # A presigned storage address takes no authorisation, as in the real thing.
            oid = path.removeprefix("/storage/")
            if hashlib.sha256(body).hexdigest() != oid:
                return 400, {"error": "content does not match its sha256"}, {}
            hub.lfs[oid] = body
            return 200, {}, {}
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid username or password."}, {}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            content = json.loads(body)["content"]
            good = content.startswith("---\n")
            return (200 if good else 400), {"errors": [], "warnings": []}, {}
        if path.endswith(".git/info/lfs/objects/batch"):
            return 200, self._batch(json.loads(body)), {}
        if not path.startswith(("/api/models/", "/api/datasets/")):
            return 404, {"error": f"no such route: {method} {path}"}, {}
        kind, *parts = path.removeprefix("/api/").split("/")
        name, rest = "/".join(parts[:2]), parts[2:]
        if kind == "datasets":
            name = f"datasets/{name}"
        repo = hub.repos.get(name)
        if repo is None:
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        if rest[:1] == ["branch"]:
            if rest[1] in repo.branches:
                return 409, {"error": "Reference already exists"}, {}
            repo.branches[rest[1]] = dict(repo.branches["main"])
            repo.commits[rest[1]] = list(repo.commits["main"])
            return 200, {}, {}
        branch = rest[1] if len(rest) > 1 else "main"
        if branch not in repo.branches:
            return 404, {"error": "no such branch"}, {"X-Error-Code": "RevisionNotFound"}
        if method == "GET":
            return 200, self._info(name, repo, branch), {}
        if rest[0] == "preupload":
            return 200, self._preupload(repo, branch, json.loads(body)), {}
        assert rest[0] == "commit"
        return self._commit(name, repo, branch, body)

    def _create(self, node: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        hub = self.server
        name = f"{node['organization']}/{node['name']}"
        if node.get("type") == "dataset":
            name = f"datasets/{name}"
        if node["organization"] not in hub.namespaces:
            return 403, {"error": "You don't have the rights to create a model here"}, {}
        answer = {"url": f"{hub.url}/{name}", "name": name}
        if name in hub.repos:
            return 409, {"error": "You already created this model repo", **answer}, {}
        # Unset means public, as on the real Hub.
        private = node.get("visibility") == "private" and not hub.creates_public_whatever_is_asked
        hub.repos[name] = Repo(private=private)
        return 200, answer, {}

    def _info(self, name: str, repo: Repo, branch: str) -> dict[str, Any]:
        commits = repo.commits[branch]
        return {
            "_id": "0",
            "id": name,
            "modelId": name,
            "private": repo.private,
            "sha": commits[-1].oid if commits else "0" * 40,
            "siblings": [{"rfilename": file} for file in repo.branches[branch]],
            "tags": [],
            "downloads": 0,
            "likes": 0,
        }

    def _preupload(self, repo: Repo, branch: str, node: dict[str, Any]) -> dict[str, Any]:
        files = []
        for file in node["files"]:
            path = file["path"]
            held = repo.branches[branch].get(path)
            oid = None
            if held is not None:
                oid = hashlib.sha256(held).hexdigest() if is_lfs(path) else git_blob_oid(held)
            mode = "lfs" if is_lfs(path) else "regular"
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": files}

    def _batch(self, node: dict[str, Any]) -> dict[str, Any]:
        objects = []
        for entry in node["objects"]:
            answer = {"oid": entry["oid"], "size": entry["size"]}
            if entry["oid"] not in self.server.lfs:
                answer["actions"] = {
                    "upload": {"href": f"{self.server.url}/storage/{entry['oid']}"}
                }
            objects.append(answer)
        return {"transfer": "basic", "objects": objects}

    def _commit(
        self, name: str, repo: Repo, branch: str, body: bytes
    ) -> tuple[int, Any, dict[str, str]]:
        changed: dict[str, bytes] = {}
        message = ""
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                message = value["summary"]
            elif entry["key"] == "file":
                changed[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile" and value["oid"] in self.server.lfs:
                changed[value["path"]] = self.server.lfs[value["oid"]]
            else:
                return 400, {"error": f"cannot commit {entry['key']}"}, {}
        oid = hashlib.sha1(body + str(len(repo.commits[branch])).encode()).hexdigest()
        repo.branches[branch].update(changed)
        repo.commits[branch].append(Commit(oid, message, changed))
        url = f"{self.server.url}/{name}/commit/{oid}"
        return 200, {"commitUrl": url, "commitOid": oid, "success": True}, {}


@contextmanager
def stand_in_hub() -> Iterator[StandInHub]:
    hub = StandInHub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
