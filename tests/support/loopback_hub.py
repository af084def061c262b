"""
A Hub on 127.0.0.1 for the tests: enough of the HTTP interface for the real clients, with commits, branches, tags, private
repositories, the store of large files, and faults that strike when told to.

    with LoopbackHub() as hub:
        hub.fail("POST", "/commit/", 429, headers={"Retry-After": "0"})
        subprocess.run(..., env=hub.environment(tmp_path))      # HF_ENDPOINT is read when huggingface_hub is imported

Standard library alone. Nothing is written to disk.
"""

import base64
import hashlib
import json
import os
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit


ROOT = Path(__file__).parents[2]
USER, TOKEN, READ_TOKEN = "user", "hf_x", "hf_read"
LARGE = (".safetensors", ".parquet", ".png")  # what the Hub keeps in its store of large files
_REPO = r"(?P<type>models|datasets|spaces)/(?P<id>(?:[^/]+/)?[^/]+?)"
_FILES = r"/(?:(?P<type>datasets|spaces)/)?(?P<id>(?:[^/]+/)?[^/]+?)"


@dataclass
class Commit:
    files: dict[str, bytes]
    message: str
    parent: str | None


@dataclass
class Repository:
    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def add(self, branch: str, files: dict[str, bytes], message: str) -> str:
        parent = self.branches.get(branch)
        digest = hashlib.sha1(f"{parent} {message} {len(self.commits)}".encode())
        for name in sorted(files):
            digest.update(name.encode() + hashlib.sha1(files[name]).digest())
        self.commits[digest.hexdigest()] = Commit(dict(files), message, parent)
        self.branches[branch] = digest.hexdigest()
        return digest.hexdigest()

    def find(self, revision: str) -> str | None:
        """The commit that a branch, a tag or a commit id names."""
        if revision in self.commits:
            return revision
        return self.branches.get(revision, self.tags.get(revision))

    def history(self, commit: str | None) -> list[str]:
        out = []
        while commit is not None:
            out.append(commit)
            commit = self.commits[commit].parent
        return out


@dataclass
class Fault:
    """What happens to requests of a method whose path matches: `status` 0 cuts the connection in the middle."""

    method: str
    path: str
    status: int
    times: int
    headers: dict[str, str]


class LoopbackHub:
    """Serves from entering to leaving; `repos` maps (type, id) to what is there, `calls` lists every request."""

    def __init__(self):
        self.repos: dict[tuple[str, str], Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.calls: list[str] = []
        self.faults: list[Fault] = []
        self.struck = 0
        self.lost: str | None = None  # a file that commits lose
        self.lock = threading.RLock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self.server.shutdown()
        self.server.server_close()

    # -- for the tests -------------------------------------------------------------------------------------------------
    def environment(self, home: Path, token: str | None = TOKEN) -> dict[str, str]:
        """Of a fresh process that knows no other Hub, with a cache of its own under `home`."""
        left_out = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_")
        env = {key: value for key, value in os.environ.items() if not key.startswith(left_out)}
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        env |= {
            "HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false", "NO_PROXY": "127.0.0.1", "COLUMNS": "200",
        }  # fmt: skip
        return env if token is None else env | {"HF_TOKEN": token}

    def fail(self, method: str, path: str, status: int, times: int = 1, headers: dict | None = None) -> None:
        """Let the next `times` requests fail whose path contains a match of the pattern `path`."""
        self.faults.append(Fault(method, path, status, times, headers or {}))

    def calm(self) -> int:
        """No more faults; how many struck since the last call."""
        with self.lock:
            self.faults.clear()
            struck, self.struck = self.struck, 0
            return struck

    def publish(
        self, repo_id: str, files: dict[str, bytes], repo_type: str = "models", message: str = "publish"
    ) -> str:
        """Put files there as somebody else would have; the commit."""
        with self.lock:
            repo = self.repos.setdefault((repo_type, repo_id), Repository())
            return repo.add("main", files, message)

    def publish_folder(self, repo_id: str, folder: Path, repo_type: str = "models") -> str:
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
        }
        return self.publish(repo_id, files, repo_type)

    def files(self, repo_id: str, revision: str = "main", repo_type: str = "models") -> dict[str, bytes]:
        """What lies there, but for the file that every new repository has."""
        repo = self.repos[repo_type, repo_id]
        commit = repo.commits[repo.find(revision)]
        return {name: content for name, content in commit.files.items() if name != ".gitattributes"}

    def messages(self, repo_id: str, revision: str = "main", repo_type: str = "models") -> list[str]:
        repo = self.repos[repo_type, repo_id]
        return [repo.commits[commit].message for commit in repo.history(repo.find(revision))]


class _Refused(Exception):
    def __init__(self, status: int, message: str, code: str | None = None):
        self.status, self.message, self.code = status, message, code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LoopbackHub

    def log_message(self, *args) -> None:
        """Silent; `hub.calls` has every request."""

    # -- one request ---------------------------------------------------------------------------------------------------
    def _handle(self) -> None:
        hub, url = self.hub, urlsplit(self.path)
        path, query = unquote(url.path), parse_qs(url.query)
        with hub.lock:
            hub.calls.append(f"{self.command} {path}")
            fault = next(
                (f for f in hub.faults if f.method == self.command and re.search(f.path, path) and f.times), None
            )
            if fault is not None:
                fault.times -= 1
                hub.struck += 1
        if fault is not None and fault.status == 0 and self.command != "GET":
            self._cut()  # in the middle of what the client sends
            return
        body = self._body()
        try:
            if fault is not None and fault.status:
                raise _Refused(fault.status, f"injected {fault.status}")
            with hub.lock:
                status, headers, content = self._answer(path, query, body)
        except _Refused as refused:
            headers = {"X-Error-Message": refused.message} | (fault.headers if fault is not None else {})
            headers |= {"X-Error-Code": refused.code} if refused.code else {}
            status, content = refused.status, json.dumps({"error": refused.message}).encode()
        if fault is not None and fault.status == 0:  # in the middle of what the client reads
            self._send(status, headers, content, cut=True)
            return
        self._send(status, headers, content)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle

    def _cut(self) -> None:
        self.rfile.read(min(int(self.headers.get("Content-Length") or 0) // 2, 1000))
        self.close_connection = True
        self.connection.close()

    def _body(self) -> bytes:
        if (length := self.headers.get("Content-Length")) is not None:
            return self.rfile.read(int(length))
        out = b""
        while "chunked" in self.headers.get("Transfer-Encoding", ""):
            size = int(self.rfile.readline().split(b";")[0], 16)
            out += self.rfile.read(size)
            self.rfile.readline()
            if not size:
                break
        return out

    def _send(self, status: int, headers: dict, content: bytes, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self.close_connection = True

    # -- who asks ------------------------------------------------------------------------------------------------------
    def _token(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        if token not in (None, TOKEN, READ_TOKEN):
            raise _Refused(401, "Invalid credentials in Authorization header")
        return token

    def _may_write(self, repo_id: str) -> None:
        token = self._token()
        if token is None:
            raise _Refused(401, "Invalid username or password.")
        if token == READ_TOKEN:
            raise _Refused(403, "You need to provide a token with write permission")
        if not repo_id.startswith(f"{USER}/"):
            raise _Refused(
                403, f"You don't have the rights to create a model under the namespace {repo_id.split('/')[0]!r}"
            )

    def _repo(self, repo_type: str, repo_id: str) -> Repository:
        repo, token = self.hub.repos.get((repo_type, repo_id)), self._token()
        if repo is None or (repo.private and token is None):
            raise _Refused(401 if token is None else 404, "Repository not found", "RepoNotFound")
        return repo

    def _commit(self, repo: Repository, revision: str) -> str:
        commit = repo.find(revision)
        if commit is None:
            raise _Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    # -- answers -------------------------------------------------------------------------------------------------------
    def _answer(self, path: str, query: dict, body: bytes) -> tuple[int, dict, bytes]:
        for pattern, answer in self._routes.items():
            if match := re.fullmatch(pattern, path):
                result = answer(self, query=query, body=body, **match.groupdict())
                if isinstance(result, tuple):
                    return result
                return 200, {"Content-Type": "application/json"}, json.dumps(result).encode()
        raise _Refused(404, f"The loopback Hub has no {self.command} {path}")

    def _ask_for_faults(self, body: bytes, **_) -> dict:
        """Only here: a client asks for the fault it wants to meet; how often the one before struck."""
        struck = self.hub.calm()
        self.hub.blobs.clear()  # what one client sent must not spare the next one its upload
        if asked := json.loads(body):
            self.hub.fail(*asked)
        return {"struck": struck}

    def _whoami(self, **_) -> dict:
        if (token := self._token()) is None:
            raise _Refused(401, "Invalid username or password.")
        role = "read" if token == READ_TOKEN else "write"
        access = {"displayName": "test", "role": role}
        return {"type": "user", "id": "1", "name": USER, "fullname": USER, "orgs": [],
                "auth": {"type": "access_token", "accessToken": access}}  # fmt: skip

    def _validate(self, body: bytes, **_):
        import yaml

        text = json.loads(body)["content"]
        parts = text.split("---\n", 2)
        problems = [] if len(parts) == 3 and not parts[0].strip() else ["there is no metadata block"]
        data = {} if problems else yaml.safe_load(parts[1])
        licenses = data.get("license") or []
        for license in [licenses] if isinstance(licenses, str) else licenses:
            if not re.fullmatch(r"[a-z0-9.\-]+", license):
                problems.append(f'"license" must be an identifier, got {license!r}')
        if any(re.search(r"[\s:]", tag) for tag in data.get("tags", [])):
            problems.append('"tags" must be words')
        for key in ("base_model", "datasets", "source_datasets"):
            named = data.get(key, [])
            if any(
                not re.fullmatch(r"[\w.\-]+(/[\w.\-]+)?", name)
                for name in ([named] if isinstance(named, str) else named)
            ):
                problems.append(f'"{key}" must be ids, got {named!r}')
        content = json.dumps({"errors": [{"message": problem} for problem in problems], "warnings": []}).encode()
        return (400 if problems else 200), {"Content-Type": "application/json"}, content

    def _create(self, body: bytes, **_) -> dict:
        asked = json.loads(body)
        repo_type, repo_id = asked.get("type", "model") + "s", f"{asked.get('organization') or USER}/{asked['name']}"
        self._may_write(repo_id)
        prefix = "" if repo_type == "models" else f"{repo_type}/"
        answer = {"url": f"{self.hub.url}/{prefix}{repo_id}", "name": repo_id, "id": "1"}
        if (repo_type, repo_id) in self.hub.repos:
            content = json.dumps(answer | {"error": "You already created this repo"}).encode()
            return 409, {"Content-Type": "application/json"}, content
        private = asked.get("private") or asked.get("visibility") == "private"
        repo = self.hub.repos[repo_type, repo_id] = Repository(bool(private))
        repo.add("main", {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}, "initial commit")
        return answer

    def _info(self, type: str, id: str, rev: str | None = None, **_) -> dict:
        repo = self._repo(type, id)
        commit = self._commit(repo, rev or "main")
        return {
            "_id": "1", "id": id, "modelId": id, "author": id.split("/")[0], "sha": commit, "private": repo.private,
            "gated": False, "disabled": False, "tags": [], "downloads": 0, "likes": 0,
            "lastModified": "2026-01-01T00:00:00.000Z", "createdAt": "2026-01-01T00:00:00.000Z",
            "siblings": [{"rfilename": name} for name in sorted(repo.commits[commit].files)],
        }  # fmt: skip

    def _entry(self, name: str, content: bytes) -> dict:
        entry = {"type": "file", "oid": _git_name(content), "size": len(content), "path": name}
        if name.endswith(LARGE):
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        return entry

    def _tree(self, type: str, id: str, rev: str, query: dict, sub: str | None = None, **_):
        repo = self._repo(type, id)
        files = repo.commits[self._commit(repo, rev)].files
        prefix = f"{sub.strip('/')}/" if sub else ""
        found = {name: content for name, content in files.items() if name.startswith(prefix)}
        if prefix and not found:
            raise _Refused(404, f"{sub} does not exist", "EntryNotFound")
        if query.get("recursive", ["false"])[0].lower() in ("true", "1"):
            return [self._entry(name, content) for name, content in sorted(found.items())]
        here = {name: content for name, content in found.items() if "/" not in name[len(prefix) :]}
        folders = sorted({prefix + name[len(prefix) :].split("/")[0] for name in found.keys() - here.keys()})
        return [{"type": "directory", "oid": "0" * 40, "size": 0, "path": folder} for folder in folders] + [
            self._entry(name, content) for name, content in sorted(here.items())
        ]

    def _paths(self, type: str, id: str, rev: str, body: bytes, **_) -> list[dict]:
        repo = self._repo(type, id)
        files = repo.commits[self._commit(repo, rev)].files
        asked = json.loads(body)["paths"] if body[:1] == b"{" else parse_qs(body.decode()).get("paths", [])
        found = [self._entry(name, files[name]) for name in asked if name in files]
        folders = [name for name in asked if name not in files and any(file.startswith(f"{name}/") for file in files)]
        return found + [{"type": "directory", "oid": "0" * 40, "size": 0, "path": name} for name in folders]

    def _refs(self, type: str, id: str, **_) -> dict:
        repo = self._repo(type, id)

        def named(kind: str, found: dict[str, str]) -> list[dict]:
            return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": commit} for n, commit in found.items()]

        return {"branches": named("heads", repo.branches), "tags": named("tags", repo.tags), "converts": []}

    def _commits(self, type: str, id: str, rev: str, **_) -> list[dict]:
        repo = self._repo(type, id)
        return [
            {"id": commit, "title": repo.commits[commit].message, "message": "", "authors": [],
             "date": "2026-01-01T00:00:00.000Z"}
            for commit in repo.history(self._commit(repo, rev))
        ]  # fmt: skip

    def _branch(self, type: str, id: str, name: str, body: bytes, **_) -> dict:
        self._may_write(id)
        repo = self._repo(type, id)
        if name in repo.branches:
            raise _Refused(409, f"Reference already exists: refs/heads/{name}")
        start = json.loads(body or b"{}").get("startingPoint") or "main"
        repo.branches[name] = self._commit(repo, start)
        return {}

    def _tag(self, type: str, id: str, rev: str, body: bytes, **_) -> dict:
        self._may_write(id)
        repo = self._repo(type, id)
        repo.tags[json.loads(body)["tag"]] = self._commit(repo, rev)
        return {}

    def _preupload(self, type: str, id: str, rev: str, body: bytes, **_) -> dict:
        self._may_write(id)
        repo = self._repo(type, id)
        files = repo.commits[self._commit(repo, rev)].files
        return {
            "files": [
                {
                    "path": asked["path"],
                    "shouldIgnore": False,
                    "oid": self._known_as(asked["path"], files),
                    "uploadMode": "lfs" if asked["path"].endswith(LARGE) else "regular",
                }
                for asked in json.loads(body)["files"]
            ]
        }

    def _known_as(self, name: str, files: dict[str, bytes]) -> str | None:
        if name not in files:
            return None
        return hashlib.sha256(files[name]).hexdigest() if name.endswith(LARGE) else _git_name(files[name])

    def _batch(self, id: str, body: bytes, **_) -> dict:
        self._may_write(id)
        objects = []
        for asked in json.loads(body)["objects"]:
            upload = {"actions": {"upload": {"href": f"{self.hub.url}/store/{asked['oid']}", "header": {}}}}
            objects.append(
                {"oid": asked["oid"], "size": asked["size"]} | ({} if asked["oid"] in self.hub.blobs else upload)
            )
        return {"transfer": "basic", "objects": objects}

    def _store(self, oid: str, body: bytes, **_) -> tuple[int, dict, bytes]:
        if hashlib.sha256(body).hexdigest() != oid:
            raise _Refused(400, "the content is not what its name says")
        self.hub.blobs[oid] = body
        return 200, {}, b""

    def _post_commit(self, type: str, id: str, rev: str, body: bytes, **_) -> dict:
        self._may_write(id)
        repo = self._repo(type, id)
        if rev not in repo.branches:
            raise _Refused(404, f"Invalid rev id: {rev}", "RevisionNotFound")
        files, message = dict(repo.commits[repo.branches[rev]].files), ""
        for line in body.decode().splitlines():
            kind, value = (operation := json.loads(line))["key"], operation["value"]
            if kind == "header":
                message = value["summary"]
            elif kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                if value["oid"] not in self.hub.blobs:
                    raise _Refused(400, f"{value['path']} was never uploaded")
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif kind == "deletedFile":
                del files[value["path"]]
            elif kind == "deletedFolder":
                files = {name: content for name, content in files.items() if not name.startswith(f"{value['path']}/")}
        files.pop(self.hub.lost, None)
        commit = repo.add(rev, files, message)
        prefix = "" if type == "models" else f"{type}/"
        return {"success": True, "commitOid": commit, "commitUrl": f"{self.hub.url}/{prefix}{id}/commit/{commit}",
                "hookOutput": ""}  # fmt: skip

    def _resolve(self, id: str, rev: str, name: str, type: str | None = None, **_) -> tuple[int, dict, bytes]:
        repo = self._repo(type or "models", id)
        commit = self._commit(repo, rev)
        if name not in repo.commits[commit].files:
            code = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found", "X-Repo-Commit": commit}
            return 404, code, b"Entry not found"
        content = repo.commits[commit].files[name]
        etag = hashlib.sha256(content).hexdigest() if name.endswith(LARGE) else _git_name(content)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if name.endswith(LARGE):
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": len(content)}
        if (asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))) and content:
            low, high = int(asked[1]), min(int(asked[2] or len(content) - 1), len(content) - 1)
            headers["Content-Range"] = f"bytes {low}-{high}/{len(content)}"
            return 206, headers, content[low : high + 1]
        return 200, headers, content

    _routes = {
        r"/faults": _ask_for_faults,
        r"/api/whoami-v2": _whoami,
        r"/api/validate-yaml": _validate,
        r"/api/repos/create": _create,
        rf"/api/{_REPO}": _info,
        rf"/api/{_REPO}/revision/(?P<rev>.+)": _info,
        rf"/api/{_REPO}/tree/(?P<rev>[^/]+)(?:/(?P<sub>.+))?": _tree,
        rf"/api/{_REPO}/paths-info/(?P<rev>.+)": _paths,
        rf"/api/{_REPO}/refs": _refs,
        rf"/api/{_REPO}/commits/(?P<rev>.+)": _commits,
        rf"/api/{_REPO}/branch/(?P<name>.+)": _branch,
        rf"/api/{_REPO}/tag/(?P<rev>.+)": _tag,
        rf"/api/{_REPO}/preupload/(?P<rev>.+)": _preupload,
        rf"/api/{_REPO}/commit/(?P<rev>.+)": _post_commit,
        rf"{_FILES}\.git/info/lfs/objects/batch": _batch,
        r"/store/(?P<oid>[0-9a-f]{64})": _store,
        rf"{_FILES}/(?:resolve|raw)/(?P<rev>[^/]+)/(?P<name>.+)": _resolve,
    }


def _git_name(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
