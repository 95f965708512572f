"""A Hub on this machine, in memory: what huggingface_hub, transformers and datasets ask of the real one.

Repositories of models and data sets with commits, branches and tags, large files, private repositories, and downloads
that break off. It runs in a thread; programs reach it through the environment that [`LoopbackHub.environment`] gives.
"""

import base64
import hashlib
import http.server
import json
import re
import socket
import sys
import threading
import urllib.parse
from dataclasses import dataclass, field
from pathlib import Path

import yaml

KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}
TOKEN = "hf_loopback"
USER = "me"
LARGE_SUFFIXES = (".safetensors", ".bin", ".pt", ".mp4", ".parquet", ".tar")


@dataclass
class File:
    """Content of a file; large ones go through the protocol for large files (LFS)."""

    content: bytes
    is_large: bool = False

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def blob(self) -> str:
        """What git calls the content."""
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    def entry(self, path: str) -> dict:
        """The file as the listing of a folder has it."""
        entry = {"type": "file", "path": path, "size": len(self.content), "oid": self.blob}
        if self.is_large:
            entry["lfs"] = {"oid": self.sha256, "size": len(self.content), "pointerSize": 130}
        return entry


@dataclass
class Repository:
    """A repository: its commits, and the commit of each branch and tag."""

    kind: str
    name: str
    private: bool = False
    commits: dict[str, dict[str, File]] = field(default_factory=lambda: {"0" * 40: {}})
    branches: dict[str, str] = field(default_factory=lambda: {"main": "0" * 40})
    tags: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def resolve(self, revision: str) -> str | None:
        """The commit of a branch, tag or commit; nothing if there is none."""
        commit = self.branches.get(revision, self.tags.get(revision, revision))
        return commit if commit in self.commits else None

    def files(self, revision: str = "main") -> dict[str, File]:
        """Files by path."""
        return self.commits[self.resolve(revision)]

    def commit(self, branch: str, message: str, files: dict[str, File]) -> str:
        """Make a commit and give its name."""
        text = f"{len(self.commits)} {message} {sorted((path, file.blob) for path, file in files.items())}"
        name = hashlib.sha1(text.encode()).hexdigest()
        self.commits[name] = files
        self.branches[branch] = name
        self.messages.append(message)
        return name

    def describe(self, revision: str) -> dict:
        """The answer to a question about the repository."""
        commit = self.resolve(revision)
        description = {
            "_id": self.name,
            "id": self.name,
            "sha": commit,
            "private": self.private,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "author": self.name.split("/")[0],
            "createdAt": "2026-01-01T00:00:00.000Z",
            "lastModified": "2026-01-01T00:00:00.000Z",
            "siblings": [{"rfilename": path} for path in self.commits[commit]],
        }
        card = self.commits[commit].get("README.md")
        if card is not None and card.content.startswith(b"---"):
            description["cardData"] = yaml.safe_load(card.content.split(b"---")[1])
        if self.kind == "model":
            description["pipeline_tag"] = description.get("cardData", {}).get("pipeline_tag")
            description["library_name"] = description.get("cardData", {}).get("library_name")
        return description


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers one request; `ROUTES` says which method answers what."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    @property
    def hub(self) -> "LoopbackHub":
        return self.server.hub

    def answer(self):
        """Find who answers, by method and path."""
        parts = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(parts.path)
        self.query = {key: values[-1] for key, values in urllib.parse.parse_qs(parts.query).items()}
        self.body = self.read_body()
        self.hub.requests.append(f"{self.command} {path}")
        for methods, pattern, answer in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in methods.split():
                return answer(self, **match.groupdict())
        return self.refuse("EntryNotFound")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().strip() or b"0", 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def send(self, status: int, content: bytes | dict | list = b"", headers: dict[str, str] | None = None):
        headers = dict(headers or {})
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers["Content-Type"] = "application/json"
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, code: str, status: int = 404):
        self.send(status, {"error": code}, {"X-Error-Code": code, "X-Error-Message": code})

    @property
    def is_signed_in(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def find(self, kind: str, name: str, revision: str = "main") -> Repository | None:
        """A repository that has a revision and may be read; else the request is refused."""
        repository = self.hub.repositories.get((kind, name))
        if repository is None or (repository.private and not self.is_signed_in):
            return self.refuse("RepoNotFound", 404 if self.is_signed_in else 401)
        if repository.resolve(urllib.parse.unquote(revision)) is None:
            return self.refuse("RevisionNotFound")
        return repository

    # reading

    def describe(self, kind, name, revision="main"):
        if repository := self.find(KINDS[kind], name, revision):
            self.send(200, repository.describe(urllib.parse.unquote(revision)))

    def tree(self, kind, name, revision, folder=None):
        repository = self.find(KINDS[kind], name, revision)
        if repository is None:
            return
        prefix = f"{folder}/" if folder else ""
        files = {path: file for path, file in repository.files(revision).items() if path.startswith(prefix)}
        if folder and not files:
            return self.refuse("EntryNotFound")
        entries = {}
        for path, file in files.items():
            first, slash, _ = path[len(prefix) :].partition("/")
            if slash and self.query.get("recursive", "").lower() != "true":
                entries[prefix + first] = {"type": "directory", "path": prefix + first, "size": 0, "oid": "0" * 40}
            else:
                entries[path] = file.entry(path)
        self.send(200, list(entries.values()))

    def paths_info(self, kind, name, revision):
        repository = self.find(KINDS[kind], name, revision)
        if repository is None:
            return
        if self.headers.get("Content-Type", "").startswith("application/json"):
            paths = json.loads(self.body)["paths"]
        else:
            paths = urllib.parse.parse_qs(self.body.decode())["paths"]
        files = repository.files(revision)
        folders = {"/".join(path.split("/")[:i]) for path in files for i in range(1, path.count("/") + 1)}
        entries = [files[path].entry(path) for path in paths if path in files]
        entries += [{"type": "directory", "path": p, "size": 0, "oid": "0" * 40} for p in paths if p in folders]
        self.send(200, entries)

    def refs(self, kind, name):
        repository = self.find(KINDS[kind], name)
        if repository is None:
            return
        branches, tags = (
            [{"name": ref, "ref": f"refs/{what}/{ref}", "targetCommit": commit} for ref, commit in refs.items()]
            for what, refs in (("heads", repository.branches), ("tags", repository.tags))
        )
        self.send(200, {"branches": branches, "tags": tags, "converts": [], "pullRequests": []})

    def file(self, name, revision, path, kind="models"):
        repository = self.find(KINDS[kind or "models"], name, revision)
        if repository is None:
            return None
        commit = repository.resolve(revision)
        if path not in repository.commits[commit]:
            headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}
            return self.send(404, {"error": "EntryNotFound"}, headers)
        file = repository.commits[commit][path]
        headers = {
            "X-Repo-Commit": commit,
            "ETag": f'"{file.sha256 if file.is_large else file.blob}"',
            "Accept-Ranges": "bytes",
        }
        if file.is_large:
            headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.content))}
        start, end = 0, len(file.content)
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start = int(match[1])
            end = min(int(match[2]) + 1, end) if match[2] else end
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(file.content)}"
        if self.command == "GET" and path in self.hub.breaks:
            return self.break_off(file.content[start:end], self.hub.breaks.pop(path), headers)
        return self.send(206 if "Content-Range" in headers else 200, file.content[start:end], headers)

    def break_off(self, content: bytes, length: int, headers: dict[str, str]):
        """Promise a file, send its beginning, hang up."""
        self.send_response(200)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[:length])
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    # writing

    def create(self):
        if not self.is_signed_in:
            return self.refuse("Unauthorized", 401)
        wanted = json.loads(self.body)
        key = wanted.get("type") or "model", f"{wanted.get('organization') or USER}/{wanted['name']}"
        address = f"{self.hub.url}/{'' if key[0] == 'model' else f'{key[0]}s/'}{key[1]}"
        if key in self.hub.repositories:
            return self.send(409, {"error": "exists", "url": address})
        is_private = wanted.get("private") or wanted.get("visibility") == "private"
        self.hub.repositories[key] = Repository(*key, private=bool(is_private))
        return self.send(200, {"url": address, "name": key[1], "id": key[1]})

    def delete(self):
        unwanted = json.loads(self.body)
        name = f"{unwanted.get('organization') or USER}/{unwanted['name']}"
        self.hub.repositories.pop((unwanted.get("type") or "model", name))
        self.send(200)

    def branch(self, kind, name, branch):
        if repository := self.find(KINDS[kind], name):
            start = json.loads(self.body or b"{}").get("startingPoint") or "main"
            repository.branches.setdefault(branch, repository.resolve(start))
            self.send(200)

    def tag(self, kind, name, revision):
        if repository := self.find(KINDS[kind], name, revision):
            repository.tags[json.loads(self.body)["tag"]] = repository.resolve(revision)
            self.send(200)

    def preupload(self, kind, name, revision):
        repository = self.find(KINDS[kind], name, revision)
        if repository is None:
            return
        files = repository.files(revision)
        answers = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE_SUFFIXES) else "regular",
                "shouldIgnore": False,
                "oid": files[file["path"]].blob if file["path"] in files else None,
            }
            for file in json.loads(self.body)["files"]
        ]
        self.send(200, {"files": answers})

    def large_files(self, name, kind=None):
        wanted = json.loads(self.body)["objects"]
        objects = [{"oid": item["oid"], "size": item["size"]} for item in wanted]
        for item in objects:
            if item["oid"] not in self.hub.large_files:
                item["actions"] = {
                    "upload": {"href": f"{self.hub.url}/_lfs/{item['oid']}", "header": {}},
                    "verify": {"href": f"{self.hub.url}/_verify", "header": {}},
                }
        self.send(200, {"transfer": "basic", "objects": objects})

    def store(self, digest):
        if hashlib.sha256(self.body).hexdigest() != digest:
            return self.refuse("WrongDigest", 400)
        self.hub.large_files[digest] = self.body
        return self.send(200)

    def commit(self, kind, name, revision):
        if not self.is_signed_in:
            return self.refuse("Unauthorized", 401)
        repository = self.find(KINDS[kind], name, revision)
        if repository is None:
            return None
        files, message = dict(repository.files(revision)), ""
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            match operation["key"]:
                case "header":
                    message = value["summary"]
                case "file":
                    files[value["path"]] = File(base64.b64decode(value["content"]))
                case "lfsFile":
                    files[value["path"]] = File(self.hub.large_files[value["oid"]], is_large=True)
                case "deletedFile":
                    files.pop(value["path"], None)
                case "deletedFolder":
                    files = {path: file for path, file in files.items() if not path.startswith(value["path"])}
        commit = repository.commit(urllib.parse.unquote(revision), message, files)
        address = f"{self.hub.url}/{name}/commit/{commit}"
        return self.send(200, {"success": True, "commitOid": commit, "commitUrl": address, "hookOutput": ""})

    # the rest

    def who(self):
        if not self.is_signed_in:
            return self.refuse("Unauthorized", 401)
        token = {"displayName": "loopback", "role": "write"}
        return self.send(
            200, {"name": USER, "type": "user", "fullname": USER, "orgs": [], "auth": {"accessToken": token}}
        )

    def validate(self):
        text = json.loads(self.body)["content"]
        try:
            found = yaml.safe_load(text.split("---")[1])
            errors = [] if isinstance(found, dict) else [{"message": "the metadata are no mapping"}]
        except (IndexError, yaml.YAMLError) as error:
            errors = [{"message": str(error)}]
        self.send(400 if errors else 200, {"errors": errors, "warnings": []})

    def done(self):
        self.send(200, {})


REPOSITORY = r"/api/(?P<kind>models|datasets|spaces)/(?P<name>[^/]+/[^/]+)"
FILE = r"(?:/(?P<kind>datasets|spaces))?/(?P<name>[^/]+/[^/]+)"
ROUTES = (
    ("GET", REPOSITORY, Handler.describe),
    ("GET", rf"{REPOSITORY}/revision/(?P<revision>.+)", Handler.describe),
    ("GET", rf"{REPOSITORY}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", Handler.tree),
    ("POST", rf"{REPOSITORY}/paths-info/(?P<revision>.+)", Handler.paths_info),
    ("GET", rf"{REPOSITORY}/refs", Handler.refs),
    ("GET HEAD", rf"{FILE}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Handler.file),
    ("POST", r"/api/repos/create", Handler.create),
    ("DELETE", r"/api/repos/delete", Handler.delete),
    ("POST", rf"{REPOSITORY}/branch/(?P<branch>.+)", Handler.branch),
    ("POST", rf"{REPOSITORY}/tag/(?P<revision>.+)", Handler.tag),
    ("POST", rf"{REPOSITORY}/preupload/(?P<revision>.+)", Handler.preupload),
    ("POST", rf"{FILE}\.git/info/lfs/objects/batch", Handler.large_files),
    ("PUT", r"/_lfs/(?P<digest>.+)", Handler.store),
    ("POST", r"/_verify", Handler.done),
    ("POST", rf"{REPOSITORY}/commit/(?P<revision>.+)", Handler.commit),
    ("GET", r"/api/whoami-v2", Handler.who),
    ("POST", r"/api/validate-yaml", Handler.validate),
)


class Server(http.server.ThreadingHTTPServer):
    """A server that does not care when those who ask hang up."""

    daemon_threads = True

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class LoopbackHub:
    """A running Hub; use it in a `with` block.

    Attributes:
        url: its address.
        repositories: by kind (`model`, `dataset`, `space`) and name.
        requests: every request so far, as `METHOD /path`.
        breaks: paths of files whose next download breaks off, and after how many bytes.
    """

    def __init__(self):
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.breaks: dict[str, int] = {}

    def __enter__(self) -> "LoopbackHub":
        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.hub = self
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.server.shutdown()
        self.server.server_close()

    def model(self, name: str) -> Repository:
        return self.repositories["model", name]

    def dataset(self, name: str) -> Repository:
        return self.repositories["dataset", name]

    def adopt_process(self, patch, home: str | Path):
        """Let the libraries of this process, which read their environment long ago, take this for the Hub.

        Args:
            patch: pytest's `monkeypatch`, which undoes it.
            home: where downloads are kept.
        """
        from datasets import config
        from huggingface_hub import constants, hf_api
        from transformers.utils import hub

        values = {
            "ENDPOINT": self.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(Path(home) / "hub"),
        }
        for name, value in values.items():
            patch.setattr(constants, name, value)
        patch.setattr(hf_api.api, "endpoint", self.url)
        patch.setattr(hub, "_hf_api", None)
        patch.setattr(config, "HF_ENDPOINT", self.url)
        patch.setattr(config, "HF_HUB_OFFLINE", False)
        patch.setenv("HF_TOKEN", TOKEN)

    def environment(self, home: str | Path, token: str | None = TOKEN) -> dict[str, str]:
        """What a program needs in its environment to take this for the Hub, with a home of its own."""
        environment = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        return environment | ({} if token is None else {"HF_TOKEN": token})
