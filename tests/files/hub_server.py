"""A hub on loopback: what is asked for repositories and their files."""

import base64
import contextlib
import hashlib
import http.server
import json
import pathlib
import threading
from collections.abc import Iterator

# Files of more bytes are large ones, as the hub's are of 10 MB.
LARGE = 1_000


class Hub(http.server.BaseHTTPRequestHandler):
  """The endpoints."""

  protocol_version = "HTTP/1.1"
  # Set for each server: OWNER/NAME -> path -> content; whose are private, to be
  # read with the token only.
  repos: dict[str, dict[str, bytes]]
  private: set[str]
  licences: dict[str, str]
  token: str
  # Bytes after which a transfer is cut off once; the digest that is promised.
  cut: list[int]
  digest: str
  # Whether other bytes are sent than were promised.
  damaged: bool
  log: list[tuple[str, str]]
  # Large files by digest, before they are committed.
  large: dict[str, bytes]

  def log_message(self, format, *args):
    pass

  def do_HEAD(self):
    self.do_GET()

  def do_GET(self):
    path = self.path.partition("?")[0]
    self.log.append((self.command, path))
    for repo in self.private:
      if repo in path and not self._has_token():
        return self._answer_json({"error": "?"}, 401, "RepoNotFound")
    for repo, files in self.repos.items():
      if path.startswith(f"/api/models/{repo}/tree/"):
        return self._answer_json([_entry(*file) for file in files.items()])
      if path.startswith(f"/api/models/{repo}"):
        return self._answer_json(self._about(repo))
      begin = f"/{repo}/resolve/{revision(files)}/"
      if path.startswith(begin) and path.removeprefix(begin) in files:
        return self._answer_file(files, path.removeprefix(begin))
    return self._answer_json({"error": "?"}, 404, "RepoNotFound")

  def do_PUT(self):
    data = self._body()
    oid = self.path.rpartition("/")[2]
    assert digest(data) == oid
    self.large[oid] = data
    self._answer_json({})

  def do_POST(self):
    path, body = self.path.partition("?")[0], self._body()
    self.log.append((self.command, path))
    if not self._has_token():
      return self._answer_json({"error": "no token"}, 401)
    if path == "/api/repos/create":
      about = json.loads(body)
      repo = f"{about['organization']}/{about['name']}"
      if repo in self.repos:
        there = {"error": "is there", "url": self._url(repo)}
        return self._answer_json(there, 409)
      if about["organization"] != "owner":
        return self._answer_json({"error": "not yours"}, 403)
      self.repos[repo] = {}
      if about.get("visibility") == "private" or about.get("private"):
        self.private.add(repo)
      return self._answer_json({"url": self._url(repo)})
    if path == "/api/validate-yaml":
      return self._answer_json({"errors": [], "warnings": []})
    if path.endswith("/info/lfs/objects/batch"):
      objects = [
        each
        | {"actions": {"upload": {"href": self._url(f"put/{each['oid']}")}}}
        for each in json.loads(body)["objects"]
      ]
      return self._answer_json({"transfer": "basic", "objects": objects})
    if "/preupload/" in path:
      modes = [
        {
          "path": file["path"],
          "uploadMode": "lfs" if file["size"] > LARGE else "regular",
          "shouldIgnore": False,
        }
        for file in json.loads(body)["files"]
      ]
      return self._answer_json({"files": modes})
    if "/commit/" in path:
      repo = path.removeprefix("/api/models/").partition("/commit/")[0]
      self._commit(self.repos[repo], body)
      oid = revision(self.repos[repo])
      url = self._url(f"{repo}/commit/{oid}")
      return self._answer_json({"commitUrl": url, "commitOid": oid})
    return self._answer_json({"error": "?"}, 404)

  def _commit(self, files, body):
    for line in map(json.loads, body.splitlines()):
      value = line["value"]
      if line["key"] == "file":
        files[value["path"]] = base64.b64decode(value["content"])
      elif line["key"] == "lfsFile":
        files[value["path"]] = self.large[value["oid"]]
      elif line["key"] == "deletedFile":
        del files[value["path"]]

  def _about(self, repo):
    return {
      "id": repo,
      "sha": revision(self.repos[repo]),
      "siblings": [
        {"rfilename": name, "size": len(data)}
        for name, data in self.repos[repo].items()
      ],
      "cardData": {"license": self.licences.get(repo)},
    }

  def _url(self, path):
    return f"http://127.0.0.1:{self.server.server_port}/{path}"

  def _has_token(self):
    return self.headers.get("Authorization") == f"Bearer {self.token}"

  def _body(self):
    if self.headers.get("Transfer-Encoding") != "chunked":
      return self.rfile.read(int(self.headers.get("Content-Length", 0)))
    parts = []
    while size := int(self.rfile.readline(), 16):
      parts.append(self.rfile.read(size))
      self.rfile.readline()
    self.rfile.readline()
    return b"".join(parts)

  def _answer_json(self, value, status=200, code=""):
    headers = {"Content-Type": "application/json"}
    if code:
      headers["X-Error-Code"] = code
    self._answer(json.dumps(value).encode(), status, headers)

  def _answer_file(self, files, name):
    data, status = files[name], 200
    headers = {
      "X-Repo-Commit": revision(files),
      "ETag": f'"{self.digest or digest(data)}"',
      "Accept-Ranges": "bytes",
    }
    if self.damaged:
      data = bytes(len(data))
    if given := self.headers.get("Range", "").removeprefix("bytes="):
      first, _, last = given.partition("-")
      end = int(last) + 1 if last else len(data)
      headers["Content-Range"] = f"bytes {first}-{end - 1}/{len(data)}"
      status, data = 206, data[int(first) : end]
    self._answer(data, status, headers)

  def _answer(self, data, status, headers):
    self.send_response(status)
    for name, value in headers.items():
      self.send_header(name, value)
    self.send_header("Content-Length", str(len(data)))
    self.end_headers()
    if self.command == "HEAD":
      return
    if self.cut and len(data) > self.cut[0]:
      self.wfile.write(data[: self.cut.pop()])
      self.close_connection = True
      return
    self.wfile.write(data)


def digest(data: bytes) -> str:
  """As the hub names large files."""
  return hashlib.sha256(data).hexdigest()


def revision(files: dict[str, bytes]) -> str:
  """Names a state of a repository, as a commit does."""
  digests = [(n, hashlib.sha1(files[n]).hexdigest()) for n in sorted(files)]
  return hashlib.sha1(repr(digests).encode()).hexdigest()


def _entry(name: str, data: bytes) -> dict:
  return {
    "type": "file",
    "path": name,
    "size": len(data),
    "oid": hashlib.sha1(data).hexdigest(),
    "lfs": {
      "oid": digest(data),
      "size": len(data),
      "pointerSize": 130,
    },
  }


def files_of(directory: pathlib.Path, prefix: str = "") -> dict[str, bytes]:
  """A directory as a repository has it."""
  return {
    f"{prefix}{path.relative_to(directory)}": path.read_bytes()
    for path in directory.rglob("*")
    if path.is_file()
  }


@contextlib.contextmanager
def serving(cache: pathlib.Path) -> Iterator[tuple[type[Hub], dict[str, str]]]:
  """Serves; gives its state, and the environment of a process that asks it."""
  state = {
    "repos": {}, "private": set(), "licences": {}, "token": "hf_token",
    "cut": [], "digest": "", "damaged": False, "log": [], "large": {},
  }  # fmt: skip
  handler = type("Served", (Hub,), state)
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
      yield (
        handler,
        {
          "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
          "HF_HOME": str(cache),
          "HF_HUB_DISABLE_PROGRESS_BARS": "1",
          "HF_HUB_DISABLE_XET": "1",
        },
      )
    finally:
      server.shutdown()
      thread.join()
