"""Addresses of the hub, fetched from a server of its endpoints on loopback."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from gmem_jax.bank import bank as bank_lib, files as bank_files
from gmem_jax.files import hub

REVISION = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
  """The endpoints that are asked for a repository and its files."""

  protocol_version = "HTTP/1.1"
  # Set for each server: path in the repository -> content.
  files: dict[str, bytes]
  # Bytes after which a transfer is cut off once; the digest that is promised.
  cut: list[int]
  digest: str
  log: list[tuple[str, str]]

  def log_message(self, format, *args):
    pass

  def do_HEAD(self):
    self.do_GET()

  def do_GET(self):
    path, served = self.path.partition("?")[0], b""
    self.log.append((self.command, path))
    headers, status = {"Content-Type": "application/json"}, 200
    if path.startswith("/api/models/owner/secret"):
      status, served = 401, b'{"error": "Repository not found"}'
      headers["X-Error-Code"] = "RepoNotFound"
    elif path.startswith("/api/models/owner/name/tree/"):
      served = json.dumps(self._tree()).encode()
    elif path.startswith("/api/models/owner/name"):
      siblings = [{"rfilename": name} for name in self.files]
      about = {"id": "owner/name", "sha": REVISION, "siblings": siblings}
      served = json.dumps(about).encode()
    elif path.startswith(f"/owner/name/resolve/{REVISION}/"):
      served = self.files[path.rpartition(f"{REVISION}/")[2]]
      headers = {
        "X-Repo-Commit": REVISION,
        "ETag": f'"{self.digest or hashlib.sha256(served).hexdigest()}"',
        "Accept-Ranges": "bytes",
      }
      if given := self.headers.get("Range", "").removeprefix("bytes="):
        first, _, last = given.partition("-")
        end = int(last) + 1 if last else len(served)
        headers["Content-Range"] = f"bytes {first}-{end - 1}/{len(served)}"
        status, served = 206, served[int(first) : end]
    else:
      status = 404
    self.send_response(status)
    for name, value in headers.items():
      self.send_header(name, value)
    self.send_header("Content-Length", str(len(served)))
    self.end_headers()
    if self.command == "HEAD":
      return
    if self.cut and len(served) > self.cut[0]:
      self.wfile.write(served[: self.cut.pop()])
      self.close_connection = True
      return
    self.wfile.write(served)

  def _tree(self):
    return [
      {
        "type": "file",
        "path": name,
        "size": len(data),
        "oid": hashlib.sha1(data).hexdigest(),
        "lfs": {
          "oid": hashlib.sha256(data).hexdigest(),
          "size": len(data),
          "pointerSize": 130,
        },
      }
      for name, data in self.files.items()
    ]


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
  """A stored bank."""
  rows = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
  made = bank_lib.MemoryBank(rows)
  about = bank_lib.make_info(made, encoder="", source="test")
  path = tmp_path_factory.mktemp("bank") / "bank"
  bank_files.write(path, bank_files.Stored(made, about))
  return path


@pytest.fixture
def served(bank, tmp_path):
  """Serves the bank; gives its handler, and what reads an address of it."""
  pytest.importorskip("huggingface_hub", reason="needs the extra 'hub'")
  files = {
    f"banks/{path.relative_to(bank)}": path.read_bytes()
    for path in bank.rglob("*")
    if path.is_file()
  }
  handler = type(
    "Served", (Hub,), {"files": files, "cut": [], "digest": "", "log": []}
  )
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def read(text: str, **environment: str) -> tuple[str, str]:
      """The digest of a bank's rows, or ""; and the error."""
      code = (
        "import sys, hashlib, numpy as np; from gmem_jax.bank import files\n"
        "try: rows = files.read(sys.argv[1]).bank.rows\n"
        "except (ValueError, ModuleNotFoundError) as e: sys.exit(str(e))\n"
        "print(hashlib.sha256(np.asarray(rows).tobytes()).hexdigest())"
      )
      done = subprocess.run(
        [sys.executable, "-c", code, text],
        env=os.environ
        | {
          "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
          "HF_HOME": str(tmp_path / "cache"),
          "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        | environment,
        capture_output=True, text=True, check=False,
      )  # fmt: skip
      return done.stdout.strip(), done.stderr.strip().splitlines()[-1:]

    yield handler, read
    server.shutdown()
    thread.join()


def digest_of(bank):
  rows = np.asarray(bank_files.read(bank).bank.rows)
  return hashlib.sha256(rows.tobytes()).hexdigest()


def test_a_bank_comes_once_and_is_there_without_network(served, bank):
  handler, read = served
  address = "hf://owner/name/banks"
  largest = max(map(len, handler.files.values()))
  handler.cut.append(largest // 2)  # It goes on from there.
  assert read(address)[0] == digest_of(bank)
  assert not handler.cut, "no transfer was cut off"
  fetched = [path for method, path in handler.log if method == "GET"]
  assert any("/resolve/" in path for path in fetched)
  handler.log.clear()
  assert read(address)[0] == digest_of(bank)
  assert not [
    path
    for method, path in handler.log
    if method == "GET" and "resolve" in path
  ]
  handler.log.clear()
  assert read(address, HF_HUB_OFFLINE="1")[0] == digest_of(bank)
  assert not handler.log


def test_what_cannot_be_had_is_one_line(served, bank):
  _, read = served
  for address, message, environment in (
    # Before anything is in the cache, which would do.
    ("hf://owner/name/banks", "HF_HUB_OFFLINE", {"HF_HUB_OFFLINE": "1"}),
    ("hf://owner/name/banks", "", {"HF_ENDPOINT": "http://127.0.0.1:9"}),
    ("hf://owner/secret/banks", "Repository Not Found", {}),
    ("hf://owner/name/nothing", "owner/name has no 'nothing'", {}),
    ("hf://owner/name", "is not a bank", {}),
  ):
    found, (error,) = read(address, **environment)
    assert found == ""
    assert message in error
    if not message.startswith("is not"):
      assert error.startswith(f"{address}: ")


def test_a_file_of_another_digest_is_refused_and_removed(served, bank):
  handler, read = served
  handler.digest = "0" * 64
  found, (error,) = read("hf://owner/name/banks")
  assert found == ""
  assert "the hub promised 000000000000" in error
  handler.digest = ""
  assert read("hf://owner/name/banks")[0] == digest_of(bank)


@pytest.mark.parametrize(
  "text", ["hf://", "hf://owner", "hf://owner/name@", "hf://o/n/../../etc"]
)
def test_an_address_has_a_form(text):
  with pytest.raises(ValueError, match="hf://OWNER/NAME"):
    hub.parse(text)


def test_an_address_is_read():
  assert hub.parse("hf://a/b-c.d@v1.0/e/f.npz") == (
    "a/b-c.d",
    "v1.0",
    "e/f.npz",
  )
  assert hub.parse("hf://a/b") == ("a/b", None, "")


def test_the_extra_is_named_where_it_is_missing(monkeypatch):
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  with pytest.raises(ModuleNotFoundError, match=r"gmem_jax\[hub\]"):
    hub.local("hf://owner/name")
